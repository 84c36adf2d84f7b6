//! Weight matrices of generation and their products: each weight is read once, in the order of memory.

use tinygpt_sampler::simd::{SimdLevel, to_bf16};

use super::{
    super::{rows::Rows, spin_pool::Workers},
    dot_products::multiply_transposed,
    format::{WeightElement, WeightFormat},
    gemv::Gemv,
    panels::PanelView,
    quantized::{Int4Group, Int8Group, QuantizedMatrix, QuantizedRows},
    shared_output::{SharedOutput, parallel_for_columns},
    small_batch::SmallBatchGemm,
    tiled,
};
use crate::checkpoint::ParamValues;

/// A weight matrix: row-major in f32, and so is a head in bf16; packed in panels otherwise. Which of its dimensions is
/// the input determines which product applies: [`WeightMatrix::apply`] or [`WeightMatrix::apply_transposed`].
#[derive(Debug)]
pub(crate) struct WeightMatrix<'a> {
    values: StoredWeights<'a>,
}

#[derive(Debug)]
enum StoredWeights<'a> {
    F32(&'a [f32]),
    Bf16(Vec<u16>),
    Int8(QuantizedMatrix<Int8Group>),
    Int4(QuantizedMatrix<Int4Group>),
}

/// The dimension of a matrix that is its output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OutputDim {
    /// `(in, out)`, as linear layers are stored.
    Cols,
    /// `(out, in)`, as the head is stored, which may be the token embedding.
    Rows,
}

/// What a product computes with.
pub(crate) struct ProductContext<'s, 'w> {
    pub(crate) level: SimdLevel,
    pub(crate) workers: &'s mut Workers<'w>,
    /// Where the rows are rounded that quantized weights are multiplied with.
    pub(crate) quantized: &'s mut QuantizedRows,
}

impl<'a> WeightMatrix<'a> {
    /// Stores a row-major matrix of `cols` columns in a format.
    pub(crate) fn new(values: ParamValues<'a>, cols: usize, output: OutputDim, format: WeightFormat) -> Self {
        let values = match (format, output) {
            (WeightFormat::F32, _) => StoredWeights::F32(values.kept()),
            (WeightFormat::Bf16, OutputDim::Cols) => {
                StoredWeights::Bf16(values.once(|values| PanelView::pack(values, cols, |_, x| to_bf16(x))))
            }
            (WeightFormat::Bf16, OutputDim::Rows) => {
                // The head is the largest matrix of a small model, and its rows can be rounded on their own.
                let mut rounded = Vec::with_capacity(values.len());
                values.each_piece(cols, |rows| rounded.extend(rows.iter().map(|&x| to_bf16(x))));
                StoredWeights::Bf16(rounded)
            }
            (WeightFormat::Int8, output) => StoredWeights::Int8(QuantizedMatrix::new(values, cols, output)),
            (WeightFormat::Int4, output) => StoredWeights::Int4(QuantizedMatrix::new(values, cols, output)),
        };
        Self { values }
    }

    /// Computes `y (m, out) = x (m, in) w (in, out) + b (out)`. Every element is one chain of fused multiply-adds in the
    /// order of the inputs, or of groups of them (`quantized/`), so a row's result does not depend on the other rows.
    pub(crate) fn apply(&self, context: ProductContext<'_, '_>, m: usize, x: &Rows, b: Option<&[f32]>, y: &mut Rows) {
        match &self.values {
            StoredWeights::F32(w) => multiply(context, PanelView::of_rows(w, y.cols), (m, x), b, y),
            StoredWeights::Bf16(w) => multiply(context, PanelView::of_packed(w, y.cols), (m, x), b, y),
            StoredWeights::Int8(w) => w.multiply_rows(context, (m, x), b, y),
            StoredWeights::Int4(w) => w.multiply_rows(context, (m, x), b, y),
        }
    }

    /// Computes `y (m, out) = x (m, in) w^T` for a matrix `w (out, in)`. Every element is one dot product, summed lane by
    /// lane in the order of its vectors, or group by group.
    pub(crate) fn apply_transposed(&self, context: ProductContext<'_, '_>, m: usize, x: &Rows, y: &mut [f32]) {
        match &self.values {
            StoredWeights::F32(w) => multiply_transposed((context.level, context.workers), w, (m, x), y),
            StoredWeights::Bf16(w) => multiply_transposed((context.level, context.workers), w, (m, x), y),
            StoredWeights::Int8(w) => w.multiply_dense(context, (m, x), y),
            StoredWeights::Int4(w) => w.multiply_dense(context, (m, x), y),
        }
    }
}

/// From this many rows on, products are bound by arithmetic, and computed in register tiles (`tiled.rs`).
pub(super) const MIN_TILED_ROWS: usize = 64;

/// Computes `y (m, out) = x (m, in) w + b` for `w (in, out)`.
fn multiply<E: WeightElement>(
    ProductContext { level, workers, .. }: ProductContext<'_, '_>,
    w: PanelView<'_, E>,
    (m, x): (usize, &Rows),
    b: Option<&[f32]>,
    y: &mut Rows,
) {
    let w = &w;
    if m >= MIN_TILED_ROWS {
        tiled::multiply(level, w, (m, x), b, y);
        return;
    }
    for i in 0..m {
        match b {
            Some(b) => y.row_mut(i).copy_from_slice(b),
            None => y.row_mut(i).fill(0.0),
        }
    }
    let (n_out, ld) = (y.cols, y.ld);
    let columns = SharedOutput::new(y.at_mut(0, 0), n_out, ld);
    parallel_for_columns(workers, n_out, m, w.bytes(), |range| {
        if m == 1 {
            level.run(Gemv { w, x: x.row(0), columns, range });
        } else {
            level.run(SmallBatchGemm { w, m, x, columns, range });
        }
    });
}

#[cfg(test)]
mod tests;
