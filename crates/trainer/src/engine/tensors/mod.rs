//! The engine of tensor operations, which runs on any device; on the CPU it is the reference for the CPU engine.
//!
//! Batches and optimizer steps are queued on the device without waiting for it: losses and norms stay there, as
//! [`DeferredScalar`]s, until they are read. Only these wait: the first batch of a run, whose gradients are checked; each
//! batch of an evaluation; [`Engine::params`] and [`Engine::state_dict`].
//!
//! On the CPU a batch is divided into a fixed number of shards of whole sequences. Each is computed forward and backward on
//! one thread, and gradients are added in the order of the shards. So the result does not depend on the number of threads,
//! and threads do not synchronise within every small operation.

mod kernels;
mod lora;
mod optimizer;
mod tf32;

use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use rayon::prelude::*;
use tinygpt_model::{
    ContextPolicy, Decoder, Dropout, Gpt, GptConfig, ParamSpec, Precision, TensorDecoder,
    ops::{Tape, Tokens, count_launch},
    param_specs, params,
    plan::Role,
};
use tinygpt_sampler::kernels::Kernels;

use super::{
    Batch, DeferredScalar, Engine, EngineState, Evaluator, Objective, Optimizer, Prior, Reference, StateSlot,
    missing_gradient,
    optimizer::{check_slots, slot_values},
};
use crate::{Result, TrainError};
use kernels::KernelStep;
use lora::TensorLora;
use optimizer::{DeviceOptimizer, FlatParams};
use tf32::ProductsOfF32;

/// The number of shards of a batch on the CPU. Results depend on it to the last bit, so it is not the number of cores.
pub(super) const CPU_SHARDS: usize = 4;

/// What helps where training has filled a GPU.
const TRAIN_IN_LESS_MEMORY: &str = "lower train.batch_size and raise train.grad_accum by the same factor, which makes the \
                                    same updates, train in bf16 on CUDA, or take a smaller model.block_size or model";

/// What helps where an evaluation does not fit a GPU.
const EVALUATE_ELSEWHERE: &str = "evaluate on the CPU (--device cpu)";

/// The model in candle operations, with gradients by a [`Tape`] and optimizer steps in tensor operations. On a GPU
/// it is for a device with one stream, as the program opens it: batches and updates follow each other there.
#[derive(Debug)]
pub struct TensorEngine {
    precision: Precision,
    seed: u64,
    vars: Vec<Var>,
    /// The model over the variables' storage.
    model: TensorEvaluator,
    flat: FlatParams,
    lora: Option<TensorLora>,
    optimizer: DeviceOptimizer,
    prior: Prior,
    /// A model to stay near, and the weight of the divergence.
    reference: Option<(Gpt, f64)>,
    /// The sums of the gradients of `batches` batches, in parameter order; none before the first.
    grads: Vec<Tensor>,
    batches: usize,
    gradients_checked: bool,
}

impl TensorEngine {
    /// Creates an engine that continues from `state`. `seed` is that of the dropout masks.
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
        Self::load(config, precision, optimizer.into(), seed, state, device)
            .map_err(|error| error.on(device, TRAIN_IN_LESS_MEMORY))
    }

    fn load(
        config: &GptConfig,
        precision: Precision,
        rule: Arc<dyn Optimizer>,
        seed: u64,
        state: &EngineState,
        device: &Device,
    ) -> Result<Self> {
        // The tensors that the variables copy are gone before there is anything else.
        let vars = params::to_tensors(config, &state.params, DType::F32, device)?
            .iter()
            .map(Var::from_tensor)
            .collect::<candle_core::Result<Vec<_>>>()?;
        let detached: Vec<Tensor> = vars.iter().map(Var::as_detached_tensor).collect();
        let flat = FlatParams::new(param_specs(config), device)?;
        let lora = state.adapter.as_ref().map(|adapter| TensorLora::new(adapter, &vars, device)).transpose()?;
        if let Some(lora) = &lora {
            lora.merge(&vars)?;
        }
        check_slots(state, &*rule)?;
        let trained = lora.as_ref().map_or(&flat, |lora| &lora.flat);
        let slot = |name: &&str| {
            let values = slot_values(state, name, trained.specs.iter().map(ParamSpec::len))?;
            trained.join(&trained.upload(&values)?)
        };
        let slots = rule.slots().iter().map(slot).collect::<Result<Vec<_>>>()?;
        let scaling = (precision == Precision::F16).then(|| state.loss_scaling.unwrap_or_default());
        Ok(Self {
            model: TensorEvaluator { gpt: Gpt::new(config, &detached)?.with_precision(precision) },
            optimizer: DeviceOptimizer::new(rule, slots, state.updates, scaling, device)?,
            prior: Prior::default(),
            reference: None,
            precision,
            seed,
            vars,
            flat,
            lora,
            grads: Vec::new(),
            batches: 0,
            // A resumed run has passed the check.
            gradients_checked: state.updates > 0,
        })
    }

    /// The sum of the gradients of all batches since the last optimizer step, times the loss scale in f16, in parameter
    /// order; for tests.
    ///
    /// # Errors
    /// When the device fails.
    #[doc(hidden)]
    pub fn gradients(&self) -> Result<Vec<Vec<f32>>> {
        if self.grads.is_empty() { Ok(Vec::new()) } else { self.flat.read(&self.flat.join(&self.grads)?) }
    }

    /// Computes a shard's contribution to the mean loss of `tokens` tokens, and its gradients.
    fn shard(&self, batch: &Batch, micro_step: u64, tokens: usize) -> Result<(Tensor, Vec<Tensor>)> {
        let gpt = &self.model.gpt;
        let dropout = Dropout::new(gpt.config().dropout, self.seed, micro_step, gpt.device());
        let reference = self.reference.as_ref().map(|(gpt, weight)| (gpt, *weight));
        let (results, tape) = Tape::record(gpt.params(), || losses_near(gpt, batch, Some(&dropout), reference));
        let (losses, objective) = results?; // (N) each
        let loss = count_launch(count_launch(losses.sum_all())?.affine(1.0 / tokens as f64, 0.0))?;
        let gradient = self.optimizer.loss_gradient(1.0 / tokens as f64, &objective)?;
        let mut gradients = tape.backward(&objective, gradient)?;
        let gradient = |(spec, param)| gradients.take(param).ok_or_else(|| missing_gradient(spec, "no gradient"));
        let grads = self.flat.specs.iter().zip(gpt.params()).map(gradient).collect::<Result<Vec<_>>>()?;
        Ok((loss, grads))
    }

    /// Adds the gradients of a batch, computed shard by shard, and returns its loss.
    fn add_batch(&mut self, batch: &Batch, micro_step: u64) -> Result<DeferredScalar> {
        let _products = ProductsOfF32::of(self.precision);
        let (tokens, device) = (batch.rows * batch.cols, self.model.gpt.device());
        // Each shard has its own masks.
        let masks = |index: usize| micro_step * n_shards(device) as u64 + index as u64;
        // All shards are computed before any gradient is added, so that an error leaves the accumulated gradients unchanged.
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

    /// Performs a step of the optimizer on what is trained, and returns the norm of its gradients.
    fn apply_step(&mut self, lr: f64, clip: f64) -> Result<DeferredScalar> {
        let batches = self.batches.max(1);
        self.batches = 0;
        let mut grads = std::mem::take(&mut self.grads);
        if !self.prior.is_none() {
            self.add_prior(&mut grads, batches)?;
        }
        let mean = 1.0 / batches as f64;
        let Some(lora) = &self.lora else { return self.update(grads, mean, lr, clip) };
        if !grads.is_empty() {
            grads = lora.gradients(&grads)?;
        }
        let norm = self.update(grads, mean, lr, clip)?;
        if let Some(lora) = &self.lora {
            lora.merge(&self.vars)?;
        }
        Ok(norm)
    }

    /// Subtracts a step of the optimizer from the parameters that are trained, whose gradients are `grads * mean`.
    fn update(&mut self, grads: Vec<Tensor>, mean: f64, lr: f64, clip: f64) -> Result<DeferredScalar> {
        let _products = ProductsOfF32::of(self.precision);
        let device = self.model.gpt.device();
        let (flat, vars) = match &self.lora {
            Some(lora) => (&lora.flat, &lora.vars),
            None => (&self.flat, &self.vars),
        };
        if let Some(rule) = self.optimizer.rule.kernel_rule()
            && self.precision != Precision::F16
            && !grads.is_empty()
            && let Some(kernels) = Kernels::of(device)
        {
            self.optimizer.updates += 1;
            let params: Vec<Tensor> = vars.iter().map(Var::as_detached_tensor).collect();
            let step = KernelStep {
                flat,
                params: &params,
                grads: &grads,
                slots: &self.optimizer.slots,
                n: self.optimizer.updates,
                lr,
                mean,
                clip,
            };
            return Ok(DeferredScalar::OnDevice(step.run(rule, &kernels, device)?));
        }
        let grads = if grads.is_empty() { flat.zeros()? } else { flat.join(&grads)? };
        let (norm, step) = self.optimizer.step(flat, &grads, mean, lr, clip)?;
        let rates = self.optimizer.rule.rate_factors();
        let decay = self.optimizer.decay(lr * rates.matrices)?;
        // Another factor is another launch in f16.
        let of_embeddings = (rates.embeddings != rates.matrices).then(|| self.optimizer.decay(lr * rates.embeddings));
        let of_embeddings = of_embeddings.transpose()?;
        for ((spec, var), mut step) in flat.specs.iter().zip(vars).zip(flat.parts(&step)?) {
            let decay = if spec.role == Role::Matrix { &decay } else { of_embeddings.as_ref().unwrap_or(&decay) };
            let rate = rates.of(spec.role);
            if rate != 1.0 {
                step = count_launch(step.affine(rate, 0.0))?;
            }
            let param = var.as_detached_tensor();
            let param = if spec.decays() { decay.times(&param)? } else { param };
            let param = count_launch(param - step.reshape(var.shape())?)?;
            count_launch(var.set(&param).map(|()| param))?; // a copy
        }
        Ok(DeferredScalar::OnDevice(norm))
    }

    /// Adds the gradient of the prior to the sums of the gradients of so many batches.
    fn add_prior(&self, grads: &mut [Tensor], batches: usize) -> Result<()> {
        for ((spec, param), grad) in self.flat.specs.iter().zip(self.model.gpt.params()).zip(grads) {
            if spec.decays()
                && let Some(of_prior) = self.prior.gradient(param, batches)?
            {
                *grad = count_launch(&*grad + self.optimizer.scaled(of_prior)?)?;
            }
        }
        Ok(())
    }

    /// Adds gradients to those since the last optimizer step.
    fn add_grads(&mut self, grads: Vec<Tensor>) -> Result<()> {
        if self.grads.is_empty() {
            self.grads = grads;
            return Ok(());
        }
        for (sum, grad) in self.grads.iter_mut().zip(grads) {
            *sum = count_launch(&*sum + grad)?;
        }
        Ok(())
    }

    /// Refuses a parameter whose gradient is all zeros, as that of an operation that records nothing for it. Waits for the device
    /// once.
    fn check_gradients(&self, loss: &DeferredScalar) -> Result<()> {
        let largest = self.grads.iter().map(|grad| Ok(DeferredScalar::OnDevice(grad.abs()?.max_all()?)));
        let scalars = [Ok(loss.clone())].into_iter().chain(largest).collect::<Result<Vec<_>>>()?;
        let scalars = DeferredScalar::read_all(&scalars)?;
        // A diverged loss has no meaningful gradients, and the training loop reports it.
        if scalars[0].is_finite() {
            for (spec, &largest) in self.flat.specs.iter().zip(&scalars[1..]) {
                if largest == 0.0 {
                    return Err(missing_gradient(spec, "an all-zero gradient"));
                }
            }
        }
        Ok(())
    }
}

/// The model in candle operations, for losses only.
#[derive(Debug)]
pub struct TensorEvaluator {
    gpt: Gpt,
}

impl TensorEvaluator {
    /// Creates a model with these parameter values, in parameter order.
    ///
    /// # Errors
    /// When the values do not match the configuration or the device is out of memory.
    pub fn new(config: &GptConfig, params: &[Vec<f32>], device: &Device) -> Result<Self> {
        let gpt = params::to_tensors(config, params, DType::F32, device).and_then(|params| Gpt::new(config, &params));
        Ok(Self { gpt: gpt.map_err(|error| TrainError::from(error).on(device, EVALUATE_ELSEWHERE))? })
    }
}

/// The cross-entropies of a batch, `(B * T)`, in nats.
fn losses(gpt: &Gpt, batch: &Batch) -> Result<Tensor> {
    Ok(losses_near(gpt, batch, None, None)?.0)
}

/// The cross-entropies of a batch, and what is minimised, `(B * T)` each ([`Gpt::losses_near`]).
fn losses_near(
    gpt: &Gpt,
    batch: &Batch,
    dropout: Option<&Dropout>,
    reference: Option<(&Gpt, f64)>,
) -> Result<(Tensor, Tensor)> {
    // A GPU does not detect a target outside the vocabulary.
    gpt.config().check_tokens(&batch.targets)?;
    let tokens = Tokens::new(&batch.ids, batch.rows, batch.cols, gpt.config().vocab_size, gpt.device())?;
    let targets = count_launch(Tensor::from_slice(&batch.targets, batch.rows * batch.cols, gpt.device()))?;
    Ok(gpt.losses_near(&tokens, &targets, dropout, reference)?)
}

/// The number of shards of a batch: one on a GPU.
fn n_shards(device: &Device) -> usize {
    if device.is_cpu() { CPU_SHARDS } else { 1 }
}

/// Calls `compute(index, shard)` for each shard of a batch, in parallel. A single shard is computed on the calling thread, as
/// a GPU requires.
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
        let shards = map_shards(batch, gpt.device(), |_, shard| Ok(losses(gpt, shard)?.to_vec1::<f32>()?))
            .map_err(|error| error.on(gpt.device(), EVALUATE_ELSEWHERE))?;
        let mut sum = 0.0;
        for shard in shards {
            sum += shard.into_iter().map(f64::from).sum::<f64>();
        }
        Ok(sum)
    }
}

impl Evaluator for TensorEngine {
    fn config(&self) -> &GptConfig {
        self.model.gpt.config()
    }

    fn eval(&mut self, batch: &Batch) -> Result<f64> {
        let _products = ProductsOfF32::of(self.precision);
        self.model.eval(batch)
    }
}

impl Engine for TensorEngine {
    fn set_objective(&mut self, objective: &Objective) -> Result<()> {
        let (model, device) = (&self.model.gpt, self.model.gpt.device());
        let reference = |of: &Reference| -> Result<(Gpt, f64)> {
            model.config().check_reference(&of.config)?;
            let params = params::to_tensors(&of.config, &of.params, DType::F32, device)?;
            Ok((Gpt::new(&of.config, &params)?.with_precision(self.precision), of.weight))
        };
        let reference = objective.reference.as_ref().map(reference).transpose();
        self.reference = reference.map_err(|error| error.on(device, TRAIN_IN_LESS_MEMORY))?;
        self.prior = objective.prior;
        Ok(())
    }

    fn forward_backward(&mut self, batch: &Batch, micro_step: u64) -> Result<DeferredScalar> {
        let loss = self.add_batch(batch, micro_step);
        loss.map_err(|error| error.on(self.model.gpt.device(), TRAIN_IN_LESS_MEMORY))
    }

    fn optimizer_step(&mut self, lr: f64, clip: f64) -> Result<DeferredScalar> {
        let norm = self.apply_step(lr, clip);
        norm.map_err(|error| error.on(self.model.gpt.device(), TRAIN_IN_LESS_MEMORY))
    }

    fn decoder(&self, window: ContextPolicy) -> Result<Box<dyn Decoder + '_>> {
        Ok(Box::new(TensorDecoder::over(self.model.gpt.config(), self.model.gpt.params(), window)?))
    }

    fn params(&self) -> Result<Vec<Vec<f32>>> {
        let params: Vec<Tensor> = self.vars.iter().map(Var::as_detached_tensor).collect();
        self.flat.read(&self.flat.join(&params)?)
    }

    fn state_dict(&self) -> Result<EngineState> {
        let trained = self.lora.as_ref().map_or(&self.flat, |lora| &lora.flat);
        let slot =
            |(name, flat): (&&str, &Tensor)| Ok(StateSlot { name: name.to_string(), values: trained.read(flat)? });
        let DeviceOptimizer { rule, slots, .. } = &self.optimizer;
        let mut params = self.params()?;
        if let Some(lora) = &self.lora {
            lora.restore_base(&mut params)?;
        }
        Ok(EngineState {
            params,
            adapter: self.lora.as_ref().map(TensorLora::adapter).transpose()?,
            optimizer: rule.slots().iter().zip(slots).map(slot).collect::<Result<_>>()?,
            updates: self.optimizer.updates,
            loss_scaling: self.optimizer.loss_scaling()?,
        })
    }

    fn load_state_dict(&mut self, state: &EngineState) -> Result<()> {
        let (config, device) = (self.model.gpt.config().clone(), self.model.gpt.device().clone());
        let rule = Arc::clone(&self.optimizer.rule);
        let loaded = Self::new(&config, self.precision, rule, self.seed, state, &device)?;
        *self = Self { prior: self.prior, reference: self.reference.take(), ..loaded };
        Ok(())
    }
}
