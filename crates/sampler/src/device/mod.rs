//! Drawing tokens where the logits are: candle's tensor operations alone, no copy of the logits to the host.
//!
//! [`DeviceSampler`] gives the tokens of [`Sampler`](crate::Sampler) for the same (seed, sequence, position), except
//! where a boundary of the definition is nearer than `2^-20` and another rounding of `exp` decides otherwise.
//!
//! - **Weights** are integers, `trunc(2^40 exp((x - max) / T))`. Sums of integers are the same in every order, so given
//!   the same weights the draw is the same on every device; a token 20 nats down still weighs 2266.
//! - **The draw** is the first token whose cumulative weight exceeds `floor(total * u)`, found in a tree of three levels.
//! - **Top-k and top-p** are one search: halve the range of the logits until the elements above the threshold weigh
//!   enough (each 1 for top-k, its weight for top-p), snap to a value of the data, and of those equal to it keep as many
//!   of the first as it takes. No sort, so no device's limit on sorts and no unstable tie.
//! - **Bad rows** (NaN, +inf, nothing finite) come back as a flag beside the token; a flagged row alone is then looked
//!   at again, on the device, for the place of its fault.
//!
//! # What it costs
//! Counted by [`DeviceSampler::sample_counted`] and asserted in the tests for B = 16 and V = 50257, f32. The work is in
//! units of B x V elements, each operation counting all it touches. Other dtypes add one pass, the cast; a vocabulary
//! without a divisor from 16 to 128 adds one, the padding. For rows of fewer than a few thousand logits the tree's small
//! tensors count for more than their share.
//!
//! | rules | launches | work | read back | the work is |
//! |---|---|---|---|---|
//! | greedy | 28 | 2.2 | 1 | maxima and sums of chunks; then one chunk |
//! | temperature | 95 | 9.4 | 1 | those two; subtract, scale, exp, scale, cast; two sums; the tree |
//! | top-k 50 | 385 | 93.6 | 2 | temperature's; 18 halvings of compare, choose and sum; the cut; the mask |
//! | top-k 50 + top-p 0.9 | 693 | 174.8 | 3 | two searches |
//! | top-p 0.9 | 534 | 133.1 | 3 | one search of 30 halvings |
//!
//! A launch is every kernel and every upload: the uniforms and small constants (powers of two, row offsets, the tree's
//! triangles) are about a fifth of the launches outside the search. Top-k does not yet narrow the row to candidates first,
//! which would bring its work near that of greedy.
//!
//! Each search begins with 18 halvings, looks whether all rows are done (one small table read back), and goes on by 12
//! until they are. A round of 12 with its look costs 131 launches and about 42 units; rows whose logits differ by very
//! little of the range that matters take several.
//!
//! Penalties and biases are refused: they need the history of every row. [`Sampler`](crate::Sampler) has them.

mod grid;
mod ops;
mod program;
mod search;
mod share;
#[cfg(test)]
mod tests;

use crate::{SamplingError, SamplingParams, TensorSamplingError, uniform};
use candle_core::{DType, Tensor};
use ops::Ops;
use program::Trust;

pub use ops::Cost;

/// What the draw of a row depends on, beside its logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceRow {
    /// Which text of the run this is.
    pub sequence: u64,
    /// Which token of that text this is.
    pub position: u64,
}

/// Draws tokens on the device of the logits; see [`device`](crate::device).
#[derive(Debug, Clone)]
pub struct DeviceSampler {
    params: SamplingParams,
}

impl DeviceSampler {
    /// A sampler with these rules.
    ///
    /// # Errors
    /// The first parameter outside its range, or a penalty or bias that is not off.
    pub fn new(params: SamplingParams) -> Result<Self, SamplingError> {
        params.validate()?;
        for (field, value, off) in [
            ("repetition_penalty", params.repetition_penalty, 1.0),
            ("presence_penalty", params.presence_penalty, 0.0),
            ("frequency_penalty", params.frequency_penalty, 0.0),
            ("logit_bias", params.logit_bias.len() as f64, 0.0),
        ] {
            if value != off {
                let allowed = "off on the device path; the host path has it";
                return Err(SamplingError::Parameter { field, value: value.to_string(), allowed });
            }
        }
        Ok(Self { params })
    }

    /// The rules.
    #[must_use]
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// Draws the next token of each row of `logits`, `(B, V)` in f32, bf16 or f16. A bad row is an error in its place
    /// that names it, and leaves the others as they are.
    ///
    /// # Errors
    /// Logits of another rank or type, or not as many rows as `rows`; an error of the tensor library.
    pub fn sample(
        &self,
        logits: &Tensor,
        rows: &[DeviceRow],
    ) -> Result<Vec<Result<u32, SamplingError>>, TensorSamplingError> {
        self.sample_counted(logits, rows).map(|(tokens, _)| tokens)
    }

    /// [`DeviceSampler::sample`], and what it cost.
    ///
    /// # Errors
    /// As for [`DeviceSampler::sample`].
    pub fn sample_counted(
        &self,
        logits: &Tensor,
        rows: &[DeviceRow],
    ) -> Result<(Vec<Result<u32, SamplingError>>, Cost), TensorSamplingError> {
        let refuse = |field, value, allowed| Err(SamplingError::Parameter { field, value, allowed }.into());
        let ops = Ops::new(logits.device());
        let &[batch, vocab] = logits.dims() else {
            return refuse("logits", format!("of shape {:?}", logits.dims()), "of two dimensions: rows and vocabulary");
        };
        if !matches!(logits.dtype(), DType::F32 | DType::BF16 | DType::F16) {
            return refuse("logits", format!("of type {:?}", logits.dtype()), "f32, bf16 or f16");
        }
        if rows.len() != batch {
            return refuse("rows", format!("{} for {batch} rows of logits", rows.len()), "one for each row of logits");
        }
        if vocab == 0 {
            return Ok(((0..batch).map(|row| Err(SamplingError::NothingFinite { row, vocab })).collect(), ops.cost()));
        }
        if batch == 0 {
            return Ok((Vec::new(), ops.cost()));
        }
        let logits = logits.detach();
        let uniforms: Vec<f64> = rows.iter().map(|row| uniform(self.params.seed, row.sequence, row.position)).collect();
        let drawn = ops.read(&program::tokens(&ops, &logits, &self.params, &uniforms, Trust::Nothing)?)?;
        let mut tokens = Vec::with_capacity(batch);
        for (row, drawn) in drawn.iter().enumerate() {
            tokens.push(match drawn[1] {
                0 => Ok(drawn[0]),
                _ => self.look_again(&ops, &logits.narrow(0, row, 1)?, uniforms[row], row)?,
            });
        }
        Ok((tokens, ops.cost()))
    }

    /// What is wrong with a flagged row, or its token if nothing is.
    fn look_again(
        &self,
        ops: &Ops,
        logits: &Tensor,
        uniform: f64,
        row: usize,
    ) -> Result<Result<u32, SamplingError>, TensorSamplingError> {
        Ok(match program::faults(ops, logits)? {
            (Some(index), _) => Err(SamplingError::NotANumber { row, index }),
            (None, Some(index)) => Err(SamplingError::PositiveInfinity { row, index }),
            (None, None) => {
                let drawn = ops.read(&program::tokens(ops, logits, &self.params, &[uniform], Trust::NoNaN)?)?;
                match drawn[0][1] {
                    0 => Ok(drawn[0][0]),
                    _ => Err(SamplingError::NothingFinite { row, vocab: logits.dim(1)? }),
                }
            }
        })
    }
}
