//! Products against plain ones of integers, bit by bit, on every level and in any company.

use tinygpt_sampler::simd::SimdLevel;

use super::*;
use crate::cpu::{
    rows::tests::{flat, random},
    spin_pool::{SpinPool, Workers},
};

/// Rounds a row as the groups are defined: integers and scales, with zeros behind its end.
fn plain_activations(x: &[f32]) -> Vec<([i32; GROUP], f32)> {
    let group = |x: &[f32]| {
        let largest = x.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        let mut integers = [0; GROUP];
        if x.iter().any(|x| !x.is_finite()) {
            return (integers, f32::NAN);
        }
        if largest == 0.0 {
            return (integers, 0.0);
        }
        let inverse = 127.0 / largest;
        for (integer, &x) in integers.iter_mut().zip(x) {
            // Only the product is rounded to the nearest integer, not first to a float.
            *integer = (f64::from(x) * f64::from(inverse)).round_ties_even() as i32;
        }
        (integers, largest / 127.0)
    };
    x.chunks(GROUP).map(group).collect()
}

/// Weights as products see them: integers `(in)`, a scale for each group, and one for the column.
struct PlainColumn {
    integers: Vec<i32>,
    group_scales: Vec<f32>,
    scale: f32,
}

type Quantize = fn(&[f32]) -> PlainColumn;

/// A column in int8.
fn plain_int8(w: &[f32]) -> PlainColumn {
    let scale = w.iter().fold(0f32, |largest, x| largest.max(x.abs())) / 127.0;
    let integer = |x: &f32| if scale == 0.0 { 0 } else { (x / scale).round_ties_even() as i32 };
    PlainColumn { integers: w.iter().map(integer).collect(), group_scales: vec![1.0; w.len().div_ceil(GROUP)], scale }
}

/// A column in int4, with the blocks of q4_0.
fn plain_int4(w: &[f32]) -> PlainColumn {
    let (mut integers, mut group_scales) = (Vec::new(), Vec::new());
    for w in w.chunks(GROUP) {
        let extreme = w.iter().fold(0f32, |extreme, &x| if x.abs() > extreme.abs() { x } else { extreme });
        let scale = extreme / -8.0;
        let integer = |x: &f32| ((x * (1.0 / scale) + 8.5).floor() as i32).min(15) - 8;
        integers.extend(w.iter().map(|x| if scale == 0.0 { 0 } else { integer(x) }));
        group_scales.push(half::f16::from_f32(scale).to_f32());
    }
    PlainColumn { integers, group_scales, scale: 1.0 }
}

/// One output.
fn plain_product(x: &[f32], w: &PlainColumn, b: f32) -> f32 {
    let groups = plain_activations(x).into_iter().zip(w.integers.chunks(GROUP)).zip(&w.group_scales);
    let sum = groups.fold(0f32, |sum, (((x, scale), w), w_scale)| {
        let dot: i32 = x.iter().zip(w).map(|(x, w)| x * w).sum();
        (dot as f32).mul_add(scale * w_scale, sum)
    });
    sum.mul_add(w.scale, b)
}

/// The products of a matrix `(in, out)` with some rows, which are all rows of `x`.
fn product<G: WeightGroup>(
    matrix: &QuantizedMatrix<G>,
    (level, workers): (SimdLevel, &mut Workers<'_>),
    x: &[&[f32]],
    b: Option<&[f32]>,
) -> Vec<Vec<f32>> {
    let mut rows = Rows::zeros(x.len(), matrix.n_in);
    x.iter().enumerate().for_each(|(i, x)| rows.row_mut(i).copy_from_slice(x));
    let mut y = Rows::zeros(x.len(), matrix.n_out);
    // What earlier products have left does not show.
    let mut quantized = QuantizedRows::default();
    quantized.quantize(level, 1, 3, &random(3, matrix.n_in + 40, 9));
    let context = ProductContext { level, workers, quantized: &mut quantized };
    matrix.multiply_rows(context, (x.len(), &rows), b, &mut y);
    (0..x.len()).map(|i| y.row(i).to_vec()).collect()
}

fn bits(rows: &[Vec<f32>]) -> Vec<Vec<u32>> {
    rows.iter().map(|row| row.iter().map(|x| x.to_bits()).collect()).collect()
}

/// Numbers of sizes that differ from group to group.
fn lively(rows: usize, cols: usize, seed: u64) -> Rows {
    let mut x = random(rows, cols, seed);
    for i in 0..rows {
        for (j, x) in x.row_mut(i).iter_mut().enumerate() {
            *x *= [1.0, 30.0, 0.0, 1e-3][(i + j / GROUP) % 4];
        }
    }
    x
}

fn columns(w: &Rows, n_in: usize) -> Vec<Vec<f32>> {
    (0..w.cols).map(|j| (0..n_in).map(|l| w.row(l)[j]).collect()).collect()
}

fn check<G: WeightGroup>(quantize: Quantize) {
    const M: usize = 101;
    for (case, (n_in, n_out)) in
        [(1, 1), (3, 5), (4, 32), (31, 33), (32, 16), (33, 100), (64, 65), (70, 31), (300, 97)].into_iter().enumerate()
    {
        let seed = 10 * case as u64;
        let (x, w, b) = (lively(M, n_in, seed), lively(n_in, n_out, seed + 1), random(1, n_out, seed + 2));
        let (x, b): (Vec<_>, _) = ((0..M).map(|i| x.row(i)).collect(), b.row(0));
        let (by_column, values) = (columns(&w, n_in), flat(&w, n_in));
        let matrix = QuantizedMatrix::<G>::new(values[..].into(), n_out, OutputDim::Cols);
        let rows = by_column.concat();
        let transposed = QuantizedMatrix::<G>::new(rows[..].into(), n_in, OutputDim::Rows);
        let plain: Vec<_> = by_column.iter().map(|w| quantize(w)).collect();
        for (bias, matrix) in [(Some(b), &matrix), (None, &transposed)] {
            let one = |x: &&[f32]| -> Vec<f32> {
                plain.iter().enumerate().map(|(j, w)| plain_product(x, w, bias.map_or(0.0, |b| b[j]))).collect()
            };
            let expected = bits(&x.iter().map(one).collect::<Vec<_>>());
            for level in SimdLevel::available() {
                for (first, m) in [(0, M), (100, 1), (7, 2), (50, 7), (1, 64)] {
                    let found = product(matrix, (level, &mut Workers::none()), &x[first..first + m], bias);
                    assert_eq!(bits(&found), expected[first..first + m], "{level:?}, {m} rows, ({n_in}, {n_out})");
                }
            }
        }
    }
}

#[test]
fn products_in_int8_are_plain_sums_of_integers_on_every_level_and_in_any_company() {
    check::<Int8Group>(plain_int8);
}

#[test]
fn products_in_int4_are_plain_sums_of_integers_on_every_level_and_in_any_company() {
    check::<Int4Group>(plain_int4);
}

#[test]
fn rounded_products_are_near_those_of_the_numbers() {
    // 300 products of about 1/12, with errors of some 1/500 of the largest on either side, or 1/16 of the weights.
    check_nearness::<Int8Group>(0.06);
    check_nearness::<Int4Group>(0.7);
}

fn check_nearness<G: WeightGroup>(bound: f64) {
    let (n_in, n_out, m) = (300, 70, 5);
    let (x, w) = (random(m, n_in, 1), random(n_in, n_out, 2));
    let values = flat(&w, n_in);
    let x: Vec<_> = (0..m).map(|i| x.row(i)).collect();
    let matrix = QuantizedMatrix::<G>::new(values[..].into(), n_out, OutputDim::Cols);
    let found = product(&matrix, (SimdLevel::detect(), &mut Workers::none()), &x, None);
    for (x, y) in x.iter().zip(found) {
        for (w, y) in columns(&w, n_in).iter().zip(y) {
            let exact: f64 = x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
            assert!((f64::from(y) - exact).abs() < bound, "{y} {exact}");
        }
    }
}

#[test]
fn every_output_of_a_row_that_is_not_finite_is_nan_and_the_other_rows_are_as_they_were() {
    check_broken_rows::<Int8Group>();
    check_broken_rows::<Int4Group>();
}

fn check_broken_rows<G: WeightGroup>() {
    let (n_in, n_out) = (70, 40);
    let values = flat(&random(n_in, n_out, 2), n_in);
    let matrix = QuantizedMatrix::<G>::new(values[..].into(), n_out, OutputDim::Cols);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, 31, 40, 69] {
            let (x, mut broken) = (random(3, n_in, 1), random(1, n_in, 1));
            broken.row_mut(0)[at] = bad;
            for level in SimdLevel::available() {
                let good = product(&matrix, (level, &mut Workers::none()), &[x.row(1), x.row(2)], None);
                let all = product(&matrix, (level, &mut Workers::none()), &[x.row(1), broken.row(0), x.row(2)], None);
                assert!(all[1].iter().all(|y| y.is_nan()), "{level:?}, {bad} at {at}");
                assert_eq!([&all[0], &all[2]], [&good[0], &good[1]]);
            }
        }
    }
}

#[test]
fn tiny_and_huge_numbers_are_rounded_like_others() {
    for largest in [f32::MIN_POSITIVE / 8.0, 1e-38, 1e-30, 1.0, 1e38] {
        let x: Vec<f32> = (0..40).map(|i| largest * ((i as f32 - 20.0) / 20.0)).collect();
        let mut rows = Rows::zeros(1, 40);
        rows.row_mut(0).copy_from_slice(&x);
        for level in SimdLevel::available() {
            let mut quantized = QuantizedRows::default();
            quantized.quantize(level, 128, 1, &rows);
            for (group, x) in quantized.row(0).iter().zip(x.chunks(GROUP)) {
                let integers = group.quads.iter().flat_map(|quad| quad.to_le_bytes()).map(u8::cast_signed);
                assert_eq!(-128 * integers.clone().map(i32::from).sum::<i32>(), group.start);
                for (integer, &x) in integers.zip(x) {
                    let back = f32::from(integer) * group.scale;
                    // A group of numbers below 1e-26 is zeros.
                    assert!((back - x).abs() <= (0.51 * group.scale).max(1.3e-26), "{level:?}: {x:e} is {back:e}");
                }
            }
        }
    }
}

#[test]
fn a_weight_that_is_not_finite_makes_its_output_nan() {
    check_broken_weights::<Int8Group>();
    check_broken_weights::<Int4Group>();
}

fn check_broken_weights<G: WeightGroup>() {
    let (n_in, n_out) = (40, 35);
    let x = random(2, n_in, 1);
    for (bad, at) in [(f32::NAN, 0), (f32::INFINITY, 39 * n_out + 34), (f32::NAN, 20 * n_out + 3)] {
        let mut values = flat(&random(n_in, n_out, 2), n_in);
        values[at] = bad;
        let matrix = QuantizedMatrix::<G>::new(values[..].into(), n_out, OutputDim::Cols);
        for y in product(&matrix, (SimdLevel::detect(), &mut Workers::none()), &[x.row(0), x.row(1)], None) {
            for (j, y) in y.into_iter().enumerate() {
                assert_eq!(y.is_nan(), j == at % n_out, "{bad} at {at}: output {j} is {y}");
            }
        }
    }
}

#[test]
fn rows_that_lie_in_pieces_in_a_file_are_those_of_one_piece() {
    // More than a piece has, and neither a whole number of panels.
    let (n_in, n_out) = (1000, 1300);
    let values = flat(&random(n_out, n_in, 1), n_out);
    let of_rows = QuantizedMatrix::<Int8Group>::new(values[..].into(), n_in, OutputDim::Rows);
    let by_input: Vec<f32> = (0..n_in).flat_map(|l| values.iter().copied().skip(l).step_by(n_in)).collect();
    let of_columns = QuantizedMatrix::<Int8Group>::new(by_input[..].into(), n_out, OutputDim::Cols);
    let x = random(1, n_in, 2);
    let product = |matrix| bits(&product(matrix, (SimdLevel::detect(), &mut Workers::none()), &[x.row(0)], None));
    assert_eq!(product(&of_rows), product(&of_columns));
}

#[test]
fn threads_do_not_show_in_a_bit() {
    use super::super::super::matmul::MIN_PARALLEL_MULTIPLY_ADDS;
    // One product that the pool's threads share, and one that is shared since it is long.
    for (n_in, n_out, m) in [(300, 715, 3), (100, 200, 220)] {
        let shared = n_in * n_out > super::super::shared_output::MIN_PARALLEL_BYTES;
        assert_ne!(shared, m * n_in * n_out >= MIN_PARALLEL_MULTIPLY_ADDS);
        let x = random(m, n_in, 1);
        let x: Vec<_> = (0..m).map(|i| x.row(i)).collect();
        let values = flat(&random(n_in, n_out, 2), n_in);
        let matrix = QuantizedMatrix::<Int8Group>::new(values[..].into(), n_out, OutputDim::Cols);
        let products = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let alone = product(&matrix, (SimdLevel::detect(), &mut Workers::none()), &x, None);
                let shared =
                    SpinPool::default().run(|workers| product(&matrix, (SimdLevel::detect(), workers), &x, None));
                assert_eq!(bits(&alone), bits(&shared));
                bits(&alone)
            })
        };
        let expected = products(1);
        for threads in [2, 3, 7] {
            assert_eq!(products(threads), expected, "{m} rows, {threads} threads");
        }
    }
}
