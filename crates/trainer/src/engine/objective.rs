//! What training minimises beside the cross-entropy of its batches. The losses that are told are the cross-entropy alone, so
//! that they can be compared; the norm of the gradient is that of all of it.

use candle_core::Tensor;
use rayon::prelude::*;
use tinygpt_model::{cpu::ParamLayout, ops::count_launch};

use crate::config::{PriorKind, TrainConfig};

/// The terms beside the cross-entropy.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Objective {
    /// The prior of the parameters.
    pub prior: Prior,
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
