//! The interface of optimizers: update rules whose state is kept in named slots.

use std::{fmt::Debug, ops::Range};

use candle_core::Tensor;
use tinygpt_model::{ParamSpec, cpu::ParamLayout};
use tinygpt_sampler::simd::SimdLevel;

use super::{AdamW, EngineState, Muon, RateFactors};
use crate::{Result, TrainError};

/// A slot of an optimizer's state: a value for each parameter element, under the name that checkpoints use.
#[derive(Debug, Clone, PartialEq)]
pub struct StateSlot {
    /// For example `m`, AdamW's first moments.
    pub name: String,
    /// In parameter order, as many for each parameter as it has elements.
    pub values: Vec<Vec<f32>>,
}

/// An update rule. The engine computes the mean and the clipping of gradients. On the CPU the rule applies weight decay and
/// the factors of the learning rate itself; in tensor operations the engine does.
pub trait Optimizer: Debug + Send + Sync {
    /// The names of its slots. Each has a float for each parameter element, zero before the first step.
    fn slots(&self) -> &'static [&'static str];

    /// Performs one step on the CPU, in place, and zeroes the gradients.
    ///
    /// # Errors
    /// [`TrainError::SlotCount`], before anything is changed.
    fn step_cpu(&self, update: CpuUpdate<'_>) -> Result<()>;

    /// Computes one step in tensor operations, without reading anything back from the device.
    ///
    /// # Errors
    /// [`TrainError::SlotCount`], and when the device fails.
    fn step_tensors(&self, update: TensorUpdate<'_>) -> Result<TensorStep>;

    /// The rule, if there are kernels for it.
    fn kernel_rule(&self) -> Option<KernelRule<'_>> {
        None
    }

    /// The decoupled weight decay of matrices, which is multiplied with the learning rate.
    fn weight_decay(&self) -> f64;

    /// What the learning rate is multiplied with, for each group of parameters.
    fn rate_factors(&self) -> RateFactors {
        RateFactors::EQUAL
    }
}

/// A rule for which there are kernels.
#[derive(Debug, Clone, Copy)]
pub enum KernelRule<'a> {
    /// AdamW for every parameter.
    AdamW(&'a AdamW),
    /// Muon for matrices, AdamW for all else.
    Muon(&'a Muon),
}

/// The arguments of a step on the CPU. All buffers are flat, with the same layout.
#[derive(Debug)]
pub struct CpuUpdate<'a> {
    /// The vector instructions to use.
    pub level: SimdLevel,
    /// The layout of the parameters.
    pub layout: &'a ParamLayout,
    /// The parameters.
    pub params: &'a mut [f32],
    /// The gradients, to be multiplied with `scale`.
    pub grads: &'a mut [f32],
    /// The state, in the order of [`Optimizer::slots`].
    pub slots: &'a mut [Vec<f32>],
    /// The learning rate.
    pub lr: f64,
    /// The factor that turns the sum of gradients into their clipped mean.
    pub scale: f64,
    /// The number of this step, from 1.
    pub n: u64,
}

/// The arguments of a step in tensor operations. All tensors are flat, `(P)`, with zeros behind the last parameter.
pub struct TensorUpdate<'a> {
    /// The parameters.
    pub specs: &'a [ParamSpec],
    /// The range of each parameter's elements in a flat tensor.
    pub ranges: &'a [Range<usize>],
    /// The clipped mean of the gradients.
    pub grads: &'a Tensor,
    /// The state, in the order of [`Optimizer::slots`].
    pub slots: &'a [Tensor],
    /// The learning rate.
    pub lr: f64,
    /// `bias_corrected(x, beta, factor)` is `x * factor / (1 - beta^n)` at the nth applied step; in f16 only the device
    /// knows n.
    pub bias_corrected: &'a dyn Fn(&Tensor, f64, f64) -> Result<Tensor>,
}

/// The result of a step in tensor operations.
#[derive(Debug)]
pub struct TensorStep {
    /// The state after the step.
    pub slots: Vec<Tensor>,
    /// The flat tensor to subtract from the parameters after weight decay, times their [`Optimizer::rate_factors`].
    pub step: Tensor,
}

/// The error of a step that got another number of slots than the optimizer has.
pub(super) fn slot_count(optimizer: &dyn Optimizer, got: usize) -> TrainError {
    TrainError::SlotCount { got, needed: optimizer.slots().len() }
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
