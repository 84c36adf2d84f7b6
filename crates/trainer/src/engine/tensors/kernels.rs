//! Clipping and AdamW as CUDA kernels, each over all parameters in one launch.

use candle_core::{DType, Device, Tensor};
use tinygpt_model::{ops::count_launch, plan::Role};
use tinygpt_sampler::kernels::{Arg, Grid, Kernels, Module};

use super::FlatParams;
use crate::{
    Result,
    engine::{AdamW, optimizer::slot_count},
};

const MODULE: Module = Module { name: "optimizer", ptx: include_str!("../../../kernels/optimizer.ptx") };

/// The elements of a block.
const ELEMENTS: usize = 1024;

/// The words of a parameter in the table that the kernels read.
const WORDS: usize = 7;

/// A step of AdamW.
pub(super) struct AdamWStep<'a> {
    pub(super) rule: &'a AdamW,
    pub(super) flat: &'a FlatParams,
    /// The parameters, which are updated in place.
    pub(super) params: &'a [Tensor],
    /// The sum of their gradients.
    pub(super) grads: &'a [Tensor],
    /// The moments, flat, which are updated in place.
    pub(super) slots: &'a [Tensor],
    /// The number of this step, from 1.
    pub(super) n: u64,
    pub(super) lr: f64,
    /// The factor that makes the sum of gradients their mean.
    pub(super) mean: f64,
    pub(super) clip: f64,
}

impl AdamWStep<'_> {
    /// Queues the step, and returns the norm of the gradients before clipping.
    pub(super) fn run(&self, kernels: &Kernels, device: &Device) -> Result<Tensor> {
        let [m, v] = self.slots else { return Err(slot_count(self.rule, self.slots.len())) };
        // The kernels read floats, one after the other.
        let in_order = |grad: &Tensor| grad.to_dtype(DType::F32)?.contiguous();
        let grads = self.grads.iter().map(in_order).collect::<candle_core::Result<Vec<_>>>()?;
        let (table, blocks) = self.table(kernels, &grads)?;
        let parameters = table.len() / WORDS;
        let table = count_launch(Tensor::from_vec(table, parameters * WORDS, device))?;
        let rows = [Arg::Tensor(&table), Arg::U32(parameters as u32)];

        let sums = kernels.output(blocks, DType::F32)?;
        let args = [&rows[..], &[Arg::Tensor(&sums)]].concat();
        let queued = kernels.launch(MODULE, "sum_of_squares", Grid::new(blocks, 256), &args);
        let sums = count_launch(queued.map(|()| sums))?;

        let norm_and_factor = kernels.output(2, DType::F32)?;
        let args = [
            Arg::Tensor(&sums),
            Arg::Tensor(&norm_and_factor),
            Arg::U32(blocks as u32),
            Arg::F32(self.mean as f32),
            Arg::F32(self.clip as f32),
        ];
        let queued = kernels.launch(MODULE, "clip_factor", Grid::new(1, 256), &args);
        let norm_and_factor = count_launch(queued.map(|()| norm_and_factor))?;

        let AdamW { beta1, beta2, eps, .. } = *self.rule;
        let correction = |beta: f64| 1.0 / (1.0 - beta.powf(self.n as f64));
        let scales = [self.lr * correction(beta1), correction(beta2)];
        let numbers = [beta1, beta2, 1.0 - beta1, 1.0 - beta2, eps, scales[0], scales[1]].map(|x| Arg::F32(x as f32));
        let state = [Arg::Tensor(&norm_and_factor), Arg::Tensor(m), Arg::Tensor(v)];
        let args = [&rows[..], &state, &numbers].concat();
        let queued = kernels.launch(MODULE, "adamw", Grid::new(blocks, 256), &args);
        Ok(count_launch(queued.map(|()| norm_and_factor))?.get(0)?)
    }

    /// The rows of all parameters, and the blocks of a launch.
    fn table(&self, kernels: &Kernels, grads: &[Tensor]) -> Result<(Vec<i64>, usize)> {
        let mut words = Vec::with_capacity(WORDS * grads.len());
        let mut blocks = 0;
        for ((spec, range), (param, grad)) in self.flat.iter().zip(self.params.iter().zip(grads)) {
            let rate = self.rule.rates.of(spec.role);
            let group = if spec.role == Role::Matrix { self.rule.rates.matrices } else { self.rule.rates.embeddings };
            let decay = if spec.decays() { 1.0 - self.lr * group * self.rule.weight_decay } else { 1.0 };
            words.extend([
                kernels.address(param)?,
                kernels.address(grad)?,
                blocks as u64,
                range.len() as u64,
                range.start as u64,
                u64::from((decay as f32).to_bits()),
                u64::from((rate as f32).to_bits()),
            ]);
            blocks += range.len().div_ceil(ELEMENTS);
        }
        Ok((words.into_iter().map(u64::cast_signed).collect(), blocks))
    }
}
