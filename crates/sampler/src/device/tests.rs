use super::*;
use crate::oracle::{self, DrawNumbers};
use crate::test_rows::{BOUNDARY, TestRng, random_batch, random_rules};
use crate::{Row, Sampler, Schedule};
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

fn places(rows: usize) -> Vec<DeviceRow<'static>> {
    (0..rows as u64).map(|row| DeviceRow { history: &[], sequence: row, position: 7 }).collect()
}

fn sample(rows: &[Vec<f32>], params: &SamplingParams) -> Vec<Result<u32, SamplingError>> {
    DeviceSampler::new(params.clone()).unwrap().sample(&tensor(rows), &places(rows.len())).unwrap()
}

/// The sorts of a device: those of a GPU are not stable and, on Metal, take few columns.
#[derive(Clone, Copy)]
struct Sorts {
    reverse_ties: bool,
    limit: usize,
}

const STABLE: Sorts = Sorts { reverse_ties: false, limit: 8192 };
/// The largest number of columns that a sort of Metal takes. Metal has no f64 either.
const METAL: usize = 1024;

fn sampler(params: &SamplingParams, sorts: Sorts) -> DeviceSampler {
    let mut sampler = DeviceSampler::new(params.clone()).unwrap();
    let mut ops = Ops::new(&Device::Cpu);
    (ops.reverse_ties, ops.max_sort_columns, ops.has_f64) = (sorts.reverse_ties, sorts.limit, sorts.limit > METAL);
    sampler.ops = Some(ops);
    sampler
}

/// Compares the definition, the host path and the device path on batches of three rows of up to `max_size` logits, of
/// which one row in eight has a NaN or an infinity: all keep the same tokens and draw the same one, except near a
/// boundary.
#[allow(clippy::print_stderr)]
fn compare(batches: std::ops::Range<u64>, max_size: usize, sorts: Sorts) {
    let count = 3 * (batches.end - batches.start);
    let mut near = 0;
    for case in batches {
        let mut rng = TestRng::new(case);
        let rows = random_batch(&mut rng, 3, max_size);
        let size = rows[0].len();
        let (params, history) = random_rules(&mut rng, size);
        let places: Vec<_> = (0..3).map(|sequence| DeviceRow { history: &history, sequence, position: 7 }).collect();
        let mut sampler = sampler(&params, sorts);
        let logits = tensor(&rows);
        let found = sampler.sample(&logits, &places).unwrap();
        let kept = sampler.distributions(&logits, &places).unwrap();
        let mut host = Sampler::new(params.clone()).unwrap();
        for (n, row) in rows.iter().enumerate() {
            let at_row = |error: SamplingError| error.at_row(n);
            let here = Row { logits: row, history: &history, sequence: n as u64, position: 7 };
            let by_host = host.sample_row(row, &history, n as u64, 7).map_err(at_row);
            let host_kept = host.distribution(&here).map(|d| d.kept().to_vec()).map_err(at_row);
            let outcome =
                oracle::sample_with(row, &params, &history, DrawNumbers::at(&params, n as u64, 7)).map_err(at_row);
            let expected = (outcome.clone().map(|o| o.token), outcome.clone().map(|o| o.kept));
            let kept = kept[n].clone().map(|d| d.kept().to_vec());
            if (&found[n], &kept) != (&expected.0, &expected.1) || (&by_host, &host_kept) != (&expected.0, &expected.1)
            {
                let margin = outcome.as_ref().map_or(1.0, |outcome| outcome.margin);
                assert!(
                    margin < BOUNDARY,
                    "case {case}, row {n}: {:?} of {:?} instead of {:?} of {:?}, host {by_host:?} (margin {margin:e}) {params:?}",
                    found[n],
                    kept.as_ref().map(Vec::len),
                    expected.0,
                    expected.1.as_ref().map(Vec::len),
                );
                near += 1;
            }
        }
    }
    eprintln!("{near} of {count} rows differ, a boundary of the definition being within 2^-20");
    assert!(near * 500 <= count, "{near} of {count}");
}

#[test]
fn small_batches_equal_the_oracle_and_the_host() {
    compare(0..3000, 300, STABLE);
}

#[test]
fn larger_batches_equal_the_oracle_and_the_host() {
    compare(3000..3060, 30_000, STABLE);
}

#[test]
fn ties_that_a_sort_reverses_change_nothing() {
    compare(3100..4000, 300, Sorts { reverse_ties: true, ..STABLE });
    compare(4000..4040, 30_000, Sorts { reverse_ties: true, ..STABLE });
}

#[test]
fn sorts_of_few_columns_change_nothing() {
    compare(4100..4600, 2000, Sorts { reverse_ties: true, limit: 256 });
    compare(4600..4640, 60_000, Sorts { reverse_ties: true, limit: METAL });
}

#[test]
#[ignore = "the full comparison of 100,000 rows; minutes"]
fn a_hundred_thousand_rows_equal_the_oracle_and_the_host() {
    compare(10_000..42_000, 1_000, STABLE);
    compare(42_000..43_000, 60_000, Sorts { reverse_ties: true, ..STABLE });
    compare(43_000..43_400, 262_144, Sorts { reverse_ties: true, limit: METAL });
}

#[test]
fn each_kept_token_and_no_other_is_drawn() {
    let row: Vec<f32> = (0..40).map(|n| [0.0, 1.0, 2.0, -INF][n % 4]).collect();
    let logits = tensor(&vec![row.clone(); 256]);
    for params in [rules(|p| p.top_k = 13), rules(|p| p.top_p = 0.7), rules(|p| (p.top_k, p.top_p) = (25, 0.8))] {
        let mut sampler = DeviceSampler::new(params.clone()).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for position in 0..8 {
            let places: Vec<_> = (0..256).map(|sequence| DeviceRow { history: &[], sequence, position }).collect();
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
    let mut rng = TestRng::new(5);
    let rows: Vec<Vec<f32>> = (0..8).map(|_| (0..1000).map(|_| 3.0 * rng.normal() as f32).collect()).collect();
    for params in [rules(|_| {}), rules(|p| (p.top_k, p.top_p) = (50, 0.9)), rules(|p| p.top_p = 0.9)] {
        let mut sampler = DeviceSampler::new(params).unwrap();
        let together = sampler.sample(&tensor(&rows), &places(8)).unwrap();
        for n in 0..8 {
            let alone = sampler.sample(&tensor(&rows[n..=n]), &places(8)[n..=n]).unwrap();
            assert_eq!(alone[0], together[n]);
        }
    }
}

#[test]
fn half_precision_logits_draw_as_their_values_in_f32() {
    let mut rng = TestRng::new(6);
    let row: Vec<f32> = (0..500).map(|_| 3.0 * rng.normal() as f32).collect();
    let mut sampler = DeviceSampler::new(rules(|p| p.top_k = 20)).unwrap();
    for dtype in [DType::BF16, DType::F16] {
        let half = tensor(std::slice::from_ref(&row)).to_dtype(dtype).unwrap();
        let whole = half.to_dtype(DType::F32).unwrap();
        let mut draw = |logits: &Tensor| sampler.sample(logits, &places(1)).unwrap();
        assert_eq!(draw(&half), draw(&whole));
    }
}

#[test]
fn shapes_and_types_that_it_does_not_take_are_refused_by_name() {
    let mut sampler = DeviceSampler::new(SamplingParams::default()).unwrap();
    let logits = Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
    assert!(sampler.sample(&logits, &places(1)).unwrap_err().to_string().starts_with("rows is 1 for 2"));
    let flat = Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap();
    assert!(sampler.sample(&flat, &places(1)).unwrap_err().to_string().starts_with("logits is of shape"));
    let has_f64 = Tensor::zeros((1, 3), DType::F64, &Device::Cpu).unwrap();
    assert!(sampler.sample(&has_f64, &places(1)).unwrap_err().to_string().starts_with("logits is of type F64"));
}

/// The launches of top-p among the candidates, before a search.
const CANDIDATE_LAUNCHES: usize = 71;

/// The largest cost of each rule: launches, and work in units of the logits.
fn max_costs() -> [(&'static str, SamplingParams, usize, f64); 6] {
    [
        ("greedy", rules(|p| p.temperature = 0.0), 16, 3.0),
        ("temperature", rules(|p| p.temperature = 0.8), 42, 12.0),
        ("top-k", rules(|p| p.top_k = 50), 64, 3.0),
        ("top-k + top-p", rules(|p| (p.top_k, p.top_p) = (50, 0.9)), 80, 3.0),
        // At a low temperature the nucleus has few tokens.
        ("top-p of few", rules(|p| (p.top_p, p.temperature) = (0.9, 0.2)), 95, 12.0),
        ("top-p by search", rules(|p| p.top_p = 0.9), 180, 150.0),
    ]
}

#[test]
#[allow(clippy::print_stderr)]
fn the_counted_costs_are_those_of_the_documentation_whatever_the_shape() {
    let mut rng = TestRng::new(1);
    let numbers: Vec<f32> = (0..16 * 50_257).map(|_| 3.0 * rng.normal() as f32).collect();
    let mut undecided = 0;
    for (rows, vocab) in [(16, 50_257), (1, 50_257), (4, 50_261), (4, 128_256), (3, 262_144), (3, 100_277)] {
        let logits = Tensor::from_vec(numbers[..rows * vocab].to_vec(), (rows, vocab), &Device::Cpu).unwrap();
        for dtype in [DType::F32, DType::BF16] {
            let logits = logits.to_dtype(dtype).unwrap();
            for (name, params, mut max_launches, max_work) in max_costs() {
                let mut sampler = DeviceSampler::new(params.clone()).unwrap();
                sampler.sample(&logits, &places(rows)).unwrap();
                let (_, cost) = sampler.sample_counted(&logits, &places(rows)).unwrap();
                // The tokens, after the flags of rows to search and, in half precision, the status of the search.
                let searched = name == "top-p by search";
                let readbacks = if !searched { 1 } else { 2 + usize::from(dtype == DType::BF16) };
                if searched && cost.readbacks > readbacks {
                    // A row took more rounds: the maximum is that of the search alone, without the candidates before
                    // it.
                    undecided += 1;
                    max_launches += CANDIDATE_LAUNCHES;
                } else {
                    assert_eq!(cost.readbacks, readbacks, "{name}");
                }
                let work = cost.elements as f64 / (rows * vocab) as f64;
                let told = format!("{rows} x {vocab} {dtype:?}, {name}: {} launches, {work:.2} units", cost.launches);
                eprintln!("{told}");
                assert!(cost.launches <= max_launches && work <= max_work, "{told}");
            }
        }
    }
    assert!(undecided <= 2, "{undecided} of 12 searches needed more than their first rounds");
}

#[test]
fn the_first_rounds_of_a_search_decide_nearly_every_row() {
    let mut sampler = DeviceSampler::new(rules(|p| p.top_p = 0.9)).unwrap();
    let undecided = (0..100)
        .filter(|&case| {
            let mut rng = TestRng::new(case);
            let row: Vec<f32> = (0..50_257).map(|_| 3.0 * rng.normal() as f32).collect();
            let (_, cost) = sampler.sample_counted(&tensor(&[row]), &places(1)).unwrap();
            assert!(cost.readbacks > 1, "the nucleus has thousands of tokens");
            cost.readbacks > 2
        })
        .count();
    assert!(undecided <= 3, "{undecided} of 100");
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

/// Schedules and adaptive thresholds are not part of the definition: here the host path is.
#[test]
fn schedules_and_thresholds_draw_as_on_the_host() {
    let mut greedy = 0;
    for case in 0..600 {
        let mut rng = TestRng::new(70_000 + case);
        let size = 1 + rng.below(600);
        let spread = 1.0 + 4.0 * rng.unit();
        let rows: Vec<Vec<f32>> = (0..5).map(|_| (0..size).map(|_| (spread * rng.normal()) as f32).collect()).collect();
        let (mut params, history) = random_rules(&mut rng, size);
        params.temperature = 0.1 + rng.unit();
        let start = rng.below(4) as u64;
        let schedule = match rng.below(3) {
            0 => Schedule::Constant,
            1 => Schedule::Linear { to: [0.0, 1.5][rng.below(2)], steps: 3 },
            _ => Schedule::Exponential { to: 0.3, steps: 4 },
        };
        let mut host = Sampler::new(params).unwrap().with_schedule_from(schedule, start).unwrap();
        if rng.unit() < 0.7 {
            host = host.with_adaptive([0.0, rng.unit(), 1.0][rng.below(3)]).unwrap();
        }
        // One step's rows, or rows of several positions.
        let spread_out = u64::from(rng.unit() < 0.3);
        let position = |row: u64| 2 + row * spread_out;
        let places: Vec<_> =
            (0..5).map(|row| DeviceRow { history: &history, sequence: row, position: position(row) }).collect();
        let mut device = DeviceSampler::from(&host);
        let found = device.sample(&tensor(&rows), &places).unwrap();
        let kept = device.distributions(&tensor(&rows), &places).unwrap();
        for (n, logits) in rows.iter().enumerate() {
            let row = Row { logits, history: &history, sequence: n as u64, position: position(n as u64) };
            let by_host = host.distribution(&row).unwrap();
            assert_eq!(kept[n].as_ref().unwrap().kept(), by_host.kept(), "case {case}, row {n}");
            let token = host.sample_row(logits, &history, row.sequence, row.position).unwrap();
            assert_eq!(found[n], Ok(token), "case {case}, row {n}: {host:?}");
            greedy += usize::from(by_host.kept().len() == 1);
        }
    }
    assert!((300..2000).contains(&greedy), "{greedy} of 3000 rows leave one token");
}

#[test]
fn a_step_reads_the_tokens_back_and_nothing_else() {
    let mut rng = TestRng::new(71_000);
    let rows: Vec<Vec<f32>> = (0..3).map(|_| (0..2000).map(|_| 3.0 * rng.normal() as f32).collect()).collect();
    let places = [&[5, 6, 5][..], &[], &[7]].map(|history| DeviceRow { history, sequence: 3, position: 9 });
    let all = |p: &mut SamplingParams| {
        (p.repetition_penalty, p.frequency_penalty, p.presence_penalty) = (1.2, 0.3, 0.1);
        p.logit_bias = vec![(5, 1.0), (9, f32::NEG_INFINITY), (5, 0.25)];
        (p.top_k, p.top_p, p.min_p) = (40, 0.9, 0.01);
    };
    for params in [rules(|_| {}), rules(|p| p.temperature = 0.0), rules(|p| p.top_k = 40), rules(all)] {
        let schedule = Schedule::Linear { to: 0.5 * params.temperature, steps: 20 };
        let host = Sampler::new(params).unwrap().with_schedule(schedule).unwrap().with_adaptive(0.5).unwrap();
        let (tokens, cost) = DeviceSampler::from(&host).sample_counted(&tensor(&rows), &places).unwrap();
        assert!(tokens.iter().all(Result::is_ok));
        assert_eq!(cost.readbacks, 1, "{host:?}");
    }
}
