//! The choice of one element of each row by integer weights: sums of chunks, their prefix sums, and the one chunk in
//! which the cumulative weight passes the target. Sums of integers are the same in every order, so the choice is the
//! same on every device.

use super::BAD;
use super::ops::{Binary, Constant, Ops, Reduce};
use candle_core::{DType, Result, Tensor};

/// How rows of a vocabulary are cut: `(B, width)` is seen as `(B, groups, group, chunk)`, so that no prefix sum is of a
/// long list.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tree {
    rows: usize,
    groups: usize,
    group: usize,
    chunk: usize,
}

/// The cumulative weights of a batch.
pub(super) struct Prefixes {
    /// Before each chunk, `(B, chunks)` i64.
    before: Tensor,
    /// Of each row, `(B, 1)` i64; 0 if the row is bad.
    pub(super) total: Tensor,
}

impl Tree {
    /// The one with the least work: padding is a copy of all the logits, and prefix sums of long lists are dear.
    pub(super) fn new(rows: usize, vocab: usize) -> Self {
        let cut = |chunk: usize| {
            let chunks = vocab.div_ceil(chunk);
            let group = (chunks as f64).sqrt().ceil() as usize;
            Self { rows, groups: chunks.div_ceil(group), group, chunk }
        };
        let work = |tree: &Self| {
            let padding = if tree.width() > vocab { tree.width() } else { 0 };
            let lists = tree.groups * tree.group * tree.group + tree.groups * tree.groups + tree.chunk * tree.chunk;
            padding + 2 * lists
        };
        (32..=128).map(cut).min_by_key(work).unwrap_or_else(|| cut(64))
    }

    /// The same cut of so many rows.
    pub(super) fn with_rows(self, rows: usize) -> Self {
        Self { rows, ..self }
    }

    pub(super) fn width(&self) -> usize {
        self.groups * self.group * self.chunk
    }

    /// `(B, V)` with -inf behind it, `(B, width)`.
    pub(super) fn pad(&self, ops: &Ops, x: &Tensor) -> Result<Tensor> {
        let missing = self.width() - x.dim(1)?;
        if missing == 0 {
            return Ok(x.clone());
        }
        let nothing = ops.tile(Constant::Scalar(f64::NEG_INFINITY.to_bits()), x.dtype(), self.rows, missing)?;
        ops.concat(&[x, &nothing])
    }

    /// A reduction of each row in two stages, as `(B, 1)`: few rows then still use many of a device's processors.
    pub(super) fn reduce(&self, ops: &Ops, op: Reduce, x: &Tensor) -> Result<Tensor> {
        let stage = ops.reduce(op, &x.reshape((self.rows, (), self.chunk))?)?; // (B, width) -> (B, chunks, chunk)
        ops.reduce(op, &stage.squeeze(2)?)
    }

    pub(super) fn prefixes(&self, ops: &Ops, weights: &Tensor) -> Result<Prefixes> {
        // (B, width) -> (B, groups, group, chunk)
        let chunks = weights.reshape((self.rows, self.groups, self.group, self.chunk))?;
        let sums = ops.reduce(Reduce::Sum, &chunks)?.squeeze(3)?;
        // In a bad row whatever is no number weighs the least integer on CUDA, and all else 0.
        let sums = ops.with(Binary::Max, &sums, 0.0)?;
        let within = ops.prefixes(&sums, false)?; // (B, groups, group + 1)
        let of_groups = within.narrow(2, self.group, 1)?.squeeze(2)?; // (B, groups)
        let outside = ops.prefixes(&of_groups, false)?; // (B, groups + 1)
        let before = ops.binary(
            Binary::Add,
            &within.narrow(2, 0, self.group)?,
            &outside.narrow(1, 0, self.groups)?.unsqueeze(2)?,
        )?;
        let before = before.reshape((self.rows, ()))?; // (B, groups, group) -> (B, chunks)
        Ok(Prefixes { before, total: outside.narrow(1, self.groups, 1)? })
    }

    /// The first position of each row, `(B, 1)` u32, up to which the weights sum to more than `target`, `(B, 1)`;
    /// [`BAD`] where they never do.
    pub(super) fn pick(&self, ops: &Ops, weights: &Tensor, prefixes: &Prefixes, target: &Tensor) -> Result<Tensor> {
        let begun = ops.binary(Binary::AtMost, &prefixes.before, target)?;
        let index = ops.ramp(self.groups * self.group, 1)?;
        let chunk = ops.reduce(Reduce::Max, &ops.choose_or(&begun, &index, 0.0)?)?;
        let rest = ops.binary(Binary::Sub, target, &ops.gather(&prefixes.before, &chunk)?)?;
        let first = ops.with(Binary::Mul, &chunk, self.chunk as f64)?;
        let positions = ops.binary(Binary::Add, &first, &ops.ramp(self.chunk, 1)?)?; // (B, chunk)
        let sums = ops.prefixes(&ops.gather(weights, &positions)?, true)?;
        let passed = ops.binary(Binary::Above, &sums, &rest)?;
        ops.reduce(Reduce::Min, &ops.choose_or(&passed, &positions, f64::from(BAD))?)
    }

    /// The position of each element in its row, `(1, width)`.
    pub(super) fn positions(&self, ops: &Ops) -> Result<Tensor> {
        ops.ramp(self.width(), 1)
    }

    /// 1 for each element of a mask, `(B, width)` i64.
    pub(super) fn ones(ops: &Ops, mask: &Tensor) -> Result<Tensor> {
        ops.cast(mask, DType::I64)
    }
}
