//! A step of Muon on the CPU: one task for each matrix, beside those of AdamW.

use std::{
    cmp::Reverse,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rayon::prelude::*;
use tinygpt_model::{cpu::Orthogonalizer, plan::Role};
use tinygpt_sampler::simd::{Kernel, LANES, Lanes, Simd, SimdLevel};

use super::{Muon, shape_factor};
use crate::{
    Result,
    engine::{
        CpuUpdate,
        adamw::{AdamWKernel, ParamMut, split_params},
        groups::columns,
        lanes::{LaneOp, by_lanes},
        optimizer::slot_count,
    },
};

/// What the orthogonalisation works in, for each thread that has been at it, kept from step to step.
#[derive(Debug, Default)]
pub(super) struct Memory(Mutex<Vec<Orthogonalizer>>);

/// Contents are whole between locks, whatever another thread has died of.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What one thread does at a time.
enum Task<'a> {
    Matrix(ParamMut<'a>),
    Rest(AdamWKernel<'a>),
}

/// The scalars of a step of a matrix.
#[derive(Clone, Copy)]
struct Factors {
    momentum: f32,
    /// The factor of a gradient in the momentum and beside it: `scale (1 - mu)`.
    into_m: f32,
    /// The learning rate of matrices, without the factor of their shape.
    rate: f64,
    /// The factor of weight decay.
    decay: f32,
}

impl Muon {
    pub(super) fn on_cpu(&self, update: CpuUpdate<'_>) -> Result<()> {
        let CpuUpdate { level, layout, params, grads, slots, lr, scale, n } = update;
        let [m, v] = slots else { return Err(slot_count(self, slots.len())) };
        let rate = lr * self.adamw.rates.matrices;
        let factors = Factors {
            momentum: self.momentum as f32,
            into_m: (scale * (1.0 - self.momentum)) as f32,
            rate,
            decay: (1.0 - rate * self.adamw.weight_decay) as f32,
        };
        let (mut matrices, mut tasks) = (Vec::new(), Vec::new());
        for param in split_params(layout, params, grads, (m, v)) {
            if param.spec.role == Role::Matrix {
                matrices.push(param);
            } else {
                tasks.extend(self.adamw.tasks(param, lr, scale, n).map(Task::Rest));
            }
        }
        // The longest tasks first, so that threads end at about the same time.
        matrices.sort_by_key(|matrix| Reverse(multiply_adds(matrix)));
        let queue = Mutex::new(matrices.into_iter().map(Task::Matrix).chain(tasks));
        let next = || lock(&queue).next();
        (0..rayon::current_num_threads()).into_par_iter().with_max_len(1).for_each(|_| {
            let mut memory = None;
            while let Some(task) = next() {
                match task {
                    Task::Matrix(matrix) => {
                        let memory = memory.get_or_insert_with(|| lock(&self.memory.0).pop().unwrap_or_default());
                        self.step_matrix(level, matrix, factors, memory);
                    }
                    Task::Rest(kernel) => level.run(kernel),
                }
            }
            lock(&self.memory.0).extend(memory);
        });
        Ok(())
    }

    /// The step of one parameter, whose matrices are orthogonalised one after the other.
    fn step_matrix(&self, level: SimdLevel, param: ParamMut<'_>, factors: Factors, memory: &mut Orthogonalizer) {
        let ParamMut { spec, p, g, m, .. } = param;
        let (n_in, ld) = (spec.shape[0], spec.shape[1]);
        let mut from = 0;
        for &n_out in columns(spec) {
            memory.start(n_in, n_out);
            let part = Part { rows: n_in, cols: n_out, ld, from };
            level.run(Momentum { part, factors, g, m, to: memory });
            memory.orthogonalize(level, self.coefficients);
            let rate = (factors.rate * shape_factor(n_in, n_out)) as f32;
            level.run(Subtract { part, rate, decay: factors.decay, p, step: memory });
            from += n_out;
        }
    }
}

/// About the cost of the orthogonalisation of all matrices of a parameter.
fn multiply_adds(param: &ParamMut<'_>) -> usize {
    let n_in = param.spec.shape[0];
    let of = |&n_out: &usize| n_in.min(n_out) * (n_in * n_out + 2 * n_in.min(n_out).pow(2));
    columns(param.spec).iter().map(of).sum()
}

/// A matrix (rows, cols) among the columns of a row-major one whose rows have `ld` elements, from column `from` on.
#[derive(Clone, Copy)]
struct Part {
    rows: usize,
    cols: usize,
    ld: usize,
    from: usize,
}

impl Part {
    #[inline(always)]
    fn row<'a>(&self, x: &'a mut [f32], i: usize) -> &'a mut [f32] {
        &mut x[i * self.ld + self.from..][..self.cols]
    }
}

/// Adds the gradient to the momentum, zeroes it, and writes what is to be orthogonalised.
struct Momentum<'a> {
    part: Part,
    factors: Factors,
    g: &'a mut [f32],
    m: &'a mut [f32],
    to: &'a mut Orthogonalizer,
}

impl Kernel for Momentum<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { part, factors, g, m, to } = self;
        for i in 0..part.rows {
            by_lanes(s, &factors, [part.row(g, i), part.row(m, i), to.row_mut(i)]);
        }
    }
}

impl LaneOp<3> for Factors {
    #[inline(always)]
    fn lanes<S: Simd>(&self, s: S, [g, m, u]: [&mut Lanes; 3]) {
        let momentum = s.splat(self.momentum);
        let scaled = s.mul(s.load(g), s.splat(self.into_m));
        let new = s.mul_add(s.load(m), momentum, scaled);
        s.store(new, m);
        s.store(s.mul_add(new, momentum, scaled), u);
        *g = [0.0; LANES];
    }
}

/// Decays a matrix and subtracts a multiple of the orthogonalised one.
struct Subtract<'a> {
    part: Part,
    rate: f32,
    decay: f32,
    p: &'a mut [f32],
    step: &'a mut Orthogonalizer,
}

impl Kernel for Subtract<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { part, rate, decay, p, step } = self;
        for i in 0..part.rows {
            by_lanes(s, &DecayedStep { rate, decay }, [part.row(p, i), step.row_mut(i)]);
        }
    }
}

/// `p = decay p - rate x`.
struct DecayedStep {
    rate: f32,
    decay: f32,
}

impl LaneOp<2> for DecayedStep {
    #[inline(always)]
    fn lanes<S: Simd>(&self, s: S, [p, x]: [&mut Lanes; 2]) {
        s.store(s.sub(s.mul(s.load(p), s.splat(self.decay)), s.mul(s.load(x), s.splat(self.rate))), p);
    }
}
