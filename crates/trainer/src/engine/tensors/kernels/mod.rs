//! Clipping and the update rules as CUDA kernels, each over all parameters in one launch; the products of Muon are cuBLAS's.

mod muon;

use candle_core::{DType, Device, Tensor};
use tinygpt_model::{ops::count_launch, plan::Role};
use tinygpt_sampler::kernels::{Arg, Grid, Kernels, Module};

use super::FlatParams;
use crate::{
    Result,
    engine::{
        AdamW, Optimizer,
        optimizer::{KernelRule, slot_count},
    },
};

const MODULE: Module = Module { name: "optimizer", ptx: include_str!("../../../../kernels/optimizer.ptx") };

/// The elements of a block.
const ELEMENTS: usize = 1024;

/// The words of a parameter in the table that the kernels read.
const WORDS: usize = 7;

/// A step of an update rule.
pub(super) struct KernelStep<'a> {
    pub(super) flat: &'a FlatParams,
    /// The parameters, which are updated in place.
    pub(super) params: &'a [Tensor],
    /// The sum of their gradients.
    pub(super) grads: &'a [Tensor],
    /// The rule's state, flat, which is updated in place.
    pub(super) slots: &'a [Tensor],
    /// The number of this step, from 1.
    pub(super) n: u64,
    pub(super) lr: f64,
    /// The factor that makes the sum of gradients their mean.
    pub(super) mean: f64,
    pub(super) clip: f64,
}

impl KernelStep<'_> {
    /// Queues the step, and returns the norm of the gradients before clipping.
    pub(super) fn run(&self, rule: KernelRule<'_>, kernels: &Kernels, device: &Device) -> Result<Tensor> {
        // The kernels read floats, one after the other.
        let in_order = |grad: &Tensor| grad.to_dtype(DType::F32)?.contiguous();
        let grads = self.grads.iter().map(in_order).collect::<candle_core::Result<Vec<_>>>()?;
        let norm_and_factor = match rule {
            KernelRule::AdamW(rule) => {
                let mut table = Table::default();
                self.add_rows(&mut table, kernels, rule, &grads, |_| true)?;
                let rows = table.upload(device)?;
                let norm_and_factor = self.clip(kernels, &rows)?;
                self.adamw(kernels, rule, &rows, &norm_and_factor)?;
                norm_and_factor
            }
            KernelRule::Muon(rule) => self.muon(kernels, rule, &grads, device)?,
        };
        Ok(norm_and_factor.get(0)?)
    }

    /// The norm of all gradients, and what they are multiplied with to be their clipped mean.
    fn clip(&self, kernels: &Kernels, rows: &Rows) -> Result<Tensor> {
        let sums = kernels.output(rows.blocks, DType::F32)?;
        let args = [&rows.args()[..], &[Arg::Tensor(&sums)]].concat();
        let queued = kernels.launch(MODULE, "sum_of_squares", Grid::new(rows.blocks, 256), &args);
        let sums = count_launch(queued.map(|()| sums))?;
        let norm_and_factor = kernels.output(2, DType::F32)?;
        let args = [
            Arg::Tensor(&sums),
            Arg::Tensor(&norm_and_factor),
            Arg::U32(rows.blocks as u32),
            Arg::F32(self.mean as f32),
            Arg::F32(self.clip as f32),
        ];
        let queued = kernels.launch(MODULE, "clip_factor", Grid::new(1, 256), &args);
        Ok(count_launch(queued.map(|()| norm_and_factor))?)
    }

    /// A step of AdamW of the parameters in `rows`.
    fn adamw(&self, kernels: &Kernels, rule: &AdamW, rows: &Rows, norm_and_factor: &Tensor) -> Result<()> {
        let [m, v] = self.slots else { return Err(slot_count(rule, self.slots.len())) };
        let AdamW { beta1, beta2, eps, .. } = *rule;
        let correction = |beta: f64| 1.0 / (1.0 - beta.powf(self.n as f64));
        let scales = [self.lr * correction(beta1), correction(beta2)];
        let numbers = [beta1, beta2, 1.0 - beta1, 1.0 - beta2, eps, scales[0], scales[1]].map(|x| Arg::F32(x as f32));
        let state = [Arg::Tensor(norm_and_factor), Arg::Tensor(m), Arg::Tensor(v)];
        let args = [&rows.args()[..], &state, &numbers].concat();
        Ok(count_launch(kernels.launch(MODULE, "adamw", Grid::new(rows.blocks, 256), &args))?)
    }

    /// Adds the rows of the parameters of some roles to a table.
    fn add_rows(
        &self,
        table: &mut Table,
        kernels: &Kernels,
        rule: &AdamW,
        grads: &[Tensor],
        wanted: impl Fn(Role) -> bool,
    ) -> Result<()> {
        for ((spec, range), (param, grad)) in self.flat.iter().zip(self.params.iter().zip(grads)) {
            if !wanted(spec.role) {
                continue;
            }
            let rate = rule.rates.of(spec.role);
            let decay = if spec.decays() { self.decay(rule, spec.role) } else { 1.0 };
            table.words.extend([
                kernels.address(param)?,
                kernels.address(grad)?,
                table.blocks as u64,
                range.len() as u64,
                range.start as u64,
                u64::from((decay as f32).to_bits()),
                u64::from((rate as f32).to_bits()),
            ]);
            table.rows += 1;
            table.blocks += range.len().div_ceil(ELEMENTS);
        }
        Ok(())
    }

    /// What weight decay multiplies the parameters of a role with.
    fn decay(&self, rule: &AdamW, role: Role) -> f64 {
        let group = if role == Role::Matrix { rule.rates.matrices } else { rule.rates.embeddings };
        1.0 - self.lr * group * rule.weight_decay()
    }
}

/// A table that kernels read, on the host.
#[derive(Default)]
struct Table {
    words: Vec<u64>,
    rows: usize,
    /// The blocks of a launch over all rows.
    blocks: usize,
}

impl Table {
    fn upload(self, device: &Device) -> Result<Rows> {
        let Self { rows, blocks, .. } = self;
        Ok(Rows { words: upload(self.words, device)?, rows, blocks })
    }
}

/// Words on the device, in one upload.
fn upload(words: Vec<u64>, device: &Device) -> Result<Tensor> {
    let words: Vec<i64> = words.into_iter().map(u64::cast_signed).collect();
    let n = words.len();
    Ok(count_launch(Tensor::from_vec(words, n, device))?)
}

/// Rows of a table on the device, and the blocks of a launch over them.
struct Rows {
    words: Tensor,
    rows: usize,
    blocks: usize,
}

impl Rows {
    /// The first arguments of a kernel that goes over them.
    fn args(&self) -> [Arg<'_>; 2] {
        [Arg::Tensor(&self.words), Arg::U32(self.rows as u32)]
    }
}
