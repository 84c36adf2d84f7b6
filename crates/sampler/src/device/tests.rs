use super::*;
use crate::exactness::{BOUNDARY, Dice, random_row, random_rules};
use crate::oracle;
use candle_core::Device;

const INF: f32 = f32::INFINITY;

fn rules(change: impl FnOnce(&mut SamplingParams)) -> SamplingParams {
    let mut params = SamplingParams::default();
    change(&mut params);
    params
}

fn tensor(rows: &[Vec<f32>]) -> Tensor {
    Tensor::from_vec(rows.concat(), (rows.len(), rows[0].len()), &Device::Cpu).unwrap()
}

fn places(rows: usize) -> Vec<DeviceRow> {
    (0..rows as u64).map(|row| DeviceRow { sequence: row, position: 7 }).collect()
}

fn sample(rows: &[Vec<f32>], params: &SamplingParams) -> Vec<Result<u32, SamplingError>> {
    DeviceSampler::new(params.clone()).unwrap().sample(&tensor(rows), &places(rows.len())).unwrap()
}

/// `batches` of three rows of one size and one set of rules against the definition, one in eight rows poisoned.
#[allow(clippy::print_stderr)]
fn compare(batches: std::ops::Range<u64>, largest: usize) {
    let count = 3 * (batches.end - batches.start);
    let mut near = 0;
    for case in batches {
        let mut dice = Dice { case, count: 0 };
        let first = random_row(&mut dice, largest);
        let size = first.len();
        let mut rows = vec![first];
        while rows.len() < 3 {
            let mut row = random_row(&mut dice, largest);
            row.truncate(size);
            row.resize(size, 0.25);
            rows.push(row);
        }
        for row in &mut rows {
            if dice.unit() < 0.125 {
                let poison = [f32::NAN, INF, -INF][dice.below(3)];
                let at = dice.below(size);
                row[at] = poison;
            }
        }
        let params = SamplingParams {
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            ..random_rules(&mut dice, size).0
        };
        for (n, (found, row)) in sample(&rows, &params).into_iter().zip(&rows).enumerate() {
            let u = uniform(params.seed, n as u64, 7);
            match (found, oracle::sample(row, &params, &[], u)) {
                (Ok(token), Ok(expected)) if token != expected.token => {
                    assert!(
                        expected.margin < BOUNDARY,
                        "case {case}: token {token} instead of {} (margin {:e}, {} kept of {size}) {params:?}",
                        expected.token,
                        expected.margin,
                        expected.kept.len(),
                    );
                    near += 1;
                }
                (found, expected) => {
                    let expected = expected.map(|outcome| outcome.token).map_err(|error| error.at_row(n));
                    assert_eq!(found, expected, "case {case} {params:?}");
                }
            }
        }
    }
    eprintln!("{near} of {count} rows differ, a boundary of the definition being within 2^-20");
    assert!(near * 500 <= count, "{near} of {count}");
}

#[test]
fn small_batches_equal_the_oracle() {
    compare(0..700, 300);
}

#[test]
fn larger_batches_equal_the_oracle() {
    compare(700..740, 30_000);
}

#[test]
#[ignore = "the full comparison of 36,000 rows; minutes"]
fn thousands_of_batches_equal_the_oracle() {
    compare(1_000..12_000, 1_000);
    compare(12_000..13_000, 262_144);
}

#[test]
fn each_kept_token_and_no_other_is_drawn() {
    let row: Vec<f32> = (0..40).map(|n| [0.0, 1.0, 2.0, -INF][n % 4]).collect();
    let logits = tensor(&vec![row.clone(); 256]);
    for params in [rules(|p| p.top_k = 13), rules(|p| p.top_p = 0.7), rules(|p| (p.top_k, p.top_p) = (25, 0.8))] {
        let sampler = DeviceSampler::new(params.clone()).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for position in 0..8 {
            let places: Vec<_> = (0..256).map(|sequence| DeviceRow { sequence, position }).collect();
            seen.extend(sampler.sample(&logits, &places).unwrap().into_iter().map(Result::unwrap));
        }
        let mut kept = oracle::sample(&row, &params, &[], 0.5).unwrap().kept;
        kept.sort_unstable();
        assert_eq!(Vec::from_iter(seen), kept, "{params:?}");
    }
}

#[test]
fn a_bad_row_is_named_with_its_fault_and_leaves_the_others_as_they_are() {
    for params in [rules(|p| p.temperature = 0.0), rules(|_| {}), rules(|p| p.top_k = 2), rules(|p| p.top_p = 0.5)] {
        let rows = [
            vec![0.0, 9.0, -INF],
            vec![0.0, f32::NAN, INF],
            vec![9.0, 2.0, INF],
            vec![-INF; 3],
            vec![-INF, -INF, 1.0],
            vec![f32::MAX, 1.0, f32::MAX],
        ];
        let found = sample(&rows, &params);
        assert!(found[0].is_ok(), "{params:?}");
        assert_eq!(found[1], Err(SamplingError::NotANumber { row: 1, index: 1 }));
        assert_eq!(found[2], Err(SamplingError::PositiveInfinity { row: 2, index: 2 }));
        assert_eq!(found[3], Err(SamplingError::NothingFinite { row: 3, vocab: 3 }));
        assert_eq!(found[4], Ok(2));
        assert!(matches!(found[5], Ok(0 | 2)));
    }
}

#[test]
fn what_a_nan_hides_from_the_maximum_overflows_nothing() {
    // The comparison with a NaN that comes first is false ever after.
    let mut row: Vec<f32> = (0..3000).map(|n| (n / 100) as f32 * 50.0).collect();
    for at in (0..3000).step_by(16) {
        row[at] = f32::NAN;
    }
    for params in [rules(|_| {}), rules(|p| p.top_k = 5), rules(|p| p.top_p = 0.5)] {
        let found = sample(&[row.clone(), vec![0.0; 3000]], &params);
        assert_eq!(found[0], Err(SamplingError::NotANumber { row: 0, index: 0 }));
        assert!(found[1].is_ok());
    }
}

#[test]
fn sums_that_overflow_both_ways_are_no_nan() {
    let row: Vec<f32> = (0..64).map(|n| if n % 4 < 2 { f32::MAX } else { -f32::MAX }).collect();
    let greedy = rules(|p| p.temperature = 0.0);
    assert_eq!(sample(&[row], &greedy), [Ok(0)]);
}

#[test]
fn a_row_draws_the_same_token_alone_and_in_any_batch() {
    let mut dice = Dice { case: 5, count: 0 };
    let rows: Vec<Vec<f32>> = (0..8).map(|_| (0..1000).map(|_| 3.0 * dice.normal() as f32).collect()).collect();
    for params in [rules(|_| {}), rules(|p| (p.top_k, p.top_p) = (50, 0.9)), rules(|p| p.top_p = 0.9)] {
        let sampler = DeviceSampler::new(params).unwrap();
        let together = sampler.sample(&tensor(&rows), &places(8)).unwrap();
        for n in 0..8 {
            let alone = sampler.sample(&tensor(&rows[n..=n]), &places(8)[n..=n]).unwrap();
            assert_eq!(alone[0], together[n]);
        }
    }
}

#[test]
fn half_precision_logits_draw_as_their_values_in_f32() {
    let mut dice = Dice { case: 6, count: 0 };
    let row: Vec<f32> = (0..500).map(|_| 3.0 * dice.normal() as f32).collect();
    let sampler = DeviceSampler::new(rules(|p| p.top_k = 20)).unwrap();
    for dtype in [DType::BF16, DType::F16] {
        let half = tensor(std::slice::from_ref(&row)).to_dtype(dtype).unwrap();
        let whole = half.to_dtype(DType::F32).unwrap();
        let draw = |logits: &Tensor| sampler.sample(logits, &places(1)).unwrap();
        assert_eq!(draw(&half), draw(&whole));
    }
}

#[test]
fn penalties_shapes_and_types_that_it_does_not_take_are_refused_by_name() {
    let error = DeviceSampler::new(rules(|p| p.presence_penalty = 0.5)).unwrap_err();
    assert_eq!(error.to_string(), "presence_penalty is 0.5, but must be off on the device path; the host path has it");
    let sampler = DeviceSampler::new(SamplingParams::default()).unwrap();
    let logits = Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
    assert!(sampler.sample(&logits, &places(1)).unwrap_err().to_string().starts_with("rows is 1 for 2"));
    let flat = Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap();
    assert!(sampler.sample(&flat, &places(1)).unwrap_err().to_string().starts_with("logits is of shape"));
    let doubles = Tensor::zeros((1, 3), DType::F64, &Device::Cpu).unwrap();
    assert!(sampler.sample(&doubles, &places(1)).unwrap_err().to_string().starts_with("logits is of type F64"));
}

#[test]
#[allow(clippy::print_stderr)]
fn the_counted_costs_are_those_of_the_documentation() {
    let mut dice = Dice { case: 1, count: 0 };
    let (rows, vocab) = (16, 50_257);
    let logits: Vec<f32> = (0..rows * vocab).map(|_| 3.0 * dice.normal() as f32).collect();
    let logits = Tensor::from_vec(logits, (rows, vocab), &Device::Cpu).unwrap();
    let table: [(&str, SamplingParams, usize, f64); 5] = [
        ("greedy", rules(|p| p.temperature = 0.0), 28, 2.25),
        ("temperature", rules(|p| p.temperature = 0.8), 95, 9.5),
        ("top-k", rules(|p| p.top_k = 50), 385, 94.0),
        ("top-k + top-p", rules(|p| (p.top_k, p.top_p) = (50, 0.9)), 693, 175.5),
        ("top-p", rules(|p| p.top_p = 0.9), 534, 134.0),
    ];
    for (name, params, launches, units) in table {
        let (_, cost) = DeviceSampler::new(params).unwrap().sample_counted(&logits, &places(rows)).unwrap();
        let work = cost.elements as f64 / (rows * vocab) as f64;
        eprintln!("{name}: {} launches, {work:.2} units, {} read back", cost.launches, cost.readbacks);
        assert!(cost.launches <= launches && work <= units, "{name}: {cost:?} {work}");
    }
}

#[test]
fn the_narrowest_rows_and_the_most_of_them_draw_as_the_oracle() {
    for size in [1, 2, 17] {
        let rows: Vec<Vec<f32>> =
            (0..1024).map(|n| (0..size).map(|i| ((n * 7 + i * 5) % 11) as f32).collect()).collect();
        for params in [rules(|_| {}), rules(|p| (p.top_k, p.top_p) = (3, 0.95)), rules(|p| p.min_p = 0.1)] {
            for (n, token) in sample(&rows, &params).into_iter().enumerate() {
                let u = uniform(params.seed, n as u64, 7);
                assert_eq!(token.unwrap(), oracle::sample(&rows[n], &params, &[], u).unwrap().token);
            }
        }
    }
}
