//! On any rules and any row, the host path and the device path give the token of the definition, or its error, and do
//! not panic.
#![no_main]

use arbitrary::Arbitrary;
use candle_core::{Device, Tensor};
use libfuzzer_sys::fuzz_target;
use tinygpt_sampler::{
    DeviceRow, DeviceSampler, Dry, Row, Sampler, SamplingError, SamplingParams,
    oracle::{self, DrawNumbers},
};

/// The margin of the definition below which sums in another order may give another answer.
const BOUNDARY: f64 = 1.0 / 1_048_576.0;

#[derive(Debug, Arbitrary)]
struct Input {
    temperature: f64,
    top_k: u8,
    top_p: f64,
    min_p: f64,
    repetition_penalty: f64,
    presence_penalty: f64,
    frequency_penalty: f64,
    logit_bias: Vec<(u8, f32)>,
    shape: Shape,
    history: Vec<u8>,
    logits: Vec<f32>,
    vocab: u8,
    position: u64,
}

/// The rules of which one is on at a time, since most numbers are outside the range of a rule.
#[derive(Debug, Arbitrary)]
enum Shape {
    None,
    Typical(f64),
    TopNSigma(f64),
    Xtc(f64),
    Mirostat(f64, f64),
    DynamicTemperature(f64, f64),
    NoRepeat(u8),
    Dry { multiplier: f64, base: f64, allowed_length: u8, last_n: u8, breaker: Vec<u8> },
}

impl Shape {
    fn params(&self) -> SamplingParams {
        let off = SamplingParams::default();
        match *self {
            Self::None => off,
            Self::Typical(typical_p) => SamplingParams { typical_p, ..off },
            Self::TopNSigma(top_n_sigma) => SamplingParams { top_n_sigma, ..off },
            Self::Xtc(xtc_threshold) => SamplingParams { xtc_probability: 1.0, xtc_threshold, ..off },
            Self::Mirostat(mirostat_tau, mirostat_eta) => SamplingParams { mirostat_tau, mirostat_eta, ..off },
            Self::DynamicTemperature(dynatemp_range, dynatemp_exponent) => {
                SamplingParams { dynatemp_range, dynatemp_exponent, ..off }
            }
            Self::NoRepeat(size) => SamplingParams { no_repeat_ngram_size: usize::from(size), ..off },
            Self::Dry { multiplier, base, allowed_length, last_n, ref breaker } => {
                let breaker = breaker.iter().map(|&token| u32::from(token)).collect();
                let (allowed_length, last_n) = (usize::from(allowed_length), usize::from(last_n));
                SamplingParams { dry: Dry { multiplier, base, allowed_length, last_n, breakers: vec![breaker] }, ..off }
            }
        }
    }
}

fuzz_target!(|input: Input| {
    let params = SamplingParams {
        temperature: input.temperature,
        top_k: usize::from(input.top_k),
        top_p: input.top_p,
        min_p: input.min_p,
        repetition_penalty: input.repetition_penalty,
        presence_penalty: input.presence_penalty,
        frequency_penalty: input.frequency_penalty,
        logit_bias: input.logit_bias.iter().map(|&(token, bias)| (u32::from(token), bias)).collect(),
        seed: 1,
        ..input.shape.params()
    };
    let history: Vec<u32> = input.history.iter().map(|&token| u32::from(token)).collect();
    let vocab = usize::from(input.vocab).max(1);
    let rows: Vec<&[f32]> = input.logits.chunks_exact(vocab).collect();
    let (Ok(mut host), Ok(mut device)) = (Sampler::new(params.clone()), DeviceSampler::new(params.clone())) else {
        assert!(params.validate().is_err());
        return;
    };
    let batch: Vec<Row<'_>> = (0..)
        .zip(&rows)
        .map(|(sequence, logits)| Row { logits, history: &history, sequence, position: input.position })
        .collect();
    let places: Vec<DeviceRow<'_>> = batch
        .iter()
        .map(|row| DeviceRow { history: row.history, sequence: row.sequence, position: row.position })
        .collect();
    let by_host = host.sample_batch(&batch);
    let by_device = Tensor::from_vec(rows.concat(), (rows.len(), vocab), &Device::Cpu)
        .map_err(Into::into)
        .and_then(|logits| device.sample(&logits, &places))
        .expect("logits of two dimensions, and a place for each row");
    for (n, row) in batch.iter().enumerate() {
        let numbers = DrawNumbers::at(&params, row.sequence, row.position);
        let expected = oracle::sample_with(row.logits, &params, &history, numbers);
        for found in [&by_host[n], &by_device[n]] {
            match (&expected, found) {
                // A boundary of min-p is none of the margin's: the token may differ where the kept set does.
                (Ok(outcome), Ok(token)) if outcome.margin > BOUNDARY && params.min_p == 0.0 => {
                    assert_eq!(*token, outcome.token, "row {n}: {params:?}");
                }
                (Ok(_), Ok(_)) => {}
                (expected, found) => {
                    let error = |e: &SamplingError| e.clone().at_row(n);
                    assert_eq!(expected.as_ref().map(|_| ()).map_err(error), found.as_ref().map(|_| ()).map_err(error));
                }
            }
        }
    }
});
