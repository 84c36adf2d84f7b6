//! The forward and backward pass of one sequence, on one thread.

use tinygpt_sampler::simd::SimdLevel;

use super::{
    buffers::Buffers,
    layout::ParamLayout,
    lowering::Lowered,
    op::{RowDropout, TrainOp, TrainPass, TrainSetup},
    weights::Weights,
};
use crate::{
    cpu::{
        matmul::Pair,
        operand::{Operand, OperandScratch, OuterProduct},
        rows::Rows,
    },
    ops::AttentionScratch,
    plan::Value,
};

/// The tapes and buffers of one sequence: what its forward pass keeps for its backward pass, and both for the gradients of
/// the weights.
#[derive(Debug)]
pub(crate) struct Sequence {
    /// The number of positions of the last forward pass.
    pub(crate) t: usize,
    tapes: Vec<Box<dyn TrainOp>>,
    values: Buffers,
    grads: Buffers,
    scratch: OperandScratch,
    attention: AttentionScratch,
}

impl Sequence {
    /// Allocates the buffers for sequences of up to `block_size` positions.
    pub(crate) fn new(lowered: &Lowered, setup: &TrainSetup<'_>) -> Self {
        let &TrainSetup { net, precision, block_size } = setup;
        let widest = net.cols.iter().copied().max().unwrap_or(0);
        Self {
            t: 0,
            tapes: lowered.tapes(setup),
            values: Buffers::new(precision, block_size, &lowered.values, &lowered.value_buffers),
            grads: Buffers::new(precision, block_size, &lowered.grads, &lowered.grad_buffers),
            scratch: OperandScratch::new(precision, block_size, widest),
            attention: AttentionScratch::new(precision, block_size, net.config().heads()),
        }
    }

    /// The forward pass, from tokens `(T)` to the hidden states `(T, C)` that the head reads.
    pub(crate) fn forward(
        &mut self,
        level: SimdLevel,
        lowered: &Lowered,
        weights: &Weights,
        ids: &[u32],
        dropout: Option<&RowDropout>,
    ) {
        let Self { t, tapes, values, grads, scratch, attention } = self;
        *t = ids.len();
        let mut pass = TrainPass { level, t: *t, weights, ids, dropout, values, grads, scratch, attention };
        for (tape, quantized) in tapes.iter_mut().zip(&lowered.quantized) {
            tape.forward(&mut pass);
            if let Some(value) = *quantized {
                pass.values.get_mut(value).quantize(level, pass.t, pass.scratch);
            }
        }
    }

    /// The backward pass, from the gradient of the hidden states `(T, C)` to that of the embeddings, `dx (T, C)`. The
    /// operands of the weights' gradients stay in the buffers ([`Sequence::weight_grad`]).
    pub(crate) fn backward(
        &mut self,
        level: SimdLevel,
        lowered: &Lowered,
        weights: &Weights,
        dropout: Option<&RowDropout>,
        dx: &mut Rows,
    ) {
        let Self { t, tapes, values, grads, scratch, attention } = self;
        let mut pass = TrainPass { level, t: *t, weights, ids: &[], dropout, values, grads, scratch, attention };
        for (tape, zeroed_grads) in tapes.iter_mut().zip(&lowered.zeroed_grads).rev() {
            if let Some(value) = *zeroed_grads {
                pass.grads.get_mut(value).kept_rows_mut().fill(0..pass.t, 0.0);
            }
            tape.backward(&mut pass);
        }
        std::mem::swap(pass.grads.get_mut(lowered.embedded).kept_rows_mut(), dx);
    }

    /// The gradient of a weight, from the input `x (T, in)` and the gradient of the output `y (T, out)`.
    pub(crate) fn weight_grad(&self, x: Value, y: Value) -> OuterProduct<'_> {
        OuterProduct { x: self.values.get(x), y: self.grads.get(y), rows: 0..self.t }
    }

    /// The hidden states `(T, C)`, their quantized rows, and the rows of their gradient `(T, C)`.
    pub(crate) fn hidden(&mut self, x: Value) -> (&Operand, &Rows<Pair>, &mut Rows) {
        (self.values.get(x), &self.scratch.quantized, self.grads.get_mut(x).kept_rows_mut())
    }

    /// Adds the gradients of norm weights and biases to the flat gradients.
    pub(crate) fn add_vector_grads(&self, layout: &ParamLayout, grads: &mut [f32]) {
        for tape in &self.tapes {
            tape.add_vector_grads(layout, grads);
        }
    }
}
