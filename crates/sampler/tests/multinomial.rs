//! The contract of `torch.multinomial`: shapes, distribution and every error.

use candle_core::{DType, Device, Tensor};
use tinygpt_sampler::{MultinomialOptions, multinomial, multinomial_row};

fn options(num_samples: usize, replacement: bool) -> MultinomialOptions {
    MultinomialOptions { num_samples, replacement, seed: 77, ..Default::default() }
}

fn tensor(rows: &[&[f32]]) -> Tensor {
    let flat: Vec<f32> = rows.concat();
    Tensor::from_vec(flat, (rows.len(), rows[0].len()), &Device::Cpu).expect("rows of equal length")
}

#[test]
fn one_row_gives_n_indices_and_rows_give_n_each() {
    let rows = tensor(&[&[1.0, 2.0, 3.0], &[0.0, 5.0, 5.0]]);
    let drawn = multinomial(&rows, options(2, false)).unwrap();
    assert_eq!((drawn.dims(), drawn.dtype()), (&[2, 2][..], DType::I64));
    let one = multinomial(&rows.get(0).unwrap(), options(2, false)).unwrap();
    assert_eq!(one.dims(), [2]);
    assert_eq!(one.to_vec1::<i64>().unwrap(), drawn.get(0).unwrap().to_vec1::<i64>().unwrap());
}

#[test]
fn half_and_double_floats_are_weights_too() {
    let row = Tensor::new(&[0f32, 0.0, 4.0], &Device::Cpu).unwrap();
    for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
        let drawn = multinomial(&row.to_dtype(dtype).unwrap(), options(3, true)).unwrap();
        assert_eq!(drawn.to_vec1::<i64>().unwrap(), [2, 2, 2]);
    }
}

#[test]
fn a_row_draws_the_same_wherever_it_is_and_more_draws_leave_the_first() {
    let weights = [0.5, 0.0, 2.0, 1.0, 7.0];
    let at = |row, sequence, n, replacement| {
        let options = MultinomialOptions { sequence, ..options(n, replacement) };
        multinomial_row(&weights, row, options).unwrap()
    };
    for replacement in [false, true] {
        assert_eq!(at(3, 10, 4, replacement), at(0, 13, 4, replacement));
        assert_eq!(at(0, 0, 4, replacement)[..2], at(0, 0, 2, replacement));
    }
}

#[test]
fn every_error_names_the_row_and_the_reason() {
    let nan = f32::NAN;
    let message = |rows: &Tensor, options| multinomial(rows, options).unwrap_err().to_string();
    let good: &[f32] = &[1.0, 1.0, 0.0];
    let once = options(1, false);
    assert_eq!(
        message(&Tensor::zeros((1, 1, 1), DType::F32, &Device::Cpu).unwrap(), once),
        "weights must have rank 1 or 2, but have rank 3"
    );
    assert_eq!(
        message(&Tensor::new(1f32, &Device::Cpu).unwrap(), once),
        "weights must have rank 1 or 2, but have rank 0"
    );
    assert_eq!(
        message(&Tensor::new(&[1i64, 2], &Device::Cpu).unwrap(), once),
        "weights must be floats, but are I64; convert them first"
    );
    assert_eq!(message(&tensor(&[good]), options(0, true)), "num_samples is 0, but must be at least 1");
    assert_eq!(
        message(&tensor(&[good, good]), options(4, false)),
        "row 0: cannot draw 4 of 3 weights without replacement"
    );
    assert_eq!(
        message(&tensor(&[&[1.0, 1.0, 1.0], good]), options(3, false)),
        "row 1: cannot draw 3 without replacement, as only 2 of the weights are not zero"
    );
    for (bad, shown) in [(-1.0, "-1"), (nan, "NaN"), (f32::INFINITY, "inf")] {
        assert_eq!(
            message(&tensor(&[good, &[1.0, bad, 1.0]]), once),
            format!("row 1: weight 1 is {shown}, but must be a finite number of at least 0")
        );
    }
    assert_eq!(
        message(&tensor(&[good, &[0.0, 0.0, 0.0]]), options(1, true)),
        "row 1: the sum of the 3 weights is 0, so nothing can be drawn"
    );
}

#[test]
fn weights_near_the_limits_of_f64_neither_overflow_nor_vanish() {
    let drawn = multinomial_row(&[1e308; 50], 0, options(40, true)).unwrap();
    assert!(drawn.iter().any(|&index| index != drawn[0]));
    let mut all = multinomial_row(&[1e308, 5e-324, 0.0, 1.0], 0, options(3, false)).unwrap();
    all.sort_unstable();
    assert_eq!(all, [0, 1, 3]);
}

/// The deviation of a count of draws from its expectation, in standard deviations.
fn deviation(count: usize, prob: f64, draws: usize) -> f64 {
    let expected = prob * draws as f64;
    (count as f64 - expected) / (expected * (1.0 - prob)).sqrt()
}

#[test]
fn pairs_without_replacement_have_exactly_the_law_of_successive_draws() {
    const DRAWS: usize = 300_000;
    let weights = [1.0, 2.0, 3.0];
    let mut counts = [[0usize; 3]; 3];
    for row in 0..DRAWS {
        let pair = multinomial_row(&weights, row, options(2, false)).unwrap();
        counts[pair[0] as usize][pair[1] as usize] += 1;
    }
    for (first, row) in counts.iter().enumerate() {
        for (second, &count) in row.iter().enumerate() {
            if first == second {
                assert_eq!(count, 0);
                continue;
            }
            let prob = weights[first] / 6.0 * weights[second] / (6.0 - weights[first]);
            // p > 1e-6 for all six pairs together.
            assert!(deviation(count, prob, DRAWS).abs() < 5.2, "({first}, {second}): {count}");
        }
    }
}

#[test]
fn draws_with_replacement_have_the_law_of_the_weights_by_cdf_and_by_alias_table() {
    let weights: Vec<f64> = (0..40).map(|n| if n % 5 == 0 { 0.0 } else { f64::from(n + 1) }).collect();
    let total: f64 = weights.iter().sum();
    let alias: Vec<u32> = multinomial_row(&weights, 0, options(400_000, true)).unwrap();
    let cdf: Vec<u32> =
        (1..20_001).flat_map(|row| multinomial_row(&weights, row, options(20, true)).unwrap()).collect();
    for drawn in [alias, cdf] {
        let mut counts = vec![0usize; weights.len()];
        for index in &drawn {
            counts[*index as usize] += 1;
        }
        for (count, weight) in counts.into_iter().zip(&weights) {
            if *weight == 0.0 {
                assert_eq!(count, 0);
            } else {
                assert!(deviation(count, weight / total, drawn.len()).abs() < 5.5);
            }
        }
    }
}
