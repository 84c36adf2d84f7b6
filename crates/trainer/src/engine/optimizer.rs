//! Update rules: what makes of gradients a step of the parameters, and remembers what it needs in named slots.

use std::fmt::Debug;

use candle_core::Tensor;
use tinygpt_model::cpu::ParamLayout;
use tinygpt_sampler::simd::SimdLevel;

use super::EngineState;
use crate::{Result, TrainError};

/// A part of an optimizer's state: a number for each parameter element, under a name by which checkpoints keep it.
#[derive(Debug, Clone, PartialEq)]
pub struct StateSlot {
    /// For example `m`, AdamW's first moments.
    pub name: String,
    /// In parameter order, as many for each parameter as it has elements.
    pub values: Vec<Vec<f32>>,
}

/// An update rule. Both backends clip gradients before they reach it, and apply weight decay in it.
pub trait Optimizer: Debug + Send + Sync {
    /// The names of its slots. Each holds as many floats as the parameters, zeros before the first update.
    fn slots(&self) -> &'static [&'static str];

    /// One update on the CPU, in place. Leaves the gradients zero.
    fn step_cpu(&self, update: CpuUpdate<'_>);

    /// One update in tensor operations, without a look at the device.
    ///
    /// # Errors
    /// When the device fails.
    fn step_tensors(&self, update: TensorUpdate<'_>) -> Result<TensorStep>;

    /// The decoupled weight decay of matrices, to be multiplied with the learning rate.
    fn weight_decay(&self) -> f64;
}

/// What an update on the CPU works with; all buffers are flat and laid out alike.
#[derive(Debug)]
pub struct CpuUpdate<'a> {
    /// The vector instructions to use.
    pub level: SimdLevel,
    /// Where each parameter lies.
    pub layout: &'a ParamLayout,
    /// The parameters.
    pub params: &'a mut [f32],
    /// The gradients, to be multiplied with `scale`.
    pub grads: &'a mut [f32],
    /// In the order of [`Optimizer::slots`].
    pub slots: &'a mut [Vec<f32>],
    /// The learning rate.
    pub lr: f64,
    /// What makes of the gathered gradients their clipped mean.
    pub scale: f64,
    /// The number of this update, from 1.
    pub n: u64,
}

/// What an update in tensor operations works with; all tensors are flat.
pub struct TensorUpdate<'a> {
    /// The clipped mean of the gradients.
    pub grads: &'a Tensor,
    /// In the order of [`Optimizer::slots`].
    pub slots: &'a [Tensor],
    /// The learning rate.
    pub lr: f64,
    /// `x * factor / (1 - beta^n)` at the nth update, which a device may have to count by itself.
    pub bias_corrected: &'a dyn Fn(&Tensor, f64, f64) -> Result<Tensor>,
}

/// What comes of it.
#[derive(Debug)]
pub struct TensorStep {
    /// The slots after the update.
    pub slots: Vec<Tensor>,
    /// What is to be subtracted from the parameters once matrices have decayed.
    pub step: Tensor,
}

/// Refuses the state of another optimizer: one that has slots which this one lacks.
///
/// # Errors
/// [`TrainError::UnknownSlot`].
pub(super) fn check_slots(state: &EngineState, optimizer: &dyn Optimizer) -> Result<()> {
    match state.optimizer.iter().find(|slot| !optimizer.slots().contains(&slot.name.as_str())) {
        Some(slot) => Err(TrainError::UnknownSlot { name: slot.name.clone() }),
        None => Ok(()),
    }
}

/// The values of a slot of `state` for parameters of these sizes, in parameter order: zeros where the state is that
/// before the first update.
///
/// # Errors
/// When the state is that of another optimizer.
pub(super) fn slot_values(
    state: &EngineState,
    name: &str,
    sizes: impl Iterator<Item = usize>,
) -> Result<Vec<Vec<f32>>> {
    match state.slot(name) {
        Some(values) => Ok(values.to_vec()),
        None if state.optimizer.is_empty() && state.updates == 0 => Ok(sizes.map(|n| vec![0.0; n]).collect()),
        None => Err(TrainError::MissingSlot { name: name.to_owned() }),
    }
}
