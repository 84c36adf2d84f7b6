#![allow(clippy::unwrap_used, reason = "test code")]

use super::super::rows::tests::{flat, random};
use super::*;
use rayon::prelude::*;

/// The iterations as they are written down, in f64 and without any shortcut, on a row-major matrix.
fn plain(x: &[f64], rows: usize, cols: usize, coefficients: &[[f64; 3]]) -> Vec<f64> {
    let transpose = |x: &[f64], rows: usize, cols: usize| -> Vec<f64> {
        (0..cols * rows).map(|at| x[at % rows * cols + at / rows]).collect()
    };
    if rows > cols {
        return transpose(&plain(&transpose(x, rows, cols), cols, rows, coefficients), cols, rows);
    }
    let product = |x: &[f64], y: &[f64], m: usize, k: usize, n: usize| -> Vec<f64> {
        (0..m * n).map(|at| (0..k).map(|l| x[at / n * k + l] * y[l * n + at % n]).sum()).collect()
    };
    let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt();
    let mut x: Vec<f64> = x.iter().map(|x| x / (norm * 1.02 + 1e-7)).collect();
    for &[a, b, c] in coefficients {
        let gram = product(&x, &transpose(&x, rows, cols), rows, cols, rows);
        let square = product(&gram, &gram, rows, rows, rows);
        let sum: Vec<f64> = gram.iter().zip(square).map(|(gram, square)| b * gram + c * square).collect();
        let more = product(&sum, &x, rows, rows, cols);
        x.iter_mut().zip(more).for_each(|(x, more)| *x = a * *x + more);
    }
    x
}

/// Of a matrix (rows, cols), in the memory of `of`.
fn orthogonalized(of: &mut Orthogonalizer, level: SimdLevel, x: &Rows, rows: usize, steps: usize) -> Vec<f32> {
    of.start(rows, x.cols);
    (0..rows).for_each(|i| of.row_mut(i).copy_from_slice(x.row(i)));
    of.orthogonalize(level, &POLAR_EXPRESS[..steps]);
    (0..rows).flat_map(|i| of.row(i).to_vec()).collect()
}

const SHAPES: [(usize, usize); 16] = [
    (1, 1),
    (1, 37),
    (37, 1),
    (2, 3),
    (16, 16),
    (17, 17),
    (33, 31),
    (32, 48),
    (48, 32),
    (15, 130),
    (130, 15),
    (65, 64),
    (64, 72),
    (100, 100),
    (49, 99),
    (99, 50),
];

#[test]
fn the_result_is_that_of_the_plain_iterations_in_f64() {
    let mut of = Orthogonalizer::default();
    for (case, (rows, cols)) in SHAPES.into_iter().enumerate() {
        let x = random(rows, cols, case as u64);
        let wide: Vec<f64> = flat(&x, rows).into_iter().map(f64::from).collect();
        for steps in 1..=5 {
            let expected = plain(&wide, rows, cols, &POLAR_EXPRESS[..steps]);
            let found = orthogonalized(&mut of, SimdLevel::detect(), &x, rows, steps);
            let error = found.iter().zip(&expected).map(|(x, y)| (f64::from(*x) - y).abs()).fold(0.0, f64::max);
            // Elements are at most about 1; small singular values are magnified, with their rounding.
            assert!(error < 3e-5, "{rows} x {cols}, {steps} steps: {error}");
        }
    }
}

#[test]
fn every_level_and_any_number_of_threads_gives_the_same_bits_in_memory_used_before_or_not() {
    let matrices: Vec<_> = SHAPES.iter().enumerate().map(|(i, &(m, n))| (m, random(m, n, 100 + i as u64))).collect();
    let fresh = |level| -> Vec<Vec<f32>> {
        matrices.iter().map(|(m, x)| orthogonalized(&mut Orthogonalizer::default(), level, x, *m, 4)).collect()
    };
    let bits = |x: &[Vec<f32>]| -> Vec<u32> { x.iter().flatten().map(|x| x.to_bits()).collect() };
    let expected = bits(&fresh(SimdLevel::SCALAR));
    for level in SimdLevel::available() {
        assert_eq!(bits(&fresh(level)), expected, "{level:?}");
        for threads in 1..4 {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let found: Vec<_> = pool.install(|| {
                let of = matrices
                    .par_iter()
                    .map_init(Orthogonalizer::default, |of, (m, x)| orthogonalized(of, level, x, *m, 4));
                of.collect()
            });
            assert_eq!(bits(&found), expected, "{level:?}, {threads} threads");
        }
    }
}

/// The smallest and the largest singular value of a row-major matrix: the roots of the eigenvalues of the smaller of its
/// two products with its transpose, by Jacobi's rotations.
fn singular_values(x: &[f32], rows: usize, cols: usize) -> (f64, f64) {
    let n = rows.min(cols);
    let at = |i: usize, l: usize| f64::from(if rows < cols { x[i * cols + l] } else { x[l * cols + i] });
    let dot = |i, j| (0..rows.max(cols)).map(|l| at(i, l) * at(j, l)).sum();
    let mut a: Vec<Vec<f64>> = (0..n).map(|i| (0..n).map(|j| dot(i, j)).collect()).collect();
    for _ in 0..12 {
        for p in 0..n {
            for q in p + 1..n {
                if a[p][q].abs() < 1e-14 {
                    continue;
                }
                let theta = 0.5 * (2.0 * a[p][q]).atan2(a[q][q] - a[p][p]);
                let (sin, cos) = theta.sin_cos();
                for row in &mut a {
                    (row[p], row[q]) = (cos * row[p] - sin * row[q], sin * row[p] + cos * row[q]);
                }
                let (above, below) = a.split_at_mut(q);
                for (x, y) in above[p].iter_mut().zip(&mut below[0]) {
                    (*x, *y) = (cos * *x - sin * *y, sin * *x + cos * *y);
                }
            }
        }
    }
    let values = (0..n).map(|i| a[i][i].max(0.0).sqrt());
    values.fold((f64::INFINITY, 0.0), |(least, most), x| (x.min(least), x.max(most)))
}

#[test]
fn singular_values_come_near_one() {
    let mut of = Orthogonalizer::default();
    for (rows, cols) in [(24, 40), (40, 24), (1, 9), (30, 50)] {
        let x = random(rows, cols, 7);
        let range = |of: &mut Orthogonalizer, steps| {
            singular_values(&orthogonalized(of, SimdLevel::detect(), &x, rows, steps), rows, cols)
        };
        let (least, most) = range(&mut of, 3);
        // The first iterations overshoot, which the later ones make good.
        assert!(least > 0.1 && most < 2.0, "3 steps: {least} {most}");
        let (least, most) = range(&mut of, 5);
        assert!(least > 0.85 && most < 1.15, "5 steps: {least} {most}");
    }
}

#[test]
fn a_matrix_of_zeros_stays_one_and_one_of_low_rank_keeps_its_rank() {
    let mut of = Orthogonalizer::default();
    assert!(orthogonalized(&mut of, SimdLevel::detect(), &Rows::zeros(20, 30), 20, 5).iter().all(|&x| x == 0.0));
    // An outer product has one singular value, and becomes the outer product of two vectors of length 1.
    for (rows, cols) in [(20, 30), (30, 20), (20, 20)] {
        let mut x = Rows::zeros(rows, cols);
        let (left, right) = (random(1, rows, 1), random(1, cols, 2));
        for i in 0..rows {
            x.row_mut(i).iter_mut().zip(right.row(0)).for_each(|(x, r)| *x = left.row(0)[i] * r);
        }
        let length = |x: &Rows| x.row(0).iter().map(|x| x * x).sum::<f32>().sqrt();
        let found = orthogonalized(&mut of, SimdLevel::detect(), &x, rows, 5);
        let scale = length(&left) * length(&right);
        for (at, found) in found.iter().enumerate() {
            let expected = x.row(at / cols)[at % cols] / scale;
            assert!((found - expected).abs() < 0.02, "{rows} x {cols}: {found} {expected}");
        }
    }
}

/// The milliseconds for the matrices of four layers of 128 channels, on two threads and in optimised code:
/// `cargo test --release --workspace --lib -- --ignored --nocapture orthogonal::tests::milliseconds`.
#[test]
#[ignore = "a measurement"]
#[expect(clippy::print_stderr, reason = "it tells what it measured")]
fn milliseconds() {
    let mut shapes = Vec::new();
    for _ in 0..4 {
        shapes.extend([(128, 344), (128, 344), (344, 128), (128, 128), (128, 128), (128, 128), (128, 128)]);
    }
    shapes.sort_by_key(|(rows, cols)| std::cmp::Reverse(rows * cols));
    let matrices: Vec<_> = shapes.iter().enumerate().map(|(i, &(m, n))| (m, random(m, n, i as u64))).collect();
    let level = SimdLevel::detect();
    for threads in 1..=2 {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let memory: Vec<_> = (0..threads).map(|_| std::sync::Mutex::new(Orthogonalizer::default())).collect();
        let mut times: Vec<f64> = (0..300)
            .map(|_| {
                let (start, next) = (std::time::Instant::now(), std::sync::atomic::AtomicUsize::new(0));
                pool.install(|| {
                    memory.par_iter().for_each(|of| {
                        let mut of = of.lock().unwrap();
                        while let Some((rows, x)) =
                            matrices.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
                        {
                            of.start(*rows, x.cols);
                            (0..*rows).for_each(|i| of.row_mut(i).copy_from_slice(x.row(i)));
                            of.orthogonalize(level, &POLAR_EXPRESS[..3]);
                            std::hint::black_box(of.row(0));
                        }
                    });
                });
                1e3 * start.elapsed().as_secs_f64()
            })
            .collect();
        times.sort_by(f64::total_cmp);
        let [least, tenth, median] = [0, 30, 150].map(|at| times[at]);
        eprintln!("{threads} threads: {least:.2} ms at best, {tenth:.2} the first tenth, {median:.2} the median");
    }
}
