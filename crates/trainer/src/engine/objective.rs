//! What training minimises beside the cross-entropy of its batches. The losses that are told are the cross-entropy alone, so
//! that they can be compared; the norm of the gradient is that of all of it.

use candle_core::Tensor;
use rayon::prelude::*;
use tinygpt_model::{GptConfig, cpu::ParamLayout, ops::count_launch};

use crate::config::{PriorKind, TrainConfig};

/// The terms beside the cross-entropy.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Objective {
    /// The prior of the parameters.
    pub prior: Prior,
    /// A model to stay near.
    pub reference: Option<Reference>,
}

/// A model that training keeps another near: the loss gets `weight` times `KL(reference || model)`, the mean over positions of
/// the divergences of their next-token distributions.
///
/// Of the two directions it is the one whose mean is over the reference, as that of the cross-entropy is over the text: what
/// the reference holds probable must stay probable, and the gradient of the logits, `weight (model - reference)`, is that of
/// learning from the reference's distributions beside the text's tokens (Hinton et al., 2015, "Distilling the Knowledge in a
/// Neural Network"; Li and Hoiem, 2016, "Learning without Forgetting"). The other direction lets the model drop what the
/// reference knows, and belongs where contexts are drawn from the model.
#[derive(Debug, Clone, PartialEq)]
pub struct Reference {
    /// Its shape: the vocabulary of the model, and a context at least as long.
    pub config: GptConfig,
    /// Its parameters, in parameter order.
    pub params: Vec<Vec<f32>>,
    /// The weight of the divergence in the loss.
    pub weight: f64,
}

/// A prior of the parameters that weight decay covers: the negative logarithm of their density is added to the loss, but for a
/// constant, so that training looks for the most probable parameters (MAP) and not for the most likely ones.
///
/// The loss is a mean over tokens, so with `N` independent tokens a weight of `1 / (N s^2)` is a normal prior of variance
/// `s^2`, and one of `1 / (N b)` a Laplace prior of scale `b`. The gradient of a prior is part of that of the loss: it is there
/// before clipping, and the optimizer scales it as it scales all gradients. Decoupled weight decay is neither.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Prior {
    /// Its shape.
    pub kind: PriorKind,
    /// Its weight, lambda.
    pub weight: f64,
}

impl From<&TrainConfig> for Prior {
    fn from(config: &TrainConfig) -> Self {
        Self { kind: config.prior, weight: config.prior_weight }
    }
}

impl Prior {
    /// Whether it changes nothing.
    pub fn is_none(self) -> bool {
        self.kind == PriorKind::None || self.weight == 0.0
    }

    /// Adds `batches` times its gradient to flat gradients, the sum over so many batches.
    pub(super) fn add_to(self, layout: &ParamLayout, params: &[f32], grads: &mut [f32], batches: usize) {
        let factor = (batches as f64 * self.weight) as f32;
        for (_, range) in layout.specs.iter().zip(&layout.ranges).filter(|(spec, _)| spec.decays()) {
            let (params, grads) = (&params[range.clone()], &mut grads[range.clone()]);
            match self.kind {
                PriorKind::None => {}
                PriorKind::L2 => add(params, grads, |param| factor * param),
                PriorKind::L1 => add(params, grads, |param| factor * sign(param)),
            }
        }
    }

    /// `batches` times its gradient, for a parameter that decays; nothing where it has none.
    pub(super) fn gradient(self, param: &Tensor, batches: usize) -> candle_core::Result<Option<Tensor>> {
        let factor = batches as f64 * self.weight;
        Ok(match self.kind {
            PriorKind::None => None,
            PriorKind::L2 => Some(count_launch(param.affine(factor, 0.0))?),
            PriorKind::L1 => Some(count_launch(count_launch(param.sign())?.affine(factor, 0.0))?),
        })
    }
}

/// Adds `gradient(param)` to the gradient of each parameter.
fn add(params: &[f32], grads: &mut [f32], gradient: impl Fn(f32) -> f32 + Sync) {
    /// The elements of a task.
    const TASK_LEN: usize = 8192;
    grads.par_chunks_mut(TASK_LEN).zip(params.par_chunks(TASK_LEN)).for_each(|(grads, params)| {
        grads.iter_mut().zip(params).for_each(|(grad, &param)| *grad += gradient(param));
    });
}

/// 1 or -1, and 0 for 0: of the subgradients there, the one that leaves a parameter where it is.
fn sign(x: f32) -> f32 {
    f32::from(x > 0.0) - f32::from(x < 0.0)
}
