//! The sampler's device path on a device against the definition of the rules, and its kernels against its tensor operations.

use candle_core::{DType, Device, Tensor};
use tinygpt_sampler::{
    DeviceRow, DeviceSampler, Sampler, SamplingError, SamplingParams, Schedule,
    kernels::{Kernels, without_kernels},
    oracle::{self, DrawNumbers},
    test_rows::{BOUNDARY, TestRng, random_batch, random_rules},
};

use super::check::Check;
use crate::commands::bench::sampling::logits;

/// Rows and vocabularies: the smallest, odd ones, one of which kernels give a block several parts, that of GPT-2.
const SHAPES: [(usize, usize); 8] =
    [(16, 1), (3, 2), (16, 65), (3, 257), (16, 1000), (52, 8193), (1, 50_257), (3, 50_257)];
/// The largest batch that is drawn from in 16 bits too.
const MAX_HALF_BATCH: usize = 60_000;
/// The position of the rows of a batch in their texts.
const POSITION: u64 = 7;
/// Batches of random rows and rules, and the largest vocabulary of nearly all of them, and of the others.
const RANDOM_BATCHES: u64 = 40;
const SMALL_VOCAB: usize = 3000;
const LARGE_VOCAB: usize = 60_000;

/// A set of rules.
struct RuleSet {
    params: SamplingParams,
    adaptive: Option<f64>,
    schedule: Schedule,
}

impl RuleSet {
    fn new(params: SamplingParams) -> Self {
        Self { params, adaptive: None, schedule: Schedule::Constant }
    }

    fn host(&self) -> anyhow::Result<Sampler> {
        let sampler = Sampler::new(self.params.clone())?.with_schedule(self.schedule)?;
        Ok(match self.adaptive {
            Some(threshold) => sampler.with_adaptive(threshold)?,
            None => sampler,
        })
    }
}

/// Sets of rules by their names.
fn rule_sets() -> Vec<(&'static str, RuleSet)> {
    let with = |change: fn(&mut SamplingParams)| {
        let mut params = SamplingParams { seed: 1337, ..SamplingParams::default() };
        change(&mut params);
        RuleSet::new(params)
    };
    vec![
        ("greedy", with(|p| p.temperature = 0.0)),
        ("temperature", with(|p| p.temperature = 0.8)),
        ("top-k", with(|p| p.top_k = 50)),
        ("top-k above 128", with(|p| p.top_k = 500)),
        ("top-p", with(|p| p.top_p = 0.9)),
        ("top-p near 1", with(|p| p.top_p = 1.0 - 1e-5)),
        ("top-p, cold", with(|p| (p.top_p, p.temperature) = (0.9, 0.05))),
        ("top-k and top-p", with(|p| (p.top_k, p.top_p) = (50, 0.9))),
        ("min-p", with(|p| p.min_p = 0.05)),
        ("penalties", with(|p| (p.repetition_penalty, p.presence_penalty, p.frequency_penalty) = (1.3, 0.4, 0.2))),
        (
            "all rules",
            with(|p| {
                (p.repetition_penalty, p.presence_penalty, p.frequency_penalty) = (1.3, 0.4, 0.2);
                p.logit_bias = vec![(0, 1.5), (0, -0.75)];
                (p.temperature, p.top_k, p.top_p, p.min_p) = (1.2, 300, 0.95, 0.01);
            }),
        ),
        ("adaptive", RuleSet { adaptive: Some(0.2), ..with(|p| p.top_k = 50) }),
        (
            "schedule",
            RuleSet {
                schedule: Schedule::Linear { to: 0.5, steps: 20 },
                ..with(|p| (p.temperature, p.top_p) = (1.5, 0.9))
            },
        ),
    ]
}

/// For each set of rules, the number of rows whose draw is not the definition's; on a device with kernels, also of those that
/// its tensor operations draw otherwise.
pub fn checks(device: &Device) -> anyhow::Result<Vec<Check>> {
    let mut checks = Vec::new();
    for (name, rules) in rule_sets() {
        let mut found = Differences::default();
        for (number, (rows, vocab)) in SHAPES.into_iter().enumerate() {
            let logits = Tensor::from_vec(values(rows, vocab, number), (rows, vocab), device)?;
            // Both ends of the vocabulary.
            let history = vec![0, vocab as u32 - 1, 0];
            let places: Vec<_> = (0..rows as u64)
                .map(|sequence| DeviceRow { history: &history, sequence, position: POSITION })
                .collect();
            let dtypes = [DType::F32, DType::BF16, DType::F16];
            for dtype in if rows * vocab <= MAX_HALF_BATCH { &dtypes[..] } else { &dtypes[..1] } {
                found.look(&rules, &logits.to_dtype(*dtype)?, &places, || {
                    format!("{rows} rows of {vocab} in {dtype:?}")
                })?;
            }
        }
        checks.extend(found.into_checks(name));
    }
    let mut found = Differences::default();
    for case in 0..RANDOM_BATCHES {
        random_differences(&mut found, case, device)?;
    }
    checks.extend(found.into_checks("random rules"));
    Ok(checks)
}

/// The differences found in each batch, with its place.
#[derive(Default)]
struct Differences {
    from_definition: Vec<(String, f64)>,
    of_kernels: Vec<(String, f64)>,
}

impl Differences {
    /// Compares the draws from logits, `(B, V)`.
    fn look(
        &mut self,
        rules: &RuleSet,
        logits: &Tensor,
        places: &[DeviceRow<'_>],
        place: impl Fn() -> String,
    ) -> anyhow::Result<()> {
        let draw = || DeviceSampler::from(&rules.host()?).sample(logits, places).map_err(anyhow::Error::from);
        let drawn = draw()?;
        let values = logits.to_dtype(DType::F32)?.to_vec2()?;
        self.from_definition.push((place(), wrong(&drawn, &values, rules, places)? as f64));
        if Kernels::of(logits.device()).is_some() {
            let expected = without_kernels(draw)?;
            let differing = drawn.iter().zip(&expected).filter(|(a, b)| a != b).count();
            self.of_kernels.push((place(), differing as f64));
        }
        Ok(())
    }

    fn into_checks(self, name: &str) -> Vec<Check> {
        let mut checks = vec![Check::new("draws on the device", name, 0.0, self.from_definition)];
        if !self.of_kernels.is_empty() {
            checks.push(Check::new("draws by kernels", name, 0.0, self.of_kernels));
        }
        checks
    }
}

/// Draws from a random batch by random rules, at one position or several, with a history of its own for each row.
fn random_differences(found: &mut Differences, case: u64, device: &Device) -> anyhow::Result<()> {
    let mut rng = TestRng::new(1_000_000 + case);
    let rows = [1, 3, 16][rng.below(3)];
    let batch = random_batch(&mut rng, rows, if case.is_multiple_of(20) { LARGE_VOCAB } else { SMALL_VOCAB });
    let vocab = batch[0].len();
    let (params, history) = random_rules(&mut rng, vocab);
    let mut rules = RuleSet::new(params);
    if rng.unit() < 0.2 {
        rules.adaptive = Some(rng.unit());
    }
    if rng.unit() < 0.2 && rules.params.temperature > 0.0 {
        rules.schedule = Schedule::Linear { to: [0.0, 2.0][rng.below(2)], steps: 3 };
    }
    let step = rng.below(2) as u64;
    let place = |row: usize| DeviceRow {
        history: &history[..history.len() * (row + 1) / rows],
        sequence: row as u64,
        position: row as u64 * step,
    };
    let places: Vec<_> = (0..rows).map(place).collect();
    let dtype = [DType::F32, DType::F32, DType::BF16, DType::F16][rng.below(4)];
    let logits = Tensor::from_vec(batch.concat(), (rows, vocab), device)?.to_dtype(dtype)?;
    found.look(&rules, &logits, &places, || format!("batch {case}, {rows} rows of {vocab} in {dtype:?}"))
}

/// Rows of logits of every kind in turn, from the kind of this number on: normal, tied, flat, nearly flat, mostly and wholly
/// -inf, far apart, and with a NaN or an infinity.
fn values(rows: usize, vocab: usize, first_kind: usize) -> Vec<f32> {
    let mut values = logits::normal(rows, vocab);
    for (number, row) in values.chunks_mut(vocab).enumerate() {
        let middle = vocab / 2;
        match (number + first_kind) % 10 {
            0 => row.iter_mut().for_each(|x| *x = x.round()),
            1 => row.fill(0.25),
            2 => row.iter_mut().for_each(|x| *x = 5.0 + 1e-6 * *x),
            3 => (0..vocab).filter(|i| i % 7 != middle % 7).for_each(|i| row[i] = f32::NEG_INFINITY),
            4 => row.iter_mut().for_each(|x| *x *= 1e30),
            5 => row[middle] = f32::NAN,
            6 => row[middle] = f32::INFINITY,
            7 => row.fill(f32::NEG_INFINITY),
            _ => {}
        }
    }
    values
}

type Drawn = Vec<Result<u32, SamplingError>>;

/// How many draws, or errors, are not those of the definition, and far from a boundary of it. An adaptive threshold or a
/// schedule is not part of the definition; there the host sampler is.
fn wrong(drawn: &Drawn, values: &[Vec<f32>], rules: &RuleSet, places: &[DeviceRow<'_>]) -> anyhow::Result<usize> {
    let by_definition = rules.adaptive.is_none() && rules.schedule == Schedule::Constant;
    let mut host = rules.host()?;
    let mut is_wrong = |row: usize| {
        let (logits, DeviceRow { history, sequence, position }) = (&values[row], places[row]);
        let (expected, margin) = if by_definition {
            let numbers = DrawNumbers::at(&rules.params, sequence, position);
            let outcome = oracle::sample_with(logits, &rules.params, history, numbers);
            let margin = outcome.as_ref().map_or(1.0, |outcome| outcome.margin);
            (outcome.map(|outcome| outcome.token), margin)
        } else {
            (host.sample_row(logits, history, sequence, position), 1.0)
        };
        drawn[row] != expected.map_err(|error| error.at_row(row)) && margin >= BOUNDARY
    };
    Ok((0..drawn.len()).filter(|&row| is_wrong(row)).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_and_errors_that_are_not_the_definitions_are_counted() {
        let greedy = RuleSet::new(SamplingParams { temperature: 0.0, ..SamplingParams::default() });
        let values = [vec![1.0, 3.0, 2.0], vec![0.0, f32::NAN, 0.0]];
        let places = [0, 1].map(|sequence| DeviceRow { history: &[], sequence, position: 0 });
        let of_row_1 = SamplingError::NotANumber { row: 1, index: 1 };
        for (drawn, expected) in [
            (vec![Ok(1), Err(of_row_1.clone())], 0),
            (vec![Ok(2), Err(of_row_1.clone())], 1),
            (vec![Ok(2), Ok(1)], 2),
            (vec![Err(of_row_1.clone()), Err(of_row_1)], 1),
        ] {
            assert_eq!(wrong(&drawn, &values, &greedy, &places).unwrap(), expected, "{drawn:?}");
        }
    }
}
