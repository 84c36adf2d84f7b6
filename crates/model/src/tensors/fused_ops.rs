//! Neighbouring operations that are computed as one, so that a kernel saves writing and reading what lies between them: a residual
//! sum with the dropout before it and the norm behind it, the bias of a linear layer with the activation behind it, QK-norm with the
//! rotation of positions, and embeddings with those of positions and the dropout behind them.

use candle_core::{DType, Tensor};

use super::{Gpt, InputNorm, Pass};
use crate::{
    Result,
    ops::{self, Add, ApplyDropout, Embed, Linear, Op},
    plan::Value,
};

/// Runs the operation at an index, or several from it on as one, and returns how many it ran.
pub(super) fn step(gpt: &Gpt, at: usize, pass: &mut Pass<'_>) -> Result<usize> {
    let only_next_reads = |value: Value| gpt.last_readers[value.0] == at + 1;
    let (op, next, second) = (&gpt.net.ops[at], gpt.net.ops.get(at + 1), gpt.net.ops.get(at + 2));
    if let (Op::QkNorm(norm), Some(Op::Rope(rope))) = (op, next)
        && rope.x == norm.y
        && only_next_reads(norm.y)
        && let Some(rotated) = norm.forward_rotated(rope, pass)?
    {
        pass.set(rope.y, rotated);
        return Ok(2);
    }
    if let Op::Embed(embed) = op
        && let Some(ran) = embeddings(gpt, (at, embed), pass)?
    {
        return Ok(ran);
    }
    match (op, next) {
        (Op::ApplyDropout(drop), Some(Op::Add(add))) if add.y == drop.y && only_next_reads(drop.y) => {
            Ok(1 + residual(Some(drop), add, second, pass)?)
        }
        (Op::Add(add), _) => residual(None, add, next, pass),
        (Op::Linear(linear), Some(Op::Activate(activate))) if activate.x == linear.y && only_next_reads(linear.y) => {
            let y = ops::activate_biased(&linear.product(pass)?, bias(linear, pass), activate.activation)?;
            pass.set(activate.y, y);
            Ok(2)
        }
        (Op::Linear(linear), Some(Op::Swiglu(swiglu))) if swiglu.x == linear.y && only_next_reads(linear.y) => {
            let y = ops::swiglu_biased(&linear.product(pass)?, bias(linear, pass))?;
            pass.set(swiglu.y, y);
            Ok(2)
        }
        _ => {
            let y = op.get().forward(pass)?;
            pass.set(op.get().output(), y);
            Ok(1)
        }
    }
}

fn bias<'a>(linear: &Linear, pass: &Pass<'a>) -> Option<&'a Tensor> {
    linear.bias.map(|bias| pass.param(bias))
}

/// Runs the embedding of tokens, the operation at an index, with those of positions and the dropout behind it, and returns how many
/// operations that were; nothing where there is no kernel for it.
fn embeddings(gpt: &Gpt, (at, embed): (usize, &Embed), pass: &mut Pass<'_>) -> Result<Option<usize>> {
    if pass.dtype() != DType::F32 || pass.past() > 0 {
        return Ok(None);
    }
    let (mut ran, mut y, mut positions, mut dropout) = (1, embed.y, None, None);
    let next = |ran: usize, y: Value| gpt.net.ops.get(at + ran).filter(|_| gpt.last_readers[y.0] == at + ran);
    if let Some(Op::AddPositions(add)) = next(ran, y) {
        (ran, y, positions) = (ran + 1, add.y, Some(pass.param(add.table)));
    }
    if let Some(Op::ApplyDropout(drop)) = next(ran, y) {
        let of = pass.dropout().filter(|dropout| dropout.p > 0.0);
        (ran, y, dropout) = (ran + 1, drop.y, of.map(|dropout| (dropout, drop.site.id())));
    }
    let Some(sum) = ops::embedding_sum(pass.param(embed.table), pass.tokens, positions, dropout)? else {
        return Ok(None);
    };
    pass.set(y, sum);
    Ok(Some(ran))
}

/// Runs a residual sum with the dropout before it, and the `next` operation too if it is the norm of the sum. Returns how many
/// operations it ran, without the dropout.
fn residual(drop: Option<&ApplyDropout>, add: &Add, next: Option<&Op>, pass: &mut Pass<'_>) -> Result<usize> {
    let (x, y) = (pass.value(add.x)?, pass.value(drop.map_or(add.y, |drop| drop.x))?);
    let dropout = pass.dropout().filter(|dropout| dropout.p > 0.0);
    let dropout = drop.and_then(|drop| Some((dropout?, drop.site.id())));
    let norm = match next {
        Some(Op::LayerNorm(norm)) if norm.x == add.sum => Some((norm.norm(), norm.y)),
        Some(Op::RmsNorm(norm)) if norm.x == add.sum => Some((norm.norm(), norm.y)),
        _ => None,
    };
    let Some((InputNorm { kind, eps, weight, bias }, normed)) = norm else {
        pass.set(add.sum, ops::residual_sum(&x, &y, dropout)?);
        return Ok(1);
    };
    let params = (pass.param(weight), bias.map(|bias| pass.param(bias)));
    let [sum, y] = ops::residual_norm(&x, &y, dropout, ((kind, eps), params), pass.operand_dtype())?;
    pass.set(add.sum, sum);
    pass.set(normed, y);
    Ok(2)
}
