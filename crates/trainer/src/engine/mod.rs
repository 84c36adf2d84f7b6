//! The interface between the training loop and the backends that compute losses, gradients and optimizer steps.

mod adamw;
mod cpu;
mod deferred;
mod groups;
mod lanes;
mod lora;
mod muon;
mod objective;
mod optimizer;
mod tensors;

use std::sync::Arc;

use candle_core::{Device, Tensor};
use tinygpt_model::{Adapter, ContextPolicy, Decoder, GptConfig, ParamSpec, Precision, cpu::CpuPrecision, param_specs};

use crate::{Result, TrainError};

pub use adamw::AdamW;
pub use cpu::CpuEngine;
pub use deferred::DeferredScalar;
pub use groups::{ParameterGroup, RateFactors};
pub use muon::Muon;
pub use objective::{Objective, Prior, Reference};
pub use optimizer::{CpuUpdate, KernelRule, Optimizer, StateSlot, TensorStep, TensorUpdate};
pub use tensors::{TensorEngine, TensorEvaluator};

/// A batch of windows: inputs and the tokens that follow them, row after row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Input tokens, `rows * cols`.
    pub ids: Vec<u32>,
    /// The token after each input token, `rows * cols`.
    pub targets: Vec<u32>,
    /// The number of windows.
    pub rows: usize,
    /// The length of a window.
    pub cols: usize,
}

impl Batch {
    /// Divides the batch into at most `n` shards of consecutive rows, of about equal size.
    pub fn shards(&self, n: usize) -> impl Iterator<Item = Batch> + '_ {
        let n = n.clamp(1, self.rows.max(1));
        (0..n).map(move |i| {
            let (from, to) = (i * self.rows / n, (i + 1) * self.rows / n);
            let range = from * self.cols..to * self.cols;
            Batch {
                ids: self.ids[range.clone()].to_vec(),
                targets: self.targets[range].to_vec(),
                rows: to - from,
                cols: self.cols,
            }
        })
    }
}

/// The whole state of an engine, from which another continues with the same bits.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineState {
    /// The values of the model's parameters, in parameter order: without the adapter, where there is one.
    pub params: Vec<Vec<f32>>,
    /// The adapter that is trained in the place of the parameters, which then stay as they are.
    pub adapter: Option<Adapter>,
    /// The optimizer's state of what is trained; empty, which means zeros, before the first step.
    pub optimizer: Vec<StateSlot>,
    /// The number of optimizer steps so far, skipped ones included.
    pub updates: u64,
    /// The state of loss scaling, in f16 only.
    pub loss_scaling: Option<LossScaling>,
}

/// Dynamic loss scaling in f16 (Micikevicius et al., 2018, "Mixed precision training"): the backward pass starts from the
/// loss times `scale`, so that small gradients do not underflow. A step whose gradients overflow is skipped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossScaling {
    /// The factor of the loss, a power of 2.
    pub scale: f32,
    /// The number of consecutive applied steps since the scale last changed.
    pub good: u64,
    /// The number of skipped steps so far.
    pub skipped: u64,
}

impl Default for LossScaling {
    fn default() -> Self {
        Self { scale: 65536.0, good: 0, skipped: 0 }
    }
}

impl EngineState {
    /// The state before the first step.
    pub fn fresh(params: Vec<Vec<f32>>) -> Self {
        Self { params, adapter: None, optimizer: Vec::new(), updates: 0, loss_scaling: None }
    }

    /// The parameters that are trained, with their values: those of the adapter, or else of the model.
    pub fn trained(&self, config: &GptConfig) -> (Vec<ParamSpec>, &[Vec<f32>]) {
        match &self.adapter {
            Some(adapter) => (adapter.shape.specs(), &adapter.values),
            None => (param_specs(config), &self.params),
        }
    }

    /// The values of a slot of the optimizer's state, in parameter order; `None` before the first step, or if the optimizer
    /// has no such slot.
    pub fn slot(&self, name: &str) -> Option<&[Vec<f32>]> {
        self.optimizer.iter().find(|slot| slot.name == name).map(|slot| slot.values.as_slice())
    }
}

/// A model that computes losses.
pub trait Evaluator {
    /// The shape of the model.
    fn config(&self) -> &GptConfig;

    /// The sum of the cross-entropies of a batch, in nats, without dropout and without gradients.
    ///
    /// # Errors
    /// When the device fails.
    fn eval(&mut self, batch: &Batch) -> Result<f64>;
}

/// A model in training: it owns the parameters, their gradients and the optimizer's state. The training loop uses it only
/// through this interface.
pub trait Engine: Evaluator {
    /// Sets what is minimised beside the cross-entropy; nothing until then. It stays when a state is loaded.
    ///
    /// # Errors
    /// When the reference does not match the model or its parameters, or the device fails; nothing changes then.
    fn set_objective(&mut self, objective: &Objective) -> Result<()>;

    /// Computes the mean cross-entropy of a batch, in nats per token, and adds its gradients to those of earlier batches
    /// since the last optimizer step. `micro_step` is the number of the batch in the run, which selects the dropout masks.
    ///
    /// # Errors
    /// When the device fails, or a parameter gets no gradient from the first batch.
    fn forward_backward(&mut self, batch: &Batch, micro_step: u64) -> Result<DeferredScalar>;

    /// Performs one optimizer step with the mean of the gradients since the last one, clipped to a global norm of `clip`
    /// (0: not clipped). Returns the norm before clipping; in f16, 0 where the step was skipped because gradients of the
    /// scaled loss overflowed.
    ///
    /// # Errors
    /// When the device fails.
    fn optimizer_step(&mut self, lr: f64, clip: f64) -> Result<DeferredScalar>;

    /// A decoder of the weights as they are now, in f32 and on the engine's device. They are lent to it, not copied.
    ///
    /// # Errors
    /// When the device fails.
    fn decoder(&self, window: ContextPolicy) -> Result<Box<dyn Decoder + '_>>;

    /// Copies the parameters that the model computes with, in parameter order: those with the adapter, where there is one.
    ///
    /// # Errors
    /// When the device fails.
    fn params(&self) -> Result<Vec<Vec<f32>>>;

    /// Copies parameters and optimizer state, in parameter order.
    ///
    /// # Errors
    /// When the device fails.
    fn state_dict(&self) -> Result<EngineState>;

    /// Replaces parameters and optimizer state, given in parameter order.
    ///
    /// # Errors
    /// When they do not match the model's shape.
    fn load_state_dict(&mut self, state: &EngineState) -> Result<()>;
}

/// Checks that a device can train in a precision.
///
/// # Errors
/// [`TrainError::PrecisionOfDevice`]; on the CPU [`tinygpt_model::ModelError::NoBf16`],
/// [`tinygpt_model::ModelError::NoF16`] or [`tinygpt_model::ModelError::NoTf32`].
pub fn check_precision(precision: Precision, device: &Device) -> Result<()> {
    if device.is_cpu() { Ok(CpuPrecision::of(precision).map(drop)?) } else { try_precision(precision, device) }
}

/// Computes one product in a precision: the only way to find out whether a GPU, and candle's kernels for it, have the type.
fn try_precision(precision: Precision, device: &Device) -> Result<()> {
    if precision == Precision::Tf32 {
        return tf32_of(device).map_err(|reason| TrainError::PrecisionOfDevice { precision, reason });
    }
    let Some(dtype) = precision.dtype() else { return Ok(()) };
    let product = || -> candle_core::Result<Vec<f32>> {
        let two = Tensor::full(2f32, (16, 16), device)?.to_dtype(dtype)?;
        two.matmul(&two)?.to_dtype(candle_core::DType::F32)?.flatten_all()?.to_vec1()
    };
    match product() {
        Ok(product) if product.iter().all(|&x| x == 64.0) => Ok(()),
        Ok(_) => Err(TrainError::PrecisionOfDevice { precision, reason: "a product comes out wrong".into() }),
        Err(error) => Err(TrainError::PrecisionOfDevice { precision, reason: error.to_string() }),
    }
}

/// Whether a device has products in TF32: cuBLAS computes in f32 where it has none, without a word.
fn tf32_of(device: &Device) -> std::result::Result<(), String> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => match cuda.cuda_stream().context().compute_capability() {
            Ok((major, _)) if major >= 8 => Ok(()),
            Ok((major, minor)) => Err(format!("its compute capability is {major}.{minor}, and TF32 needs 8.0")),
            Err(error) => Err(error.to_string()),
        },
        _ => Err("TF32 is a type of CUDA GPUs".into()),
    }
}

/// Creates the fastest engine of a device, [`CpuEngine`] on the CPU and [`TensorEngine`] elsewhere, which continues from
/// `state`. `seed` is that of the dropout masks.
///
/// # Errors
/// As [`check_precision`]; when the state does not match the configuration or the device is out of memory.
pub fn open(
    config: &GptConfig,
    precision: Precision,
    optimizer: impl Into<Arc<dyn Optimizer>>,
    seed: u64,
    state: &EngineState,
    device: &Device,
) -> Result<Box<dyn Engine>> {
    check_precision(precision, device)?;
    Ok(match device {
        Device::Cpu => Box::new(CpuEngine::new(config, CpuPrecision::of(precision)?, optimizer, seed, state)?),
        _ => Box::new(TensorEngine::new(config, precision, optimizer, seed, state, device)?),
    })
}

/// The error of a parameter that would never be trained.
fn missing_gradient(spec: &ParamSpec, problem: &'static str) -> TrainError {
    TrainError::MissingGradient { name: spec.name.clone(), problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_precision_is_tried_before_it_is_used() {
        for precision in [Precision::F32, Precision::Bf16, Precision::F16] {
            // Tensor operations have them all on the CPU; the engine written for it has no f16.
            try_precision(precision, &Device::Cpu).unwrap();
        }
        let error = check_precision(Precision::F16, &Device::Cpu).unwrap_err();
        assert_eq!(error.to_string(), "f16 is for GPUs without bf16; on the CPU, use f32 or bf16");
        let error = check_precision(Precision::Tf32, &Device::Cpu).unwrap_err();
        assert_eq!(error.to_string(), "tf32 is for CUDA GPUs; on the CPU, use f32 or bf16");
    }
}
