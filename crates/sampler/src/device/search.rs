//! Cutting a falling order (largest logit first, lowest index first among equals) where a count or a mass is reached,
//! when what stays does not fit a few candidates: a search for the threshold, snapped to a value of the data.

use super::ops::{Binary, Constant, Ops, Reduce};
use super::tree::Tree;
use candle_core::{DType, Result, Tensor};

/// Thresholds that are tried at once; each round narrows the range by one more.
const THRESHOLDS: usize = 3;
/// Rounds before the first look at whether all rows are done, in a search from nothing: 24 bits of the range for f32, 16
/// for the half types, whose values lie farther apart.
const FIRST_ROUNDS: usize = 12;
const FIRST_ROUNDS_OF_HALVES: usize = 8;
/// Rounds between the looks that follow.
const ROUNDS: usize = 2;

/// What a look finds of a row.
const WHOLE: u32 = 0;
const CUTS_A_TIE: u32 = 1;
const NOT_DONE: u32 = 2;

/// What is searched in.
pub(super) struct Search<'a> {
    pub(super) ops: &'a Ops,
    pub(super) tree: Tree,
    /// The logits, `(B, width)` f32.
    pub(super) x: &'a Tensor,
    /// The largest of each row, `(B, 1)`.
    pub(super) largest: &'a Tensor,
    /// `(B, width)` i64; equal logits have equal ones. Rows without any may get any answer.
    pub(super) masses: &'a Tensor,
    /// The mass to reach, `(B, 1)`, from 1 to that of the row.
    pub(super) target: Tensor,
}

/// Where the threshold is.
pub(super) struct Range {
    /// The masses down to here, `(B, 1)`, reach the target; down to `units * width` above the first of these, they do not.
    pub(super) low: Tensor,
    pub(super) width: Tensor,
    pub(super) units: u8,
    /// Rounds that have narrowed it.
    pub(super) round: usize,
}

impl Search<'_> {
    /// The smallest set of elements whose masses reach the target, as a mask.
    pub(super) fn reach(&self, halves: bool) -> Result<Tensor> {
        let Self { ops, tree, x, largest, masses, .. } = *self;
        // All that weighs something is not below `low`; the threshold never is.
        let heavy = ops.choose(&ops.with(Binary::Above, masses, 0.0)?, x, largest)?;
        let low = tree.reduce(ops, Reduce::Min, &heavy)?;
        drop(heavy);
        // Halved before the difference is taken, which may not be finite.
        let width = ops.binary(Binary::Sub, &ops.scale(largest, 0.5)?, &ops.scale(&low, 0.5)?)?;
        let mut range = Range { low, width, units: 2, round: 0 };
        self.narrow(&mut range, if halves { FIRST_ROUNDS_OF_HALVES } else { FIRST_ROUNDS })?;
        self.settle(range)
    }

    /// [`Search::reach`] from a range that is narrow already.
    pub(super) fn settle(&self, mut range: Range) -> Result<Tensor> {
        let Self { ops, tree, x, largest, masses, ref target } = *self;
        loop {
            let low = &range.low;
            // The least value of the data that is not below.
            let reached = ops.binary(Binary::AtLeast, x, low)?;
            let least = tree.reduce(ops, Reduce::Min, &ops.choose(&reached, x, largest)?)?;
            let beyond = ops.binary(Binary::Above, x, &least)?;
            let above = tree.reduce(ops, Reduce::Sum, &ops.choose_or(&beyond, masses, 0.0)?)?;
            let equal = ops.binary(Binary::Equal, x, &least)?;
            let tie = tree.reduce(ops, Reduce::Max, &ops.choose_or(&equal, masses, 0.0)?)?;
            // Nothing weighs 0 here but in a bad row, where the division must not fail.
            let tie = ops.with(Binary::Max, &tie, 1.0)?;
            // How many of the equals stay before the last that does.
            let stay = ops.with(Binary::Sub, &ops.binary(Binary::Sub, target, &above)?, 1.0)?;
            let stay = ops.binary(Binary::Div, &stay, &tie)?;
            let ties = Tree::ones(ops, &equal)?;
            let count = tree.reduce(ops, Reduce::Sum, &ties)?;
            let done = ops.binary(Binary::Above, target, &above)?;
            let cuts = ops.binary(Binary::Above, &count, &ops.with(Binary::Add, &stay, 1.0)?)?;
            let cuts = ops.choose_or(&cuts, &ops.scalar(f64::from(CUTS_A_TIE), DType::U32)?, f64::from(WHOLE))?;
            let found = ops.read(&ops.choose_or(&done, &cuts, f64::from(NOT_DONE))?)?;
            if found.contains(&NOT_DONE) {
                // Everything that stays is above: on from the next value, so that every look is progress.
                let next = tree.reduce(ops, Reduce::Min, &ops.choose(&beyond, x, largest)?)?;
                range.low = ops.choose(&done, low, &next)?;
                self.narrow(&mut range, ROUNDS)?;
                continue;
            }
            if !found.contains(&CUTS_A_TIE) {
                return ops.binary(Binary::AtLeast, x, &least);
            }
            let last = tree.pick(ops, &ties, &tree.prefixes(ops, &ties)?, &stay)?;
            let early = ops.binary(Binary::AtMost, &tree.positions(ops)?, &last)?;
            return ops.binary(Binary::Add, &beyond, &ops.binary(Binary::Mul, &equal, &early)?);
        }
    }

    /// So many rounds: of each, `low` becomes the largest of itself and the thresholds above it down to which the masses
    /// reach the target.
    pub(super) fn narrow(&self, range: &mut Range, rounds: usize) -> Result<()> {
        let ops = self.ops;
        // (j / 4^(round + 1)) of the range: (B, rounds * thresholds)
        let steps = Constant::Steps { count: THRESHOLDS, from: range.round, rounds, unit: range.units };
        let steps = ops.binary(Binary::Mul, &range.width, &ops.constant(steps, DType::F32)?)?;
        range.round += rounds;
        for round in 0..rounds {
            let steps = steps.narrow(1, round * THRESHOLDS, THRESHOLDS)?;
            let thresholds = ops.binary(Binary::Add, &range.low, &steps)?; // (B, thresholds)
            // (B, 1, width) against (B, thresholds, 1)
            let reached = ops.binary(Binary::AtLeast, &self.x.unsqueeze(1)?, &thresholds.unsqueeze(2)?)?;
            let reached = ops.choose_or(&reached, &self.masses.unsqueeze(1)?, 0.0)?;
            let mass = ops.reduce(Reduce::Sum, &reached)?.squeeze(2)?; // (B, thresholds, 1) -> (B, thresholds)
            let enough = ops.binary(Binary::AtLeast, &mass, &self.target)?;
            range.low = ops.reduce(Reduce::Max, &ops.choose(&enough, &thresholds, &range.low)?)?;
        }
        Ok(())
    }
}
