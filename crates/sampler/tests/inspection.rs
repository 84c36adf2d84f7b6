//! The distribution that a token is drawn from, temperature schedules and the adaptive threshold.

use tinygpt_sampler::{Row, Sampler, SamplingParams, Schedule, entropy, oracle, uniform};

const LOGITS: [f32; 5] = [1.0, 4.0, 0.0, 3.0, 2.0];

fn row(position: u64) -> Row<'static> {
    Row { logits: &LOGITS, history: &[], sequence: 3, position }
}

fn sampler(params: SamplingParams) -> Sampler {
    Sampler::new(params).expect("valid rules")
}

#[test]
fn the_distribution_is_the_oracles() {
    let params = SamplingParams { top_k: 4, top_p: 0.95, temperature: 0.8, ..Default::default() };
    let expected = oracle::sample(&LOGITS, &params, &[], 0.5).unwrap();
    let distribution = sampler(params).distribution(&row(0)).unwrap();
    assert_eq!(distribution.kept(), expected.kept);
    for (p, q) in distribution.probs().iter().zip(&expected.probs) {
        assert!((p - q).abs() < 1e-6);
    }
}

#[test]
fn an_inspected_draw_is_the_draw_with_the_size_and_the_entropy_of_its_distribution() {
    let off = SamplingParams { seed: 9, ..Default::default() };
    for (params, adaptive) in [
        (off.clone(), 1.0),
        (SamplingParams { temperature: 0.0, ..off.clone() }, 1.0),
        (SamplingParams { temperature: 1.4, top_k: 3, ..off.clone() }, 1.0),
        (SamplingParams { top_p: 0.9, ..off.clone() }, 1.0),
        (SamplingParams { top_p: 0.9999, ..off.clone() }, 1.0),
        (SamplingParams { min_p: 0.05, ..off.clone() }, 1.0),
        (SamplingParams { presence_penalty: 1.0, ..off.clone() }, 1.0),
        (off, 0.5),
    ] {
        let mut sampler = sampler(params.clone()).with_adaptive(adaptive).unwrap();
        for position in 0..20 {
            let row = Row { history: &[1, 1, 4], ..row(position) };
            let draw = sampler.inspect_row(&row).unwrap();
            let distribution = sampler.distribution(&row).unwrap();
            assert_eq!(sampler.sample_row(row.logits, row.history, row.sequence, position), Ok(draw.token));
            assert_eq!(draw.kept, distribution.kept().len(), "{params:?}");
            assert!((draw.entropy - entropy(distribution.probs())).abs() < 1e-12, "{params:?}");
        }
    }
    assert!(sampler(SamplingParams::default()).inspect_row(&Row { logits: &[f32::NAN], ..row(0) }).is_err());
}

#[test]
fn penalties_show_in_the_distribution() {
    let params = SamplingParams { presence_penalty: 10.0, ..Default::default() };
    let row = Row { history: &[1], ..row(0) };
    assert_eq!(sampler(params).distribution(&row).unwrap().kept(), [3, 4, 0, 2, 1]);
}

#[test]
fn a_schedule_draws_as_a_constant_temperature_of_that_position_would() {
    let params = SamplingParams { temperature: 2.0, seed: 1, ..Default::default() };
    let schedule = Schedule::Linear { to: 0.0, steps: 10 };
    let mut moving = sampler(params.clone()).with_schedule(schedule).unwrap();
    let repeated = moving.sample_row_repeatedly(&row(0), 13).unwrap();
    for position in 0..13 {
        let temperature = schedule.temperature(2.0, position);
        let u = uniform(1, 3, position);
        let expected = oracle::sample(&LOGITS, &SamplingParams { temperature, ..params.clone() }, &[], u).unwrap();
        assert_eq!(moving.sample_row(&LOGITS, &[], 3, position), Ok(expected.token));
        assert_eq!(repeated[position as usize], expected.token);
    }
}

#[test]
fn a_schedule_from_a_later_position_has_its_first_temperature_until_there() {
    let params = SamplingParams { temperature: 2.0, seed: 1, ..Default::default() };
    let schedule = Schedule::Linear { to: 0.0, steps: 4 };
    let mut moving = sampler(params.clone()).with_schedule_from(schedule, 5).unwrap();
    for position in 0..13u64 {
        let temperature = schedule.temperature(2.0, position.saturating_sub(5));
        let constant = SamplingParams { temperature, ..params.clone() };
        let expected = sampler(constant).sample_row(&LOGITS, &[], 3, position);
        assert_eq!(moving.sample_row(&LOGITS, &[], 3, position), expected, "position {position}");
    }
}

#[test]
fn a_bad_schedule_or_threshold_is_refused() {
    let params = SamplingParams::default;
    assert!(sampler(params()).with_schedule(Schedule::Exponential { to: 0.0, steps: 5 }).is_err());
    let error = sampler(params()).with_adaptive(1.5).unwrap_err();
    assert_eq!(error.to_string(), "adaptive is 1.5, but must be between 0 and 1");
}

#[test]
fn adaptive_is_greedy_exactly_where_the_largest_probability_exceeds_the_threshold() {
    for params in [
        SamplingParams::default(),
        SamplingParams { top_k: 3, ..Default::default() },
        SamplingParams { top_p: 0.999_99, ..Default::default() },
    ] {
        let largest = sampler(params.clone()).distribution(&row(0)).unwrap().probs()[0];
        let kept = |threshold: f64| {
            let mut sampler = sampler(params.clone()).with_adaptive(threshold).unwrap();
            sampler.distribution(&row(0)).unwrap().kept().to_vec()
        };
        assert_eq!(kept(largest - 1e-3), [1]);
        assert!(kept(largest + 1e-3).len() > 1);
    }
}
