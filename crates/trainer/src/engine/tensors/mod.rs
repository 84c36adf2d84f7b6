//! The engine of tensor operations, on any device: what runs on a GPU, and the reference for the CPU engine.
//!
//! A batch and an update are queued on the device without waiting for it: the loss and the norm stay there, as
//! [`DeferredScalar`]s, until somebody reads them. What waits: the first batch of a run, whose gradients are looked at once; an
//! evaluation, once a batch; [`Engine::state_dict`].
//!
//! On the CPU a batch is cut into a fixed number of shards of whole sequences, each of which goes through the whole
//! network, forward and backward, on one thread; gradients are added in the order of the shards. So the result does not
//! depend on the number of threads, and the cores do not wait for each other inside every small operation.

mod optimizer;

use candle_core::{DType, Device, Tensor, Var};
use rayon::prelude::*;
use tinygpt_model::{
    Dropout, Gpt, GptConfig, ParamSpec, Precision,
    ops::{Tokens, count_launch},
    param_specs, params,
};

use super::{AdamW, Batch, DeferredScalar, Engine, EngineState, dead};
use crate::Result;
use optimizer::{Flat, Optimizer};

/// Shards of a batch on the CPU. A part of the definition of a result, down to its last bit, not of the machine.
pub(super) const CPU_SHARDS: usize = 4;

/// The model composed of candle operations, its gradients by candle's autograd, AdamW in tensor operations.
#[derive(Debug)]
pub struct TensorEngine {
    config: GptConfig,
    precision: Precision,
    device: Device,
    seed: u64,
    specs: Vec<ParamSpec>,
    vars: Vec<Var>,
    /// Over the variables: a forward pass records a graph.
    training: Gpt,
    /// Over the same storage, detached: no graph is recorded.
    evaluation: Gpt,
    flat: Flat,
    optimizer: Optimizer,
    /// The sum of the gradients of `batches` batches, flat.
    grads: Option<Tensor>,
    batches: usize,
    gradients_checked: bool,
}

impl TensorEngine {
    /// An engine that goes on from `state`. `seed` is that of the dropout masks.
    ///
    /// # Errors
    /// When the state does not match the configuration or the device is out of memory.
    pub fn new(
        config: &GptConfig,
        precision: Precision,
        adamw: AdamW,
        seed: u64,
        state: &EngineState,
        device: &Device,
    ) -> Result<Self> {
        let tensors = |values: &[Vec<f32>]| params::to_tensors(config, values, DType::F32, device);
        let vars = tensors(&state.params)?.iter().map(Var::from_tensor).collect::<candle_core::Result<Vec<_>>>()?;
        let tracked: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let detached: Vec<Tensor> = vars.iter().map(Var::as_detached_tensor).collect();
        let specs = param_specs(config);
        let flat = Flat::new(&specs, device)?;
        let (m, v) = (flat.join(&tensors(&state.m)?)?, flat.join(&tensors(&state.v)?)?);
        let scaling = (precision == Precision::F16).then(|| state.loss_scaling.unwrap_or_default());
        Ok(Self {
            training: Gpt::new(config, &tracked)?.with_precision(precision),
            evaluation: Gpt::new(config, &detached)?.with_precision(precision),
            optimizer: Optimizer::new(adamw, m, v, state.updates, scaling)?,
            config: config.clone(),
            precision,
            device: device.clone(),
            seed,
            specs,
            vars,
            flat,
            grads: None,
            batches: 0,
            // Once is enough, and a run that goes on has passed it.
            gradients_checked: state.updates > 0,
        })
    }

    /// The gradients gathered since the last update (their sum over batches, times the scale of the loss in f16), in
    /// parameter order; for tests.
    ///
    /// # Errors
    /// When the device fails.
    pub fn gradients(&self) -> Result<Vec<Vec<f32>>> {
        self.grads.as_ref().map_or_else(|| Ok(Vec::new()), |grads| self.flat.read(grads))
    }

    /// A GPU wants the batch whole.
    fn n_shards(&self) -> usize {
        if self.device.is_cpu() { CPU_SHARDS } else { 1 }
    }

    /// The losses `(B * T)` of a batch.
    fn losses(&self, gpt: &Gpt, batch: &Batch, dropout: Option<&Dropout>) -> Result<Tensor> {
        // A GPU does not notice a target that is none.
        self.config.check_tokens(&batch.targets)?;
        let tokens = Tokens::new(&batch.ids, batch.rows, batch.cols, self.config.vocab_size, &self.device)?;
        let targets = count_launch(Tensor::from_slice(&batch.targets, batch.rows * batch.cols, &self.device))?;
        Ok(gpt.losses(&tokens, &targets, dropout)?)
    }

    /// The share of a shard in the mean loss of `tokens` tokens, and its gradients, flat.
    fn shard(&self, batch: &Batch, draw: u64, tokens: usize) -> Result<(Tensor, Tensor)> {
        let dropout = Dropout::new(self.config.dropout, self.seed, draw, &self.device);
        let loss = self.losses(&self.training, batch, Some(&dropout))?;
        let loss = count_launch(count_launch(loss.sum_all())?.affine(1.0 / tokens as f64, 0.0))?;
        let mut store = self.optimizer.scaled(&loss)?.backward()?;
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
            .collect::<Result<Vec<_>>>()?;
        Ok((loss.detach(), self.flat.join(&grads)?))
    }

    /// Adds gradients to those gathered since the last update.
    fn gather(&mut self, grads: Tensor) -> Result<()> {
        self.grads = Some(match self.grads.take() {
            Some(sum) => count_launch(sum + grads)?,
            None => grads,
        });
        Ok(())
    }

    /// candle drops gradients silently where an operation has no backward; that must not go unseen. Reads once.
    fn check_gradients(&self, loss: &DeferredScalar) -> Result<()> {
        let Some(grads) = &self.grads else { return Ok(()) };
        let largest =
            self.flat.parts(grads)?.into_iter().map(|grad| Ok(DeferredScalar::OnDevice(grad.abs()?.max_all()?)));
        let figures = [Ok(loss.clone())].into_iter().chain(largest).collect::<Result<Vec<_>>>()?;
        let figures = DeferredScalar::read_all(&figures)?;
        // A diverged loss has no gradients to speak of; the loop reports it.
        if figures[0].is_finite() {
            for (spec, &largest) in self.specs.iter().zip(&figures[1..]) {
                if largest == 0.0 {
                    return Err(dead(spec, "an all-zero gradient"));
                }
            }
        }
        Ok(())
    }
}

impl Engine for TensorEngine {
    fn config(&self) -> &GptConfig {
        &self.config
    }

    fn forward_backward(&mut self, batch: &Batch, draw: u64) -> Result<DeferredScalar> {
        let tokens = batch.rows * batch.cols;
        let n_shards = self.n_shards();
        let shards: Vec<(usize, Batch)> = batch.shards(n_shards).enumerate().collect();
        // Each shard has masks of its own.
        let shard_draw = |index: usize| draw * n_shards as u64 + index as u64;
        let results: Vec<Result<(Tensor, Tensor)>> =
            shards.par_iter().map(|(index, shard)| self.shard(shard, shard_draw(*index), tokens)).collect();
        // All of the batch or none of it: a shard that failed must not leave the gradients of the others behind.
        let results = results.into_iter().collect::<Result<Vec<_>>>()?;
        let mut loss: Option<Tensor> = None;
        for (part, grads) in results {
            loss = Some(match loss {
                Some(loss) => count_launch(loss + part)?,
                None => part,
            });
            self.gather(grads)?;
        }
        self.batches += 1;
        let loss = loss.map_or(DeferredScalar::Known(0.0), DeferredScalar::OnDevice);
        if !self.gradients_checked {
            self.check_gradients(&loss)?;
            self.gradients_checked = true;
        }
        Ok(loss)
    }

    fn optimizer_step(&mut self, lr: f64, clip: f64) -> Result<DeferredScalar> {
        let mean = 1.0 / self.batches.max(1) as f64;
        self.batches = 0;
        let grads = match self.grads.take() {
            Some(grads) => grads,
            None => self.flat.zeros()?,
        };
        let (norm, step) = self.optimizer.step(&grads, mean, lr, clip)?;
        let decay = self.optimizer.decay(lr)?;
        for ((spec, var), step) in self.specs.iter().zip(&self.vars).zip(self.flat.parts(&step)?) {
            let param = var.as_detached_tensor();
            let param = if spec.decays() { decay.times(&param)? } else { param };
            let param = count_launch(param - step.reshape(var.shape())?)?;
            count_launch(var.set(&param).map(|()| param))?; // a copy
        }
        Ok(DeferredScalar::OnDevice(norm))
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

    fn state_dict(&self) -> Result<EngineState> {
        let params: Vec<Tensor> = self.vars.iter().map(Var::as_detached_tensor).collect();
        Ok(EngineState {
            params: self.flat.read(&self.flat.join(&params)?)?,
            m: self.flat.read(&self.optimizer.m)?,
            v: self.flat.read(&self.optimizer.v)?,
            updates: self.optimizer.updates,
            loss_scaling: self.optimizer.loss_scaling()?,
        })
    }

    fn load_state_dict(&mut self, state: &EngineState) -> Result<()> {
        let (config, device) = (self.config.clone(), self.device.clone());
        *self = Self::new(&config, self.precision, self.optimizer.adamw, self.seed, state, &device)?;
        Ok(())
    }
}
