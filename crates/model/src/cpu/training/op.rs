//! What an operation is in training: the trait that it implements, what it is made from and what it runs with.

use tinygpt_sampler::simd::SimdLevel;

use super::{buffers::Buffers, layout::ParamLayout, weights::Weights};
use crate::{
    Dropout, Network,
    cpu::{CpuPrecision, operand::OperandScratch},
    ops::AttentionScratch,
};

/// What [`Operation::training`](crate::ops) builds an operation's form in training from.
pub(crate) struct TrainSetup<'a> {
    pub(crate) net: &'a Network,
    pub(crate) precision: CpuPrecision,
    /// The most positions of a sequence.
    pub(crate) block_size: usize,
}

impl TrainSetup<'_> {
    /// The rows of a mask of `rows` rows: 0 where the model has no dropout.
    pub(crate) fn dropped(&self, rows: usize) -> usize {
        if self.net.config().dropout > 0.0 { rows } else { 0 }
    }
}

/// The dropout masks of one sequence of a batch.
#[derive(Debug, Clone)]
pub struct RowDropout {
    /// The masks of the batch.
    pub dropout: Dropout,
    /// The index of the sequence in that batch.
    pub row: usize,
}

/// The context of one pass over a sequence, which operations read and write.
pub(crate) struct TrainPass<'a> {
    pub(crate) level: SimdLevel,
    /// The positions of the sequence.
    pub(crate) t: usize,
    pub(crate) weights: &'a Weights,
    /// The tokens, `(T)`; empty in the backward pass.
    pub(crate) ids: &'a [u32],
    pub(crate) dropout: Option<&'a RowDropout>,
    /// The activations, `(T, channels)` each.
    pub(crate) values: &'a mut Buffers,
    /// The gradients of the activations, `(T, channels)` each.
    pub(crate) grads: &'a mut Buffers,
    pub(crate) scratch: &'a mut OperandScratch,
    pub(crate) attention: &'a mut AttentionScratch,
}

/// The form of an operation in training, with its tape: what the forward pass of one sequence keeps for the backward pass.
pub(crate) trait TrainOp: std::fmt::Debug + Send + Sync {
    /// Computes the output's rows from the inputs'.
    fn forward(&mut self, pass: &mut TrainPass<'_>);

    /// Computes the gradients of the inputs from that of the output.
    fn backward(&mut self, pass: &mut TrainPass<'_>);

    /// Adds the gradients of norm weights and biases, summed over the sequence by the last backward pass, to the flat
    /// gradients.
    fn add_vector_grads(&self, _: &ParamLayout, _grads: &mut [f32]) {}
}
