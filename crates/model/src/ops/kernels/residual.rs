//! The residual sum, with the dropout before it and the norm behind it.

use std::{cell::Cell, rc::Rc};

use candle_core::{DType, Result, Tensor, bail};
use tinygpt_sampler::kernels::Kernels;

use super::{
    Element, elementwise, kernels_for,
    norm::{self, BranchDropout, NormKernels, NormParams},
};
use crate::{config::Norm, dropout::MaskSource, ops::tape};

/// `x + y * mask` of the residual stream and a sublayer's output, recorded, without a mask `x + y`. Nothing where there is no
/// kernel for it.
pub(crate) fn residual_sum(x: &Tensor, y: &Tensor, dropout: BranchDropout<'_>) -> Result<Option<Tensor>> {
    let Some(kernels) = kernels_for(&[x]).filter(|_| has_masks(dropout)) else { return Ok(None) };
    let in_order = y.contiguous()?;
    let Some(element) = Element::of(y) else { bail!("a sublayer's output is {:?}", y.dtype()) };
    let sum = elementwise::masked_sum(&kernels, Some(x), (&in_order, element), dropout)?;
    record(&kernels, (x, y, element), dropout, &sum, Rc::default());
    Ok(Some(sum))
}

/// [`residual_sum`] and its norm in a type, which has to be that of `y`, by one kernel.
pub(crate) fn residual_norm(
    x: &Tensor,
    y: &Tensor,
    dropout: BranchDropout<'_>,
    ((norm, eps), (w, b)): ((Norm, f64), NormParams<'_>),
    dtype: DType,
) -> Result<Option<[Tensor; 2]>> {
    let read: Vec<&Tensor> = [x, w].into_iter().chain(b).collect();
    let suits =
        has_masks(dropout) && y.dtype() == dtype && y.is_contiguous() && norm::fits(w.elem_count(), b.is_some());
    let Some(kernels) = kernels_for(&read).filter(|_| suits) else { return Ok(None) };
    let Some(element) = Element::of(y) else { return Ok(None) };
    let norm = NormKernels::of(norm, eps);
    let [sum, normed] = norm.residual_forward(&kernels, x, (y, dropout), (w, b), dtype)?;

    // The norm's backward pass is the last to add to the gradient of the sum, and runs right before the sum's own: it leaves the
    // gradient of `y` to it.
    let left = Rc::new(Cell::new(None));
    record(&kernels, (x, y, element), dropout, &sum, Rc::clone(&left));
    let (of_sum, of_w, bias) = (sum.clone(), w.clone(), b.is_some());
    let owned = dropout.map(|(dropout, site)| (dropout.clone(), site));
    let inputs: Vec<&Tensor> = [&sum, w].into_iter().chain(b).collect();
    tape::record_adding("norm", &inputs, &normed, move |dy, before| {
        let dropout = owned.as_ref().map(|(dropout, site)| (dropout, *site));
        let d_branch = if is_sum(dropout, element) { None } else { Some(kernels.output(of_sum.shape(), dy.dtype())?) };
        let branch = d_branch.as_ref().map(|d_branch| (d_branch, dropout));
        let grads = norm.backward(&kernels, (&of_sum, &of_w, bias), dy, before, branch)?;
        left.set(d_branch);
        Ok(grads)
    });
    Ok(Some([sum, normed]))
}

/// Whether kernels compute the masks of a dropout.
pub(super) fn has_masks(dropout: BranchDropout<'_>) -> bool {
    dropout.is_none_or(|(dropout, _)| dropout.source == MaskSource::Hash)
}

/// Whether the gradient of a branch is that of the sum, to the bit and in its type.
fn is_sum(dropout: BranchDropout<'_>, element: Element) -> bool {
    dropout.is_none() && element == Element::F32
}

/// Records `sum = x + y * mask`. The gradient of `y` is that which the operation behind it has `left`, or computed.
fn record(
    kernels: &Kernels,
    (x, y, element): (&Tensor, &Tensor, Element),
    dropout: BranchDropout<'_>,
    sum: &Tensor,
    left: Rc<Cell<Option<Tensor>>>,
) {
    let kernels = kernels.clone();
    let dropout = dropout.map(|(dropout, site)| (dropout.clone(), site));
    tape::record("residual sum", [x, y], sum, move |d_sum| {
        let dropout = dropout.as_ref().map(|(dropout, site)| (dropout, *site));
        let dy = match left.take() {
            Some(dy) => dy,
            None if is_sum(dropout, element) => d_sum.clone(),
            None => elementwise::masked_sum_backward(&kernels, element, &d_sum.contiguous()?, dropout)?,
        };
        Ok([d_sum.clone(), dy])
    });
}
