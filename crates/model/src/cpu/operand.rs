//! What linear layers and head multiply, in one of two precisions: the only place that knows which.

use std::ops::Range;

use tinygpt_sampler::simd::SimdLevel;

use super::{
    CpuPrecision, bf16,
    matmul::{Accumulate, Left, Pair, Right, matmul},
    packed::Panels,
    rows::Rows,
};
/// A matrix of weights, packed as the right operand of products.
#[derive(Debug)]
pub(crate) enum PackedOperand {
    F32(Panels),
    /// Pairs along the inner index.
    Bf16(Panels<Pair>),
}

impl PackedOperand {
    /// Room for a matrix `(k, n)`.
    pub(crate) fn new(precision: CpuPrecision, k: usize, n: usize) -> Self {
        match precision {
            CpuPrecision::F32 => Self::F32(Panels::new(k, n)),
            CpuPrecision::Bf16 => Self::Bf16(Panels::new(k.div_ceil(2), n)),
        }
    }

    /// Takes over a matrix `(k, n)` given row after row.
    pub(crate) fn pack(&mut self, level: SimdLevel, w: &[f32]) {
        match self {
            Self::F32(panels) => panels.pack(w),
            Self::Bf16(panels) => panels.pack(level, w),
        }
    }

    /// Takes over the transpose of a matrix `(n, k)` given row after row.
    pub(crate) fn pack_transposed(&mut self, level: SimdLevel, w: &[f32]) {
        match self {
            Self::F32(panels) => panels.pack_transposed(w),
            Self::Bf16(panels) => panels.pack_transposed(level, w, w.len() / panels.n()),
        }
    }

    /// Columns.
    pub(crate) fn n(&self) -> usize {
        match self {
            Self::F32(panels) => panels.n(),
            Self::Bf16(panels) => panels.n(),
        }
    }
}

/// Buffers that operands share, one after the other.
#[derive(Debug)]
pub(crate) struct OperandScratch {
    /// Where an operand that keeps no f32 rows is written before it is quantized, `(T, cols)`; of no rows in f32, where
    /// operands are written in place.
    pub(crate) rows: Rows,
    /// The operand that was quantized last, `(T, cols / 2)` pairs along its rows: what the next product reads.
    pub(crate) quantized: Rows<Pair>,
}

impl OperandScratch {
    /// Buffers for operands of up to `n` rows and `cols` columns.
    pub(crate) fn new(precision: CpuPrecision, n: usize, cols: usize) -> Self {
        let n = if precision == CpuPrecision::F32 { 0 } else { n };
        Self { rows: Rows::zeros(n, cols), quantized: Rows::zeros(n, cols.div_ceil(2)) }
    }
}

/// How the rows of an [`Operand`] are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Storage {
    /// Whether products read it.
    pub(crate) matmul_operand: bool,
    /// Whether something else reads its rows in f32 later.
    pub(crate) kept: bool,
}

/// A matrix that is written in f32 ([`Operand::rows_mut`]), and matmul_operand once it is
/// [quantized](Operand::quantize).
#[derive(Debug)]
pub(crate) struct Operand {
    /// `(n, cols)` in f32; of no rows where nothing reads them once they are quantized.
    rows: Rows,
    /// Whether `rows` are there.
    kept: bool,
    /// Pairs down the columns, `(n / 2, cols)`, which the gradient of weights reads; in bf16 alone.
    columns: Option<Rows<Pair>>,
}

impl Operand {
    /// A matrix of up to `n` rows.
    pub(crate) fn new(precision: CpuPrecision, n: usize, cols: usize, storage: Storage) -> Self {
        let quantized_storage = storage.matmul_operand && precision == CpuPrecision::Bf16;
        let kept = storage.kept || !quantized_storage;
        let columns = quantized_storage.then(|| Rows::zeros(n.div_ceil(2), cols));
        Self { rows: Rows::zeros(if kept { n } else { 0 }, cols), kept, columns }
    }

    /// The floats that [`Operand::new`] takes.
    pub(crate) fn floats(precision: CpuPrecision, n: usize, cols: usize, storage: Storage) -> usize {
        let quantized_storage = storage.matmul_operand && precision == CpuPrecision::Bf16;
        let kept = storage.kept || !quantized_storage;
        let columns = if quantized_storage { n.div_ceil(2) * cols } else { 0 };
        if kept { n * cols + columns } else { columns }
    }

    pub(crate) fn cols(&self) -> usize {
        self.rows.cols
    }

    /// The f32 rows to fill. Where they are not kept they are scratch, overwritten by the next call.
    pub(crate) fn rows_mut<'a>(&'a mut self, scratch: &'a mut Rows) -> &'a mut Rows {
        if self.kept {
            return &mut self.rows;
        }
        scratch.set_cols(self.rows.cols);
        scratch
    }

    /// The rows in f32, where they are kept.
    pub(crate) fn rows(&self) -> &Rows {
        &self.rows
    }

    /// [`Operand::rows`], to be changed.
    pub(crate) fn kept_rows_mut(&mut self) -> &mut Rows {
        &mut self.rows
    }

    /// Rounds what was written to the first `n` rows; in f32 nothing.
    pub(crate) fn quantize(&mut self, level: SimdLevel, n: usize, scratch: &mut OperandScratch) {
        if let Some(columns) = &mut self.columns {
            let OperandScratch { rows, quantized } = scratch;
            quantized.set_cols(columns.cols.div_ceil(2));
            bf16::quantize(level, n, if self.kept { &self.rows } else { rows }, quantized, columns);
        }
    }

    /// `out = x w` plus what `accumulate` says, for some rows of this, the operand that was
    /// [quantized](Operand::quantize) last; `ld` floats from row to row of the output.
    pub(crate) fn multiply(
        &self,
        level: SimdLevel,
        rows: Range<usize>,
        quantized: &Rows<Pair>,
        w: &PackedOperand,
        accumulate: Accumulate<'_>,
        (out, ld): (&mut [f32], usize),
    ) {
        let (m, n, from) = (rows.len(), w.n(), rows.start);
        match w {
            PackedOperand::F32(w) => {
                matmul(level, (m, n, w.k()), Left::rows(&self.rows, from, 0), w.right(), accumulate, out, ld);
            }
            PackedOperand::Bf16(w) => {
                matmul(level, (m, n, w.k()), Left::rows(quantized, from, 0), w.right(), accumulate, out, ld);
            }
        }
    }

    /// Adds `x^T y` to rows of a gradient, those from `first` on: `x` are the first rows of this, `y` as many of `right`,
    /// the first of which has an even number.
    pub(crate) fn add_outer(&self, level: SimdLevel, first: usize, right: &Self, rows: Range<usize>, grad: &mut [f32]) {
        let (n, k, from) = (right.cols(), rows.len(), rows.start);
        let m = grad.len() / n;
        match (&self.columns, &right.columns) {
            (Some(x), Some(y)) => {
                let (left, right) = (Left::columns(x, 0, first), Right::rows(y, from / 2, 0));
                matmul(level, (m, n, k.div_ceil(2)), left, right, Accumulate::Add, grad, n);
            }
            _ => {
                let (left, right) = (Left::columns(&self.rows, 0, first), Right::rows(&right.rows, from, 0));
                matmul(level, (m, n, k), left, right, Accumulate::Add, grad, n);
            }
        }
    }
}
