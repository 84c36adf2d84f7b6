//! What the rules do to a batch of rows, from the logits to one token for each row.

use super::grid::Grid;
use super::ops::{Binary, Ops, Reduce};
use super::{search, share};
use crate::SamplingParams;
use candle_core::{D, DType, Result, Tensor};

/// The weight of the largest logit.
const ONE: f64 = 1_099_511_627_776.0;

/// Whether NaNs are looked for. The look is one pass and knows no NaN from a sum that overflowed in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    Nothing,
    NoNaN,
}

/// A batch on its way: f32 logits in a grid, and the largest of each row.
struct Batch<'a> {
    ops: &'a Ops,
    grid: Grid,
    /// `(B, width)`, -inf where the width exceeds the vocabulary.
    x: Tensor,
    /// `(B, chunks)`
    maxima: Tensor,
    /// `(B, 1)`
    largest: Tensor,
    /// `(B, 1)`, 1 for a row from which nothing can be drawn (or, rarely, one that only looks like it).
    bad: Tensor,
}

/// `(B, 2)` u32: the token of each row, and whether the row is bad, in which case the token means nothing.
pub(super) fn tokens(
    ops: &Ops,
    logits: &Tensor,
    params: &SamplingParams,
    uniforms: &[f64],
    trust: Trust,
) -> Result<Tensor> {
    let batch = Batch::new(ops, logits, trust)?;
    let token = if params.is_greedy() {
        batch.grid.first_equal(ops, &batch.x, &batch.maxima, &batch.largest)?
    } else {
        let weights = batch.weights(params, logits.dim(D::Minus1)?)?;
        let total = batch.grid.reduce(ops, Reduce::Sum, &weights)?;
        batch.grid.pick(ops, &weights, &share::of_total(ops, &total, uniforms)?)?
    };
    ops.concat(&[&token, &ops.cast(&batch.bad, DType::U32)?])
}

impl<'a> Batch<'a> {
    fn new(ops: &'a Ops, logits: &Tensor, trust: Trust) -> Result<Self> {
        let (rows, vocab) = logits.dims2()?;
        let grid = Grid::new(rows, vocab);
        let x = grid.pad(ops, &ops.cast(logits, DType::F32)?)?;
        let maxima = ops.reduce(Reduce::Max, &grid.chunked(&x)?)?;
        let largest = ops.reduce_keep(Reduce::Max, &maxima)?;
        // Only a finite number less itself equals itself.
        let zero = ops.binary(Binary::Sub, &largest, &largest)?;
        let mut bad = ops.binary(Binary::NotEqual, &zero, &zero)?;
        if trust == Trust::Nothing {
            // A NaN may be lost on the way to a maximum, but never to a sum.
            let sums = ops.reduce(Reduce::Sum, &grid.chunked(&x)?)?;
            let nan = ops.reduce_keep(Reduce::Max, &ops.binary(Binary::NotEqual, &sums, &sums)?)?;
            bad = ops.binary(Binary::Max, &bad, &nan)?;
        }
        // A NaN may also hide what is larger than the maximum found, and sums of such weights would overflow: below
        // infinity everything weighs 0.
        let infinite = ops.full(f32::INFINITY, &[1, 1], DType::F32)?;
        let largest = ops.choose(&bad, &infinite.broadcast_as((rows, 1))?, &largest)?;
        Ok(Self { ops, grid, x, maxima, largest, bad })
    }

    /// The integer weights that the rules leave, `(B, width)` i64.
    fn weights(&self, params: &SamplingParams, vocab: usize) -> Result<Tensor> {
        let ops = self.ops;
        let below = ops.binary(Binary::Sub, &self.x, &self.largest)?;
        // A temperature below the range of f32 acts as the smallest in it.
        let scale = (1.0 / params.temperature).min(f64::from(f32::MAX));
        let exponents = ops.affine(&below, scale, 0.0)?;
        let weights = ops.affine(&ops.exp(&exponents)?, ONE, 0.0)?;
        let mut weights = ops.cast(&weights, DType::I64)?;
        let mut x = self.x.clone();
        let keep = |x: &Tensor, weights: &Tensor, target: &Tensor| {
            search::keep(ops, self.grid, x, &self.largest, weights, target, &self.bad)
        };
        if params.top_k > 0 && params.top_k < vocab {
            let nothing = ops.full(f32::NEG_INFINITY, &[1, 1], DType::F32)?;
            let finite = ops.cast(&ops.binary(Binary::Above, &x, &nothing)?, DType::I64)?;
            let count = ops.upload(vec![params.top_k as i64], 2, DType::I64)?;
            let kept = keep(&x, &finite, &count.broadcast_as((self.grid.rows, 1))?)?;
            weights = ops.binary(Binary::Mul, &weights, &kept)?;
            // What is dropped must not look like a tie of what is kept.
            x = ops.choose(&kept, &x, &nothing.broadcast_as(x.shape())?)?;
        }
        if params.top_p < 1.0 {
            let total = self.grid.reduce(ops, Reduce::Sum, &weights)?;
            let target = share::of_total(ops, &total, &vec![params.top_p; self.grid.rows])?;
            weights = keep(&x, &weights, &target)?;
        }
        if params.min_p > 0.0 {
            // In the exponent, where the logits are exact. A quotient that rounds to 1 in f64 counts as 1.
            let bound = (params.min_p.ln() - f64::EPSILON / 4.0) * params.temperature;
            let bound = ops.full(bound as f32, &[1, 1], DType::F32)?;
            let kept = ops.cast(&ops.binary(Binary::AtLeast, &below, &bound)?, DType::I64)?;
            weights = ops.binary(Binary::Mul, &weights, &kept)?;
        }
        Ok(weights)
    }
}

/// The first place of each single row that is NaN, and that is +inf.
pub(super) fn faults(ops: &Ops, row: &Tensor) -> Result<(Option<usize>, Option<usize>)> {
    let x = ops.cast(row, DType::F32)?;
    let infinite = ops.full(f32::INFINITY, &[1, 1], DType::F32)?;
    let vocab = x.dim(1)?;
    let places = ops.constants((0..=vocab as i64).collect(), &[1, vocab + 1], DType::U32)?;
    let (places, none) = (places.narrow(1, 0, vocab)?, places.narrow(1, vocab, 1)?.broadcast_as((1, vocab))?);
    let first = |mask: &Tensor| ops.reduce_keep(Reduce::Min, &ops.choose(mask, &places, &none)?);
    let nan = first(&ops.binary(Binary::NotEqual, &x, &x)?)?;
    let infinity = first(&ops.binary(Binary::Equal, &x, &infinite)?)?;
    let found = ops.read(&ops.concat(&[&nan, &infinity])?)?;
    let place = |n: usize| Some(found[0][n] as usize).filter(|&place| place < vocab);
    Ok((place(0), place(1)))
}
