//! The seam between the training loop and whatever computes losses, gradients and updates.

mod adamw;
mod composed;
mod cpu;

use candle_core::Device;
use tinygpt_model::{GptConfig, ParamSpec, Precision};

use crate::{Result, TrainError, config::TrainConfig};

pub use composed::ComposedEngine;
pub use cpu::CpuEngine;

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

/// What an engine needs to go on exactly where another stopped; all in parameter order.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineState {
    /// The parameters' values.
    pub params: Vec<Vec<f32>>,
    /// AdamW's first moments.
    pub m: Vec<Vec<f32>>,
    /// AdamW's second moments.
    pub v: Vec<Vec<f32>>,
    /// Updates made so far.
    pub updates: u64,
}

impl EngineState {
    /// The state before the first update.
    pub fn fresh(params: Vec<Vec<f32>>) -> Self {
        let zeros: Vec<Vec<f32>> = params.iter().map(|p| vec![0.0; p.len()]).collect();
        Self { params, m: zeros.clone(), v: zeros, updates: 0 }
    }
}

/// The constants of AdamW (Loshchilov and Hutter, 2019).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay of the matrices.
    pub weight_decay: f64,
}

impl From<&TrainConfig> for AdamW {
    fn from(c: &TrainConfig) -> Self {
        Self { beta1: c.beta1, beta2: c.beta2, eps: c.eps, weight_decay: c.weight_decay }
    }
}

/// Owns the parameters and the optimizer's state, and computes with them. The trainer knows nothing else of how losses
/// and gradients come about.
pub trait Engine {
    /// The shape of the model.
    fn config(&self) -> &GptConfig;

    /// The mean cross-entropy of a batch in nats a token. Its gradients are added to those of the earlier batches of
    /// this update. `draw` counts the batches of a run and selects the dropout masks.
    ///
    /// # Errors
    /// When the device fails, or a parameter gets no gradient from the first batch.
    fn loss_and_grads(&mut self, batch: &Batch, draw: u64) -> Result<f64>;

    /// One AdamW update with the mean of the gradients since the last one, scaled down to a global norm of `clip` where
    /// it is larger (0: never). Returns the norm before clipping.
    ///
    /// # Errors
    /// When the device fails.
    fn apply(&mut self, lr: f64, clip: f64) -> Result<f64>;

    /// The sum of the cross-entropies of a batch, in nats, without dropout and without gradients.
    ///
    /// # Errors
    /// When the device fails.
    fn eval(&mut self, batch: &Batch) -> Result<f64>;

    /// Parameters and optimizer state, in parameter order.
    ///
    /// # Errors
    /// When the device fails.
    fn export(&self) -> Result<EngineState>;

    /// Takes over parameters and optimizer state, in parameter order.
    ///
    /// # Errors
    /// When they do not match the model's shape.
    fn import(&mut self, state: &EngineState) -> Result<()>;
}

/// Refuses a precision that a device does not compute in.
///
/// # Errors
/// [`TrainError::PrecisionOfDevice`], or [`tinygpt_model::ModelError::NoBf16`].
pub fn check_precision(precision: Precision, device: &Device) -> Result<()> {
    match (precision, device) {
        (_, Device::Cpu) => Ok(precision.check()?),
        (Precision::F32, _) => Ok(()),
        (Precision::Bf16, _) => Err(TrainError::PrecisionOfDevice),
    }
}

/// The fastest engine of a device, going on from `state`: [`CpuEngine`] on the CPU, [`ComposedEngine`] elsewhere. `seed`
/// is that of the dropout masks.
///
/// # Errors
/// As [`check_precision`]; when the state does not match the configuration or the device is out of memory.
pub fn open(
    config: &GptConfig,
    precision: Precision,
    adamw: AdamW,
    seed: u64,
    state: &EngineState,
    device: &Device,
) -> Result<Box<dyn Engine>> {
    check_precision(precision, device)?;
    Ok(match device {
        Device::Cpu => Box::new(CpuEngine::new(config, precision, adamw, seed, state)?),
        _ => Box::new(ComposedEngine::new(config, adamw, seed, state, device)?),
    })
}

/// What the sum of the gradients is multiplied with: `mean`, or less where their norm (after `mean`) exceeds `clip`.
fn clipped(mean: f64, norm: f64, clip: f64) -> f64 {
    if clip > 0.0 && norm > clip { mean * clip / norm } else { mean }
}

/// A parameter that would never learn.
fn dead(spec: &ParamSpec, problem: &'static str) -> TrainError {
    TrainError::DeadGradient { name: spec.name.clone(), problem }
}
