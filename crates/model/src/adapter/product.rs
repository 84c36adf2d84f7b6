//! The product of an adapter's two matrices, and the gradients of both from that of the effective weights. Every sum is one
//! chain in a fixed order, so the number of threads shows in no bit.

use rayon::prelude::*;
use tinygpt_sampler::simd::{Kernel, LANES, Simd, SimdLevel};

use super::LinearLayer;

/// The columns of the weights that one task of the gradient of `B` goes through.
const TASK_COLUMNS: usize = 4 * LANES;

/// What is added to the weights of a layer: `scale A^T B^T`, `(in, out)`.
#[derive(Debug, Clone, Copy)]
pub struct LowRank<'a> {
    /// The layer.
    pub layer: &'a LinearLayer,
    /// The rank.
    pub rank: usize,
    /// The factor of the product.
    pub scale: f32,
    /// `A (rank, in)`.
    pub a: &'a [f32],
    /// `B (out, rank)`.
    pub b: &'a [f32],
}

impl LowRank<'_> {
    /// Adds the product to the layer's columns of its parameter, `(in, columns)`.
    pub fn add_to(&self, level: SimdLevel, param: &mut [f32]) {
        let (a, b) = self.transposed();
        let Self { layer, rank, scale, .. } = *self;
        param.par_chunks_mut(layer.columns).zip(a.par_chunks(rank)).for_each(|(weights, a)| {
            let weights = &mut weights[layer.first_column..][..layer.n_out];
            level.run(AddRow { a, b: &b, scale, weights });
        });
    }

    /// Computes the gradients of `A` and `B` from that of the parameter, `(in, columns)`: `scale (dW B)^T` and
    /// `scale dW^T A^T`.
    pub fn gradients(&self, level: SimdLevel, d_param: &[f32], d_a: &mut [f32], d_b: &mut [f32]) {
        let (a, b) = self.transposed();
        let Self { layer, rank, scale, .. } = *self;
        let LinearLayer { n_in, n_out, first_column, columns, .. } = *layer;
        // (in, rank)
        let mut products = vec![0.0; n_in * rank];
        products.par_chunks_mut(rank).zip(d_param.par_chunks(columns)).for_each(|(products, d_weights)| {
            let d_weights = &d_weights[first_column..][..n_out];
            level.run(Dots { d_weights, b: &b, products });
        });
        transpose(&products, rank, d_a, scale);
        d_b.par_chunks_mut(TASK_COLUMNS * rank).enumerate().for_each(|(task, d_b)| {
            let n = d_b.len() / rank;
            let start = first_column + task * TASK_COLUMNS;
            // (rank, n)
            let mut sums = vec![0.0; rank * n];
            let rows = d_param.chunks(columns).map(|row| &row[start..start + n]);
            level.run(OuterSums { rows, a: &a, rank, sums: &mut sums });
            transpose(&sums, n, d_b, scale);
        });
    }

    /// `A` as `(in, rank)` and `B` as `(rank, out)`.
    fn transposed(&self) -> (Vec<f32>, Vec<f32>) {
        let (mut a, mut b) = (vec![0.0; self.a.len()], vec![0.0; self.b.len()]);
        transpose(self.a, self.layer.n_in, &mut a, 1.0);
        transpose(self.b, self.rank, &mut b, 1.0);
        (a, b)
    }
}

/// Copies `from (rows, columns)` to `to (columns, rows)`, times a factor.
fn transpose(from: &[f32], columns: usize, to: &mut [f32], factor: f32) {
    let rows = from.len() / columns;
    for (row, values) in from.chunks_exact(columns).enumerate() {
        for (to, value) in to[row..].iter_mut().step_by(rows).zip(values) {
            *to = factor * value;
        }
    }
}

/// `weights += scale (a B)`, for one input: `a (rank)`, `b (rank, out)`, `weights (out)`.
struct AddRow<'a> {
    a: &'a [f32],
    b: &'a [f32],
    scale: f32,
    weights: &'a mut [f32],
}

impl Kernel for AddRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n_out = self.weights.len();
        let (vectors, rest) = self.weights.as_chunks_mut::<LANES>();
        let n = vectors.len();
        for (j, weights) in vectors.iter_mut().enumerate() {
            let mut sum = s.splat(0.0);
            for (&a, b) in self.a.iter().zip(self.b.chunks_exact(n_out)) {
                sum = s.mul_add(s.splat(a), s.load(&b.as_chunks::<LANES>().0[j]), sum);
            }
            s.store(s.mul_add(s.splat(self.scale), sum, s.load(weights)), weights);
        }
        for (j, weight) in rest.iter_mut().enumerate() {
            let rows = self.b.chunks_exact(n_out).map(|b| b[n * LANES + j]);
            let sum = self.a.iter().zip(rows).fold(0.0f32, |sum, (&a, b)| a.mul_add(b, sum));
            *weight = self.scale.mul_add(sum, *weight);
        }
    }
}

/// `products[k] = sum over outputs of d_weights * b[k]`, for one input: `d_weights (out)`, `b (rank, out)`.
struct Dots<'a> {
    d_weights: &'a [f32],
    b: &'a [f32],
    products: &'a mut [f32],
}

impl Kernel for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (vectors, rest) = self.d_weights.as_chunks::<LANES>();
        for (product, b) in self.products.iter_mut().zip(self.b.chunks_exact(self.d_weights.len())) {
            let (b_vectors, b_rest) = b.as_chunks::<LANES>();
            let mut sum = s.splat(0.0);
            for (d, b) in vectors.iter().zip(b_vectors) {
                sum = s.mul_add(s.load(d), s.load(b), sum);
            }
            *product = rest.iter().zip(b_rest).fold(s.sum(sum), |sum, (&d, &b)| d.mul_add(b, sum));
        }
    }
}

/// `sums[k] += a[k] * row`, for one input after the other: rows of `(n)`, `a (in, rank)`, `sums (rank, n)`.
struct OuterSums<'a, I> {
    rows: I,
    a: &'a [f32],
    rank: usize,
    sums: &'a mut [f32],
}

impl<'a, I: Iterator<Item = &'a [f32]>> Kernel for OuterSums<'a, I> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (row, a) in self.rows.zip(self.a.chunks_exact(self.rank)) {
            let (vectors, rest) = row.as_chunks::<LANES>();
            for (&a, sums) in a.iter().zip(self.sums.chunks_exact_mut(row.len())) {
                let (sum_vectors, sum_rest) = sums.as_chunks_mut::<LANES>();
                for (d, sum) in vectors.iter().zip(sum_vectors) {
                    s.store(s.mul_add(s.splat(a), s.load(d), s.load(sum)), sum);
                }
                for (&d, sum) in rest.iter().zip(sum_rest) {
                    *sum = a.mul_add(d, *sum);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers between -1 and 1, another sequence for each `from`.
    fn numbers(from: usize, n: usize) -> Vec<f32> {
        (from..from + n).map(|i| ((i * 7919 + from) % 2003) as f32 / 1001.5 - 1.0).collect()
    }

    /// A layer whose columns are in the middle of its parameter, and not a whole number of vectors.
    fn layer(n_in: usize, n_out: usize) -> LinearLayer {
        LinearLayer { name: "x".into(), param: 0, n_in, n_out, first_column: 5, columns: n_out + 9 }
    }

    #[test]
    fn product_and_gradients_are_those_of_the_formulas() {
        for (n_in, n_out, rank) in [(1, 1, 1), (3, 16, 2), (37, 70, 5), (20, 131, 8)] {
            let layer = layer(n_in, n_out);
            let (a, b) = (numbers(1, rank * n_in), numbers(2, n_out * rank));
            let (w, d_w) = (numbers(3, n_in * layer.columns), numbers(4, n_in * layer.columns));
            let low_rank = LowRank { layer: &layer, rank, scale: 0.5, a: &a, b: &b };
            let (mut merged, mut d_a, mut d_b) = (w.clone(), vec![0.0; a.len()], vec![0.0; b.len()]);
            low_rank.add_to(SimdLevel::detect(), &mut merged);
            low_rank.gradients(SimdLevel::detect(), &d_w, &mut d_a, &mut d_b);
            let near = |x: f32, y: f64| assert!((f64::from(x) - y).abs() < 1e-4, "{x} {y}");
            for i in 0..n_in {
                for column in 0..layer.columns {
                    let at = i * layer.columns + column;
                    let Some(o) = column.checked_sub(5).filter(|&o| o < n_out) else {
                        assert_eq!(merged[at], w[at], "a column of another layer");
                        continue;
                    };
                    let sum: f64 = (0..rank).map(|k| f64::from(a[k * n_in + i]) * f64::from(b[o * rank + k])).sum();
                    near(merged[at], f64::from(w[at]) + 0.5 * sum);
                }
            }
            let d = |i: usize, o: usize| f64::from(d_w[i * layer.columns + 5 + o]);
            for k in 0..rank {
                for i in 0..n_in {
                    near(d_a[k * n_in + i], (0..n_out).map(|o| 0.5 * d(i, o) * f64::from(b[o * rank + k])).sum());
                }
                for o in 0..n_out {
                    near(d_b[o * rank + k], (0..n_in).map(|i| 0.5 * d(i, o) * f64::from(a[k * n_in + i])).sum());
                }
            }
        }
    }

    #[test]
    fn the_number_of_threads_shows_in_no_bit() {
        let (layer, rank) = (layer(50, 200), 4);
        let (a, b, d_w) = (numbers(1, rank * 50), numbers(2, 200 * rank), numbers(3, 50 * layer.columns));
        let compute = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let low_rank = LowRank { layer: &layer, rank, scale: 0.3, a: &a, b: &b };
                let (mut w, mut d_a, mut d_b) = (d_w.clone(), vec![0.0; a.len()], vec![0.0; b.len()]);
                low_rank.add_to(SimdLevel::detect(), &mut w);
                low_rank.gradients(SimdLevel::detect(), &d_w, &mut d_a, &mut d_b);
                [w, d_a, d_b].map(|values| values.into_iter().map(f32::to_bits).collect::<Vec<_>>())
            })
        };
        assert_eq!(compute(1), compute(3));
    }
}
