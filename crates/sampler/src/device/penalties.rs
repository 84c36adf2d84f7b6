//! Penalties and biases on a device. They change few logits, which are gathered, changed by the arithmetic of
//! [`apply_penalties`](crate::penalties::apply_penalties) (f64, rounded to f32 once) and scattered into a copy of the logits.
//!
//! The arithmetic runs on the device if that has f64. Metal has none, and pairs of f32 would take some 25 launches
//! without giving the same bits, so there the few logits are read back and changed on the host.

use super::DeviceRow;
use super::ops::{Binary, Ops};
use crate::penalties::{add_biases, biases_of, penalise};
use crate::{SamplingError, SamplingParams};
use candle_core::{DType, Result, Tensor};

/// The logits `(B, V)` after penalties and biases, f32, and the error of each row that has a token outside of the
/// vocabulary; such a row is unchanged. If no logit changes, the result is `logits` itself.
pub(super) fn apply_on_device(
    ops: &Ops,
    logits: &Tensor,
    params: &SamplingParams,
    rows: &[DeviceRow<'_>],
) -> Result<(Tensor, Vec<Option<SamplingError>>)> {
    let vocab = logits.dim(1)?;
    let mut errors = vec![None; rows.len()];
    let mut tokens_of_rows: Vec<Vec<u32>> = vec![Vec::new(); rows.len()];
    for (row, here) in rows.iter().enumerate() {
        match penalised_tokens(params, here.history, vocab) {
            Ok(tokens) => tokens_of_rows[row] = tokens,
            Err(error) => errors[row] = Some(error.at_row(row)),
        }
    }
    let columns = tokens_of_rows.iter().map(Vec::len).max().unwrap_or(0);
    if columns == 0 {
        return Ok((logits.clone(), errors));
    }
    let shape = [rows.len(), columns];
    // Rows with fewer tokens are padded with their first one, which is then written repeatedly with the same value.
    let padded = |tokens: &[u32]| {
        let first = tokens.first().copied().unwrap_or(0);
        tokens.iter().copied().chain(std::iter::repeat(first)).take(columns).map(f64::from).collect::<Vec<_>>()
    };
    let indices = ops.upload(tokens_of_rows.iter().flat_map(|tokens| padded(tokens)).collect(), &shape, DType::U32)?;
    let values = ops.cast(&ops.gather(logits, &indices)?, DType::F32)?;
    let values = match PenaltyTerms::new(params, rows, &tokens_of_rows, columns) {
        Some(terms) if ops.has_f64 => terms.apply(ops, &values)?,
        _ => {
            let mut values = ops.read_f32(&values)?;
            for ((values, tokens), here) in values.chunks_mut(columns).zip(&tokens_of_rows).zip(rows) {
                apply_on_host(&mut values[..tokens.len()], tokens, params, here.history);
                let first = values[0];
                values[tokens.len().max(1)..].fill(first);
            }
            ops.upload(values.into_iter().map(f64::from).collect(), &shape, DType::F32)?
        }
    };
    Ok((ops.scatter(&ops.cast(logits, DType::F32)?, &indices, &values)?, errors))
}

/// The operands of the arithmetic of `apply_penalties`, each an array of `shape` to upload.
struct PenaltyTerms {
    /// `[rows, columns]`; a column is one of the penalised tokens of a row.
    shape: [usize; 2],
    /// The divisor of a positive and factor of a negative logit, if the repetition penalty is on.
    repetition: Option<Vec<f64>>,
    /// The subtrahends, in this order.
    subtracted: Vec<Vec<f64>>,
    /// The biases to add, in this order. The first array has the first bias of each token, the second the second, since
    /// f32 sums depend on the order.
    biases: Vec<Vec<f64>>,
}

impl PenaltyTerms {
    /// None if a subtrahend overflows f64: infinite logits would not stay what they are.
    fn new(
        params: &SamplingParams,
        rows: &[DeviceRow<'_>],
        tokens_of_rows: &[Vec<u32>],
        columns: usize,
    ) -> Option<Self> {
        let mut counts = vec![0.0; rows.len() * columns];
        for (n, (tokens, here)) in tokens_of_rows.iter().zip(rows).enumerate() {
            for token in here.history {
                if let Ok(column) = tokens.binary_search(token) {
                    counts[n * columns + column] += 1.0;
                }
            }
        }
        let mut biases: Vec<Vec<f64>> = Vec::new();
        for (n, (tokens, here)) in tokens_of_rows.iter().zip(rows).enumerate() {
            let mut seen = vec![0; tokens.len()];
            for (token, bias) in biases_of(params, here.history) {
                let Ok(column) = tokens.binary_search(&token) else { continue };
                if seen[column] == biases.len() {
                    biases.push(vec![0.0; counts.len()]);
                }
                biases[seen[column]][n * columns + column] = f64::from(bias);
                seen[column] += 1;
            }
        }
        // The padding of a row repeats its first token.
        let pad = |list: &mut Vec<f64>| {
            for (row, tokens) in list.chunks_mut(columns).zip(tokens_of_rows) {
                let first = row[0];
                row[tokens.len().max(1)..].fill(first);
            }
        };
        pad(&mut counts);
        biases.iter_mut().for_each(pad);
        let by_count = |of_count: &dyn Fn(f64) -> f64| counts.iter().map(|&count| of_count(count)).collect::<Vec<_>>();
        let if_present = |value: f64, absent: f64| move |count: f64| if count > 0.0 { value } else { absent };
        let repetition =
            (params.repetition_penalty != 1.0).then(|| by_count(&if_present(params.repetition_penalty, 1.0)));
        let mut subtracted = Vec::new();
        if params.frequency_penalty != 0.0 {
            subtracted.push(by_count(&|count| params.frequency_penalty * count));
        }
        if params.presence_penalty != 0.0 {
            subtracted.push(by_count(&if_present(params.presence_penalty, 0.0)));
        }
        let finite = subtracted.iter().flatten().all(|number| number.is_finite());
        finite.then_some(Self { shape: [rows.len(), columns], repetition, subtracted, biases })
    }

    /// Applies the terms to the gathered logits, f32 of `shape`. Infinities stay what they are, as every subtrahend is
    /// finite.
    fn apply(self, ops: &Ops, values: &Tensor) -> Result<Tensor> {
        let Self { shape, repetition, subtracted, biases } = self;
        let upload = |list, dtype| ops.upload(list, &shape, dtype);
        let mut values = values.clone();
        if repetition.is_some() || !subtracted.is_empty() {
            let mut x = ops.cast(&values, DType::F64)?;
            if let Some(repetition) = repetition {
                let repetition = upload(repetition, DType::F64)?;
                let positive = ops.binary_scalar(Binary::Gt, &x, 0.0)?;
                let divided = ops.binary(Binary::Div, &x, &repetition)?;
                x = ops.where_cond(&positive, &divided, &ops.binary(Binary::Mul, &x, &repetition)?)?;
            }
            for subtracted in subtracted {
                x = ops.binary(Binary::Sub, &x, &upload(subtracted, DType::F64)?)?;
            }
            values = ops.cast(&x, DType::F32)?;
        }
        for biases in biases {
            values = ops.binary(Binary::Add, &values, &upload(biases, DType::F32)?)?;
        }
        Ok(values)
    }
}

/// The tokens of a row whose logits penalties or biases change, ascending and without duplicates.
///
/// # Errors
/// [`SamplingError::UnknownToken`], as of row 0, for a token that is not below `vocab`.
pub(super) fn penalised_tokens(
    params: &SamplingParams,
    history: &[u32],
    vocab: usize,
) -> std::result::Result<Vec<u32>, SamplingError> {
    if !params.changes_logits(history) {
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

/// The arithmetic of `apply_penalties` on `values`, the logits of these tokens alone; they include all of the history and
/// the bias.
fn apply_on_host(values: &mut [f32], tokens: &[u32], params: &SamplingParams, history: &[u32]) {
    let column = |token: u32| tokens.partition_point(|&known| known < token) as u32;
    let columns: Vec<u32> = history.iter().map(|&token| column(token)).collect();
    let biases = biases_of(params, history).map(|(token, bias)| (column(token), bias));
    if !tokens.is_empty() {
        // Every column is within `values`, so there is no error.
        let _ = penalise(values, params, &columns, &mut Vec::new()).and_then(|()| add_biases(values, biases));
    }
}
