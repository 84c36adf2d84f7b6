//! What linear layers multiply, in one of two precisions: the only place that knows which.

use std::ops::Range;

use tinygpt_sampler::simd::SimdLevel;

use super::{
    bf16,
    layout::Affine,
    matmul::{Left, Pair, Right, Start, matmul},
    packed::Panels,
    rows::Rows,
    sequence::VectorGrads,
};
use crate::Precision;

/// Weights, packed.
#[derive(Debug)]
pub(super) enum Packed {
    F32(Panels),
    /// Pairs along the inner index.
    Bf16(Panels<Pair>),
}

impl Packed {
    /// Room for a matrix `(k, n)`.
    pub(super) fn new(precision: Precision, k: usize, n: usize) -> Self {
        match precision {
            Precision::F32 => Self::F32(Panels::new(k, n)),
            Precision::Bf16 => Self::Bf16(Panels::new(k.div_ceil(2), n)),
            Precision::F16 => unreachable!("refused by `Precision::check`"),
        }
    }

    /// Takes over a matrix `(k, n)` given row after row.
    pub(super) fn pack(&mut self, level: SimdLevel, w: &[f32]) {
        match self {
            Self::F32(panels) => panels.pack(w),
            Self::Bf16(panels) => panels.pack(level, w),
        }
    }

    /// Takes over the transpose of a matrix `(n, k)` given row after row.
    pub(super) fn pack_transposed(&mut self, level: SimdLevel, w: &[f32]) {
        match self {
            Self::F32(panels) => panels.pack_transposed(w),
            Self::Bf16(panels) => panels.pack_transposed(level, w, w.len() / panels.n()),
        }
    }

    /// Columns.
    pub(super) fn n(&self) -> usize {
        match self {
            Self::F32(panels) => panels.n(),
            Self::Bf16(panels) => panels.n(),
        }
    }
}

/// Where a thread writes what it then rounds to bf16, and the rounded rows that its next product reads; of no size in
/// f32, where operands are written in place.
#[derive(Debug)]
pub(super) struct Scratch {
    pub(super) rows: Rows,
    pub(super) rounded: Rows<Pair>,
}

impl Scratch {
    /// For operands of up to `n` rows and `cols` columns.
    pub(super) fn new(precision: Precision, n: usize, cols: usize) -> Self {
        let n = if precision == Precision::F32 { 0 } else { n };
        Self { rows: Rows::zeros(n, cols), rounded: Rows::zeros(n, cols.div_ceil(2)) }
    }
}

/// A matrix that is written in f32 ([`Operand::rows_mut`]), then [rounded](Operand::round) and multiplied.
#[derive(Debug)]
pub(super) enum Operand {
    F32(Rows),
    Bf16 {
        /// In f32, where that is needed later.
        kept: Option<Rows>,
        /// Pairs down the columns, for the weights' gradient.
        columns: Rows<Pair>,
    },
}

impl Operand {
    /// A matrix of up to `n` rows.
    pub(super) fn new(precision: Precision, n: usize, cols: usize) -> Self {
        match precision {
            Precision::F32 => Self::F32(Rows::zeros(n, cols)),
            Precision::Bf16 => Self::Bf16 { kept: None, columns: Rows::zeros(n.div_ceil(2), cols) },
            Precision::F16 => unreachable!("refused by `Precision::check`"),
        }
    }

    /// [`Operand::new`] for one whose rows in f32 are asked for later.
    pub(super) fn kept(precision: Precision, n: usize, cols: usize) -> Self {
        match Self::new(precision, n, cols) {
            Self::Bf16 { columns, .. } => Self::Bf16 { kept: Some(Rows::zeros(n, cols)), columns },
            in_place => in_place,
        }
    }

    pub(super) fn cols(&self) -> usize {
        match self {
            Self::F32(rows) => rows.cols,
            Self::Bf16 { columns, .. } => columns.cols,
        }
    }

    /// The rows in f32, to be written.
    pub(super) fn rows_mut<'a>(&'a mut self, scratch: &'a mut Rows) -> &'a mut Rows {
        match self {
            Self::F32(rows) | Self::Bf16 { kept: Some(rows), .. } => rows,
            Self::Bf16 { columns, .. } => {
                scratch.set_cols(columns.cols);
                scratch
            }
        }
    }

    /// The rows in f32 of an operand that keeps them.
    pub(super) fn rows(&self) -> &Rows {
        match self {
            Self::F32(rows) | Self::Bf16 { kept: Some(rows), .. } => rows,
            Self::Bf16 { .. } => unreachable!("made by `Operand::kept`"),
        }
    }

    /// Takes over what was written to the first `n` rows.
    pub(super) fn round(&mut self, level: SimdLevel, n: usize, scratch: &mut Scratch) {
        if let Self::Bf16 { kept, columns } = self {
            let Scratch { rows, rounded } = scratch;
            rounded.set_cols(columns.cols.div_ceil(2));
            bf16::round(level, n, kept.as_ref().unwrap_or(rows), rounded, columns);
        }
    }

    /// `out = start + x w` for some rows of this, the operand that was [rounded](Operand::round) last; `ld` floats from
    /// row to row of the output.
    pub(super) fn multiply(
        &self,
        level: SimdLevel,
        rows: Range<usize>,
        rounded: &Rows<Pair>,
        w: &Packed,
        start: Start<'_>,
        (out, ld): (&mut [f32], usize),
    ) {
        let (m, n, from) = (rows.len(), w.n(), rows.start);
        match (self, w) {
            (Self::F32(x), Packed::F32(w)) => {
                matmul(level, (m, n, w.k()), Left::rows(x, from, 0), w.right(), start, out, ld);
            }
            (Self::Bf16 { .. }, Packed::Bf16(w)) => {
                matmul(level, (m, n, w.k()), Left::rows(rounded, from, 0), w.right(), start, out, ld);
            }
            _ => unreachable!("a model has one precision"),
        }
    }

    /// Adds `x^T y` to rows of a gradient, those from `first` on: `x` are the first rows of this, `y` as many of `right`,
    /// the first of which has an even number.
    pub(super) fn add_outer(&self, level: SimdLevel, first: usize, right: &Self, rows: Range<usize>, grad: &mut [f32]) {
        let (n, k, from) = (right.cols(), rows.len(), rows.start);
        let m = grad.len() / n;
        match (self, right) {
            (Self::F32(x), Self::F32(y)) => {
                matmul(level, (m, n, k), Left::columns(x, 0, first), Right::rows(y, from, 0), Start::Sum, grad, n);
            }
            (Self::Bf16 { columns: x, .. }, Self::Bf16 { columns: y, .. }) => {
                let (left, right) = (Left::columns(x, 0, first), Right::rows(y, from / 2, 0));
                matmul(level, (m, n, k.div_ceil(2)), left, right, Start::Sum, grad, n);
            }
            _ => unreachable!("a model has one precision"),
        }
    }
}

/// The input of a linear layer, the gradient of its output, and the gradient of its bias.
#[derive(Debug)]
pub(super) struct InOut {
    pub(super) x: Operand,
    pub(super) dy: Operand,
    pub(super) bias: VectorGrads,
}

impl InOut {
    pub(super) fn new(precision: Precision, t: usize, (n_in, n_out): (usize, usize), at: &Affine) -> Self {
        let (x, dy) = (Operand::new(precision, t, n_in), Operand::new(precision, t, n_out));
        Self { x, dy, bias: VectorGrads::of_linear(at) }
    }
}
