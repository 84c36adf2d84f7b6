//! The inverse CDF of integer weights by tensor operations: sums of chunks, the prefix sums of these, and a look into
//! the one chunk in which the cumulative weight exceeds the target.
//!
//! Sums of integers are the same in every order, so every device finds the same position.

use super::constants::NO_TOKEN;
use super::ops::{Binary, Constant, Ops, Reduce};
use candle_core::{DType, Result, Tensor};

/// The layout of padded rows, `(B, width)`, as `(B, groups, group_size, chunk_size)`, so that no prefix sum is of a
/// long list.
#[derive(Debug, Clone, Copy)]
pub(super) struct ChunkedCdf {
    rows: usize,
    groups: usize,
    /// Chunks of a group.
    group_size: usize,
    /// Elements of a chunk.
    chunk_size: usize,
}

/// The cumulative weights of a batch of rows.
pub(super) struct CumulativeWeights {
    /// The sum of the weights before each chunk, `(B, chunks)` i64.
    before: Tensor,
    /// The sum of the weights of each row, `(B, 1)` i64; 0 if no token can be drawn.
    pub(super) total: Tensor,
}

impl ChunkedCdf {
    /// The layout with the least work: padding copies all logits, and prefix sums of n numbers are n^2 work.
    pub(super) fn new(rows: usize, vocab: usize) -> Self {
        let with_chunk = |chunk_size: usize| {
            let chunks = vocab.div_ceil(chunk_size);
            let group_size = (chunks as f64).sqrt().ceil() as usize;
            Self { rows, groups: chunks.div_ceil(group_size), group_size, chunk_size }
        };
        let work = |cdf: &Self| {
            let padding = if cdf.width() > vocab { cdf.width() } else { 0 };
            let lists = cdf.groups * cdf.group_size * cdf.group_size
                + cdf.groups * cdf.groups
                + cdf.chunk_size * cdf.chunk_size;
            padding + 2 * lists
        };
        (32..=128).map(with_chunk).min_by_key(work).unwrap_or_else(|| with_chunk(64))
    }

    /// The same layout for another number of rows.
    pub(super) fn with_rows(self, rows: usize) -> Self {
        Self { rows, ..self }
    }

    /// The length of a padded row.
    pub(super) fn width(&self) -> usize {
        self.groups * self.group_size * self.chunk_size
    }

    /// Pads logits `(B, V)` with -inf to `(B, width)`.
    pub(super) fn pad(&self, ops: &Ops, x: &Tensor) -> Result<Tensor> {
        let missing = self.width() - x.dim(1)?;
        if missing == 0 {
            return Ok(x.clone());
        }
        let padding = ops.tile(Constant::Scalar(f64::NEG_INFINITY.to_bits()), x.dtype(), self.rows, missing)?;
        ops.concat(&[x, &padding])
    }

    /// Reduces each padded row to `(B, 1)` in two stages, so that few rows still occupy many processors of a device.
    pub(super) fn reduce(&self, ops: &Ops, op: Reduce, x: &Tensor) -> Result<Tensor> {
        let stage = ops.reduce(op, &x.reshape((self.rows, (), self.chunk_size))?)?; // (B, width) -> (B, chunks, chunk)
        ops.reduce(op, &stage.squeeze(2)?)
    }

    /// The cumulative weights of padded rows, `(B, width)` i64.
    pub(super) fn cumulative_weights(&self, ops: &Ops, weights: &Tensor) -> Result<CumulativeWeights> {
        // (B, width) -> (B, groups, group, chunk)
        let chunks = weights.reshape((self.rows, self.groups, self.group_size, self.chunk_size))?;
        let sums = ops.reduce(Reduce::Sum, &chunks)?.squeeze(3)?;
        // CUDA casts NaN to `i64::MIN`; clamped, a row with a NaN has the total 0.
        let sums = ops.binary_scalar(Binary::Max, &sums, 0.0)?;
        let within = ops.prefix_sums(&sums, false)?; // (B, groups, group + 1)
        let of_groups = within.narrow(2, self.group_size, 1)?.squeeze(2)?; // (B, groups)
        let outside = ops.prefix_sums(&of_groups, false)?; // (B, groups + 1)
        let before = ops.binary(
            Binary::Add,
            &within.narrow(2, 0, self.group_size)?,
            &outside.narrow(1, 0, self.groups)?.unsqueeze(2)?,
        )?;
        let before = before.reshape((self.rows, ()))?; // (B, groups, group) -> (B, chunks)
        Ok(CumulativeWeights { before, total: outside.narrow(1, self.groups, 1)? })
    }

    /// The first position of each row at which the cumulative weight exceeds `target`, `(B, 1)` i64, or [`NO_TOKEN`] if
    /// it never does: `(B, 1)` u32.
    pub(super) fn first_above(
        &self,
        ops: &Ops,
        weights: &Tensor,
        cumulative: &CumulativeWeights,
        target: &Tensor,
    ) -> Result<Tensor> {
        let begun = ops.binary(Binary::Le, &cumulative.before, target)?;
        let index = ops.arange(self.groups * self.group_size, 1)?;
        let chunk = ops.reduce(Reduce::Max, &ops.where_or(&begun, &index, 0.0)?)?;
        let rest = ops.binary(Binary::Sub, target, &ops.gather(&cumulative.before, &chunk)?)?;
        let first = ops.binary_scalar(Binary::Mul, &chunk, self.chunk_size as f64)?;
        let positions = ops.binary(Binary::Add, &first, &ops.arange(self.chunk_size, 1)?)?; // (B, chunk)
        let sums = ops.prefix_sums(&ops.gather(weights, &positions)?, true)?;
        let passed = ops.binary(Binary::Gt, &sums, &rest)?;
        ops.reduce(Reduce::Min, &ops.where_or(&passed, &positions, f64::from(NO_TOKEN))?)
    }

    /// The positions of the elements of a padded row, `(1, width)` u32.
    pub(super) fn positions(&self, ops: &Ops) -> Result<Tensor> {
        ops.arange(self.width(), 1)
    }

    /// A mask as weights of 0 and 1, `(B, width)` i64.
    pub(super) fn mask_weights(ops: &Ops, mask: &Tensor) -> Result<Tensor> {
        ops.cast(mask, DType::I64)
    }
}
