//! The search for the logit at which top-k or top-p cuts a row, where the kept tokens are too many for `top_k`'s
//! candidates.
//!
//! Each round sums the masses above several thresholds at once and narrows the range of the cut. At the end the
//! threshold is snapped to a logit of the row, and of the logits equal to it the first are kept, as many as the mass
//! takes.

use super::chunked_cdf::ChunkedCdf;
use super::ops::{Binary, Constant, Ops, Reduce};
use candle_core::{DType, Result, Tensor};

/// The number of thresholds that a round tries at once. It narrows the range to a part in `THRESHOLDS + 1`.
const THRESHOLDS: usize = 3;
/// The rounds of a search from the whole range before its status is read back: 24 bits of the range for f32.
const FIRST_ROUNDS: usize = 12;
/// The same for f16 and bf16, whose values lie farther apart: 16 bits of the range.
const FIRST_HALF_ROUNDS: usize = 8;
/// The rounds between two reads of the status after that.
const ROUNDS: usize = 2;

/// Status of a row: the cut is found, and all logits equal to it are kept.
const DONE: u32 = 0;
/// Status of a row: the cut is found, and only the first of the logits equal to it are kept.
const CUTS_TIES: u32 = 1;
/// Status of a row: the cut is above the smallest logit that the threshold reaches.
const NOT_DONE: u32 = 2;

/// A search for the smallest set of the largest logits whose masses reach a target.
pub(super) struct ThresholdSearch<'a> {
    pub(super) ops: &'a Ops,
    pub(super) cdf: ChunkedCdf,
    /// The logits, `(B, width)` f32.
    pub(super) x: &'a Tensor,
    /// The largest logit of each row, `(B, 1)`.
    pub(super) largest: &'a Tensor,
    /// The masses to sum, `(B, width)` i64, equal for equal logits: 1 for top-k, the weights for top-p. The answer of a
    /// row without mass is undefined.
    pub(super) masses: &'a Tensor,
    /// The mass to reach, `(B, 1)` i64, from 1 to the mass of the row.
    pub(super) target: Tensor,
}

/// The range in which the cut is.
pub(super) struct ThresholdRange {
    /// A threshold that the target mass reaches, `(B, 1)` f32; it rises from round to round.
    pub(super) low: Tensor,
    /// At `units * width` above the first `low` the masses do not reach the target, `(B, 1)` f32.
    pub(super) width: Tensor,
    /// 1 or 2; 2 if `width` is half of the range, which alone is certain to be finite.
    pub(super) units: u8,
    /// The number of rounds so far.
    pub(super) round: usize,
}

impl ThresholdSearch<'_> {
    /// The mask of the smallest set of the largest logits, of equal ones the first, whose masses reach the target.
    pub(super) fn smallest_set(&self, half_precision: bool) -> Result<Tensor> {
        let Self { ops, cdf, x, largest, masses, .. } = *self;
        // The cut is at a logit with mass.
        let with_mass = ops.where_cond(&ops.binary_scalar(Binary::Gt, masses, 0.0)?, x, largest)?;
        let low = cdf.reduce(ops, Reduce::Min, &with_mass)?;
        drop(with_mass);
        // Half of the difference, which may itself overflow.
        let width = ops.binary(Binary::Sub, &ops.mul_scalar(largest, 0.5)?, &ops.mul_scalar(&low, 0.5)?)?;
        let mut range = ThresholdRange { low, width, units: 2, round: 0 };
        self.narrow(&mut range, if half_precision { FIRST_HALF_ROUNDS } else { FIRST_ROUNDS })?;
        self.settle(range)
    }

    /// [`ThresholdSearch::smallest_set`] from a range that is narrow already: snaps to the logits, and goes on until
    /// every row is done.
    pub(super) fn settle(&self, mut range: ThresholdRange) -> Result<Tensor> {
        let Self { ops, cdf, x, largest, masses, ref target } = *self;
        loop {
            let low = &range.low;
            // The smallest logit that the threshold reaches.
            let reached = ops.binary(Binary::Ge, x, low)?;
            let snapped = cdf.reduce(ops, Reduce::Min, &ops.where_cond(&reached, x, largest)?)?;
            let is_above = ops.binary(Binary::Gt, x, &snapped)?;
            let above = cdf.reduce(ops, Reduce::Sum, &ops.where_or(&is_above, masses, 0.0)?)?;
            let is_tie = ops.binary(Binary::Eq, x, &snapped)?;
            let tie = cdf.reduce(ops, Reduce::Max, &ops.where_or(&is_tie, masses, 0.0)?)?;
            // A row without mass must not divide by 0.
            let tie = ops.binary_scalar(Binary::Max, &tie, 1.0)?;
            // The number of logits equal to `snapped` that are kept, less one.
            let extra = ops.binary_scalar(Binary::Sub, &ops.binary(Binary::Sub, target, &above)?, 1.0)?;
            let extra = ops.binary(Binary::Div, &extra, &tie)?;
            let tie_weights = ChunkedCdf::mask_weights(ops, &is_tie)?;
            let count = cdf.reduce(ops, Reduce::Sum, &tie_weights)?;
            let done = ops.binary(Binary::Gt, target, &above)?;
            let cuts = ops.binary(Binary::Gt, &count, &ops.binary_scalar(Binary::Add, &extra, 1.0)?)?;
            let cuts = ops.where_or(&cuts, &ops.scalar(f64::from(CUTS_TIES), DType::U32)?, f64::from(DONE))?;
            let found = ops.read_u32(&ops.where_or(&done, &cuts, f64::from(NOT_DONE))?)?;
            if found.contains(&NOT_DONE) {
                // The kept logits are all above `snapped`: continue from the next logit, so that every pass makes
                // progress.
                let next = cdf.reduce(ops, Reduce::Min, &ops.where_cond(&is_above, x, largest)?)?;
                range.low = ops.where_cond(&done, low, &next)?;
                self.narrow(&mut range, ROUNDS)?;
                continue;
            }
            if !found.contains(&CUTS_TIES) {
                return ops.binary(Binary::Ge, x, &snapped);
            }
            let last = cdf.first_above(ops, &tie_weights, &cdf.cumulative_weights(ops, &tie_weights)?, &extra)?;
            let is_early = ops.binary(Binary::Le, &cdf.positions(ops)?, &last)?;
            return ops.binary(Binary::Add, &is_above, &ops.binary(Binary::Mul, &is_tie, &is_early)?);
        }
    }

    /// Narrows the range by so many rounds. In each, `low` becomes the largest of the thresholds tried whose mass
    /// reaches the target, or stays.
    pub(super) fn narrow(&self, range: &mut ThresholdRange, rounds: usize) -> Result<()> {
        let ops = self.ops;
        // The steps j / 4^(round + 1) of the range, j = 1, 2, 3: (B, rounds * thresholds)
        let steps = Constant::Steps { count: THRESHOLDS, from: range.round, rounds, units: range.units };
        let steps = ops.binary(Binary::Mul, &range.width, &ops.constant(steps, DType::F32)?)?;
        range.round += rounds;
        for round in 0..rounds {
            let steps = steps.narrow(1, round * THRESHOLDS, THRESHOLDS)?;
            let thresholds = ops.binary(Binary::Add, &range.low, &steps)?; // (B, thresholds)
            // (B, 1, width) against (B, thresholds, 1)
            let reached = ops.binary(Binary::Ge, &self.x.unsqueeze(1)?, &thresholds.unsqueeze(2)?)?;
            let reached = ops.where_or(&reached, &self.masses.unsqueeze(1)?, 0.0)?;
            let mass = ops.reduce(Reduce::Sum, &reached)?.squeeze(2)?; // (B, thresholds, 1) -> (B, thresholds)
            let enough = ops.binary(Binary::Ge, &mass, &self.target)?;
            range.low = ops.reduce(Reduce::Max, &ops.where_cond(&enough, &thresholds, &range.low)?)?;
        }
        Ok(())
    }
}
