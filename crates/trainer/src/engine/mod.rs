//! The seam between the training loop and whatever computes losses, gradients and updates.

mod adamw;
mod cpu;
mod deferred;
mod optimizer;
mod tensors;

use std::sync::Arc;

use candle_core::{Device, Tensor};
use tinygpt_model::{
    GptConfig, ParamSpec, Precision,
    cpu::{CpuGpt, CpuPrecision},
};

use crate::{Result, TrainError};

pub use adamw::AdamW;
pub use cpu::CpuEngine;
pub use deferred::DeferredScalar;
pub use optimizer::{CpuUpdate, Optimizer, StateSlot, TensorStep, TensorUpdate};
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
    /// Cuts the batch into at most `n` runs of whole rows, as even as they can be.
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

/// What an engine needs to go on exactly where another stopped.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineState {
    /// The parameters' values, in parameter order.
    pub params: Vec<Vec<f32>>,
    /// The optimizer's state; empty before the first update, which means zeros.
    pub optimizer: Vec<StateSlot>,
    /// Updates made so far, those skipped included.
    pub updates: u64,
    /// How the loss is scaled, in f16 alone.
    pub loss_scaling: Option<LossScaling>,
}

/// The scaling of the loss in f16 (Micikevicius et al., 2018, "Mixed precision training"): gradients are computed of the
/// loss times `scale`, so that small ones do not become zero. Where they overflow, the update is skipped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossScaling {
    /// A power of 2.
    pub scale: f32,
    /// Updates in a row that were not skipped, since the scale last changed.
    pub good: u64,
    /// Updates that were skipped so far.
    pub skipped: u64,
}

impl Default for LossScaling {
    fn default() -> Self {
        Self { scale: 65536.0, good: 0, skipped: 0 }
    }
}

impl EngineState {
    /// The state before the first update.
    pub fn fresh(params: Vec<Vec<f32>>) -> Self {
        Self { params, optimizer: Vec::new(), updates: 0, loss_scaling: None }
    }

    /// The values of a slot of the optimizer's state, in parameter order; none before the first update, or where the
    /// optimizer has no such slot.
    pub fn slot(&self, name: &str) -> Option<&[Vec<f32>]> {
        self.optimizer.iter().find(|slot| slot.name == name).map(|slot| slot.values.as_slice())
    }
}

/// Computes losses.
pub trait Evaluator {
    /// The shape of the model.
    fn config(&self) -> &GptConfig;

    /// The sum of the cross-entropies of a batch, in nats, without dropout and without gradients.
    ///
    /// # Errors
    /// When the device fails.
    fn eval(&mut self, batch: &Batch) -> Result<f64>;
}

/// Owns the parameters and the optimizer's state, and computes with them. The trainer knows nothing else of how losses
/// and gradients come about.
pub trait Engine: Evaluator {
    /// The mean cross-entropy of a batch in nats a token. Its gradients are added to those of the earlier batches of
    /// this update. `micro_step` counts the batches of a run and selects the dropout masks.
    ///
    /// # Errors
    /// When the device fails, or a parameter gets no gradient from the first batch.
    fn forward_backward(&mut self, batch: &Batch, micro_step: u64) -> Result<DeferredScalar>;

    /// One update of the optimizer with the mean of the gradients since the last one, scaled down to a global norm of `clip` where
    /// it is larger (0: never). Gives the norm before clipping; in f16, 0 where the update was skipped because gradients
    /// of the scaled loss were too large for it.
    ///
    /// # Errors
    /// When the device fails.
    fn optimizer_step(&mut self, lr: f64, clip: f64) -> Result<DeferredScalar>;

    /// Parameters and optimizer state, in parameter order.
    ///
    /// # Errors
    /// When the device fails.
    fn state_dict(&self) -> Result<EngineState>;

    /// Takes over parameters and optimizer state, in parameter order.
    ///
    /// # Errors
    /// When they do not match the model's shape.
    fn load_state_dict(&mut self, state: &EngineState) -> Result<()>;
}

/// Refuses a precision that a device does not compute in.
///
/// # Errors
/// [`TrainError::PrecisionOfDevice`]; on the CPU [`tinygpt_model::ModelError::NoBf16`] or
/// [`tinygpt_model::ModelError::NoF16`].
pub fn check_precision(precision: Precision, device: &Device) -> Result<()> {
    if device.is_cpu() { Ok(CpuPrecision::of(precision).map(drop)?) } else { try_precision(precision, device) }
}

/// Makes one product. Whether a GPU has a type, and candle kernels for it there, shows in nothing but the attempt.
fn try_precision(precision: Precision, device: &Device) -> Result<()> {
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

/// The fastest engine of a device, going on from `state`: [`CpuEngine`] on the CPU, [`TensorEngine`] elsewhere. `seed`
/// is that of the dropout masks.
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

/// The fastest evaluator of a device, in f32, of a model with these parameter values (in parameter order). It has
/// neither gradients nor an optimizer.
///
/// # Errors
/// When the values do not match the configuration or the device is out of memory.
pub fn open_evaluator(config: &GptConfig, params: &[Vec<f32>], device: &Device) -> Result<Box<dyn Evaluator>> {
    Ok(match device {
        Device::Cpu => Box::new(CpuGpt::new(config, CpuPrecision::F32, params)?),
        _ => Box::new(TensorEvaluator::new(config, params, device)?),
    })
}

/// A parameter that would never learn.
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
    }
}
