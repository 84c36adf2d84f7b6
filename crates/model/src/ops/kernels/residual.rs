//! The residual sum, with the dropout before it.

use candle_core::{Result, Tensor, bail};

use super::{Element, elementwise, kernels_for};
use crate::{Dropout, dropout::MaskSource, ops::tape};

/// `x + y * mask` of the residual stream and a sublayer's output, recorded, without a mask `x + y`. Nothing where there is no
/// kernel for it.
pub(crate) fn residual_sum(x: &Tensor, y: &Tensor, dropout: Option<(&Dropout, u32)>) -> Result<Option<Tensor>> {
    let masks = dropout.is_none_or(|(dropout, _)| dropout.source == MaskSource::Hash);
    let Some(kernels) = masks.then(|| kernels_for(&[x])).flatten() else { return Ok(None) };
    let in_order = y.contiguous()?;
    let Some(element) = Element::of(y) else { bail!("a sublayer's output is {:?}", y.dtype()) };
    let sum = elementwise::masked_sum(&kernels, Some(x), (&in_order, element), dropout)?;
    let dropout = dropout.map(|(dropout, site)| (dropout.clone(), site));
    tape::record("residual sum", [x, y], &sum, move |d_sum| {
        let dy = if dropout.is_none() && element == Element::F32 {
            d_sum.clone()
        } else {
            let dropout = dropout.as_ref().map(|(dropout, site)| (dropout, *site));
            elementwise::masked_sum_backward(&kernels, element, &d_sum.contiguous()?, dropout)?
        };
        Ok([d_sum.clone(), dy])
    });
    Ok(Some(sum))
}
