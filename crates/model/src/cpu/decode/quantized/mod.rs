//! Weights of few bits, and their products with activations that are rounded to 8 bits.
//!
//! The activations of a row are rounded in groups of 32 along the inner index, each with a scale of its own. The products of a
//! group are summed in i32, exactly; that sum times the scale is added to an f32, one fused multiply-add for each group in order.
//! So an output has the same bits in any tile, on any thread and with any instructions. One kernel computes steps of one row,
//! steps of many and prompts.

mod activations;
mod groups;
mod product;
#[cfg(test)]
mod tests;

use rayon::prelude::*;

use super::{
    super::rows::Rows,
    matrix::{OutputDim, ProductContext},
    shared_output::{SharedOutput, parallel_for_panels},
};
use crate::checkpoint::ParamValues;

use activations::GROUP;
pub(crate) use activations::QuantizedRows;
pub(super) use groups::{Int4Group, Int8Group};
use groups::{PANEL, WeightGroup};
use product::PanelProducts;

/// A matrix `(in, out)`. Inputs and columns that are missing in the last group or panel are zeros.
#[derive(Debug)]
pub(super) struct QuantizedMatrix<G> {
    /// `(out / 32, in / 32)`.
    groups: Vec<G>,
    /// By which the columns are multiplied in the end, `(out)` in whole panels.
    scales: Vec<f32>,
    n_in: usize,
    n_out: usize,
}

impl<G: WeightGroup> QuantizedMatrix<G> {
    /// Rounds a row-major matrix of `cols` columns, which is `(in, out)` or `(out, in)`.
    pub(super) fn new(values: ParamValues<'_>, cols: usize, output: OutputDim) -> Self {
        match output {
            OutputDim::Cols => values.once(|values| Self::of_columns(values, cols)),
            OutputDim::Rows => Self::of_rows(values, cols),
        }
    }

    fn zeros(n_in: usize, n_out: usize) -> Self {
        let panels = n_out.div_ceil(PANEL);
        let groups = vec![G::ZEROS; panels * n_in.div_ceil(GROUP)];
        Self { groups, scales: vec![0.0; panels * PANEL], n_in, n_out }
    }

    /// Rounds a matrix `(in, out)`.
    fn of_columns(values: &[f32], n_out: usize) -> Self {
        let mut matrix = Self::zeros(values.len() / n_out, n_out);
        let panels = matrix.panels_mut(0).enumerate();
        panels.for_each(|(panel, to)| {
            let first = panel * PANEL;
            let width = PANEL.min(n_out - first);
            to.fill(|l| {
                let mut row = [0.0; PANEL];
                row[..width].copy_from_slice(&values[l * n_out + first..][..width]);
                row
            });
        });
        matrix
    }

    /// Rounds a matrix `(out, in)`, some rows after the other.
    fn of_rows(values: ParamValues<'_>, n_in: usize) -> Self {
        let mut matrix = Self::zeros(n_in, values.len() / n_in);
        // The rows that are not in a panel yet.
        let (mut rows, mut panel) = (Vec::new(), 0);
        values.each_piece(n_in, |piece| {
            rows.extend_from_slice(piece);
            let whole = rows.len() / (PANEL * n_in);
            matrix.set_rows(panel, &rows[..whole * PANEL * n_in]);
            rows.drain(..whole * PANEL * n_in);
            panel += whole;
        });
        matrix.set_rows(panel, &rows);
        matrix
    }

    /// Rounds rows of a matrix `(out, in)` to the columns from a panel on.
    fn set_rows(&mut self, panel: usize, rows: &[f32]) {
        let n_in = self.n_in;
        self.panels_mut(panel).zip(rows.par_chunks(PANEL * n_in)).for_each(|(to, rows)| {
            to.fill(|l| {
                let mut column = [0.0; PANEL];
                for (to, row) in column.iter_mut().zip(rows.chunks_exact(n_in)) {
                    *to = row[l];
                }
                column
            });
        });
    }

    /// The panels from one on, to be filled.
    fn panels_mut(&mut self, first: usize) -> impl IndexedParallelIterator<Item = PanelMut<'_, G>> {
        let (n_in, row_len) = (self.n_in, self.n_in.div_ceil(GROUP));
        let groups = self.groups[first * row_len..].par_chunks_exact_mut(row_len);
        let (scales, _) = self.scales[first * PANEL..].as_chunks_mut::<PANEL>();
        groups.zip(scales).map(move |(groups, scales)| PanelMut { groups, scales, n_in })
    }

    /// The bytes of the weights.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&self.groups[..])
    }

    /// The groups of a panel, `(in / 32)`.
    #[inline(always)]
    fn panel(&self, i: usize) -> &[G] {
        let len = self.n_in.div_ceil(GROUP);
        &self.groups[i * len..][..len]
    }

    /// Computes `y (m, out) = x (m, in) w (in, out) + b (out)`.
    pub(super) fn multiply_rows(
        &self,
        context: ProductContext<'_, '_>,
        x: (usize, &Rows),
        b: Option<&[f32]>,
        y: &mut Rows,
    ) {
        let ld = y.ld;
        self.multiply(context, x, b, SharedOutput::new(y.at_mut(0, 0), self.n_out, ld));
    }

    /// [`QuantizedMatrix::multiply_rows`] into rows without padding, and without a bias.
    pub(super) fn multiply_dense(&self, context: ProductContext<'_, '_>, x: (usize, &Rows), y: &mut [f32]) {
        self.multiply(context, x, None, SharedOutput::new(y, self.n_out, self.n_out));
    }

    fn multiply(
        &self,
        context: ProductContext<'_, '_>,
        (m, x): (usize, &Rows),
        b: Option<&[f32]>,
        columns: SharedOutput<'_>,
    ) {
        let ProductContext { level, workers, quantized } = context;
        quantized.quantize(level, G::ZERO_POINT, m, x);
        let (x, panels) = (&*quantized, self.n_out.div_ceil(PANEL));
        let multiply_adds = m * self.n_in * self.n_out;
        parallel_for_panels(workers, panels, self.bytes(), multiply_adds, |panels| {
            level.run_int8(PanelProducts { w: self, m, x, b, columns, panels });
        });
    }
}

/// A panel of columns that is filled.
struct PanelMut<'a, G> {
    groups: &'a mut [G],
    scales: &'a mut [f32; PANEL],
    n_in: usize,
}

impl<G: WeightGroup> PanelMut<'_, G> {
    /// Rounds the weights of all inputs: of input l by `weights(l)`.
    fn fill(self, weights: impl Fn(usize) -> [f32; PANEL]) {
        *self.scales = G::column_scales(self.n_in, &weights);
        for (g, group) in self.groups.iter_mut().enumerate() {
            let mut block = [[0.0; PANEL]; GROUP];
            for (l, row) in (g * GROUP..self.n_in).zip(&mut block) {
                *row = weights(l);
            }
            *group = G::quantize(&block, self.scales);
        }
    }
}
