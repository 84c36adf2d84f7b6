//! Matrix-vector products: with a single sequence, every product of a step is one.

#![allow(unsafe_code)]

use std::ops::Range;

use tinygpt_sampler::simd::{Kernel, LANES, Simd};

use super::{
    super::vectors,
    format::{WeightElement, load_rest},
    panels::{PanelColumns, PanelView},
    prefetch::prefetch,
    shared_output::SharedOutput,
};

/// The number of rows of the matrix between the weights in use and those being prefetched.
const PREFETCH_DISTANCE: usize = 8;

/// Adds `x (in) w (in, out)` to a range of the columns of a single output row. Blocks of columns whose sums fit the
/// registers are computed one after the other, each over all inputs.
pub(crate) struct Gemv<'a, E> {
    pub(crate) w: &'a PanelView<'a, E>,
    pub(crate) x: &'a [f32],
    pub(crate) columns: SharedOutput<'a>,
    pub(crate) range: Range<usize>,
}

impl<E: WeightElement> Kernel for Gemv<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for panel in self.w.parts(self.range.clone()) {
            // SAFETY: the ranges of the tasks are disjoint, and this one uses one slice at a time.
            let y = unsafe { self.columns.part(0, &panel.columns) };
            let mut at = 0;
            if S::VECTORS >= 32 {
                at = self.blocks::<S, 24>(s, &panel, y, at);
                at = self.blocks::<S, 8>(s, &panel, y, at);
            }
            at = self.blocks::<S, 4>(s, &panel, y, at);
            at = self.blocks::<S, 1>(s, &panel, y, at);
            if at < y.len() {
                self.rest(s, &panel, y, at);
            }
        }
    }
}

impl<E: WeightElement> Gemv<'_, E> {
    /// Computes as many blocks of N vectors of `y` as fit from column `at` on, and returns the first column after them.
    #[inline(always)]
    fn blocks<S: Simd, const N: usize>(
        &self,
        s: S,
        panel: &PanelColumns<'_, E>,
        y: &mut [f32],
        mut at: usize,
    ) -> usize {
        while let Some(y) = y.get_mut(at..at + N * LANES) {
            self.block::<S, N>(s, panel, y, at);
            at += N * LANES;
        }
        at
    }

    /// Computes one block. Its loops run over `0..N`, which LLVM unrolls early enough for the sums to stay in registers;
    /// with iterators over arrays it may not.
    #[inline(always)]
    fn block<S: Simd, const N: usize>(&self, s: S, panel: &PanelColumns<'_, E>, y: &mut [f32], at: usize) {
        let (y, _) = y.as_chunks_mut::<LANES>();
        let mut sums = [s.splat(0.0); N];
        for v in 0..N {
            sums[v] = s.load(&y[v]);
        }
        for (l, &x) in self.x.iter().enumerate() {
            let (x, weights) = (s.splat(x), panel.row(l, at, N * LANES));
            prefetch::<E, N>(weights, PREFETCH_DISTANCE * panel.ld);
            let (weights, _) = weights.as_chunks::<LANES>();
            for v in 0..N {
                sums[v] = s.mul_add(x, E::load(s, &weights[v]), sums[v]);
            }
        }
        for v in 0..N {
            s.store(sums[v], &mut y[v]);
        }
    }

    /// Computes the columns after the last whole vector.
    #[inline(always)]
    fn rest<S: Simd>(&self, s: S, panel: &PanelColumns<'_, E>, y: &mut [f32], at: usize) {
        let y = &mut y[at..];
        let mut sum = vectors::get(s, y, 0);
        for (l, &x) in self.x.iter().enumerate() {
            sum = s.mul_add(s.splat(x), load_rest(s, panel.row(l, at, y.len())), sum);
        }
        vectors::set(s, y, 0, sum);
    }
}
