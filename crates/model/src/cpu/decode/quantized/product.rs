//! The products of quantized weights with rounded activations, in register tiles.

#![allow(unsafe_code)]

use std::ops::Range;

use tinygpt_sampler::simd::{Kernel, LANES, Simd};

use super::{
    super::{
        super::{prefetch::prefetch_line, vectors},
        prefetch::LINE_BYTES,
        shared_output::SharedOutput,
    },
    QuantizedMatrix,
    activations::{ActivationGroup, QUADS, QuantizedRows},
    groups::{HALVES, PANEL, WeightGroup},
};

/// The rows that are multiplied by a panel before the next one is read. They stay in the second-level cache.
const BLOCK_ROWS: usize = 96;
/// The bytes between the weights in use and those being prefetched.
const PREFETCH_BYTES: usize = 4096;

/// Computes some panels of columns of `y (m, out) = x (m, in) w (in, out) + b (out)`.
pub(super) struct PanelProducts<'a, G> {
    pub(super) w: &'a QuantizedMatrix<G>,
    pub(super) m: usize,
    pub(super) x: &'a QuantizedRows,
    pub(super) b: Option<&'a [f32]>,
    pub(super) columns: SharedOutput<'a>,
    pub(super) panels: Range<usize>,
}

/// Prefetches the weights [`PREFETCH_BYTES`] after those of a quad of inputs.
#[inline(always)]
fn prefetch_quad<G>(group: &G, quad: usize) {
    let bytes = size_of::<G>() / QUADS;
    for line in 0..bytes.div_ceil(LINE_BYTES) {
        prefetch_line(std::ptr::from_ref(group).wrapping_byte_add(PREFETCH_BYTES + quad * bytes + line * LINE_BYTES));
    }
}

impl<G: WeightGroup> Kernel for PanelProducts<'_, G> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for first in (0..self.m).step_by(BLOCK_ROWS) {
            let rows = first..self.m.min(first + BLOCK_ROWS);
            for panel in self.panels.clone() {
                if S::VECTORS >= 32 {
                    self.panel::<S, 6, 2>(s, panel, rows.clone());
                } else {
                    self.panel::<S, 2, 1>(s, panel, rows.clone());
                }
            }
        }
    }
}

impl<G: WeightGroup> PanelProducts<'_, G> {
    /// Computes the columns of a panel for some rows, in tiles of up to `MR` rows and `NV` vectors: their sums, those of a group
    /// and the weights in use fit the registers.
    #[inline(always)]
    fn panel<S: Simd, const MR: usize, const NV: usize>(&self, s: S, panel: usize, rows: Range<usize>) {
        let mut row = rows.start;
        while row < rows.end {
            // Tiles of about equal height, since few rows do not hide the latency of the products.
            let left = rows.end - row;
            let height = left.div_ceil(left.div_ceil(MR));
            match height {
                1 => self.tile::<S, 1, NV>(s, panel, row),
                2 => self.tile::<S, 2, NV>(s, panel, row),
                3 => self.tile::<S, 3, NV>(s, panel, row),
                4 => self.tile::<S, 4, NV>(s, panel, row),
                5 => self.tile::<S, 5, NV>(s, panel, row),
                _ => self.tile::<S, 6, NV>(s, panel, row),
            }
            row += height;
        }
    }

    /// Computes the columns of a panel for rows `row..row + MR`.
    #[inline(always)]
    fn tile<S: Simd, const MR: usize, const NV: usize>(&self, s: S, panel: usize, row: usize) {
        let weights = self.w.panel(panel);
        let mut rows: [&[ActivationGroup]; MR] = [&[]; MR];
        for (i, to) in rows.iter_mut().enumerate() {
            *to = &self.x.row(row + i)[..weights.len()];
        }
        for first in (0..HALVES).step_by(NV) {
            let mut sums = [[s.splat(0.0); NV]; MR];
            for (g, group) in weights.iter().enumerate() {
                let mut dots = [[s.splat_i32(0); NV]; MR];
                for i in 0..MR {
                    dots[i] = [s.splat_i32(rows[i][g].start); NV];
                }
                for quad in 0..QUADS {
                    if MR == 1 {
                        prefetch_quad(group, quad);
                    }
                    let mut w = [s.splat_i32(0); NV];
                    for (half, w) in (first..).zip(&mut w) {
                        *w = group.load(s, quad, half);
                    }
                    for i in 0..MR {
                        let x = s.splat_i32(rows[i][g].quads[quad]);
                        for v in 0..NV {
                            dots[i][v] = s.dot_u8_i8(w[v], x, dots[i][v]);
                        }
                    }
                }
                for i in 0..MR {
                    let scale = s.splat(rows[i][g].scale);
                    for v in 0..NV {
                        let scale = group.scaled(s, first + v, scale);
                        sums[i][v] = s.mul_add(s.to_f32(dots[i][v]), scale, sums[i][v]);
                    }
                }
            }
            for (i, sums) in sums.into_iter().enumerate() {
                self.store(s, (row + i, panel), first, &sums);
            }
        }
    }

    /// Scales the sums of a row in a panel, from half `first` on, adds the bias and stores them.
    #[inline(always)]
    fn store<S: Simd>(&self, s: S, (row, panel): (usize, usize), first: usize, sums: &[S::V]) {
        let from = panel * PANEL;
        let columns = from..self.w.n_out.min(from + PANEL);
        // SAFETY: the panels of the tasks are disjoint, and this one uses one slice at a time.
        let y = unsafe { self.columns.part(row, &columns) };
        let scales = &self.w.scales[from..][..PANEL];
        for (half, &sum) in (first..).zip(sums) {
            if half * LANES < y.len() {
                let b = self.b.map_or(s.splat(0.0), |b| vectors::get(s, &b[columns.clone()], half));
                vectors::set(s, y, half, s.mul_add(sum, vectors::get(s, scales, half), b));
            }
        }
    }
}
