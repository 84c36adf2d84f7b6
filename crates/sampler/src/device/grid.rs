//! A batch of rows cut into chunks, and the choice of one element of each row by integer weights.

use super::ops::{Binary, Ops, Reduce};
use candle_core::{DType, Result, Tensor};

/// The sizes of chunks to look for: large enough to leave few chunks, small enough to be searched as a whole.
const CHUNKS: std::ops::RangeInclusive<usize> = 16..=128;
/// The size of a chunk where none divides the row.
const PADDED_CHUNK: usize = 64;

/// How rows of a vocabulary are cut: `(B, V)` is seen as `(B, chunks, chunk)`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    pub(super) rows: usize,
    pub(super) chunks: usize,
    pub(super) chunk: usize,
}

impl Grid {
    /// A grid without padding where a divisor allows it: padding is a copy of all the logits.
    pub(super) fn new(rows: usize, vocab: usize) -> Self {
        let chunk = if vocab < *CHUNKS.start() {
            vocab
        } else {
            CHUNKS
                .filter(|size| vocab.is_multiple_of(*size))
                .min_by_key(|size| size.abs_diff(48))
                .unwrap_or(PADDED_CHUNK)
        };
        Self { rows, chunks: vocab.div_ceil(chunk), chunk }
    }

    pub(super) fn width(&self) -> usize {
        self.chunks * self.chunk
    }

    /// The rows with -inf behind them where the chunks need it, `(B, width)`, contiguous.
    pub(super) fn pad(&self, ops: &Ops, x: &Tensor) -> Result<Tensor> {
        let missing = self.width() - x.dim(1)?;
        if missing == 0 {
            return x.contiguous();
        }
        let tail = ops.full(f32::NEG_INFINITY, &[self.rows, missing], x.dtype())?;
        ops.concat(&[x, &tail])
    }

    /// `(B, width)` as `(B, chunks, chunk)`.
    pub(super) fn chunked(&self, x: &Tensor) -> Result<Tensor> {
        x.reshape((self.rows, self.chunks, self.chunk))
    }

    /// A reduction of each row in two stages, as `(B, 1)`: few rows then still use many of a device's processors.
    pub(super) fn reduce(&self, ops: &Ops, op: Reduce, x: &Tensor) -> Result<Tensor> {
        let stage = ops.reduce(op, &self.chunked(x)?)?;
        ops.reduce_keep(op, &stage)
    }

    /// The position of each element in its row, `(1, width)`.
    pub(super) fn positions(&self, ops: &Ops) -> Result<Tensor> {
        ops.constants((0..self.width() as i64).collect(), &[1, self.width()], DType::U32)
    }

    /// The first position of each row, `(B, 1)` u32, up to which the weights, `(B, width)` i64, sum to more than
    /// `target`, `(B, 1)`; the last position where they never do.
    ///
    /// A tree of three levels: sums of chunks, sums of groups of chunks, and prefix sums of the one list that is
    /// descended into. Sums of integers are the same in every order, so this is the same on every device.
    pub(super) fn pick(&self, ops: &Ops, weights: &Tensor, target: &Tensor) -> Result<Tensor> {
        let sums = ops.reduce(Reduce::Sum, &self.chunked(weights)?)?;
        // Groups of about the root of their number, so that both levels are short.
        let group = (self.chunks as f64).sqrt().ceil() as usize;
        let missing = group * group - self.chunks;
        let sums = if missing == 0 {
            sums
        } else {
            let tail = ops.full(0.0, &[self.rows, missing], DType::I64)?;
            ops.concat(&[&sums, &tail])?
        };
        // (B, group * group) -> (B, group, group)
        let groups = ops.reduce(Reduce::Sum, &sums.reshape((self.rows, group, group))?)?;
        let (place, rest) = self.descend(ops, &groups, target)?;
        // (B, group * group) -> (B * group, group)
        let sums = self.select(ops, &sums.reshape((self.rows * group, group))?, group, &place)?;
        let (within, rest) = self.descend(ops, &sums, &rest)?;
        let chunk = ops.binary(Binary::Add, &ops.with(Binary::Mul, &place, group as i64)?, &within)?;
        // A target out of reach may end in the padding of the groups.
        let chunk = ops.with(Binary::Min, &chunk, self.chunks as i64 - 1)?;
        // (B, width) -> (B * chunks, chunk)
        let all = weights.reshape((self.rows * self.chunks, self.chunk))?;
        let (within, _) = self.descend(ops, &self.select(ops, &all, self.chunks, &chunk)?, &rest)?;
        ops.binary(Binary::Add, &ops.with(Binary::Mul, &chunk, self.chunk as i64)?, &within)
    }

    /// List `place`, `(B, 1)`, of the `per_row` lists of each row; `lists` is `(B * per_row, n)`.
    pub(super) fn select(&self, ops: &Ops, lists: &Tensor, per_row: usize, place: &Tensor) -> Result<Tensor> {
        let first = ops.upload((0..self.rows as i64).map(|row| row * per_row as i64).collect(), 2, DType::U32)?;
        ops.rows(lists, &ops.binary(Binary::Add, &first, place)?.reshape(self.rows)?)
    }

    /// Where the prefix sums of a short list, `(B, n)`, first exceed the target, and what is left of the target there.
    fn descend(&self, ops: &Ops, list: &Tensor, target: &Tensor) -> Result<(Tensor, Tensor)> {
        let n = list.dim(1)?;
        let triangle = (0..n * n).map(|at| i64::from(at % n <= at / n)).collect();
        let triangle = ops.constants(triangle, &[1, n, n], DType::I64)?;
        // (B, n) -> (B, 1, n), against (1, n, n)
        let prefixes = ops.reduce(Reduce::Sum, &ops.binary(Binary::Mul, &list.unsqueeze(1)?, &triangle)?)?;
        let passed = ops.cast(&ops.binary(Binary::AtMost, &prefixes, target)?, DType::I64)?;
        let count = ops.reduce_keep(Reduce::Sum, &passed)?;
        let place = ops.cast(&ops.with(Binary::Min, &count, n as i64 - 1)?, DType::U32)?;
        let behind = ops.reduce_keep(Reduce::Sum, &ops.binary(Binary::Mul, list, &passed)?)?;
        Ok((place, ops.binary(Binary::Sub, target, &behind)?))
    }

    /// The lowest position of `value`, `(B, 1)`, given the maxima of the chunks, `(B, chunks)`, of which it is the
    /// largest. (`argmax` is of no use: on CUDA it breaks ties by thread.)
    pub(super) fn first_equal(&self, ops: &Ops, x: &Tensor, maxima: &Tensor, value: &Tensor) -> Result<Tensor> {
        let chunk = first_true(ops, &ops.binary(Binary::Equal, maxima, value)?)?;
        // (B, width) -> (B * chunks, chunk)
        let all = x.reshape((self.rows * self.chunks, self.chunk))?;
        let list = self.select(ops, &all, self.chunks, &chunk)?;
        let within = first_true(ops, &ops.binary(Binary::Equal, &list, value)?)?;
        ops.binary(Binary::Add, &ops.with(Binary::Mul, &chunk, self.chunk as i64)?, &within)
    }
}

/// The place of the first 1 of each row of a mask, `(B, 1)` u32; the last place if there is none.
pub(super) fn first_true(ops: &Ops, mask: &Tensor) -> Result<Tensor> {
    let n = mask.dim(1)?;
    let places = ops.constants((0..n as i64).collect(), &[1, n], DType::U32)?.broadcast_as(mask.shape())?;
    let last = ops.constants(vec![n as i64 - 1], &[1, 1], DType::U32)?.broadcast_as(mask.shape())?;
    ops.reduce_keep(Reduce::Min, &ops.choose(mask, &places, &last)?)
}
