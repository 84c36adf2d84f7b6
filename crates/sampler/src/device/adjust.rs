//! Penalties and biases. Few logits are touched: these are read, changed on the host by the one definition, and written
//! into a copy of the logits.

use super::DeviceRow;
use super::ops::Ops;
use crate::penalties::adjust;
use crate::{SamplingError, SamplingParams};
use candle_core::{DType, Result, Tensor};

/// The logits `(B, V)` of rows after their penalties and biases; a row with an unknown token is an error in its place,
/// and unchanged. Without any to change, the tensor itself.
pub(super) fn adjusted(
    ops: &Ops,
    logits: &Tensor,
    params: &SamplingParams,
    rows: &[DeviceRow<'_>],
) -> Result<(Tensor, Vec<Option<SamplingError>>)> {
    let vocab = logits.dim(1)?;
    let mut errors = vec![None; rows.len()];
    let mut touched: Vec<Vec<u32>> = vec![Vec::new(); rows.len()];
    for (row, here) in rows.iter().enumerate() {
        match self::touched(params, here.history, vocab) {
            Ok(tokens) => touched[row] = tokens,
            Err(error) => errors[row] = Some(error.at_row(row)),
        }
    }
    let columns = touched.iter().map(Vec::len).max().unwrap_or(0);
    if columns == 0 {
        return Ok((logits.clone(), errors));
    }
    let shape = [rows.len(), columns];
    // A short row is filled up with its first token, which is then written more than once and always the same.
    let filled = |tokens: &[u32]| {
        let first = tokens.first().copied().unwrap_or(0);
        tokens.iter().copied().chain(std::iter::repeat(first)).take(columns).map(f64::from).collect::<Vec<_>>()
    };
    let indices = ops.upload(touched.iter().flat_map(|tokens| filled(tokens)).collect(), &shape, DType::U32)?;
    let mut values = ops.read_floats(&ops.cast(&ops.gather(logits, &indices)?, DType::F32)?)?;
    for ((values, tokens), here) in values.chunks_mut(columns).zip(&touched).zip(rows) {
        change(&mut values[..tokens.len()], tokens, params, here.history);
        let first = values[0];
        values[tokens.len().max(1)..].fill(first);
    }
    let values = ops.upload(values.into_iter().map(f64::from).collect(), &shape, DType::F32)?;
    Ok((ops.scatter(&ops.cast(logits, DType::F32)?, &indices, &values)?, errors))
}

/// The tokens that a row's penalties and biases touch, rising.
pub(super) fn touched(
    params: &SamplingParams,
    history: &[u32],
    vocab: usize,
) -> std::result::Result<Vec<u32>, SamplingError> {
    if !params.adjusts(history) {
        return Ok(Vec::new());
    }
    let known = |token: u32, place| {
        if (token as usize) < vocab {
            Ok(token)
        } else {
            Err(SamplingError::UnknownToken { row: 0, token, place, vocab })
        }
    };
    let mut sorted = history.to_vec();
    sorted.sort_unstable();
    let from_history = sorted.into_iter().map(|token| known(token, "history"));
    let from_bias = params.logit_bias.iter().map(|&(token, _)| known(token, "logit_bias"));
    let mut tokens = from_history.chain(from_bias).collect::<std::result::Result<Vec<_>, _>>()?;
    tokens.sort_unstable();
    tokens.dedup();
    Ok(tokens)
}

/// [`adjust`] for the logits of these tokens alone.
fn change(values: &mut [f32], tokens: &[u32], params: &SamplingParams, history: &[u32]) {
    let place = |token: u32| tokens.partition_point(|&known| known < token) as u32;
    let history: Vec<u32> = history.iter().map(|&token| place(token)).collect();
    let logit_bias = params.logit_bias.iter().map(|&(token, bias)| (place(token), bias)).collect();
    let params = SamplingParams { logit_bias, ..params.clone() };
    if !tokens.is_empty() {
        // All tokens are known, so there is no error.
        let _ = adjust(values, &params, &history, &mut Vec::new());
    }
}
