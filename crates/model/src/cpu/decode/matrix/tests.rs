//! Products against f64, in any company and on every level.

use super::*;
use tinygpt_sampler::{RngDomain, philox_at};

/// What a product computes with, on one thread where no workers are given.
macro_rules! context {
    ($level:expr) => {
        context!($level, &mut Workers::none())
    };
    ($level:expr, $workers:expr) => {
        ProductContext { level: $level, workers: $workers, quantized: &mut QuantizedRows::default() }
    };
}

fn uniform(n: usize, seed: u64) -> Vec<f32> {
    (0..n).map(|i| philox_at(seed, RngDomain::Noise, i as u64, 0)[0] as f32 / u32::MAX as f32 - 0.5).collect()
}

/// The weights as a matrix holds them, row after row.
fn stored(matrix: &WeightMatrix<'_>, cols: usize, output: OutputDim) -> Vec<f32> {
    fn unpacked<E: WeightElement>(values: &[E], cols: usize, output: OutputDim) -> Vec<f32> {
        let panels = if output == OutputDim::Cols {
            PanelView::of_packed(values, cols)
        } else {
            PanelView::of_rows(values, cols)
        };
        let rows = values.len() / cols;
        (0..rows)
            .flat_map(|l| panels.parts(0..cols).flat_map(move |part| part.row(l, 0, part.columns.len()).to_vec()))
            .map(E::value)
            .collect()
    }
    match &matrix.values {
        StoredWeights::F32(values) => values.to_vec(),
        StoredWeights::Bf16(values) => unpacked(values, cols, output),
        StoredWeights::Int8(_) | StoredWeights::Int4(_) => unreachable!("tested in `quantized/tests.rs`"),
    }
}

fn rows(values: &[f32], cols: usize) -> Rows {
    let mut rows = Rows::zeros(values.len() / cols, cols);
    values.chunks(cols).enumerate().for_each(|(i, row)| rows.row_mut(i).copy_from_slice(row));
    rows
}

#[test]
fn products_are_those_of_the_stored_weights_on_every_level_and_a_row_is_the_same_in_any_company() {
    const M: usize = 70;
    for (n_in, n_out) in [(1, 1), (7, 5), (24, 48), (40, 1100), (8, 33), (300, 300)] {
        for (format, tolerance) in [(WeightFormat::F32, 0.0), (WeightFormat::Bf16, 0.001)] {
            let (w, b) = (uniform(n_in * n_out, 1), uniform(n_out, 3));
            let x = rows(&uniform(M * n_in, 2), n_in);
            let linear = WeightMatrix::new(w[..].into(), n_out, OutputDim::Cols, format);
            let head = WeightMatrix::new(w[..].into(), n_in, OutputDim::Rows, format);
            let (linear_w, head_w) = (stored(&linear, n_out, OutputDim::Cols), stored(&head, n_in, OutputDim::Rows));
            assert!(linear_w.iter().zip(&w).all(|(a, b)| (a - b).abs() <= tolerance), "{format:?}");
            assert!(head_w.iter().zip(&w).all(|(a, b)| (a - b).abs() <= tolerance), "{format:?}");
            let mut expected: Option<Vec<u32>> = None;
            for level in SimdLevel::available() {
                let (mut y, mut z) = (Rows::zeros(M, n_out), vec![0.0; M * n_out]);
                linear.apply(context!(level), M, &x, Some(&b), &mut y);
                head.apply_transposed(context!(level), M, &x, &mut z);
                for i in 0..M {
                    let exact = |w: &dyn Fn(usize) -> f32| -> f64 {
                        x.row(i).iter().enumerate().map(|(l, &x)| f64::from(x) * f64::from(w(l))).sum()
                    };
                    let bound = 1e-6 * n_in as f64;
                    for j in 0..n_out {
                        let linear = exact(&|l| linear_w[l * n_out + j]) + f64::from(b[j]);
                        assert!((f64::from(y.row(i)[j]) - linear).abs() < bound, "{format:?} {level:?}");
                        let head = exact(&|l| head_w[j * n_in + l]);
                        assert!((f64::from(z[i * n_out + j]) - head).abs() < bound, "{format:?} {level:?}");
                    }
                }
                // Alone, and one of nine, which is too few for tiles.
                for (first, m) in [(69, 1), (3, 1), (60, 9)] {
                    let some: Vec<f32> = (first..first + m).flat_map(|i| x.row(i).to_vec()).collect();
                    let some = rows(&some, n_in);
                    let (mut few, mut few_z) = (Rows::zeros(m, n_out), vec![0.0; m * n_out]);
                    linear.apply(context!(level), m, &some, Some(&b), &mut few);
                    head.apply_transposed(context!(level), m, &some, &mut few_z);
                    for i in 0..m {
                        assert_eq!(few.row(i), y.row(first + i), "{format:?} {level:?} {n_in} {n_out}");
                    }
                    assert_eq!(few_z, z[first * n_out..][..m * n_out], "{format:?} {level:?} {n_in} {n_out}");
                }
                let bits = (0..M).flat_map(|i| y.row(i)).chain(&z).map(|y| y.to_bits()).collect();
                assert_eq!(*expected.get_or_insert_with(|| Vec::clone(&bits)), bits, "{level:?}");
            }
        }
    }
}

#[test]
fn the_blocks_in_which_weights_are_packed_for_many_rows_do_not_show_in_a_bit() {
    // More weights than a block has, in whole panels and a rest.
    let (n_in, n_out, m) = (3000, 205, 70);
    let (w, b) = (uniform(n_in * n_out, 1), uniform(n_out, 3));
    let x = rows(&uniform(m * n_in, 2), n_in);
    for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8, WeightFormat::Int4] {
        let linear = WeightMatrix::new(w[..].into(), n_out, OutputDim::Cols, format);
        for bias in [None, Some(&b[..])] {
            let product = |x: &Rows, m| {
                let mut y = Rows::zeros(m, n_out);
                linear.apply(context!(SimdLevel::detect()), m, x, bias, &mut y);
                y
            };
            let all = product(&x, m);
            for i in 0..m {
                assert_eq!(product(&rows(x.row(i), n_in), 1).row(0), all.row(i), "{format:?}, row {i}");
            }
        }
    }
}

#[test]
fn bf16_rounds_to_even() {
    for (x, bits) in [(1.0, 0x3f80), (1.003_906_2, 0x3f80), (1.003_906_4, 0x3f81), (1.011_718_8, 0x3f82)] {
        assert_eq!(to_bf16(x), bits, "{x}");
    }
    assert!(f32::from_bits(u32::from(to_bf16(f32::NAN)) << 16).is_nan());
    assert_eq!(to_bf16(f32::NEG_INFINITY), 0xff80);
}

#[test]
fn threads_do_not_show_in_a_bit() {
    use super::super::{super::spin_pool::SpinPool, shared_output::MIN_PARALLEL_BYTES};
    // Columns that threads share among them, and a rest.
    let (n_in, n_out) = (300, 715);
    assert!(n_in * n_out > MIN_PARALLEL_BYTES);
    let (w, b) = (uniform(n_in * n_out, 1), uniform(n_out, 3));
    for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8, WeightFormat::Int4] {
        let linear = WeightMatrix::new(w[..].into(), n_out, OutputDim::Cols, format);
        let head = WeightMatrix::new(w[..].into(), n_in, OutputDim::Rows, format);
        for m in [1, 3, 20, 70] {
            let x = rows(&uniform(m * n_in, 2), n_in);
            let products = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| {
                    SpinPool::default().run(|workers| {
                        let (mut y, mut z) = (Rows::zeros(m, n_out), vec![0.0; m * n_out]);
                        linear.apply(context!(SimdLevel::detect(), workers), m, &x, Some(&b), &mut y);
                        head.apply_transposed(context!(SimdLevel::detect(), workers), m, &x, &mut z);
                        (0..m).flat_map(|i| y.row(i)).chain(&z).map(|y| y.to_bits()).collect::<Vec<_>>()
                    })
                })
            };
            let expected = products(1);
            for threads in [2, 3, 7] {
                assert_eq!(products(threads), expected, "{format:?}, {m} rows, {threads} threads");
            }
        }
    }
}
