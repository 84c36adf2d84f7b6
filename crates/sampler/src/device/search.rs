//! Cutting a falling order (largest logit first, lowest index first among equals) where a count or a mass is reached,
//! without sorting: a search for the threshold by halving, snapped to a value of the data.

use super::grid::Grid;
use super::ops::{Binary, Ops, Reduce};
use candle_core::{DType, Result, Tensor};

/// Halvings before the first look at whether all rows are done, and between the looks.
const FIRST_ROUND: usize = 18;
const ROUND: usize = 12;
/// The halvings that separate any two floats of any range: 256 exponents and 24 bits, and some to spare.
const MOST: usize = 330;

/// The weights of the smallest set of elements whose weights, `(B, width)` i64, reach `target`, `(B, 1)`, and zero for
/// the others. Equal logits have equal weights; a target that cannot be reached keeps everything; rows in
/// `bad`, `(B, 1)`, may get any answer.
pub(super) fn keep(
    ops: &Ops,
    grid: Grid,
    x: &Tensor,
    largest: &Tensor,
    weights: &Tensor,
    target: &Tensor,
    bad: &Tensor,
) -> Result<Tensor> {
    let zeros = ops.zeros(weights)?;
    let mass = |mask: &Tensor| grid.reduce(ops, Reduce::Sum, &ops.choose(mask, weights, &zeros)?);
    // Between the least logit that weighs something, above which is everything, and the largest.
    let top = largest.broadcast_as(x.shape())?;
    let heavy = ops.with(Binary::Above, weights, 0)?;
    let mut low = grid.reduce(ops, Reduce::Min, &ops.choose(&heavy, x, &top)?)?;
    let total = grid.reduce(ops, Reduce::Sum, weights)?;
    let target = ops.with(Binary::Max, &ops.binary(Binary::Min, target, &total)?, 1)?;
    let enough = ops.binary(Binary::AtLeast, &mass(&ops.binary(Binary::AtLeast, x, largest)?)?, &target)?;
    low = ops.choose(&enough, largest, &low)?;
    let mut high = largest.clone();

    let mut steps = 0;
    let (threshold, above) = loop {
        for _ in 0..if steps == 0 { FIRST_ROUND } else { ROUND } {
            // Halved before they are added: the sum may not be finite.
            let middle = ops.binary(Binary::Add, &ops.affine(&low, 0.5, 0.0)?, &ops.affine(&high, 0.5, 0.0)?)?;
            let reached = mass(&ops.binary(Binary::AtLeast, x, &middle)?)?;
            let enough = ops.binary(Binary::AtLeast, &reached, &target)?;
            low = ops.choose(&enough, &middle, &low)?;
            high = ops.choose(&enough, &high, &middle)?;
            steps += 1;
        }
        // The least value of the data that is not below; done if what is above it does not reach the target.
        let not_below = ops.binary(Binary::AtLeast, x, &low)?;
        let snapped = grid.reduce(ops, Reduce::Min, &ops.choose(&not_below, x, &top)?)?;
        let above = mass(&ops.binary(Binary::Above, x, &snapped)?)?;
        let done = ops.binary(Binary::Max, &ops.binary(Binary::Above, &target, &above)?, bad)?;
        if steps >= MOST || ops.read(&ops.cast(&done, DType::U32)?)?.iter().all(|row| row[0] > 0) {
            break (snapped, above);
        }
    };

    // Of the elements equal to the threshold, which weigh the same, as many of the first as it takes.
    let equal = ops.binary(Binary::Equal, x, &threshold)?;
    let ties = ops.cast(&equal, DType::I64)?;
    let count = ops.with(Binary::Max, &grid.reduce(ops, Reduce::Sum, &ties)?, 1)?;
    let weight = ops.binary(Binary::Div, &mass(&equal)?, &count)?;
    // Nothing weighs 0 here but in a bad row, where the division must not fail.
    let weight = ops.with(Binary::Max, &weight, 1)?;
    let wanted = ops.with(Binary::Sub, &ops.binary(Binary::Sub, &target, &above)?, 1)?;
    let last = grid.pick(ops, &ties, &ops.binary(Binary::Div, &wanted, &weight)?)?;
    let early = ops.binary(Binary::AtMost, &grid.positions(ops)?.broadcast_as(x.shape())?, &last)?;
    let chosen = ops.binary(Binary::Mul, &equal, &early)?;
    let chosen = ops.binary(Binary::Add, &chosen, &ops.binary(Binary::Above, x, &threshold)?)?;
    ops.choose(&chosen, weights, &zeros)
}
