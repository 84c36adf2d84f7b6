//! Rows that cannot be drawn from give errors that name them, without a panic, a hang or a change of other rows.

use candle_core::{Device, Tensor};
use proptest::prelude::*;
use tinygpt_sampler::{
    DeviceRow, DeviceSampler, Dry, Row, Sampler, SamplingError, SamplingParams,
    oracle::{self, DrawNumbers},
};

const INF: f32 = f32::INFINITY;

fn row(logits: &[f32]) -> Row<'_> {
    Row { logits, history: &[], sequence: 1, position: 2 }
}

fn rules() -> Vec<SamplingParams> {
    let default = SamplingParams::default();
    vec![
        default.clone(),
        SamplingParams { temperature: 0.0, ..default.clone() },
        SamplingParams { top_k: 3, ..default.clone() },
        SamplingParams { top_p: 0.5, ..default.clone() },
        SamplingParams { top_p: 0.999_999, ..default.clone() },
        SamplingParams { min_p: 0.1, ..default.clone() },
        SamplingParams { typical_p: 0.9, ..default.clone() },
        SamplingParams { top_n_sigma: 1.0, dynatemp_range: 0.5, ..default.clone() },
        SamplingParams { xtc_probability: 1.0, xtc_threshold: 0.0, ..default.clone() },
        SamplingParams { mirostat_tau: 3.0, ..default.clone() },
        SamplingParams { temperature: 1e-30, ..default },
    ]
}

#[test]
fn a_bad_row_is_named_and_the_others_are_unharmed() {
    let good: Vec<f32> = (0..1000).map(|n| (n % 17) as f32 * 0.3).collect();
    let with = |place: usize, x: f32| {
        let mut row = good.clone();
        row[place] = x;
        row
    };
    let (nan, inf, nothing) = (with(700, f32::NAN), with(999, INF), vec![-INF; 1000]);
    for params in rules() {
        let mut sampler = Sampler::new(params).unwrap();
        let rows = [row(&good), row(&nan), row(&inf), row(&nothing), row(&[]), row(&good)];
        let tokens = sampler.sample_batch(&rows);
        let alone = sampler.sample_row(&good, &[], 1, 2).unwrap();
        assert_eq!(tokens[0], Ok(alone));
        assert_eq!(tokens[1], Err(SamplingError::NotANumber { row: 1, index: 700 }));
        assert_eq!(tokens[2], Err(SamplingError::PositiveInfinity { row: 2, index: 999 }));
        assert_eq!(tokens[3], Err(SamplingError::NothingFinite { row: 3, vocab: 1000 }));
        assert_eq!(tokens[4], Err(SamplingError::NothingFinite { row: 4, vocab: 0 }));
        assert_eq!(tokens[5], Ok(alone));
    }
}

#[test]
fn a_single_finite_logit_is_always_drawn() {
    for size in [1usize, 2, 300, 70_000] {
        for place in [0, size / 2, size - 1] {
            let mut logits = vec![-INF; size];
            logits[place] = -3e38;
            for params in rules() {
                let mut sampler = Sampler::new(params).unwrap();
                for position in 0..5 {
                    assert_eq!(sampler.sample_row(&logits, &[], 0, position), Ok(place as u32));
                }
            }
        }
    }
}

#[test]
fn a_flat_row_is_cut_by_the_lowest_indices() {
    for size in [10usize, 5000, 70_000] {
        let flat = vec![2.5f32; size];
        let kept = |params: SamplingParams| Sampler::new(params).unwrap().distribution(&row(&flat)).unwrap();
        let default = SamplingParams::default();
        assert_eq!(kept(SamplingParams { top_k: 7, ..default.clone() }).kept(), [0, 1, 2, 3, 4, 5, 6]);
        let half = kept(SamplingParams { top_p: 0.5, ..default.clone() });
        assert!(half.kept().iter().copied().eq(0..size as u32 / 2));
        assert_eq!(kept(default).kept().len(), size);
    }
}

#[test]
fn a_ban_of_every_token_is_an_error() {
    let params =
        SamplingParams { logit_bias: (0..4).map(|token| (token, -INF)).collect(), ..SamplingParams::default() };
    let error = Sampler::new(params).unwrap().sample_row(&[1.0, 2.0, 3.0, 4.0], &[], 0, 0).unwrap_err();
    assert_eq!(error.to_string(), "row 0: none of the 4 logits is finite, so no token can be drawn");
}

#[test]
fn a_penalty_that_overflows_is_an_error_and_not_a_panic() {
    let params = SamplingParams { presence_penalty: -1e300, ..SamplingParams::default() };
    let error = Sampler::new(params).unwrap().sample_row(&[1.0, 2.0], &[1], 0, 0).unwrap_err();
    assert_eq!(error, SamplingError::PositiveInfinity { row: 0, index: 1 });
}

fn any_logit() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => -20.0f32..20.0,
        2 => prop::num::f32::ANY,
        2 => Just(0.0f32),
        1 => Just(-0.0f32),
        1 => Just(-INF),
    ]
}

/// At most a few rules at a time, whose numbers are of any size.
fn any_shape() -> impl Strategy<Value = SamplingParams> {
    let number = || prop_oneof![4 => 0.0f64..2.0, 1 => prop::num::f64::ANY, 1 => Just(0.0), 1 => Just(1.0)];
    (0usize..8, number(), number(), 0usize..4, 0usize..4, prop::collection::vec(0u32..3, 0..3)).prop_map(
        |(which, a, b, length, last_n, breaker)| {
            let off = SamplingParams::default();
            let breakers = if breaker.is_empty() { Vec::new() } else { vec![breaker] };
            match which {
                0 => SamplingParams { typical_p: a, ..off },
                1 => SamplingParams { top_n_sigma: a, ..off },
                2 => SamplingParams { xtc_probability: 1.0, xtc_threshold: a, ..off },
                3 => SamplingParams { mirostat_tau: a, mirostat_eta: b, ..off },
                4 => SamplingParams { dynatemp_range: a, dynatemp_exponent: b, ..off },
                5 => SamplingParams { no_repeat_ngram_size: length, ..off },
                6 => SamplingParams {
                    dry: Dry { multiplier: a, base: b, allowed_length: length, last_n, breakers },
                    ..off
                },
                _ => off,
            }
        },
    )
}

fn any_params() -> impl Strategy<Value = SamplingParams> {
    let number = || prop_oneof![4 => 0.0f64..2.0, 1 => prop::num::f64::ANY, 1 => Just(0.0), 1 => Just(1.0)];
    let bias = prop::collection::vec((0u32..80, any_logit()), 0..3);
    (number(), 0usize..80, number(), number(), number(), number(), number(), bias, any_shape()).prop_map(
        |(temperature, top_k, top_p, min_p, repetition, presence, frequency, logit_bias, shape)| SamplingParams {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty: repetition,
            presence_penalty: presence,
            frequency_penalty: frequency,
            logit_bias,
            seed: 1,
            ..shape
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_rules_and_any_row_give_the_oracles_token_or_its_error(
        params in any_params(),
        logits in prop::collection::vec(any_logit(), 0..70),
        history in prop::collection::vec(0u32..75, 0..5),
        position in any::<u64>(),
    ) {
        match Sampler::new(params.clone()) {
            Err(error) => prop_assert_eq!(Err(error), params.validate()),
            Ok(mut sampler) => {
                let numbers = DrawNumbers::at(&params, 9, position);
                let fast = sampler.sample_row(&logits, &history, 9, position);
                let tensor = Tensor::from_slice(&logits, (1, logits.len()), &Device::Cpu).unwrap();
                let place = DeviceRow { history: &history, sequence: 9, position };
                let on_device = DeviceSampler::new(params.clone()).unwrap().sample(&tensor, &[place]).unwrap().remove(0);
                for found in [fast, on_device] {
                    match oracle::sample_with(&logits, &params, &history, numbers) {
                        Ok(outcome) if outcome.margin > 1e-6 => prop_assert_eq!(found, Ok(outcome.token)),
                        Ok(_) => prop_assert!(found.is_ok()),
                        Err(error) => prop_assert_eq!(found, Err(error)),
                    }
                }
            }
        }
    }
}
