//! Generation where the logits are on a device: the same tokens as by the host's sampler, of which alone a step reads back.
//! The device is the CPU, on which the same tensor operations run.

use std::ops::ControlFlow;

use crate::common::{Random, lively_params, relative_error, shape};
use candle_core::{DType, Device};
use tinygpt_model::{ContextPolicy, Decoder, Generation, GptConfig, Logits, ModelError, TensorDecoder, generate};
use tinygpt_sampler::{DeviceRow, DeviceSampler, Sampler, SamplingError, SamplingParams, Schedule};

const VOCAB: usize = 300;
const PROMPT: [u32; 3] = [5, 17, 5];

fn config() -> GptConfig {
    shape(VOCAB, 16, 2, 2, 8)
}

fn decoder(weights: DType, params: &[Vec<f32>]) -> TensorDecoder {
    TensorDecoder::new(&config(), params, ContextPolicy::Half, weights, &Device::Cpu).unwrap()
}

/// A decoder whose logits are copied to the host, and so drawn from by the host's sampler.
struct OnHost {
    inner: TensorDecoder,
    logits: Vec<f32>,
}

impl Decoder for OnHost {
    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }

    fn start(&mut self, prompt: &[u32], rows: usize) -> tinygpt_model::Result<Logits<'_>> {
        self.logits = self.inner.start(prompt, rows)?.to_host()?.into_owned();
        Ok(Logits::Host(&self.logits))
    }

    fn step(&mut self, tokens: &[u32]) -> tinygpt_model::Result<Logits<'_>> {
        self.logits = self.inner.step(tokens)?.to_host()?.into_owned();
        Ok(Logits::Host(&self.logits))
    }
}

/// Every rule alone, then all of them together.
fn samplers() -> Vec<Sampler> {
    let rules = |change: &dyn Fn(&mut SamplingParams)| {
        let mut params = SamplingParams { seed: 8, ..SamplingParams::default() };
        change(&mut params);
        Sampler::new(params).unwrap()
    };
    let all = |p: &mut SamplingParams| {
        (p.temperature, p.top_k, p.top_p, p.min_p) = (0.8, 60, 0.95, 0.01);
        (p.repetition_penalty, p.frequency_penalty, p.presence_penalty) = (1.3, 0.2, 0.1);
        p.logit_bias = vec![(3, 2.0), (4, f32::NEG_INFINITY), (3, -0.7)];
    };
    let linear = Schedule::Linear { to: 0.0, steps: 20 };
    let exponential = Schedule::Exponential { to: 0.2, steps: 20 };
    let start = PROMPT.len() as u64;
    vec![
        rules(&|_| {}),
        rules(&|p| p.temperature = 0.0),
        rules(&|p| p.temperature = 0.7),
        rules(&|p| p.top_k = 20),
        rules(&|p| p.top_k = 200),
        rules(&|p| p.top_p = 0.8),
        rules(&|p| (p.top_k, p.top_p) = (50, 0.9)),
        rules(&|p| p.min_p = 0.05),
        rules(&|p| p.repetition_penalty = 1.5),
        rules(&|p| (p.frequency_penalty, p.presence_penalty) = (0.5, 0.25)),
        rules(&|p| p.logit_bias = vec![(7, 3.0), (9, f32::NEG_INFINITY)]),
        rules(&|p| p.no_repeat_ngram_size = 2),
        rules(&|p| (p.dry.multiplier, p.dry.allowed_length) = (2.0, 1)),
        rules(&|p| (p.typical_p, p.top_n_sigma) = (0.9, 2.5)),
        rules(&|p| (p.xtc_probability, p.xtc_threshold) = (0.5, 0.02)),
        rules(&|p| (p.dynatemp_range, p.dynatemp_exponent) = (0.7, 2.0)),
        rules(&|p| (p.mirostat_tau, p.mirostat_eta) = (3.0, 0.6)),
        rules(&|_| {}).with_schedule_from(linear, start).unwrap(),
        rules(&|p| p.min_p = 0.02).with_schedule_from(exponential, start).unwrap(),
        rules(&|_| {}).with_adaptive(0.05).unwrap(),
        rules(&all).with_schedule_from(linear, start).unwrap().with_adaptive(0.3).unwrap(),
    ]
}

/// The texts of five rows, of which each ends at its first token divisible by `stop`.
fn texts(decoder: &mut dyn Decoder, sampler: &mut Sampler, stop: u32) -> tinygpt_model::Result<Vec<Vec<u32>>> {
    let mut texts = vec![Vec::new(); 5];
    let request = Generation { prompt: &PROMPT, first_sequence: 40, rows: 5, max_new_tokens: 30 };
    generate(decoder, sampler, request, |row, token| {
        texts[row].push(token);
        if token.is_multiple_of(stop) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(texts)
}

#[test]
fn the_devices_sampler_gives_the_text_of_the_hosts_under_every_rule() {
    let params = lively_params(&config(), 3);
    let mut ended = 0;
    for mut sampler in samplers() {
        let mut on_host = OnHost { inner: decoder(DType::F32, &params), logits: Vec::new() };
        let by_host = texts(&mut on_host, &mut sampler, 40).unwrap();
        let by_device = texts(&mut decoder(DType::F32, &params), &mut sampler, 40).unwrap();
        assert_eq!(by_device, by_host, "{sampler:?}");
        ended += by_host.iter().filter(|text| text.len() < 30).count();
    }
    assert!((20..100).contains(&ended), "{ended} of 105 rows ended early");
}

#[test]
fn a_step_reads_its_tokens_back_and_nothing_else() {
    let params = lively_params(&config(), 3);
    for sampler in samplers() {
        let (mut decoder, mut on_device) = (decoder(DType::F32, &params), DeviceSampler::from(&sampler));
        let mut tokens = vec![0; 3];
        // Past the end of the context.
        for n in 0..20 {
            let logits = if n == 0 { decoder.start(&PROMPT, 3) } else { decoder.step(&tokens) }.unwrap();
            let Logits::Device(logits) = logits else { panic!("the tensor decoder's logits stay where they are") };
            let place = |sequence| DeviceRow { history: &PROMPT, sequence, position: 3 + n };
            let (drawn, cost) = on_device.sample_counted(logits, &[0, 1, 2].map(place)).unwrap();
            tokens = drawn.into_iter().map(Result::unwrap).collect();
            // Rows that are searched, for a nucleus that is not among the candidates or for a large top-k, are looked at.
            let params = sampler.params();
            let searched = (params.top_p < 1.0 && params.top_k == 0) || params.top_k > 128;
            assert!(cost.readbacks == 1 || (searched && cost.readbacks <= 3), "{} at {n}: {params:?}", cost.readbacks);
        }
    }
}

#[test]
fn a_bad_row_is_named_and_one_that_has_ended_is_not_looked_at() {
    let mut params = lively_params(&config(), 3);
    // The embedding of one token, which is also its row of the head.
    params[0][6 * 16] = f32::NAN;
    let mut sampler = Sampler::new(SamplingParams { temperature: 0.0, ..SamplingParams::default() }).unwrap();
    let mut on_host = OnHost { inner: decoder(DType::F32, &params), logits: Vec::new() };
    let of = |result: tinygpt_model::Result<Vec<Vec<u32>>>| match result {
        Err(ModelError::Sampling(error)) => error,
        other => panic!("{other:?}"),
    };
    let expected = SamplingError::NotANumber { row: 0, index: 6 };
    assert_eq!(of(texts(&mut on_host, &mut sampler, 40)), expected);
    assert_eq!(of(texts(&mut decoder(DType::F32, &params), &mut sampler, 40)), expected);
}

#[test]
fn half_precision_weights_give_logits_near_those_of_the_model() {
    let params = lively_params(&config(), 3);
    let tokens = Random::new(5).tokens(24, VOCAB);
    let logits = |weights| {
        let mut decoder = decoder(weights, &params);
        let mut all = vec![decoder.start(&tokens[..4], 1).unwrap().to_host().unwrap().into_owned()];
        for token in &tokens[4..] {
            all.push(decoder.step(&[*token]).unwrap().to_host().unwrap().into_owned());
        }
        all
    };
    let exact = logits(DType::F32);
    for (weights, least, most) in [(DType::BF16, 1e-4, 0.05), (DType::F16, 1e-5, 0.01)] {
        let errors = logits(weights).iter().zip(&exact).map(|(a, b)| relative_error(a, b)).fold(0.0, f64::max);
        assert!((least..most).contains(&errors), "{weights:?}: {errors}");
    }
}
