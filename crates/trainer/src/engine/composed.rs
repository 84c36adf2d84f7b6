//! The reference engine: candle tensors and autograd, on any device.

use candle_core::{D, DType, Device, Tensor, Var};
use tinygpt_model::{Dropout, Gpt, GptConfig, ParamSpec, ops, param_specs, params};

use super::{AdamW, Batch, Engine, EngineState};
use crate::{Result, TrainError};

/// The model composed of candle operations, its gradients by candle's autograd, AdamW in tensor operations.
#[derive(Debug)]
pub struct ComposedEngine {
    config: GptConfig,
    device: Device,
    adamw: AdamW,
    seed: u64,
    specs: Vec<ParamSpec>,
    vars: Vec<Var>,
    /// Over the variables: a forward pass records a graph.
    training: Gpt,
    /// Over the same storage, detached: no graph is recorded.
    evaluation: Gpt,
    m: Vec<Tensor>,
    v: Vec<Tensor>,
    updates: u64,
    grads: Vec<Tensor>,
    batches: usize,
    gradients_checked: bool,
}

impl ComposedEngine {
    /// An engine that goes on from `state`. `seed` is that of the dropout masks.
    ///
    /// # Errors
    /// When the state does not match the configuration or the device is out of memory.
    pub fn new(config: &GptConfig, adamw: AdamW, seed: u64, state: &EngineState, device: &Device) -> Result<Self> {
        let tensors = |values: &[Vec<f32>]| params::to_tensors(config, values, DType::F32, device);
        let vars = tensors(&state.params)?.iter().map(Var::from_tensor).collect::<candle_core::Result<Vec<_>>>()?;
        let tracked: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let detached: Vec<Tensor> = vars.iter().map(Var::as_detached_tensor).collect();
        Ok(Self {
            training: Gpt::new(config, &tracked)?,
            evaluation: Gpt::new(config, &detached)?,
            m: tensors(&state.m)?,
            v: tensors(&state.v)?,
            config: config.clone(),
            device: device.clone(),
            adamw,
            seed,
            specs: param_specs(config),
            vars,
            updates: state.updates,
            grads: Vec::new(),
            batches: 0,
            gradients_checked: false,
        })
    }

    /// The gradients gathered since the last update (their sum over batches), in parameter order; for tests.
    ///
    /// # Errors
    /// When the device fails.
    pub fn gradients(&self) -> Result<Vec<Vec<f32>>> {
        to_host(&self.grads)
    }

    fn tensors(&self, batch: &Batch) -> Result<(Tensor, Tensor)> {
        let ids = Tensor::from_slice(&batch.ids, (batch.rows, batch.cols), &self.device)?;
        let targets = Tensor::from_slice(&batch.targets, batch.rows * batch.cols, &self.device)?;
        Ok((ids, targets))
    }

    /// candle drops gradients silently where an operation has no backward; that must not go unseen.
    fn check_gradients(&self) -> Result<()> {
        for (spec, grad) in self.specs.iter().zip(&self.grads) {
            if grad.abs()?.max_all()?.to_scalar::<f32>()? == 0.0 {
                return Err(dead(spec, "an all-zero gradient"));
            }
        }
        Ok(())
    }
}

fn dead(spec: &ParamSpec, problem: &'static str) -> TrainError {
    TrainError::DeadGradient { name: spec.name.clone(), problem }
}

fn to_host(tensors: &[Tensor]) -> Result<Vec<Vec<f32>>> {
    Ok(tensors.iter().map(|t| t.flatten_all()?.to_vec1()).collect::<candle_core::Result<_>>()?)
}

impl Engine for ComposedEngine {
    fn config(&self) -> &GptConfig {
        &self.config
    }

    fn loss_and_grads(&mut self, batch: &Batch, draw: u64) -> Result<f64> {
        let (ids, targets) = self.tensors(batch)?;
        let dropout = Dropout::new(self.config.dropout, self.seed, draw, &self.device);
        let logits = self.training.forward(&ids, Some(&dropout))?.flatten_to(1)?; // (B, T, V) to (B * T, V)
        let loss = ops::cross_entropy(&logits, &targets)?.mean_all()?;
        let mut store = loss.backward()?;
        let mut grads = Vec::with_capacity(self.vars.len());
        for (spec, var) in self.specs.iter().zip(&self.vars) {
            grads.push(store.remove(var.as_tensor()).ok_or_else(|| dead(spec, "no gradient"))?);
        }
        if self.grads.is_empty() {
            self.grads = grads;
        } else {
            for (sum, grad) in self.grads.iter_mut().zip(grads) {
                *sum = (&*sum + grad)?;
            }
        }
        self.batches += 1;
        let loss = f64::from(loss.to_scalar::<f32>()?);
        // A diverged loss has no gradients to speak of; the loop reports it.
        if !self.gradients_checked && loss.is_finite() {
            self.check_gradients()?;
            self.gradients_checked = true;
        }
        Ok(loss)
    }

    fn apply(&mut self, lr: f64, clip: f64) -> Result<f64> {
        let mean = 1.0 / self.batches.max(1) as f64;
        let grads = std::mem::take(&mut self.grads);
        self.batches = 0;
        // The squared norm, parameter by parameter in their order; two stages suit the reductions of a GPU.
        let mut squares = Tensor::zeros((), DType::F32, &self.device)?;
        for grad in &grads {
            squares = (squares + grad.sqr()?.sum(D::Minus1)?.sum_all()?)?;
        }
        let norm = f64::from(squares.to_scalar::<f32>()?).sqrt() * mean;
        let scale = if clip > 0.0 && norm > clip { mean * clip / norm } else { mean };

        self.updates += 1;
        let AdamW { beta1, beta2, eps, weight_decay } = self.adamw;
        let correction1 = 1.0 - beta1.powf(self.updates as f64);
        let correction2 = 1.0 - beta2.powf(self.updates as f64);
        for (i, grad) in grads.iter().enumerate() {
            let m = (self.m[i].affine(beta1, 0.0)? + grad.affine(scale * (1.0 - beta1), 0.0)?)?;
            let v = (self.v[i].affine(beta2, 0.0)? + grad.sqr()?.affine(scale * scale * (1.0 - beta2), 0.0)?)?;
            let root = v.affine(1.0 / correction2, 0.0)?.sqrt()?.affine(1.0, eps)?;
            let decay = if self.specs[i].decays() { 1.0 - lr * weight_decay } else { 1.0 };
            let step = m.div(&root)?.affine(lr / correction1, 0.0)?;
            let param = self.vars[i].as_detached_tensor();
            self.vars[i].set(&(param.affine(decay, 0.0)? - step)?)?;
            self.m[i] = m;
            self.v[i] = v;
        }
        Ok(norm)
    }

    fn eval(&mut self, batch: &Batch) -> Result<f64> {
        let (ids, targets) = self.tensors(batch)?;
        let logits = self.evaluation.forward(&ids, None)?.flatten_to(1)?; // (B, T, V) to (B * T, V)
        let losses = ops::cross_entropy(&logits, &targets)?.to_vec1::<f32>()?;
        Ok(losses.iter().map(|&x| f64::from(x)).sum())
    }

    fn export(&self) -> Result<EngineState> {
        let params: Vec<Tensor> = self.vars.iter().map(Var::as_detached_tensor).collect();
        Ok(EngineState {
            params: to_host(&params)?,
            m: to_host(&self.m)?,
            v: to_host(&self.v)?,
            updates: self.updates,
        })
    }

    fn import(&mut self, state: &EngineState) -> Result<()> {
        let config = self.config.clone();
        *self = Self::new(&config, self.adamw, self.seed, state, &self.device.clone())?;
        Ok(())
    }
}
