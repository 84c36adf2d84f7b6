//! The reference engine: candle tensors and autograd, on any device.
//!
//! On the CPU a batch is cut into a fixed number of shards of whole sequences, each of which goes through the whole
//! network, forward and backward, on one thread; gradients are added in the order of the shards. So the result does not
//! depend on the number of threads, and the cores do not wait for each other inside every small operation.

use candle_core::{D, DType, Device, Tensor, Var};
use rayon::prelude::*;
use tinygpt_model::{Dropout, Gpt, GptConfig, ParamSpec, ops, param_specs, params};

use super::{AdamW, Batch, Engine, EngineState, clipped, dead};
use crate::Result;

/// Shards of a batch on the CPU. A part of the definition of a result, down to its last bit, not of the machine.
pub(super) const CPU_SHARDS: usize = 4;

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
            // Once is enough, and a run that goes on has passed it.
            gradients_checked: state.updates > 0,
        })
    }

    /// The gradients gathered since the last update (their sum over batches), in parameter order; for tests.
    ///
    /// # Errors
    /// When the device fails.
    pub fn gradients(&self) -> Result<Vec<Vec<f32>>> {
        to_host(&self.grads)
    }

    /// A GPU wants the batch whole.
    fn n_shards(&self) -> usize {
        if self.device.is_cpu() { CPU_SHARDS } else { 1 }
    }

    /// The losses `(B * T)` of a batch.
    fn losses(&self, gpt: &Gpt, batch: &Batch, dropout: Option<&Dropout>) -> Result<Tensor> {
        let ids = Tensor::from_slice(&batch.ids, (batch.rows, batch.cols), &self.device)?;
        let targets = Tensor::from_slice(&batch.targets, batch.rows * batch.cols, &self.device)?;
        let logits = gpt.forward(&ids, dropout)?.flatten_to(1)?; // (B, T, V) to (B * T, V)
        Ok(ops::cross_entropy(&logits, &targets)?)
    }

    /// The share of a shard in the mean loss of `tokens` tokens, and its gradients in parameter order.
    fn shard(&self, batch: &Batch, draw: u64, tokens: usize) -> Result<(f64, Vec<Tensor>)> {
        let dropout = Dropout::new(self.config.dropout, self.seed, draw, &self.device);
        let loss = self.losses(&self.training, batch, Some(&dropout))?.sum_all()?.affine(1.0 / tokens as f64, 0.0)?;
        let mut store = loss.backward()?;
        let grads = self
            .specs
            .iter()
            .zip(&self.vars)
            .map(|(spec, var)| {
                let grad = store.remove(var.as_tensor()).ok_or_else(|| dead(spec, "no gradient"))?;
                // candle records how a gradient was computed; undetached, the moments would keep every activation of
                // every update alive.
                Ok(grad.detach())
            })
            .collect::<Result<_>>()?;
        Ok((f64::from(loss.to_scalar::<f32>()?), grads))
    }

    /// Adds gradients to those gathered since the last update.
    fn gather(&mut self, grads: Vec<Tensor>) -> Result<()> {
        if self.grads.is_empty() {
            self.grads = grads;
            return Ok(());
        }
        for (sum, grad) in self.grads.iter_mut().zip(grads) {
            *sum = (&*sum + grad)?;
        }
        Ok(())
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

fn to_host(tensors: &[Tensor]) -> Result<Vec<Vec<f32>>> {
    Ok(tensors.iter().map(|t| t.flatten_all()?.to_vec1()).collect::<candle_core::Result<_>>()?)
}

impl Engine for ComposedEngine {
    fn config(&self) -> &GptConfig {
        &self.config
    }

    fn loss_and_grads(&mut self, batch: &Batch, draw: u64) -> Result<f64> {
        let tokens = batch.rows * batch.cols;
        let n_shards = self.n_shards();
        let shards: Vec<(usize, Batch)> = batch.shards(n_shards).enumerate().collect();
        // Each shard has masks of its own.
        let shard_draw = |index: usize| draw * n_shards as u64 + index as u64;
        let results: Vec<Result<(f64, Vec<Tensor>)>> =
            shards.par_iter().map(|(index, shard)| self.shard(shard, shard_draw(*index), tokens)).collect();
        // All of the batch or none of it: a shard that failed must not leave the gradients of the others behind.
        let results = results.into_iter().collect::<Result<Vec<_>>>()?;
        let mut loss = 0.0;
        for (part, grads) in results {
            loss += part;
            self.gather(grads)?;
        }
        self.batches += 1;
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
        let scale = clipped(mean, norm, clip);

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
        let shards: Vec<Batch> = batch.shards(self.n_shards()).collect();
        let losses: Vec<Result<Vec<f32>>> =
            shards.par_iter().map(|shard| Ok(self.losses(&self.evaluation, shard, None)?.to_vec1::<f32>()?)).collect();
        let mut sum = 0.0;
        for shard in losses {
            sum += shard?.into_iter().map(f64::from).sum::<f64>();
        }
        Ok(sum)
    }

    fn export(&self) -> Result<EngineState> {
        let params: Vec<Tensor> = self.vars.iter().map(Var::as_detached_tensor).collect();
        Ok(EngineState { params: to_host(&params)?, m: to_host(&self.m)?, v: to_host(&self.v)?, updates: self.updates })
    }

    fn import(&mut self, state: &EngineState) -> Result<()> {
        let config = self.config.clone();
        *self = Self::new(&config, self.adamw, self.seed, state, &self.device.clone())?;
        Ok(())
    }
}
