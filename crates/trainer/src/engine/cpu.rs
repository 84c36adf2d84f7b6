//! The engine of the CPU: the model's forward and backward written by hand ([`tinygpt_model::cpu`]), AdamW in place.

use tinygpt_model::{
    Dropout, GptConfig, Precision,
    cpu::{BatchRef, CpuGpt, RowDropout},
    dropout::MaskSource,
};
use tinygpt_sampler::simd::SimdLevel;

use super::{AdamW, Batch, DeferredScalar, Engine, EngineState, adamw, dead, tensors::CPU_SHARDS};
use crate::Result;

/// Computes what [`super::TensorEngine`] computes on the CPU, with the same dropout masks, many times faster.
#[derive(Debug)]
pub struct CpuEngine {
    gpt: CpuGpt,
    level: SimdLevel,
    adamw: AdamW,
    seed: u64,
    /// The moments, laid out as the parameters are.
    m: Vec<f32>,
    v: Vec<f32>,
    updates: u64,
    batches: usize,
    gradients_checked: bool,
}

impl CpuEngine {
    /// An engine that goes on from `state`. `seed` is that of the dropout masks.
    ///
    /// # Errors
    /// When the state does not match the configuration, or this processor lacks the precision.
    pub fn new(config: &GptConfig, precision: Precision, adamw: AdamW, seed: u64, state: &EngineState) -> Result<Self> {
        let gpt = CpuGpt::new(config, precision, &state.params)?;
        let flat = |values: &[Vec<f32>]| -> Result<Vec<f32>> {
            let mut flat = vec![0.0; gpt.layout().len()];
            gpt.layout().fill(values, &mut flat)?;
            Ok(flat)
        };
        Ok(Self {
            m: flat(&state.m)?,
            v: flat(&state.v)?,
            gpt,
            level: SimdLevel::detect(),
            adamw,
            seed,
            updates: state.updates,
            batches: 0,
            // Once is enough, and a run that goes on has passed it.
            gradients_checked: state.updates > 0,
        })
    }

    /// The gradients gathered since the last update (their sum over batches), in parameter order; for tests.
    pub fn gradients(&self) -> Vec<Vec<f32>> {
        self.gpt.layout().split(self.gpt.grads())
    }

    fn check_gradients(&self) -> Result<()> {
        let layout = self.gpt.layout();
        for (spec, range) in layout.specs.iter().zip(&layout.ranges) {
            if self.gpt.grads()[range.clone()].iter().all(|&grad| grad == 0.0) {
                return Err(dead(spec, "an all-zero gradient"));
            }
        }
        Ok(())
    }
}

fn windows(batch: &Batch) -> BatchRef<'_> {
    BatchRef { ids: &batch.ids, targets: &batch.targets, cols: batch.cols }
}

impl Engine for CpuEngine {
    fn config(&self) -> &GptConfig {
        self.gpt.config()
    }

    fn forward_backward(&mut self, batch: &Batch, draw: u64) -> Result<DeferredScalar> {
        let (p, seed) = (self.gpt.config().dropout, self.seed);
        // The masks of the composed engine, which are those of its shards.
        let shards = CPU_SHARDS.clamp(1, batch.rows.max(1));
        let dropout = |row: usize| {
            let shard = (0..shards).rfind(|shard| shard * batch.rows / shards <= row)?;
            let step = draw * CPU_SHARDS as u64 + shard as u64;
            let row = row - shard * batch.rows / shards;
            (p > 0.0).then_some(RowDropout { dropout: Dropout { p, seed, step, source: MaskSource::Philox }, row })
        };
        let loss = self.gpt.loss_and_grads(windows(batch), &dropout)?;
        self.batches += 1;
        // A diverged loss has no gradients to speak of; the loop reports it.
        if !self.gradients_checked && loss.is_finite() {
            self.check_gradients()?;
            self.gradients_checked = true;
        }
        Ok(DeferredScalar::Known(loss))
    }

    fn optimizer_step(&mut self, lr: f64, clip: f64) -> Result<DeferredScalar> {
        let mean = 1.0 / self.batches.max(1) as f64;
        self.batches = 0;
        self.updates += 1;
        let Self { gpt, level, adamw, m, v, updates, .. } = self;
        let norm = adamw::norm(*level, gpt.grads()) * mean;
        let scale = if clip > 0.0 && norm > clip { mean * clip / norm } else { mean };
        let update = adamw::Update::new(*adamw, lr, scale, *updates);
        gpt.update(|layout, params, grads| update.apply(*level, layout, params, grads, (m, v)));
        Ok(DeferredScalar::Known(norm))
    }

    fn eval(&mut self, batch: &Batch) -> Result<f64> {
        Ok(self.gpt.losses(windows(batch))?)
    }

    fn state_dict(&self) -> Result<EngineState> {
        let layout = self.gpt.layout();
        let [params, m, v] = [self.gpt.params(), &self.m, &self.v].map(|flat| layout.split(flat));
        Ok(EngineState { params, m, v, updates: self.updates, loss_scaling: None })
    }

    fn load_state_dict(&mut self, state: &EngineState) -> Result<()> {
        *self = Self::new(&self.gpt.config().clone(), self.gpt.precision(), self.adamw, self.seed, state)?;
        Ok(())
    }
}
