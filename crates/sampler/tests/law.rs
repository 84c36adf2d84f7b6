//! The distribution of the draws: chi-square tests against the definition, with fixed seeds.

use tinygpt_sampler::{Row, Sampler, SamplingParams, oracle};

/// The probability that a chi-square variable with these degrees of freedom exceeds `x`, by the approximation of Wilson
/// and Hilferty.
fn upper_tail(x: f64, freedom: f64) -> f64 {
    let spread = 2.0 / (9.0 * freedom);
    let z = ((x / freedom).cbrt() - (1.0 - spread)) / spread.sqrt();
    // The normal tail, by Abramowitz and Stegun 7.1.26.
    let t = 1.0 / (1.0 + 0.327_591_1 * z.abs() / std::f64::consts::SQRT_2);
    let poly =
        t * (0.254_829_592 + t * (-0.284_496_736 + t * (1.421_413_741 + t * (-1.453_152_027 + t * 1.061_405_429))));
    let tail = 0.5 * poly * (-z * z / 2.0).exp();
    if z > 0.0 { tail } else { 1.0 - tail }
}

/// The p-value of the counts, by a chi-square test that pools cells with an expectation below 10.
fn p_value(counts: &[u64], probs: &[f64], draws: u64) -> f64 {
    let (mut chi2, mut cells, mut pooled, mut pooled_expected) = (0.0, 0, 0.0, 0.0);
    for (&count, &prob) in counts.iter().zip(probs) {
        let expected = prob * draws as f64;
        if expected < 10.0 {
            pooled += count as f64;
            pooled_expected += expected;
        } else {
            chi2 += (count as f64 - expected).powi(2) / expected;
            cells += 1;
        }
    }
    if pooled_expected >= 10.0 {
        chi2 += (pooled - pooled_expected).powi(2) / pooled_expected;
        cells += 1;
    } else {
        assert!(pooled <= pooled_expected + 40.0, "rare tokens are drawn {pooled} times, {pooled_expected} expected");
    }
    if cells < 2 { 1.0 } else { upper_tail(chi2, f64::from(cells - 1)) }
}

fn mixes() -> Vec<SamplingParams> {
    let default = SamplingParams { seed: 2024, ..Default::default() };
    let with =
        |temperature, top_k, top_p, min_p| SamplingParams { temperature, top_k, top_p, min_p, ..default.clone() };
    vec![
        with(1.0, 0, 1.0, 0.0),
        with(0.5, 0, 1.0, 0.0),
        with(2.0, 0, 1.0, 0.0),
        with(1.0, 10, 1.0, 0.0),
        with(1.0, 0, 0.9, 0.0),
        with(1.0, 0, 1.0, 0.05),
        with(0.8, 40, 0.95, 0.0),
        with(1.5, 100, 1.0, 0.01),
        with(1.0, 0, 0.5, 0.1),
        with(0.7, 20, 0.8, 0.02),
        with(1.0, 0, 0.999_99, 0.0),
        SamplingParams { repetition_penalty: 1.5, presence_penalty: 0.3, frequency_penalty: 0.2, ..default },
    ]
}

#[test]
fn draws_follow_the_definition_for_twelve_mixes_of_rules() {
    const DRAWS: u64 = 1_000_000;
    let logits: Vec<f32> = (0..400).map(|n| ((n * 37) % 101) as f32 * 0.06 - 3.0).collect();
    let history = [3, 3, 77, 250];
    for (n, params) in mixes().into_iter().enumerate() {
        let outcome = oracle::sample(&logits, &params, &history, 0.5).unwrap();
        let mut sampler = Sampler::new(params).unwrap();
        let row = Row { logits: &logits, history: &history, sequence: n as u64, position: 0 };
        let mut by_token = vec![0u64; logits.len()];
        for token in sampler.sample_row_repeatedly(&row, DRAWS as usize).unwrap() {
            by_token[token as usize] += 1;
        }
        let counts: Vec<u64> = outcome.kept.iter().map(|&token| by_token[token as usize]).collect();
        assert_eq!(counts.iter().sum::<u64>(), DRAWS, "mix {n}: a token outside the kept set was drawn");
        let p = p_value(&counts, &outcome.probs, DRAWS);
        assert!(p > 1e-6, "mix {n}: p = {p:e}");
    }
}

#[test]
fn draws_of_one_position_over_many_sequences_follow_the_law_too() {
    const DRAWS: u64 = 100_000;
    let logits = [0.0, 1.0, 2.0, -1.0, 0.5];
    let outcome = oracle::sample(&logits, &SamplingParams::default(), &[], 0.5).unwrap();
    let mut sampler = Sampler::new(SamplingParams { seed: 3, ..Default::default() }).unwrap();
    let mut counts = [0u64; 5];
    for sequence in 0..DRAWS {
        counts[sampler.sample_row(&logits, &[], sequence, 11).unwrap() as usize] += 1;
    }
    let counts: Vec<u64> = outcome.kept.iter().map(|&token| counts[token as usize]).collect();
    assert!(p_value(&counts, &outcome.probs, DRAWS) > 1e-6);
}

/// Samplers by noise in f32 never draw tokens far below the largest; an inverse CDF does.
#[test]
fn tokens_twenty_nats_down_are_drawn_as_often_as_they_should() {
    const DRAWS: usize = 2_000_000;
    const VOCAB: usize = 262_144;
    let mut logits = vec![-20.0f32; VOCAB];
    logits[100_000] = 0.0;
    let rare = (VOCAB - 1) as f64 * (-20f64).exp();
    let expected = DRAWS as f64 * rare / (1.0 + rare);
    let mut sampler = Sampler::new(SamplingParams { seed: 8, ..Default::default() }).unwrap();
    let row = Row { logits: &logits, history: &[], sequence: 0, position: 0 };
    let tokens = sampler.sample_row_repeatedly(&row, DRAWS).unwrap();
    let drawn = tokens.iter().filter(|&&token| token != 100_000).count() as f64;
    // 1080 are expected, with a standard deviation of 33: within 4.9 of these, p > 1e-6.
    assert!((drawn - expected).abs() < 4.9 * expected.sqrt(), "{drawn} drawn, {expected} expected");
    let low = tokens.iter().filter(|&&token| token < 100_000).count() as f64;
    let share = drawn * 100_000.0 / VOCAB as f64;
    assert!((low - share).abs() < 4.9 * share.sqrt(), "{low} below the winner, {share} expected");
}
