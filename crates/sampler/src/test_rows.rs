//! Random rows and rules, by which all fast paths are tested against the definition: here, and by `tinygpt selftest` on a
//! device.

use crate::rng::uniform;
use crate::{Dry, SamplingParams};

/// The [`Outcome::margin`](crate::oracle::Outcome::margin) below which sums in another order may give another answer.
pub const BOUNDARY: f64 = 1.0 / 1_048_576.0;

/// The random numbers of one test case.
#[derive(Debug)]
pub struct TestRng {
    case: u64,
    count: u64,
}

impl TestRng {
    /// Those of the case of this number.
    pub fn new(case: u64) -> Self {
        Self { case, count: 0 }
    }

    /// A uniform number in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        self.count += 1;
        uniform(0xD1CE, self.case, self.count)
    }

    /// A uniform integer below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.unit() * n as f64) as usize
    }

    /// A standard normal number (Box-Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }
}

/// A row of at most `max_size` logits, of one of many shapes: spread, tied, peaked, flat, nearly flat, mostly -inf,
/// extreme.
pub fn random_row(rng: &mut TestRng, max_size: usize) -> Vec<f32> {
    let size = (max_size as f64).powf(rng.unit()).ceil() as usize;
    let shape = rng.below(10);
    let spread = 10f64.powf(rng.unit() * 3.0 - 1.5);
    let offset = (rng.unit() - 0.5) * 20.0;
    let peak = rng.below(size);
    let mut row: Vec<f32> = (0..size)
        .map(|n| {
            let x = match shape {
                0..=3 => offset + spread * rng.normal(),
                4 => (3.0 * rng.normal()).round(),
                5 if n == peak => 30.0,
                5 => rng.normal(),
                6 => offset,
                7 => offset + 1e-6 * rng.normal(),
                8 if rng.unit() < 0.9 => f64::NEG_INFINITY,
                8 => 2.0 * rng.normal(),
                _ => 1e30 * rng.normal(),
            };
            x as f32
        })
        .collect();
    row[peak] = row[peak].max(-1e30);
    row
}

/// A batch of rows of one length, of which one in eight has a NaN or an infinity.
pub fn random_batch(rng: &mut TestRng, rows: usize, max_size: usize) -> Vec<Vec<f32>> {
    let first = random_row(rng, max_size);
    let size = first.len();
    let mut batch = vec![first];
    while batch.len() < rows {
        let mut row = random_row(rng, max_size);
        row.truncate(size);
        row.resize(size, 0.25);
        batch.push(row);
    }
    for row in &mut batch {
        if rng.unit() < 0.125 {
            let poison = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][rng.below(3)];
            let at = rng.below(size);
            row[at] = poison;
        }
    }
    batch
}

/// Parameters of mixed rules, and a history for their penalties.
pub fn random_rules(rng: &mut TestRng, vocab: usize) -> (SamplingParams, Vec<u32>) {
    let mut params = SamplingParams { seed: rng.case, ..Default::default() };
    if rng.unit() < 0.6 {
        params.temperature = 10f64.powf(rng.unit() * 3.0 - 2.0);
    }
    match rng.below(40) {
        0 => params.temperature = 0.0,
        1 => params.temperature = 1e-20,
        2 => params.temperature = 1e25,
        _ => {}
    }
    if rng.unit() < 0.5 {
        params.top_k = (vocab as f64).powf(rng.unit()).round() as usize + rng.below(2);
    }
    if rng.unit() < 0.5 {
        params.top_p = [rng.unit(), 1.0 - 0.1 * rng.unit(), 0.0, 0.9, 1.0 - 1e-5][rng.below(5)];
    }
    if rng.unit() < 0.3 {
        params.min_p = [rng.unit(), 10f64.powf(-8.0 * rng.unit()), 1.0][rng.below(3)];
    }
    let mut history = Vec::new();
    if rng.unit() < 0.2 {
        history = (0..rng.below(50)).map(|_| rng.below(vocab) as u32).collect();
        params.repetition_penalty = 1.0 + rng.unit();
        params.presence_penalty = rng.normal();
        params.frequency_penalty = rng.normal();
        params.logit_bias = vec![(rng.below(vocab) as u32, rng.normal() as f32)];
    }
    if rng.unit() < 0.1 {
        history = (0..rng.below(50)).map(|_| rng.below(vocab.min(4)) as u32).collect();
        params.dry = Dry { multiplier: rng.unit(), allowed_length: 1 + rng.below(3), ..Dry::default() };
        params.no_repeat_ngram_size = [0, 5][rng.below(2)];
    }
    match rng.below(10) {
        0 => shape_whole_rows(rng, &mut params),
        1 => {
            params = SamplingParams { top_k: 0, top_p: 1.0, min_p: 0.0, ..params };
            params.mirostat_tau = 10.0 * rng.unit();
        }
        _ => {}
    }
    (params, history)
}

/// Turns on at least one of the rules about the whole distribution.
fn shape_whole_rows(rng: &mut TestRng, params: &mut SamplingParams) {
    let which = rng.below(4);
    if which == 0 || rng.unit() < 0.2 {
        params.typical_p = [rng.unit(), 1.0 - 0.1 * rng.unit(), 0.0][rng.below(3)];
    }
    if which == 1 || rng.unit() < 0.2 {
        params.top_n_sigma = 3.0 * rng.unit();
    }
    if which == 2 || rng.unit() < 0.2 {
        params.xtc_probability = [1.0, 0.5][rng.below(2)];
        params.xtc_threshold = 0.6 * rng.unit() * rng.unit();
    }
    if which == 3 || rng.unit() < 0.2 {
        params.dynatemp_range = params.temperature.min(10.0) * 2.0 * rng.unit();
        params.dynatemp_exponent = 0.5 + 2.0 * rng.unit();
    }
}
