//! What an operation is in training: the trait that it implements, what it is made from and what it runs with.

use tinygpt_sampler::simd::SimdLevel;

use super::{buffers::Buffers, layout::ParamLayout, weights::Weights};
use crate::{
    Dropout, Network,
    cpu::{CpuPrecision, operand::OperandScratch},
    ops::AttentionScratch,
};

/// What an operation's form in training is made for.
pub(crate) struct TrainSetup<'a> {
    pub(crate) net: &'a Network,
    pub(crate) precision: CpuPrecision,
    /// The most positions of a sequence.
    pub(crate) block_size: usize,
}

impl TrainSetup<'_> {
    /// `rows` where the model has dropout, else none.
    pub(crate) fn dropped(&self, rows: usize) -> usize {
        if self.net.config().dropout > 0.0 { rows } else { 0 }
    }
}

/// The dropout masks of a sequence: those of row `row` of a batch.
#[derive(Debug, Clone)]
pub struct RowDropout {
    /// The masks of the batch.
    pub dropout: Dropout,
    /// The row in that batch.
    pub row: usize,
}

/// What an operation is computed with.
pub(crate) struct TrainPass<'a> {
    pub(crate) level: SimdLevel,
    /// The positions of the sequence.
    pub(crate) t: usize,
    pub(crate) weights: &'a Weights,
    /// The tokens, `(T)`; none in the backward pass.
    pub(crate) ids: &'a [u32],
    pub(crate) dropout: Option<&'a RowDropout>,
    pub(crate) values: &'a mut Buffers,
    pub(crate) grads: &'a mut Buffers,
    pub(crate) scratch: &'a mut OperandScratch,
    pub(crate) attention: &'a mut AttentionScratch,
}

/// An operation in training, with what it keeps of one sequence.
pub(crate) trait TrainOp: std::fmt::Debug + Send + Sync {
    /// Writes the output's rows.
    fn forward(&mut self, pass: &mut TrainPass<'_>);

    /// Writes the input's gradient, given the output's.
    fn backward(&mut self, pass: &mut TrainPass<'_>);

    /// Adds the gradients of norms and biases, as the last backward pass summed them over the sequence, to the flat ones.
    fn add_vector_grads(&self, _: &ParamLayout, _grads: &mut [f32]) {}
}
