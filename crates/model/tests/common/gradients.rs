//! Gradients by the tape.

use super::Random;
use candle_core::Tensor;
use tinygpt_model::ops::Tape;

/// What `op` computes, the weights by which its elements are summed (fixed, random), and the gradients of that sum.
pub(crate) struct Weighed {
    pub(crate) y: Tensor,
    pub(crate) weights: Tensor,
    /// In the order of the inputs; none where the result does not depend on one.
    pub(crate) gradients: Vec<Option<Tensor>>,
}

pub(crate) fn weighed(inputs: &[Tensor], op: impl Fn(&[Tensor]) -> Tensor) -> Weighed {
    let (y, tape) = Tape::record(inputs, || op(inputs));
    let weights = Tensor::from_vec(Random::new(99).values(y.elem_count()), y.dims(), y.device()).unwrap();
    let weights = weights.to_dtype(y.dtype()).unwrap();
    let mut gradients = tape.backward(&y, weights.clone()).unwrap();
    let gradients = inputs.iter().map(|input| gradients.take(input)).collect();
    Weighed { y, weights, gradients }
}
