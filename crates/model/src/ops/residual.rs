//! The residual sum on candle tensors, with the dropout before it and the norm behind it.

use candle_core::{DType, Tensor};

use super::{
    kernels::{
        self,
        norm::{BranchDropout, NormParams},
    },
    layer_norm::layer_norm_to,
    rms_norm::rms_norm_to,
    tape,
};
use crate::{Result, config::Norm};

/// The sum of the residual stream `x` and a sublayer's output `y`, with dropout at a site or without: by one kernel, or operation by
/// operation.
///
/// # Errors
/// On a shape mismatch, or when the device is out of memory.
pub(crate) fn residual_sum(x: &Tensor, y: &Tensor, dropout: BranchDropout<'_>) -> Result<Tensor> {
    if let Some(sum) = kernels::residual_sum(x, y, dropout)? {
        return Ok(sum);
    }
    let y = match dropout {
        Some((dropout, site)) => dropout.apply(site, y)?,
        None => y.clone(),
    };
    Ok(tape::add(x, &tape::cast(&y, x.dtype())?)?)
}

/// The residual sum `x + dropout(y)` and its norm, with an epsilon, a weight and a bias `(C)`: by one kernel, or operation by operation. Kernels
/// write the norm in `dtype`.
///
/// # Errors
/// On a shape mismatch, or when the device is out of memory.
#[doc(hidden)]
pub fn residual_norm(
    x: &Tensor,
    y: &Tensor,
    dropout: BranchDropout<'_>,
    ((norm, eps), (w, b)): ((Norm, f64), NormParams<'_>),
    dtype: DType,
) -> Result<[Tensor; 2]> {
    if let Some(both) = kernels::residual_norm(x, y, dropout, ((norm, eps), (w, b)), dtype)? {
        return Ok(both);
    }
    let sum = residual_sum(x, y, dropout)?;
    let normed = match norm {
        Norm::Layer => layer_norm_to(&sum, (w, b), eps, dtype)?,
        Norm::Rms => rms_norm_to(&sum, w, eps, dtype)?,
    };
    Ok([sum, normed])
}
