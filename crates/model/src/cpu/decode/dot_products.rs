//! Products with a matrix `(out, in)`, the head: dot products along its rows.

#![allow(unsafe_code)]

use std::ops::Range;

use tinygpt_sampler::simd::{Kernel, LANES, Simd, SimdLevel};

use super::{
    super::{rows::Rows, spin_pool::Workers, vectors},
    format::{WeightElement, load_rest},
    prefetch::load_and_prefetch,
    shared_output::{SharedOutput, parallel_for_columns},
};

/// Computes `y (m, out) = x (m, in) w^T` for `w (out, in)`.
pub(super) fn multiply_transposed<E: WeightElement>(
    (level, workers): (SimdLevel, &mut Workers<'_>),
    w: &[E],
    (m, x): (usize, &Rows),
    y: &mut [f32],
) {
    let n_out = w.len() / x.cols;
    let columns = SharedOutput::new(y, n_out, n_out);
    parallel_for_columns(workers, n_out, m, size_of_val(w), |range| level.run(DotProducts { w, m, x, columns, range }));
}

/// The outputs, and the rows, of a register tile of [`DotProducts`]: sixteen sums side by side.
const DOT_TILE: usize = 4;

/// Computes a range of the outputs of `x w^T`, [`DOT_TILE`] at a time.
struct DotProducts<'a, E> {
    w: &'a [E],
    m: usize,
    x: &'a Rows,
    columns: SharedOutput<'a>,
    range: Range<usize>,
}

impl<E: WeightElement> Kernel for DotProducts<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let whole = self.range.start + self.range.len() / DOT_TILE * DOT_TILE;
        for at in (self.range.start..whole).step_by(DOT_TILE) {
            self.outputs::<S, DOT_TILE>(s, at);
        }
        for at in whole..self.range.end {
            self.outputs::<S, 1>(s, at);
        }
    }
}

impl<E: WeightElement> DotProducts<'_, E> {
    /// Computes outputs `at..at + N` of all rows.
    #[inline(always)]
    fn outputs<S: Simd, const N: usize>(&self, s: S, at: usize) {
        let whole = self.m / DOT_TILE * DOT_TILE;
        for row in (0..whole).step_by(DOT_TILE) {
            self.tile::<S, N, DOT_TILE>(s, at, row);
        }
        for row in whole..self.m {
            self.tile::<S, N, 1>(s, at, row);
        }
    }

    /// Computes outputs `at..at + N` of rows `row..row + R`.
    #[inline(always)]
    fn tile<S: Simd, const N: usize, const R: usize>(&self, s: S, at: usize, row: usize) {
        let Self { w, x, columns, .. } = self;
        let n_in = x.cols;
        let mut weights: [&[E]; N] = [&[]; N];
        for (i, to) in weights.iter_mut().enumerate() {
            *to = &w[(at + i) * n_in..][..n_in];
        }
        let mut rows: [&[f32]; R] = [&[]; R];
        for (i, to) in rows.iter_mut().enumerate() {
            *to = &x.row(row + i)[..n_in];
        }
        let whole = n_in / LANES;
        let mut sums = [[s.splat(0.0); N]; R];
        for v in 0..whole {
            let mut loaded = [s.splat(0.0); N];
            for (to, w) in loaded.iter_mut().zip(weights) {
                // SAFETY: all of these slices, and those of x, have `n_in` elements: `whole` vectors.
                *to = unsafe { load_and_prefetch(s, w, v, N * n_in) };
            }
            for (sums, x) in sums.iter_mut().zip(rows) {
                // SAFETY: as above.
                let x = s.load(unsafe { &*x.as_ptr().add(v * LANES).cast::<[f32; LANES]>() });
                for (sum, w) in sums.iter_mut().zip(loaded) {
                    *sum = s.mul_add(x, w, *sum);
                }
            }
        }
        if whole * LANES < n_in {
            for (sums, x) in sums.iter_mut().zip(rows) {
                for (sum, w) in sums.iter_mut().zip(weights) {
                    *sum = s.mul_add(vectors::get(s, x, whole), load_rest(s, &w[whole * LANES..]), *sum);
                }
            }
        }
        // A whole tile has a vector of sums, which are added up side by side.
        let added: [[f32; N]; R] = if N * R == LANES {
            let added = s.sums(std::array::from_fn(|i| sums[i / N][i % N]));
            std::array::from_fn(|i| std::array::from_fn(|j| added[i * N + j]))
        } else {
            sums.map(|sums| sums.map(|sum| s.sum(sum)))
        };
        for (i, added) in added.into_iter().enumerate() {
            // SAFETY: the ranges of the tasks are disjoint, and this one uses one slice at a time.
            let y = unsafe { columns.part(row + i, &(at..at + N)) };
            y.copy_from_slice(&added);
        }
    }
}
