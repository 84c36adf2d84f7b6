//! Products of a few rows, those of a step of several texts: each weight is read once, for all of them.

#![allow(unsafe_code)]

use std::ops::Range;

use tinygpt_sampler::simd::{Kernel, LANES, Simd};

use super::{
    super::{rows::Rows, vectors},
    format::{WeightElement, load_rest},
    matrix::MIN_TILED_ROWS,
    panels::{PanelColumns, PanelView},
    prefetch::load_and_prefetch,
    shared_output::SharedOutput,
};

/// The inputs of one step of [`SmallBatchGemm`]: this many streams of weights are read side by side.
const STREAMS: usize = 8;

/// Adds `x (m, in) w (in, out)` to a range of the columns of the output, for 2 to [`MIN_TILED_ROWS`] - 1 rows. It takes
/// [`STREAMS`] inputs at a time, one stream of weights each, while the sums stay in the first-level cache.
pub(super) struct SmallBatchGemm<'a, E> {
    pub(super) w: &'a PanelView<'a, E>,
    pub(super) m: usize,
    pub(super) x: &'a Rows,
    pub(super) columns: SharedOutput<'a>,
    pub(super) range: Range<usize>,
}

impl<E: WeightElement> Kernel for SmallBatchGemm<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n_in = self.x.cols;
        let whole = n_in / STREAMS * STREAMS;
        for panel in self.w.parts(self.range.clone()) {
            for l in (0..whole).step_by(STREAMS) {
                self.inputs::<S, STREAMS>(s, &panel, l);
            }
            for l in whole..n_in {
                self.inputs::<S, 1>(s, &panel, l);
            }
        }
    }
}

impl<E: WeightElement> SmallBatchGemm<'_, E> {
    /// Adds the products of inputs `l..l + N`.
    #[inline(always)]
    fn inputs<S: Simd, const N: usize>(&self, s: S, panel: &PanelColumns<'_, E>, l: usize) {
        let Self { m, x, columns, .. } = self;
        let range = &panel.columns;
        let mut weights: [&[E]; N] = [&[]; N];
        for (i, to) in weights.iter_mut().enumerate() {
            *to = panel.row(l + i, 0, range.len());
        }
        let whole = range.len() / LANES;
        let sums = |row| {
            // SAFETY: the ranges of the tasks are disjoint, and this one uses one slice of a row at a time.
            unsafe { columns.part(row, range) }
        };
        let mut factors = [[0.0; N]; MIN_TILED_ROWS];
        let mut outputs = [std::ptr::null_mut(); MIN_TILED_ROWS];
        for (row, (factors, output)) in factors.iter_mut().zip(&mut outputs).enumerate().take(*m) {
            factors.copy_from_slice(&x.row(row)[l..l + N]);
            *output = sums(row).as_mut_ptr();
        }
        for v in 0..whole {
            let mut loaded = [s.splat(0.0); N];
            for (to, w) in loaded.iter_mut().zip(weights) {
                // SAFETY: all of these slices are as long as the range, and have `whole` vectors.
                *to = unsafe { load_and_prefetch(s, w, v, N * panel.ld) };
            }
            for (factors, y) in factors.iter().zip(outputs).take(*m) {
                // SAFETY: as above, and no other reference to these outputs is alive.
                let y = unsafe { &mut *y.add(v * LANES).cast::<[f32; LANES]>() };
                let mut sum = s.load(y);
                for (&x, w) in factors.iter().zip(loaded) {
                    sum = s.mul_add(s.splat(x), w, sum);
                }
                s.store(sum, y);
            }
        }
        if whole * LANES < range.len() {
            for row in 0..*m {
                let y = sums(row);
                let mut sum = vectors::get(s, y, whole);
                for (&x, w) in x.row(row)[l..].iter().zip(weights) {
                    sum = s.mul_add(s.splat(x), load_rest(s, &w[whole * LANES..]), sum);
                }
                vectors::set(s, y, whole, sum);
            }
        }
    }
}
