//! The residual connection: `x + y`.

use candle_core::Tensor;

use super::{Operation, residual_sum};
use crate::{
    Result,
    cpu::{
        decode::{DecodeOp, DecodeSetup, DecodeStep},
        training::{TrainOp, TrainPass, TrainSetup},
    },
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
        residual_sum(&pass.value(self.x)?, &pass.value(self.y)?, None)
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
