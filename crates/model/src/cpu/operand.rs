//! The operands of the products of linear layers and head, in f32 or bf16. Those of attention are in `ops/attention/`.

use std::ops::Range;

use tinygpt_sampler::simd::SimdLevel;

use super::{
    CpuPrecision, bf16,
    matmul::{Accumulate, Left, Pair, Right, Term, matmul, matmul_sum},
    packed::Panels,
    rows::Rows,
};
/// A weight matrix `(k, n)`, packed as the right operand of products.
#[derive(Debug)]
pub(crate) enum PackedOperand {
    /// `(k, n)`.
    F32(Panels),
    /// `(k / 2, n)` pairs along the inner index.
    Bf16(Panels<Pair>),
}

impl PackedOperand {
    /// Allocates a matrix `(k, n)`.
    pub(crate) fn new(precision: CpuPrecision, k: usize, n: usize) -> Self {
        match precision {
            CpuPrecision::F32 => Self::F32(Panels::new(k, n)),
            CpuPrecision::Bf16 => Self::Bf16(Panels::new(k.div_ceil(2), n)),
        }
    }

    /// Packs a row-major matrix `(k, n)`.
    pub(crate) fn pack(&mut self, level: SimdLevel, w: &[f32]) {
        match self {
            Self::F32(panels) => panels.pack(w),
            Self::Bf16(panels) => panels.pack(level, w),
        }
    }

    /// Packs the transpose of a row-major matrix `(n, k)`.
    pub(crate) fn pack_transposed(&mut self, level: SimdLevel, w: &[f32]) {
        match self {
            Self::F32(panels) => panels.pack_transposed(w),
            Self::Bf16(panels) => panels.pack_transposed(level, w, w.len() / panels.n()),
        }
    }

    /// The number of columns.
    pub(crate) fn n(&self) -> usize {
        match self {
            Self::F32(panels) => panels.n(),
            Self::Bf16(panels) => panels.n(),
        }
    }
}

/// Buffers that operands use one after the other.
#[derive(Debug)]
pub(crate) struct OperandScratch {
    /// The f32 values `(T, cols)` of an operand that keeps only its quantized form; no rows in f32.
    pub(crate) rows: Rows,
    /// The operand quantized last, `(T, cols / 2)` pairs along its rows, which the next product reads; no rows in f32.
    pub(crate) quantized: Rows<Pair>,
}

impl OperandScratch {
    /// Allocates buffers for operands of up to `n` rows and `cols` columns.
    pub(crate) fn new(precision: CpuPrecision, n: usize, cols: usize) -> Self {
        let n = if precision == CpuPrecision::F32 { 0 } else { n };
        Self { rows: Rows::zeros(n, cols), quantized: Rows::zeros(n, cols.div_ceil(2)) }
    }
}

/// How the rows of an [`Operand`] are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Storage {
    /// Whether products read it, so that bf16 needs its quantized form.
    pub(crate) matmul_operand: bool,
    /// Whether its f32 rows are read later by anything but a product.
    pub(crate) kept: bool,
}

impl Storage {
    /// Whether there is a quantized form.
    fn quantized(self, precision: CpuPrecision) -> bool {
        self.matmul_operand && precision == CpuPrecision::Bf16
    }

    /// Whether there are f32 rows: where they are read later, and where nothing else holds the values.
    fn keeps_f32(self, precision: CpuPrecision) -> bool {
        self.kept || !self.quantized(precision)
    }

    /// The f32 rows, and the rows of pairs, of `n` rows.
    fn rows(self, precision: CpuPrecision, n: usize) -> (usize, usize) {
        let f32_rows = if self.keeps_f32(precision) { n } else { 0 };
        let pair_rows = if self.quantized(precision) { n.div_ceil(2) } else { 0 };
        (f32_rows, pair_rows)
    }
}

/// A matrix `(n, cols)` that is written in f32 ([`Operand::rows_mut`]), then [quantized](Operand::quantize), then
/// multiplied.
#[derive(Debug)]
pub(crate) struct Operand {
    /// `(n, cols)` in f32; no rows where nothing reads them after quantization.
    rows: Rows,
    /// Whether `rows` has its rows.
    kept: bool,
    /// `(n / 2, cols)` pairs along the columns, which the weights' gradients read; in bf16 only.
    columns: Option<Rows<Pair>>,
}

impl Operand {
    /// Allocates a matrix of up to `n` rows.
    pub(crate) fn new(precision: CpuPrecision, n: usize, cols: usize, storage: Storage) -> Self {
        let (f32_rows, pair_rows) = storage.rows(precision, n);
        let columns = storage.quantized(precision).then(|| Rows::zeros(pair_rows, cols));
        Self { rows: Rows::zeros(f32_rows, cols), kept: storage.keeps_f32(precision), columns }
    }

    /// The memory that [`Operand::new`] allocates, in units of four bytes.
    pub(crate) fn floats(precision: CpuPrecision, n: usize, cols: usize, storage: Storage) -> usize {
        let (f32_rows, pair_rows) = storage.rows(precision, n);
        (f32_rows + pair_rows) * cols
    }

    /// The number of columns.
    pub(crate) fn cols(&self) -> usize {
        self.rows.cols
    }

    /// The f32 rows to fill, `(n, cols)`. Where they are not kept, they are `scratch`, which the next call overwrites.
    pub(crate) fn rows_mut<'a>(&'a mut self, scratch: &'a mut Rows) -> &'a mut Rows {
        if self.kept {
            return &mut self.rows;
        }
        scratch.set_cols(self.rows.cols);
        scratch
    }

    /// The f32 rows, `(n, cols)`; no rows where they are not kept.
    pub(crate) fn rows(&self) -> &Rows {
        &self.rows
    }

    /// [`Operand::rows`], to be written.
    pub(crate) fn kept_rows_mut(&mut self) -> &mut Rows {
        &mut self.rows
    }

    /// Rounds the first `n` rows to bf16; does nothing in f32.
    pub(crate) fn quantize(&mut self, level: SimdLevel, n: usize, scratch: &mut OperandScratch) {
        if let Some(columns) = &mut self.columns {
            let OperandScratch { rows, quantized } = scratch;
            quantized.set_cols(columns.cols.div_ceil(2));
            bf16::quantize(level, n, if self.kept { &self.rows } else { rows }, quantized, columns);
        }
    }

    /// Computes `out (m, n) = accumulate + x (m, k) w (k, n)` for a range of m rows of this operand, which must be the one
    /// that was [quantized](Operand::quantize) last. The output's leading dimension is `ld`.
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
}

/// A product `x^T y` of a sum ([`add_outer_products`]).
pub(crate) struct OuterProduct<'a> {
    /// As many rows as `rows` has, from the first on.
    pub(crate) x: &'a Operand,
    pub(crate) y: &'a Operand,
    /// The rows of `y`, of which the first is even.
    pub(crate) rows: Range<usize>,
}

impl<'a> OuterProduct<'a> {
    /// The term of rows `first..` in bf16; nothing in f32.
    fn pairs(&self, first: usize) -> Option<Term<'a, Pair>> {
        let (x, y) = (self.x.columns.as_ref()?, self.y.columns.as_ref()?);
        let (a, b) = (Left::columns(x, 0, first), Right::rows(y, self.rows.start / 2, 0));
        Some(Term { a, b, k: self.rows.len().div_ceil(2) })
    }

    /// The term of rows `first..` in f32.
    fn floats(&self, first: usize) -> Term<'a> {
        let (a, b) = (Left::columns(&self.x.rows, 0, first), Right::rows(&self.y.rows, self.rows.start, 0));
        Term { a, b, k: self.rows.len() }
    }
}

/// Adds rows `first..` of a sum of products `x^T y`, in their order, to those rows of a gradient, `(m, n)`.
pub(crate) fn add_outer_products(level: SimdLevel, first: usize, products: &[OuterProduct<'_>], grad: &mut [f32]) {
    let Some(n) = products.first().map(|product| product.y.cols()) else { return };
    let shape = (grad.len() / n, n);
    match products.iter().map(|product| product.pairs(first)).collect::<Option<Vec<_>>>() {
        Some(terms) => matmul_sum(level, shape, &terms, Accumulate::Add, grad, n),
        None => {
            let terms: Vec<_> = products.iter().map(|product| product.floats(first)).collect();
            matmul_sum(level, shape, &terms, Accumulate::Add, grad, n);
        }
    }
}
