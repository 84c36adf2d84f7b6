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

use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use rayon::prelude::*;
use tinygpt_model::{
    Dropout, Gpt, GptConfig, ParamSpec, Precision,
    ops::{Tokens, count_launch},
    param_specs, params,
};

use super::{
    Batch, DeferredScalar, Engine, EngineState, Evaluator, Optimizer, StateSlot, missing_gradient,
    optimizer::{check_slots, slot_values},
};
use crate::Result;
use optimizer::{DeviceOptimizer, FlatParams};

/// Shards of a batch on the CPU. A part of the definition of a result, down to its last bit, not of the machine.
pub(super) const CPU_SHARDS: usize = 4;

/// The model in candle operations, gradients by candle's autograd, updates in tensor operations. One thread at a time uses
/// it; on a GPU that must be one and the same thread, as the stream of a device is a thread's own.
#[derive(Debug)]
pub struct TensorEngine {
    precision: Precision,
    seed: u64,
    specs: Vec<ParamSpec>,
    vars: Vec<Var>,
    /// Over the variables: a forward pass records a graph.
    training: Gpt,
    /// Over the same storage, detached: no graph is recorded.
    evaluation: TensorEvaluator,
    flat: FlatParams,
    optimizer: DeviceOptimizer,
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
        optimizer: impl Into<Arc<dyn Optimizer>>,
        seed: u64,
        state: &EngineState,
        device: &Device,
    ) -> Result<Self> {
        let tensors = |values: &[Vec<f32>]| params::to_tensors(config, values, DType::F32, device);
        let vars = tensors(&state.params)?.iter().map(Var::from_tensor).collect::<candle_core::Result<Vec<_>>>()?;
        let tracked: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let detached: Vec<Tensor> = vars.iter().map(Var::as_detached_tensor).collect();
        let specs = param_specs(config);
        let flat = FlatParams::new(&specs, device)?;
        let rule = optimizer.into();
        check_slots(state, &*rule)?;
        let slot = |name: &&str| {
            let values = slot_values(state, name, specs.iter().map(ParamSpec::len))?;
            flat.join(&tensors(&values)?)
        };
        let slots = rule.slots().iter().map(slot).collect::<Result<Vec<_>>>()?;
        let scaling = (precision == Precision::F16).then(|| state.loss_scaling.unwrap_or_default());
        Ok(Self {
            training: Gpt::new(config, &tracked)?.with_precision(precision),
            evaluation: TensorEvaluator { gpt: Gpt::new(config, &detached)?.with_precision(precision) },
            optimizer: DeviceOptimizer::new(rule, slots, state.updates, scaling, device)?,
            precision,
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

    /// The share of a shard in the mean loss of `tokens` tokens, and its gradients, flat.
    fn shard(&self, batch: &Batch, micro_step: u64, tokens: usize) -> Result<(Tensor, Tensor)> {
        let gpt = &self.training;
        let dropout = Dropout::new(gpt.config().dropout, self.seed, micro_step, gpt.device());
        let loss = losses(gpt, batch, Some(&dropout))?;
        let loss = count_launch(count_launch(loss.sum_all())?.affine(1.0 / tokens as f64, 0.0))?;
        let mut store = self.optimizer.scaled(&loss)?.backward()?;
        let grads = self
            .specs
            .iter()
            .zip(&self.vars)
            .map(|(spec, var)| {
                let grad = store.remove(var.as_tensor()).ok_or_else(|| missing_gradient(spec, "no gradient"))?;
                // candle records how a gradient was computed; undetached, the moments would keep every activation of
                // every update alive.
                Ok(grad.detach())
            })
            .collect::<Result<Vec<_>>>()?;
        Ok((loss.detach(), self.flat.join(&grads)?))
    }

    /// Adds gradients to those gathered since the last update.
    fn add_grads(&mut self, grads: Tensor) -> Result<()> {
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
        let scalars = [Ok(loss.clone())].into_iter().chain(largest).collect::<Result<Vec<_>>>()?;
        let scalars = DeferredScalar::read_all(&scalars)?;
        // A diverged loss has no gradients to speak of; the loop reports it.
        if scalars[0].is_finite() {
            for (spec, &largest) in self.specs.iter().zip(&scalars[1..]) {
                if largest == 0.0 {
                    return Err(missing_gradient(spec, "an all-zero gradient"));
                }
            }
        }
        Ok(())
    }
}

/// The model in candle operations, for losses alone.
#[derive(Debug)]
pub struct TensorEvaluator {
    gpt: Gpt,
}

impl TensorEvaluator {
    /// A model with these parameter values, in parameter order.
    ///
    /// # Errors
    /// When the values do not match the configuration or the device is out of memory.
    pub fn new(config: &GptConfig, params: &[Vec<f32>], device: &Device) -> Result<Self> {
        Ok(Self { gpt: Gpt::new(config, &params::to_tensors(config, params, DType::F32, device)?)? })
    }
}

/// The losses `(B * T)` of a batch.
fn losses(gpt: &Gpt, batch: &Batch, dropout: Option<&Dropout>) -> Result<Tensor> {
    // A GPU does not notice a target that is none.
    gpt.config().check_tokens(&batch.targets)?;
    let tokens = Tokens::new(&batch.ids, batch.rows, batch.cols, gpt.config().vocab_size, gpt.device())?;
    let targets = count_launch(Tensor::from_slice(&batch.targets, batch.rows * batch.cols, gpt.device()))?;
    Ok(gpt.losses(&tokens, &targets, dropout)?)
}

/// A GPU wants the batch whole.
fn n_shards(device: &Device) -> usize {
    if device.is_cpu() { CPU_SHARDS } else { 1 }
}

/// Computes something of each shard of a batch: in parallel, or of a single one on the calling thread, which alone may use
/// its device.
fn map_shards<T: Send>(
    batch: &Batch,
    device: &Device,
    compute: impl Fn(usize, &Batch) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let shards: Vec<Batch> = batch.shards(n_shards(device)).collect();
    if let [whole] = &shards[..] {
        return Ok(vec![compute(0, whole)?]);
    }
    let results: Vec<Result<T>> = shards.par_iter().enumerate().map(|(i, shard)| compute(i, shard)).collect();
    results.into_iter().collect()
}

impl Evaluator for TensorEvaluator {
    fn config(&self) -> &GptConfig {
        self.gpt.config()
    }

    fn eval(&mut self, batch: &Batch) -> Result<f64> {
        let gpt = &self.gpt;
        let shards = map_shards(batch, gpt.device(), |_, shard| Ok(losses(gpt, shard, None)?.to_vec1::<f32>()?))?;
        let mut sum = 0.0;
        for shard in shards {
            sum += shard.into_iter().map(f64::from).sum::<f64>();
        }
        Ok(sum)
    }
}

impl Evaluator for TensorEngine {
    fn config(&self) -> &GptConfig {
        self.training.config()
    }

    fn eval(&mut self, batch: &Batch) -> Result<f64> {
        self.evaluation.eval(batch)
    }
}

impl Engine for TensorEngine {
    fn forward_backward(&mut self, batch: &Batch, micro_step: u64) -> Result<DeferredScalar> {
        let (tokens, device) = (batch.rows * batch.cols, self.training.device());
        // Each shard has masks of its own.
        let masks = |index: usize| micro_step * n_shards(device) as u64 + index as u64;
        // All of the batch or none of it: a shard that failed must not leave the gradients of the others behind.
        let results = map_shards(batch, device, |index, shard| self.shard(shard, masks(index), tokens))?;
        let mut loss: Option<Tensor> = None;
        for (part, grads) in results {
            loss = Some(match loss {
                Some(loss) => count_launch(loss + part)?,
                None => part,
            });
            self.add_grads(grads)?;
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

    fn state_dict(&self) -> Result<EngineState> {
        let params: Vec<Tensor> = self.vars.iter().map(Var::as_detached_tensor).collect();
        let slot =
            |(name, flat): (&&str, &Tensor)| Ok(StateSlot { name: name.to_string(), values: self.flat.read(flat)? });
        let DeviceOptimizer { rule, slots, .. } = &self.optimizer;
        Ok(EngineState {
            params: self.flat.read(&self.flat.join(&params)?)?,
            optimizer: rule.slots().iter().zip(slots).map(slot).collect::<Result<_>>()?,
            updates: self.optimizer.updates,
            loss_scaling: self.optimizer.loss_scaling()?,
        })
    }

    fn load_state_dict(&mut self, state: &EngineState) -> Result<()> {
        let (config, device) = (self.training.config().clone(), self.training.device().clone());
        let rule = Arc::clone(&self.optimizer.rule);
        *self = Self::new(&config, self.precision, rule, self.seed, state, &device)?;
        Ok(())
    }
}
