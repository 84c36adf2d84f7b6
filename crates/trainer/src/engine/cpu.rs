//! The engine of the CPU: the model's forward and backward written by hand ([`tinygpt_model::cpu`]), updates in place.

use std::sync::Arc;

use tinygpt_model::{
    ContextPolicy, Decoder, Dropout, GptConfig, ParamSpec,
    cpu::{BatchRef, CpuDecoder, CpuGpt, CpuPrecision, CpuReference, ParamLayout, RowDropout, WeightFormat},
    dropout::MaskSource,
};
use tinygpt_sampler::simd::SimdLevel;

use super::{
    Batch, CpuUpdate, DeferredScalar, Engine, EngineState, Evaluator, Objective, Optimizer, Prior, Reference,
    StateSlot, adamw,
    lora::CpuLora,
    missing_gradient,
    optimizer::{check_slots, slot_values},
    tensors::CPU_SHARDS,
};
use crate::Result;

/// Computes the same as [`super::TensorEngine`] on the CPU, with the same dropout masks, many times faster.
#[derive(Debug)]
pub struct CpuEngine {
    gpt: CpuGpt,
    level: SimdLevel,
    optimizer: Arc<dyn Optimizer>,
    prior: Prior,
    seed: u64,
    /// The optimizer's state, flat, with the layout of the parameters that are trained.
    slots: Vec<Vec<f32>>,
    updates: u64,
    batches: usize,
    gradients_checked: bool,
    lora: Option<CpuLora>,
}

impl CpuEngine {
    /// Creates an engine that continues from `state`. `seed` is that of the dropout masks.
    ///
    /// # Errors
    /// When the state does not match the configuration or the optimizer.
    pub fn new(
        config: &GptConfig,
        precision: CpuPrecision,
        optimizer: impl Into<Arc<dyn Optimizer>>,
        seed: u64,
        state: &EngineState,
    ) -> Result<Self> {
        let optimizer = optimizer.into();
        check_slots(state, &*optimizer)?;
        let level = SimdLevel::detect();
        let mut gpt = CpuGpt::new(config, precision, &state.params)?;
        let lora = state.adapter.as_ref().map(|adapter| CpuLora::new(adapter, &state.params)).transpose()?;
        if let Some(lora) = &lora {
            gpt.optimizer_step(|layout, params, _| lora.merge(level, layout, params));
        }
        let layout = lora.as_ref().map_or(gpt.layout(), |lora| &lora.layout);
        let flat = |name: &&str| -> Result<Vec<f32>> {
            let mut flat = vec![0.0; layout.len()];
            layout.fill(&slot_values(state, name, layout.specs.iter().map(ParamSpec::len))?, &mut flat)?;
            Ok(flat)
        };
        Ok(Self {
            slots: optimizer.slots().iter().map(flat).collect::<Result<_>>()?,
            gpt,
            level,
            optimizer,
            prior: Prior::default(),
            seed,
            updates: state.updates,
            batches: 0,
            // A resumed run has passed the check.
            gradients_checked: state.updates > 0,
            lora,
        })
    }

    /// The sum of the gradients of all batches since the last optimizer step, in parameter order; for tests.
    #[doc(hidden)]
    pub fn gradients(&self) -> Vec<Vec<f32>> {
        if self.gpt.grads().is_empty() { Vec::new() } else { self.gpt.layout().split(self.gpt.grads()) }
    }

    fn check_gradients(&self) -> Result<()> {
        let layout = self.gpt.layout();
        for (spec, range) in layout.specs.iter().zip(&layout.ranges) {
            if self.gpt.grads()[range.clone()].iter().all(|&grad| grad == 0.0) {
                return Err(missing_gradient(spec, "an all-zero gradient"));
            }
        }
        Ok(())
    }
}

fn batch_ref(batch: &Batch) -> BatchRef<'_> {
    BatchRef { ids: &batch.ids, targets: &batch.targets, cols: batch.cols }
}

impl Evaluator for CpuGpt {
    fn config(&self) -> &GptConfig {
        self.config()
    }

    fn eval(&mut self, batch: &Batch) -> Result<f64> {
        Ok(self.losses(batch_ref(batch))?)
    }
}

impl Evaluator for CpuEngine {
    fn config(&self) -> &GptConfig {
        self.gpt.config()
    }

    fn eval(&mut self, batch: &Batch) -> Result<f64> {
        self.gpt.eval(batch)
    }
}

impl Engine for CpuEngine {
    fn set_objective(&mut self, objective: &Objective) -> Result<()> {
        let precision = self.gpt.precision();
        let reference = |of: &Reference| -> Result<CpuReference> {
            Ok(CpuReference { gpt: CpuGpt::new(&of.config, precision, &of.params)?, weight: of.weight as f32 })
        };
        self.gpt.stay_near(objective.reference.as_ref().map(reference).transpose()?)?;
        self.prior = objective.prior;
        Ok(())
    }

    fn forward_backward(&mut self, batch: &Batch, micro_step: u64) -> Result<DeferredScalar> {
        let (p, seed) = (self.gpt.config().dropout, self.seed);
        // The tensor engine draws masks for each shard of a batch; these are the same.
        let shards = CPU_SHARDS.clamp(1, batch.rows.max(1));
        let dropout = |row: usize| {
            let shard = (0..shards).rfind(|shard| shard * batch.rows / shards <= row)?;
            let step = micro_step * CPU_SHARDS as u64 + shard as u64;
            let row = row - shard * batch.rows / shards;
            (p > 0.0).then_some(RowDropout { dropout: Dropout { p, seed, step, source: MaskSource::Philox }, row })
        };
        let loss = self.gpt.forward_backward(batch_ref(batch), &dropout)?;
        self.batches += 1;
        // A diverged loss has no meaningful gradients, and the training loop reports it.
        if !self.gradients_checked && loss.is_finite() {
            self.check_gradients()?;
            self.gradients_checked = true;
        }
        Ok(DeferredScalar::Known(loss))
    }

    fn optimizer_step(&mut self, lr: f64, clip: f64) -> Result<DeferredScalar> {
        let (batches, prior) = (self.batches.max(1), self.prior);
        let mean = 1.0 / batches as f64;
        self.batches = 0;
        self.updates += 1;
        if !prior.is_none() {
            self.gpt.add_to_grads(|layout, params, grads| prior.add_to(layout, params, grads, batches));
        }
        let Self { gpt, level, optimizer, slots, updates, lora, .. } = self;
        let (level, n) = (*level, *updates);
        let mut step = |layout: &ParamLayout, params: &mut [f32], grads: &mut [f32]| {
            let norm = adamw::norm(level, grads) * mean;
            let scale = if clip > 0.0 && norm > clip { mean * clip / norm } else { mean };
            optimizer.step_cpu(CpuUpdate { level, layout, params, grads, slots, lr, scale, n }).map(|()| norm)
        };
        let mut norm = Ok(0.0);
        gpt.optimizer_step(|layout, params, grads| {
            norm = match lora {
                Some(lora) => lora.step(level, layout, params, grads, step),
                None => step(layout, params, grads),
            };
        });
        norm.map(DeferredScalar::Known)
    }

    fn decoder(&self, window: ContextPolicy) -> Result<Box<dyn Decoder + '_>> {
        let params: Vec<&[f32]> = self.gpt.layout().ranges.iter().map(|at| &self.gpt.params()[at.clone()]).collect();
        Ok(Box::new(CpuDecoder::new(self.gpt.config(), &params, window, WeightFormat::F32)?))
    }

    fn params(&self) -> Result<Vec<Vec<f32>>> {
        Ok(self.gpt.layout().split(self.gpt.params()))
    }

    fn state_dict(&self) -> Result<EngineState> {
        let layout = self.lora.as_ref().map_or(self.gpt.layout(), |lora| &lora.layout);
        let slot = |(name, flat): (&&str, &Vec<f32>)| StateSlot { name: name.to_string(), values: layout.split(flat) };
        let mut params = self.params()?;
        if let Some(lora) = &self.lora {
            lora.restore_base(&mut params);
        }
        Ok(EngineState {
            params,
            adapter: self.lora.as_ref().map(CpuLora::adapter),
            optimizer: self.optimizer.slots().iter().zip(&self.slots).map(slot).collect(),
            updates: self.updates,
            loss_scaling: None,
        })
    }

    fn load_state_dict(&mut self, state: &EngineState) -> Result<()> {
        let (config, optimizer) = (self.gpt.config().clone(), Arc::clone(&self.optimizer));
        let mut loaded = Self::new(&config, self.gpt.precision(), optimizer, self.seed, state)?;
        loaded.gpt.stay_near(self.gpt.stay_near(None)?)?;
        *self = Self { prior: self.prior, ..loaded };
        Ok(())
    }
}
