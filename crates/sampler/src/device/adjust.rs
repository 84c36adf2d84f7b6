//! Penalties and biases. Few logits are touched: these are changed by the arithmetic of the one definition, f64 rounded to
//! f32 once, and written into a copy of the logits.
//!
//! Where the device has f64 they stay on it. Metal has none, and what stands for it in f32 pairs is some 25 launches and
//! yet not the same bits: there the few logits are read back and changed on the host.

use super::DeviceRow;
use super::ops::{Binary, Ops};
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
    let values = ops.cast(&ops.gather(logits, &indices)?, DType::F32)?;
    let values = match Changes::new(params, rows, &touched, columns) {
        Some(changes) if ops.doubles => changes.apply(ops, &values)?,
        _ => {
            let mut values = ops.read_floats(&values)?;
            for ((values, tokens), here) in values.chunks_mut(columns).zip(&touched).zip(rows) {
                change(&mut values[..tokens.len()], tokens, params, here.history);
                let first = values[0];
                values[tokens.len().max(1)..].fill(first);
            }
            ops.upload(values.into_iter().map(f64::from).collect(), &shape, DType::F32)?
        }
    };
    Ok((ops.scatter(&ops.cast(logits, DType::F32)?, &indices, &values)?, errors))
}

/// What [`adjust`] does to each touched logit, as numbers to upload: each list is of `rows x columns`.
struct Changes {
    shape: [usize; 2],
    /// What divides or multiplies, if anything does.
    repetition: Option<Vec<f64>>,
    /// What is taken away, one list after the other.
    taken: Vec<Vec<f64>>,
    /// The biases, each token's first ones in the first list: sums in f32 depend on the order.
    biases: Vec<Vec<f64>>,
}

impl Changes {
    /// None where a number is beyond f64, so that a logit of -inf must be left out.
    fn new(params: &SamplingParams, rows: &[DeviceRow<'_>], touched: &[Vec<u32>], columns: usize) -> Option<Self> {
        let mut counts = vec![0.0; rows.len() * columns];
        for (n, (tokens, here)) in touched.iter().zip(rows).enumerate() {
            for token in here.history {
                if let Ok(at) = tokens.binary_search(token) {
                    counts[n * columns + at] += 1.0;
                }
            }
        }
        let mut biases: Vec<Vec<f64>> = Vec::new();
        for (n, tokens) in touched.iter().enumerate() {
            let mut seen = vec![0; tokens.len()];
            for (token, bias) in &params.logit_bias {
                let Ok(at) = tokens.binary_search(token) else { continue };
                if seen[at] == biases.len() {
                    biases.push(vec![0.0; counts.len()]);
                }
                biases[seen[at]][n * columns + at] = f64::from(*bias);
                seen[at] += 1;
            }
        }
        // The columns that fill a row up are its first.
        let fill = |list: &mut Vec<f64>| {
            for (row, tokens) in list.chunks_mut(columns).zip(touched) {
                let first = row[0];
                row[tokens.len().max(1)..].fill(first);
            }
        };
        fill(&mut counts);
        biases.iter_mut().for_each(fill);
        let counted = |of_count: &dyn Fn(f64) -> f64| counts.iter().map(|&count| of_count(count)).collect::<Vec<_>>();
        let met = |number: f64, other: f64| move |count: f64| if count > 0.0 { number } else { other };
        let repetition = (params.repetition_penalty != 1.0).then(|| counted(&met(params.repetition_penalty, 1.0)));
        let mut taken = Vec::new();
        if params.frequency_penalty != 0.0 {
            taken.push(counted(&|count| params.frequency_penalty * count));
        }
        if params.presence_penalty != 0.0 {
            taken.push(counted(&met(params.presence_penalty, 0.0)));
        }
        let finite = taken.iter().flatten().all(|number| number.is_finite());
        finite.then_some(Self { shape: [rows.len(), columns], repetition, taken, biases })
    }

    /// The values, f32 of this shape, after the changes. Infinities stay as they are, since every number taken is finite.
    fn apply(self, ops: &Ops, values: &Tensor) -> Result<Tensor> {
        let Self { shape, repetition, taken, biases } = self;
        let upload = |list, dtype| ops.upload(list, &shape, dtype);
        let mut values = values.clone();
        if repetition.is_some() || !taken.is_empty() {
            let mut x = ops.cast(&values, DType::F64)?;
            if let Some(repetition) = repetition {
                let repetition = upload(repetition, DType::F64)?;
                let positive = ops.with(Binary::Above, &x, 0.0)?;
                let less = ops.binary(Binary::Div, &x, &repetition)?;
                x = ops.choose(&positive, &less, &ops.binary(Binary::Mul, &x, &repetition)?)?;
            }
            for taken in taken {
                x = ops.binary(Binary::Sub, &x, &upload(taken, DType::F64)?)?;
            }
            values = ops.cast(&x, DType::F32)?;
        }
        for biases in biases {
            values = ops.binary(Binary::Add, &values, &upload(biases, DType::F32)?)?;
        }
        Ok(values)
    }
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
