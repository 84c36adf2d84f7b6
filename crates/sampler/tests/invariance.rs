//! The token of a row is a function of its logits, its history, the rules and `(seed, sequence, position)` alone.

use tinygpt_sampler::{Dry, Row, Sampler, SamplingParams, uniform};

/// Enough logits for a batch to be spread over threads.
const VOCAB: usize = 12_000;
const ROWS: usize = 8;

fn rules() -> Vec<SamplingParams> {
    let default = SamplingParams { seed: 42, ..Default::default() };
    vec![
        default.clone(),
        SamplingParams { temperature: 0.0, ..default.clone() },
        SamplingParams { temperature: 0.7, top_k: 50, ..default.clone() },
        SamplingParams { top_p: 0.9, ..default.clone() },
        SamplingParams { top_k: 50, top_p: 0.9, ..default.clone() },
        SamplingParams { min_p: 0.02, ..default.clone() },
        SamplingParams { top_k: 6000, top_p: 0.95, min_p: 1e-4, ..default.clone() },
        SamplingParams { top_p: 0.999_99, ..default.clone() },
        SamplingParams { repetition_penalty: 1.3, presence_penalty: 0.5, frequency_penalty: 0.1, ..default.clone() },
        SamplingParams { no_repeat_ngram_size: 1, dry: Dry { multiplier: 1.0, ..Dry::default() }, ..default.clone() },
        SamplingParams { typical_p: 0.9, top_n_sigma: 2.0, dynatemp_range: 0.5, ..default.clone() },
        SamplingParams { xtc_probability: 0.5, xtc_threshold: 0.001, ..default.clone() },
        SamplingParams { mirostat_tau: 8.0, ..default },
    ]
}

fn logits(row: u64) -> Vec<f32> {
    (0..VOCAB as u64)
        .map(|n| {
            let u = uniform(5, row, n);
            (12.0 * u * u * u) as f32
        })
        .collect()
}

struct Case {
    logits: Vec<Vec<f32>>,
    histories: Vec<Vec<u32>>,
}

impl Case {
    fn new() -> Self {
        let history = |row: u64| (0..20).map(|n| (uniform(6, row, n) * VOCAB as f64) as u32).collect();
        Self { logits: (0..ROWS as u64).map(logits).collect(), histories: (0..ROWS as u64).map(history).collect() }
    }

    fn row(&self, n: usize) -> Row<'_> {
        Row { logits: &self.logits[n], history: &self.histories[n], sequence: 100 + n as u64, position: 7 * n as u64 }
    }

    fn rows(&self, order: &[usize]) -> Vec<Row<'_>> {
        order.iter().map(|&n| self.row(n)).collect()
    }
}

fn batch(params: &SamplingParams, rows: &[Row<'_>]) -> Vec<u32> {
    let mut sampler = Sampler::new(params.clone()).expect("valid rules");
    sampler.sample_batch(rows).into_iter().map(|token| token.expect("a drawable row")).collect()
}

#[test]
fn a_row_draws_the_same_alone_in_a_batch_and_permuted() {
    let case = Case::new();
    let order: Vec<usize> = (0..ROWS).collect();
    let permuted = [5, 0, 7, 2, 6, 1, 3, 4];
    for params in rules() {
        let together = batch(&params, &case.rows(&order));
        for (n, &token) in together.iter().enumerate() {
            let row = case.row(n);
            let mut sampler = Sampler::new(params.clone()).unwrap();
            let alone = sampler.sample_row(row.logits, row.history, row.sequence, row.position).unwrap();
            assert_eq!(alone, token, "{params:?}");
        }
        let shuffled = batch(&params, &case.rows(&permuted));
        for (place, &n) in permuted.iter().enumerate() {
            assert_eq!(shuffled[place], together[n], "{params:?}");
        }
    }
}

#[test]
fn threads_and_earlier_draws_change_nothing() {
    let case = Case::new();
    let order: Vec<usize> = (0..ROWS).collect();
    for params in rules() {
        let expected = batch(&params, &case.rows(&order));
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut sampler = Sampler::new(params.clone()).unwrap();
            for _ in 0..2 {
                let tokens = pool.install(|| sampler.sample_batch(&case.rows(&order)));
                let tokens: Vec<u32> = tokens.into_iter().map(Result::unwrap).collect();
                assert_eq!(tokens, expected, "{threads} threads, {params:?}");
            }
        }
    }
}

#[test]
fn repeated_draws_are_those_of_successive_positions() {
    let case = Case::new();
    for params in rules() {
        let mut sampler = Sampler::new(params).unwrap();
        let row = case.row(3);
        let repeated = sampler.sample_row_repeatedly(&row, 20).unwrap();
        for (n, &token) in repeated.iter().enumerate() {
            let position = row.position + n as u64;
            let single = sampler.sample_row(row.logits, row.history, row.sequence, position).unwrap();
            assert_eq!(single, token);
        }
    }
}

#[test]
fn draws_in_sequences_are_those_of_successive_texts() {
    let case = Case::new();
    for params in rules() {
        let mut sampler = Sampler::new(params).unwrap();
        let row = Row { sequence: u64::MAX - 9, ..case.row(3) };
        let texts = sampler.sample_row_in_sequences(&row, 20).unwrap();
        for (n, &token) in (0..).zip(&texts) {
            let single = sampler.sample_row(row.logits, row.history, row.sequence.wrapping_add(n), row.position);
            assert_eq!(single, Ok(token));
        }
    }
}

/// These tokens are part of the results of the program: the same in debug and release builds and at every SIMD level.
#[test]
fn these_rows_always_draw_these_tokens() {
    let case = Case::new();
    let order: Vec<usize> = (0..ROWS).collect();
    let tokens: Vec<Vec<u32>> = rules().iter().map(|params| batch(params, &case.rows(&order))).collect();
    assert_eq!(tokens, PINNED);
}

const PINNED: [[u32; ROWS]; 13] = [
    [6825, 10438, 9586, 2883, 11222, 3077, 10938, 10561],
    [2014, 5396, 5166, 8670, 7904, 1805, 3768, 1191],
    [7166, 10084, 9541, 2730, 10793, 2566, 11018, 10498],
    [6807, 10403, 9586, 2837, 11222, 3067, 10938, 10549],
    [6190, 10296, 9791, 3294, 10793, 2566, 11380, 10498],
    [6825, 10438, 9586, 2883, 11222, 3077, 10938, 10549],
    [6825, 10435, 9586, 2883, 11222, 3077, 10938, 10549],
    [6825, 10438, 9586, 2883, 11222, 3077, 10938, 10561],
    [6825, 10438, 9586, 2883, 11222, 3077, 10938, 10561],
    [6824, 10438, 9586, 2883, 11222, 3077, 10938, 10561],
    [6838, 10435, 9608, 2883, 11227, 3082, 10938, 10567],
    [6950, 10388, 9586, 2790, 11192, 3454, 10938, 10784],
    [6825, 10438, 9586, 2883, 11222, 3077, 10938, 10561],
];
