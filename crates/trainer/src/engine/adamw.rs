//! AdamW, and the global gradient norm. On the CPU each is one parallel pass over flat parameters; on other devices AdamW is
//! computed in tensor operations.

use std::sync::Arc;

use candle_core::Tensor;
use rayon::prelude::*;
use tinygpt_model::{ParamSpec, cpu::ParamLayout, ops::count_launch};
use tinygpt_sampler::simd::{Kernel, LANES, Lanes, Simd, SimdLevel};

use super::{
    CpuUpdate, Optimizer, RateFactors, TensorStep, TensorUpdate,
    lanes::{LaneOp, by_lanes},
    optimizer::{KernelRule, slot_count},
};
use crate::{Result, config::TrainConfig};

/// The hyper-parameters of AdamW (Loshchilov and Hutter, 2019).
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
    /// What the learning rate is multiplied with, for each group of parameters.
    pub rates: RateFactors,
}

impl From<&TrainConfig> for AdamW {
    fn from(c: &TrainConfig) -> Self {
        Self { beta1: c.beta1, beta2: c.beta2, eps: c.eps, weight_decay: c.weight_decay, rates: c.into() }
    }
}

impl From<AdamW> for Arc<dyn Optimizer> {
    fn from(adamw: AdamW) -> Self {
        Arc::new(adamw)
    }
}

impl Optimizer for AdamW {
    /// The first and the second moments.
    fn slots(&self) -> &'static [&'static str] {
        &["m", "v"]
    }

    fn step_cpu(&self, update: CpuUpdate<'_>) -> Result<()> {
        let CpuUpdate { level, layout, params, grads, slots, lr, scale, n } = update;
        let [m, v] = slots else { return Err(slot_count(self, slots.len())) };
        let params = split_params(layout, params, grads, (m, v));
        let tasks: Vec<_> = params.into_iter().flat_map(|param| self.tasks(param, lr, scale, n)).collect();
        tasks.into_par_iter().for_each(|task| level.run(task));
        Ok(())
    }

    fn step_tensors(&self, update: TensorUpdate<'_>) -> Result<TensorStep> {
        let TensorUpdate { grads, slots, lr, bias_corrected, .. } = update;
        let [m, v] = slots else { return Err(slot_count(self, slots.len())) };
        let Self { beta1, beta2, eps, .. } = *self;
        let old_and_new = |old: &Tensor, beta: f64, new: &Tensor| {
            count_launch(count_launch(old.affine(beta, 0.0))? + count_launch(new.affine(1.0 - beta, 0.0))?)
        };
        let m = old_and_new(m, beta1, grads)?;
        let v = old_and_new(v, beta2, &count_launch(grads.sqr())?)?;
        let root = count_launch(count_launch(bias_corrected(&v, beta2, 1.0)?.sqrt())?.affine(1.0, eps))?;
        let step = bias_corrected(&count_launch(m.div(&root))?, beta1, lr)?;
        Ok(TensorStep { slots: vec![m, v], step })
    }

    fn kernel_rule(&self) -> Option<KernelRule<'_>> {
        Some(KernelRule::AdamW(self))
    }

    fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    fn rate_factors(&self) -> RateFactors {
        self.rates
    }
}

/// The elements of a task. Sums of squares are added task by task, so the last bits of a norm depend on it.
const TASK_LEN: usize = 8192;

/// The L2 norm of flat gradients.
pub(super) fn norm(level: SimdLevel, grads: &[f32]) -> f64 {
    let blocks: Vec<f64> = grads.par_chunks(TASK_LEN).map(|block| level.run(Squares { block })).collect();
    blocks.iter().sum::<f64>().sqrt()
}

struct Squares<'a> {
    block: &'a [f32],
}

impl Kernel for Squares<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        let (vectors, rest) = self.block.as_chunks::<LANES>();
        let mut sums = [s.splat(0.0); 4];
        for vectors in vectors.chunks(sums.len()) {
            for (sum, x) in sums.iter_mut().zip(vectors) {
                let x = s.load(x);
                *sum = s.mul_add(x, x, *sum);
            }
        }
        let sum = s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])));
        f64::from(sum) + rest.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>()
    }
}

impl AdamW {
    /// Step `n` (from 1) of a parameter, in tasks of [`TASK_LEN`] elements. Its gradient is to be multiplied with `scale`.
    pub(super) fn tasks<'a>(
        &self,
        param: ParamMut<'a>,
        lr: f64,
        scale: f64,
        n: u64,
    ) -> impl Iterator<Item = AdamWKernel<'a>> + use<'a> {
        let ParamMut { spec, p, g, m, v } = param;
        let factors = StepFactors::new(*self, spec, lr, scale, n);
        let blocks =
            p.chunks_mut(TASK_LEN).zip(g.chunks_mut(TASK_LEN)).zip(m.chunks_mut(TASK_LEN)).zip(v.chunks_mut(TASK_LEN));
        blocks.map(move |(((p, g), m), v)| AdamWKernel { factors, p, g, m, v })
    }
}

/// A parameter, its gradient and its two slots of state.
pub(super) struct ParamMut<'a> {
    pub(super) spec: &'a ParamSpec,
    pub(super) p: &'a mut [f32],
    pub(super) g: &'a mut [f32],
    pub(super) m: &'a mut [f32],
    pub(super) v: &'a mut [f32],
}

/// Splits flat buffers into the parameters.
pub(super) fn split_params<'a>(
    layout: &'a ParamLayout,
    params: &'a mut [f32],
    grads: &'a mut [f32],
    (m, v): (&'a mut [f32], &'a mut [f32]),
) -> Vec<ParamMut<'a>> {
    let mut rest = [params, grads, m, v];
    let mut end = 0;
    let param = |(spec, range): (&'a ParamSpec, &std::ops::Range<usize>)| {
        let (skip, len) = (range.start - end, range.len());
        end = range.end;
        let [p, g, m, v] = rest.each_mut().map(|rest| split_off(rest, skip, len));
        ParamMut { spec, p, g, m, v }
    };
    layout.specs.iter().zip(&layout.ranges).map(param).collect()
}

/// Removes the first `skip + len` elements of a slice and returns the last `len` of them.
fn split_off<'a>(rest: &mut &'a mut [f32], skip: usize, len: usize) -> &'a mut [f32] {
    let (this, behind) = std::mem::take(rest)[skip..].split_at_mut(len);
    *rest = behind;
    this
}

/// The scalar factors of one AdamW step of a parameter (Loshchilov and Hutter, 2019, algorithm 2).
#[derive(Clone, Copy)]
struct StepFactors {
    beta1: f32,
    beta2: f32,
    /// The factor of a gradient in the first moment: `scale (1 - beta1)`.
    into_m: f32,
    /// The factor of a gradient before it is squared: that of the mean and of clipping.
    scale: f32,
    /// The factor of the square of a scaled gradient in the second moment: `1 - beta2`.
    into_v: f32,
    /// `1 / (1 - beta2^n)`.
    correction2: f32,
    eps: f32,
    /// `lr / (1 - beta1^n)`.
    rate: f32,
    /// The weight decay factor, `1 - lr * weight_decay`; 1 for vectors.
    decay: f32,
}

impl StepFactors {
    /// The factors of step `n` (from 1), with a gradient that is to be multiplied with `scale`.
    fn new(adamw: AdamW, spec: &ParamSpec, lr: f64, scale: f64, n: u64) -> Self {
        let AdamW { beta1, beta2, eps, weight_decay, rates } = adamw;
        let lr = lr * rates.of(spec.role);
        Self {
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            into_m: (scale * (1.0 - beta1)) as f32,
            scale: scale as f32,
            into_v: (1.0 - beta2) as f32,
            correction2: (1.0 / (1.0 - beta2.powf(n as f64))) as f32,
            eps: eps as f32,
            rate: (lr / (1.0 - beta1.powf(n as f64))) as f32,
            decay: if spec.decays() { (1.0 - lr * weight_decay) as f32 } else { 1.0 },
        }
    }
}

/// The step of a block of elements: it updates parameters and moments and zeroes the gradients.
pub(super) struct AdamWKernel<'a> {
    factors: StepFactors,
    p: &'a mut [f32],
    g: &'a mut [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
}

impl Kernel for AdamWKernel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { factors, p, g, m, v } = self;
        by_lanes(s, &factors, [p, g, m, v]);
    }
}

impl LaneOp<4> for StepFactors {
    #[inline(always)]
    fn lanes<S: Simd>(&self, s: S, [p, g, m, v]: [&mut Lanes; 4]) {
        let grad = s.load(g);
        let scaled = s.mul(grad, s.splat(self.scale));
        let new_m = s.mul_add(s.load(m), s.splat(self.beta1), s.mul(grad, s.splat(self.into_m)));
        let new_v = s.mul_add(s.load(v), s.splat(self.beta2), s.mul(s.mul(scaled, scaled), s.splat(self.into_v)));
        let root = s.add(s.sqrt(s.mul(new_v, s.splat(self.correction2))), s.splat(self.eps));
        let step = s.mul(s.div(new_m, root), s.splat(self.rate));
        s.store(s.sub(s.mul(s.load(p), s.splat(self.decay)), step), p);
        s.store(new_m, m);
        s.store(new_v, v);
        *g = [0.0; LANES];
    }
}
