//! The sampler's device path on a device against the definition of the rules.

use candle_core::{Device, Tensor};
use tinygpt_sampler::{DeviceRow, DeviceSampler, SamplingError, SamplingParams, oracle, uniform};

use super::check::Check;
use crate::commands::bench::sampling::logits;

/// Where the definition has a boundary nearer than this, another rounding may decide otherwise.
const BOUNDARY: f64 = 1.0 / (1 << 20) as f64;
/// Rows of a batch, and sizes of the vocabulary: small, odd, that of GPT-2, and one above what a GPU sorts at once.
const ROWS: usize = 5;
const VOCABS: [usize; 5] = [1, 2, 97, 8193, 50_257];

/// Sets of rules by their names.
fn rules() -> Vec<(&'static str, SamplingParams)> {
    let with = |change: fn(&mut SamplingParams)| {
        let mut params = SamplingParams { seed: 1337, ..SamplingParams::default() };
        change(&mut params);
        params
    };
    vec![
        ("greedy", with(|p| p.temperature = 0.0)),
        ("temperature", with(|p| p.temperature = 0.8)),
        ("top-k", with(|p| p.top_k = 50)),
        ("top-k above 128", with(|p| p.top_k = 500)),
        ("top-p", with(|p| p.top_p = 0.9)),
        ("top-k and top-p", with(|p| (p.top_k, p.top_p) = (50, 0.9))),
        ("min-p", with(|p| p.min_p = 0.05)),
        ("penalties", with(|p| (p.repetition_penalty, p.presence_penalty, p.frequency_penalty) = (1.3, 0.4, 0.2))),
    ]
}

/// A check for each set of rules: the number of rows whose draw is not the definition's.
pub fn checks(device: &Device) -> anyhow::Result<Vec<Check>> {
    let mut checks = Vec::new();
    for (name, rules) in rules() {
        let mut differences = Vec::new();
        for vocab in VOCABS {
            differences.push((format!("vocabulary {vocab}"), differing(&rules, vocab, device)? as f64));
        }
        checks.push(Check::new("draws on the device", name, 0.0, differences));
    }
    Ok(checks)
}

type Drawn = Vec<Result<u32, SamplingError>>;

/// Rows of a batch that the device draws from otherwise than the definition.
fn differing(rules: &SamplingParams, vocab: usize, device: &Device) -> anyhow::Result<usize> {
    let mut values = logits::normal(ROWS, vocab);
    // Ties: a row of few values. And a row that nothing can be drawn from.
    values[vocab..2 * vocab].iter_mut().for_each(|x| *x = x.round());
    values[3 * vocab + vocab / 2] = f32::NAN;
    let penalised = rules.repetition_penalty != 1.0;
    let history = if penalised { vec![0, vocab as u32 - 1, 0] } else { Vec::new() };
    let rows: Vec<_> =
        (0..ROWS as u64).map(|sequence| DeviceRow { history: &history, sequence, position: 7 }).collect();
    let logits = Tensor::from_slice(&values, (ROWS, vocab), device)?;
    let drawn = DeviceSampler::new(rules.clone())?.sample(&logits, &rows)?;
    Ok(wrong(&drawn, &values, rules, &history))
}

/// How many draws, or errors, are not those of the definition, and far from a boundary of it.
fn wrong(drawn: &Drawn, values: &[f32], rules: &SamplingParams, history: &[u32]) -> usize {
    let is_wrong = |(row, found): (usize, &Result<u32, SamplingError>)| {
        let vocab = values.len() / drawn.len();
        let u = uniform(rules.seed, row as u64, 7);
        match oracle::sample(&values[row * vocab..(row + 1) * vocab], rules, history, u) {
            Ok(expected) => found != &Ok(expected.token) && expected.margin >= BOUNDARY,
            Err(error) => found != &Err(error.at_row(row)),
        }
    };
    drawn.iter().enumerate().filter(|&row| is_wrong(row)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_and_errors_that_are_not_the_definitions_are_counted() {
        let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        let values = [1.0, 3.0, 2.0, 0.0, f32::NAN, 0.0];
        let of_row_1 = SamplingError::NotANumber { row: 1, index: 1 };
        for (drawn, expected) in [
            (vec![Ok(1), Err(of_row_1.clone())], 0),
            (vec![Ok(2), Err(of_row_1.clone())], 1),
            (vec![Ok(2), Ok(1)], 2),
            (vec![Err(of_row_1.clone()), Err(of_row_1)], 1),
        ] {
            assert_eq!(wrong(&drawn, &values, &greedy, &[]), expected, "{drawn:?}");
        }
    }
}
