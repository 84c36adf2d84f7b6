//! The operands of attention's products: f32, or rounded to bf16.

use tinygpt_sampler::simd::SimdLevel;

use crate::cpu::{
    bf16,
    matmul::{Element, Left, Pair, Right},
    packed::pack_rows_transposed,
    rows::Rows,
};

/// An element of the operands: f32, or a pair of bf16 that are neighbours along a product's inner index.
pub(crate) trait AttentionElement: Element {
    /// The inner indices of an element.
    const INNER: usize;

    /// What holds a rounded matrix.
    type Rounded: std::fmt::Debug;

    /// Allocates what [`AttentionElement::operand`] needs for matrices of up to `n` rows and `cols` columns.
    fn rounded(n: usize, cols: usize) -> Self::Rounded;

    /// The first `n` rows of a matrix as an operand.
    fn operand<'a>(level: SimdLevel, n: usize, x: &'a Rows, rounded: &'a mut Self::Rounded) -> Matrix<'a, Self>;

    /// The elements along an inner index of `k`.
    fn inner(k: usize) -> usize {
        k.div_ceil(Self::INNER)
    }
}

impl AttentionElement for f32 {
    const INNER: usize = 1;
    type Rounded = ();

    fn rounded(_: usize, _: usize) {}

    fn operand<'a>(_: SimdLevel, _: usize, x: &'a Rows, (): &'a mut ()) -> Matrix<'a, Self> {
        Matrix::of(x)
    }
}

impl AttentionElement for Pair {
    const INNER: usize = 2;
    /// Pairs along the rows, `(n, cols / 2)`, and along the columns, `(n / 2, cols)`.
    type Rounded = [Rows<Self>; 2];

    fn rounded(n: usize, cols: usize) -> Self::Rounded {
        [Rows::zeros(n, cols.div_ceil(2)), Rows::zeros(n.div_ceil(2), cols)]
    }

    fn operand<'a>(
        level: SimdLevel,
        n: usize,
        x: &'a Rows,
        [rows, columns]: &'a mut Self::Rounded,
    ) -> Matrix<'a, Self> {
        bf16::quantize(level, n, x, rows, columns);
        Matrix { rows, columns }
    }
}

/// A matrix whose blocks are operands. Blocks start at even rows and columns.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, E> {
    /// Elements along the rows, for products whose inner index is that of columns.
    rows: &'a Rows<E>,
    /// Elements along the columns, for products whose inner index is that of rows.
    columns: &'a Rows<E>,
}

impl<'a> Matrix<'a, f32> {
    /// A matrix that is not rounded.
    pub(super) fn of(x: &'a Rows) -> Self {
        Self { rows: x, columns: x }
    }
}

impl<'a, E: AttentionElement> Matrix<'a, E> {
    /// The left operand from a row and a column on.
    pub(super) fn left(self, row: usize, col: usize) -> Left<'a, E> {
        Left::rows(self.rows, row, col / E::INNER)
    }

    /// The transpose as a left operand.
    pub(super) fn left_transposed(self) -> Left<'a, E> {
        Left::columns(self.columns, 0, 0)
    }

    /// The right operand from a row and a column on.
    pub(super) fn right(self, row: usize, col: usize) -> Right<'a, E> {
        Right::rows(self.columns, row / E::INNER, col)
    }

    /// Packs the transpose of the block of `n` rows and `k` columns from `col` on.
    pub(super) fn pack_transposed(self, n: usize, col: usize, k: usize, to: &mut [E]) {
        pack_rows_transposed(self.rows, n, col / E::INNER, E::inner(k), to);
    }
}
