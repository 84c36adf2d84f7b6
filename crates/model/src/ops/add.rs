//! The residual connection: `x + y`.

use candle_core::Tensor;

use tinygpt_sampler::kernels::Kernels;

use super::{
    ApplyDropout, Operation,
    kernels::{Element, elementwise, kernels_for},
    tape,
};
use crate::{
    Dropout, Result,
    cpu::{
        decode::{DecodeOp, DecodeSetup, DecodeStep},
        training::{TrainOp, TrainPass, TrainSetup},
    },
    dropout::MaskSource,
    plan::{NetworkBuilder, Value},
    tensors::{Fusion, Pass},
};

/// The sum of the residual stream `x` and the output `y` of a sublayer.
#[derive(Debug, Clone)]
pub(crate) struct Add {
    pub(crate) x: Value,
    pub(crate) y: Value,
    pub(crate) sum: Value,
}

impl NetworkBuilder {
    /// Adds `y` to the residual stream `x`, `(T, C)` each: `(T, C)`.
    pub fn add(&mut self, x: Value, y: Value) -> Value {
        let sum = self.value(self.cols[x.0]);
        self.push(Add { x, y, sum })
    }
}

impl Operation for Add {
    fn inputs(&self) -> Vec<Value> {
        vec![self.x, self.y]
    }

    fn output(&self) -> Value {
        self.sum
    }

    fn forward(&self, pass: &mut Pass<'_>) -> Result<Tensor> {
        let (x, y) = (pass.value(self.x)?, pass.value(self.y)?);
        match kernels_for(&[&x]) {
            Some(kernels) => Ok(masked_sum(kernels, &x, &y, None)?),
            None => Ok(tape::add(&x, &tape::cast(&y, x.dtype())?)?),
        }
    }

    fn fuse(&self, fusion: &mut Fusion<'_>) -> Option<()> {
        fusion.add(self.x, self.y, self.sum)
    }

    fn training(&self, _: &TrainSetup<'_>) -> Box<dyn TrainOp> {
        Box::new(self.clone())
    }

    fn decoding<'a>(&self, _: &DecodeSetup<'_, 'a>) -> Option<Box<dyn DecodeOp + 'a>> {
        Some(Box::new(self.clone()))
    }
}

impl Add {
    /// Dropout and the addition after it as one kernel; nothing where there is no kernel or no dropout.
    pub(crate) fn forward_after_dropout(&self, drop: &ApplyDropout, pass: &Pass<'_>) -> Result<Option<Tensor>> {
        let (x, y) = (pass.value(self.x)?, pass.value(drop.x)?);
        let dropout = pass.dropout().filter(|dropout| dropout.p > 0.0 && dropout.source == MaskSource::Hash);
        match (dropout, kernels_for(&[&x])) {
            (Some(dropout), Some(kernels)) => {
                Ok(Some(masked_sum(kernels, &x, &y, Some((dropout.clone(), drop.site.id())))?))
            }
            _ => Ok(None),
        }
    }
}

/// `x + y * mask` by a kernel, recorded.
fn masked_sum(
    kernels: Kernels,
    x: &Tensor,
    y: &Tensor,
    dropout: Option<(Dropout, u32)>,
) -> candle_core::Result<Tensor> {
    fn borrowed(dropout: &Option<(Dropout, u32)>) -> Option<(&Dropout, u32)> {
        dropout.as_ref().map(|(dropout, site)| (dropout, *site))
    }
    let y = y.contiguous()?;
    let Some(element) = Element::of(&y) else { candle_core::bail!("a sublayer's output is {:?}", y.dtype()) };
    let sum = elementwise::masked_sum(&kernels, Some(x), (&y, element), borrowed(&dropout))?;
    tape::record("masked sum", [x, &y], &sum, move |d_sum| {
        let dy = if dropout.is_none() && element == Element::F32 {
            d_sum.clone()
        } else {
            elementwise::masked_sum_backward(&kernels, element, &d_sum.contiguous()?, borrowed(&dropout))?
        };
        Ok([d_sum.clone(), dy])
    });
    Ok(sum)
}

/// An addition after a linear layer is fused with it instead ([`super::ResidualLinear`]).
impl TrainOp for Add {
    fn forward(&mut self, pass: &mut TrainPass<'_>) {
        let (x, sum) = pass.values.pair(self.x, self.sum, &mut pass.scratch.rows);
        sum.copy_from(x.rows(), pass.t);
        let (y, sum) = pass.values.pair(self.y, self.sum, &mut pass.scratch.rows);
        sum.add(y.rows(), pass.t);
    }

    /// The gradients of `x` and of the sum are the same and share a buffer.
    fn backward(&mut self, pass: &mut TrainPass<'_>) {
        let (d_sum, dy) = pass.grads.pair(self.sum, self.y, &mut pass.scratch.rows);
        dy.copy_from(d_sum.rows(), pass.t);
    }
}

impl DecodeOp for Add {
    fn run(&mut self, step: &mut DecodeStep<'_, '_>) {
        let n = step.n;
        let (y, sum) = step.values.pair(self.y, self.sum);
        sum.add(y, n);
    }
}
