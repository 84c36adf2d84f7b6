//! Weight matrices of generation and their products with few rows: each weight is read once, in the order of memory.

#![allow(unsafe_code)]

use std::ops::Range;

use tinygpt_sampler::simd::{Kernel, LANES, Simd, SimdLevel, to_bf16};

use super::{
    super::{rows::Rows, spin_pool::Workers, vectors},
    format::{WeightElement, WeightFormat, load_rest},
    gemv::Gemv,
    panels::{PanelColumns, PanelView},
    prefetch::load_and_prefetch,
    shared_output::{SharedOutput, parallel_for_columns},
    tiled,
};
use crate::checkpoint::ParamValues;

/// A weight matrix: row-major, except that quantized weights `(in, out)` are packed in panels. Which of its dimensions is
/// the input determines which product applies: [`WeightMatrix::apply`] or [`WeightMatrix::apply_transposed`].
#[derive(Debug)]
pub(crate) struct WeightMatrix<'a> {
    values: StoredWeights<'a>,
}

#[derive(Debug)]
enum StoredWeights<'a> {
    F32(&'a [f32]),
    Bf16(Vec<u16>),
    Int8 { values: Vec<i8>, scales: Vec<f32> },
}

/// The dimension of a matrix that is its output, which the int8 scales belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OutputDim {
    /// `(in, out)`, as linear layers are stored.
    Cols,
    /// `(out, in)`, as the head is stored, which may be the token embedding.
    Rows,
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
            (WeightFormat::Int8, OutputDim::Cols) => values.once(|values| quantize_columns(values, cols)),
            (WeightFormat::Int8, OutputDim::Rows) => quantize_rows(values, cols),
        };
        Self { values }
    }

    /// Computes `y (m, out) = x (m, in) w (in, out) + b (out)`. Every element is one chain of fused multiply-adds in the
    /// order of the inputs, so a row's result does not depend on the other rows.
    pub(crate) fn apply(
        &self,
        (level, workers): (SimdLevel, &mut Workers<'_>),
        m: usize,
        x: &Rows,
        b: Option<&[f32]>,
        y: &mut Rows,
    ) {
        match &self.values {
            StoredWeights::F32(w) => multiply((level, workers), PanelView::of_rows(w, y.cols), (m, x), b, y),
            StoredWeights::Bf16(w) => multiply((level, workers), PanelView::of_packed(w, y.cols), (m, x), b, y),
            StoredWeights::Int8 { values, scales } => {
                multiply((level, workers), PanelView::of_packed(values, y.cols), (m, x), None, y);
                for i in 0..m {
                    let y = y.row_mut(i);
                    y.iter_mut().zip(scales).for_each(|(y, scale)| *y *= scale);
                    if let Some(b) = b {
                        y.iter_mut().zip(b).for_each(|(y, b)| *y += b);
                    }
                }
            }
        }
    }

    /// Computes `y (m, out) = x (m, in) w^T` for a matrix `w (out, in)`. Every element is one dot product, summed lane by
    /// lane in the order of its vectors.
    pub(crate) fn apply_transposed(
        &self,
        (level, workers): (SimdLevel, &mut Workers<'_>),
        m: usize,
        x: &Rows,
        y: &mut [f32],
    ) {
        match &self.values {
            StoredWeights::F32(w) => multiply_transposed((level, workers), w, None, (m, x), y),
            StoredWeights::Bf16(w) => multiply_transposed((level, workers), w, None, (m, x), y),
            StoredWeights::Int8 { values, scales } => {
                multiply_transposed((level, workers), values, Some(scales), (m, x), y)
            }
        }
    }
}

/// The scale of the int8 weights of an output channel: the largest absolute weight divided by 127. A NaN makes the scale NaN,
/// and with it the output.
fn int8_scale(largest: f32) -> f32 {
    largest / 127.0
}

/// The larger of the largest weight so far and the absolute value of another; NaN once there was one.
fn larger(largest: f32, x: f32) -> f32 {
    if x.is_nan() || largest.is_nan() { f32::NAN } else { largest.max(x.abs()) }
}

fn to_int8(x: f32, scale: f32) -> i8 {
    if scale > 0.0 { (x / scale).round() as i8 } else { 0 }
}

/// Quantizes a matrix `(in, out)` to int8 in panels.
fn quantize_columns<'a>(values: &[f32], n_out: usize) -> StoredWeights<'a> {
    let mut scales = vec![0f32; n_out];
    for row in values.chunks_exact(n_out) {
        scales.iter_mut().zip(row).for_each(|(largest, &x)| *largest = larger(*largest, x));
    }
    scales.iter_mut().for_each(|scale| *scale = int8_scale(*scale));
    let values = PanelView::pack(values, n_out, |out, x| to_int8(x, scales[out]));
    StoredWeights::Int8 { values, scales }
}

/// Quantizes a matrix `(out, in)` to int8, row by row.
fn quantize_rows<'a>(matrix: ParamValues<'_>, n_in: usize) -> StoredWeights<'a> {
    let (mut values, mut scales) = (Vec::with_capacity(matrix.len()), Vec::with_capacity(matrix.len() / n_in));
    matrix.each_piece(n_in, |rows| {
        for row in rows.chunks_exact(n_in) {
            let scale = int8_scale(row.iter().copied().fold(0.0, larger));
            values.extend(row.iter().map(|&x| to_int8(x, scale)));
            scales.push(scale);
        }
    });
    StoredWeights::Int8 { values, scales }
}

/// From this many rows on, products are bound by arithmetic, and computed in register tiles (`tiled.rs`).
const MIN_TILED_ROWS: usize = 64;

/// Computes `y (m, out) = x (m, in) w + b` for `w (in, out)`.
fn multiply<E: WeightElement>(
    (level, workers): (SimdLevel, &mut Workers<'_>),
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

/// The inputs of one step of [`SmallBatchGemm`]: this many streams of weights are read side by side.
const STREAMS: usize = 8;

/// Adds `x (m, in) w (in, out)` to a range of the columns of the output, for 2 to [`MIN_TILED_ROWS`] - 1 rows. It takes
/// [`STREAMS`] inputs at a time, one stream of weights each, while the sums stay in the first-level cache.
struct SmallBatchGemm<'a, E> {
    w: &'a PanelView<'a, E>,
    m: usize,
    x: &'a Rows,
    columns: SharedOutput<'a>,
    range: Range<usize>,
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

/// Computes `y (m, out) = x (m, in) w^T` for `w (out, in)`, times `scales (out)` where there are any.
fn multiply_transposed<E: WeightElement>(
    (level, workers): (SimdLevel, &mut Workers<'_>),
    w: &[E],
    scales: Option<&[f32]>,
    (m, x): (usize, &Rows),
    y: &mut [f32],
) {
    let n_out = w.len() / x.cols;
    let columns = SharedOutput::new(y, n_out, n_out);
    parallel_for_columns(workers, n_out, m, size_of_val(w), |range| {
        level.run(DotProducts { w, scales, m, x, columns, range })
    });
}

/// The outputs, and the rows, of a register tile of [`DotProducts`]: sixteen sums side by side.
const DOT_TILE: usize = 4;

/// Computes a range of the outputs of `x w^T`, [`DOT_TILE`] at a time.
struct DotProducts<'a, E> {
    w: &'a [E],
    scales: Option<&'a [f32]>,
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
        let Self { w, scales, x, columns, .. } = self;
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
            for (i, (y, sum)) in y.iter_mut().zip(added).enumerate() {
                *y = sum * scales.map_or(1.0, |scales| scales[at + i]);
            }
        }
    }
}

#[cfg(test)]
mod tests;
