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
    dry: (f64, f64, u8, u8, Vec<Vec<u8>>),
    no_repeat_ngram_size: u8,
    top_n_sigma: f64,
    dynatemp: (f64, f64),
    typical_p: f64,
    xtc: (f64, f64),
    mirostat: (f64, f64),
    history: Vec<u8>,
    logits: Vec<f32>,
    vocab: u8,
    position: u64,
}

fuzz_target!(|input: Input| {
    let (multiplier, base, allowed_length, last_n, breakers) = &input.dry;
    let tokens = |bytes: &Vec<u8>| bytes.iter().map(|&token| u32::from(token)).collect();
    let params = SamplingParams {
        dry: Dry {
            multiplier: *multiplier,
            base: *base,
            allowed_length: usize::from(*allowed_length),
            last_n: usize::from(*last_n),
            breakers: breakers.iter().map(tokens).collect(),
        },
        no_repeat_ngram_size: usize::from(input.no_repeat_ngram_size),
        top_n_sigma: input.top_n_sigma,
        dynatemp_range: input.dynatemp.0,
        dynatemp_exponent: input.dynatemp.1,
        typical_p: input.typical_p,
        xtc_probability: input.xtc.0,
        xtc_threshold: input.xtc.1,
        mirostat_tau: input.mirostat.0,
        mirostat_eta: input.mirostat.1,
        temperature: input.temperature,
        top_k: usize::from(input.top_k),
        top_p: input.top_p,
        min_p: input.min_p,
        repetition_penalty: input.repetition_penalty,
        presence_penalty: input.presence_penalty,
        frequency_penalty: input.frequency_penalty,
        logit_bias: input.logit_bias.iter().map(|&(token, bias)| (u32::from(token), bias)).collect(),
        seed: 1,
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
