//! The head: logits, cross-entropy and their gradient for a few rows at a time, so that no `(B * T, V)` is ever held.

use tinygpt_sampler::simd::{Kernel, LANES, Simd, SimdLevel, exp};

use crate::cpu::{
    CpuPrecision,
    matmul::{Accumulate, Pair},
    operand::{Operand, OperandScratch, Storage},
    rows::Rows,
    training::PackedMatrix,
    vectors,
};

/// Rows of a unit of work.
pub(crate) const TASK_ROWS: usize = 64;

/// Rows of the weights' gradient that are one task.
pub(crate) const GRAD_TASK_ROWS: usize = 16;

/// What a unit computes of one sequence.
pub(crate) struct HeadTask<'a> {
    /// What the head reads, from row `from` on, an even number; with its quantized rows.
    pub(crate) hidden: &'a Operand,
    pub(crate) quantized: &'a Rows<Pair>,
    pub(crate) from: usize,
    /// The token of each row, at most [`TASK_ROWS`].
    pub(crate) targets: &'a [u32],
    /// Gets the cross-entropy of each row.
    pub(crate) losses: &'a mut [f32],
    /// Gets the gradients of those rows of `hidden`, with the distance between rows.
    pub(crate) dx: &'a mut [f32],
    pub(crate) ld: usize,
}

impl HeadTask<'_> {
    fn rows(&self) -> std::ops::Range<usize> {
        self.from..self.from + self.targets.len()
    }
}

/// The logits of up to [`TASK_ROWS`] rows, which become their gradient.
#[derive(Debug)]
pub(crate) struct HeadWorkspace {
    logits: Operand,
    scratch: OperandScratch,
}

impl HeadWorkspace {
    pub(crate) fn new(precision: CpuPrecision, vocab_size: usize) -> Self {
        let logits = Operand::new(precision, TASK_ROWS, vocab_size, Storage { matmul_operand: true, kept: false });
        Self { logits, scratch: OperandScratch::new(precision, TASK_ROWS, vocab_size) }
    }

    /// The losses of a task, and the gradients of `scale` times their sum. `packed` is the head's `(V, C)`.
    pub(crate) fn run(&mut self, level: SimdLevel, packed: &PackedMatrix, task: &mut HeadTask<'_>, scale: Option<f32>) {
        let Self { logits: operand, scratch } = self;
        let logits = operand.rows_mut(&mut scratch.rows);
        let (n, ld) = (task.targets.len(), logits.ld);
        task.hidden.multiply(
            level,
            task.rows(),
            task.quantized,
            &packed.transposed,
            Accumulate::Zero,
            (logits.at_mut(0, 0), ld),
        );
        for (i, (&target, loss)) in task.targets.iter().zip(&mut *task.losses).enumerate() {
            *loss = level.run(CrossEntropy { logits: logits.row_mut(i), target: target as usize, scale });
        }
        if scale.is_some() {
            operand.quantize(level, n, scratch);
            operand.multiply(level, 0..n, &scratch.quantized, &packed.weight, Accumulate::Zero, (task.dx, task.ld));
        }
    }

    /// Adds the share of a task that was run to rows `first..` of the gradient of the head's weights `(V, C)`.
    pub(crate) fn add_weight_grads(&self, level: SimdLevel, first: usize, grad: &mut [f32], task: &HeadTask<'_>) {
        self.logits.add_outer(level, first, task.hidden, task.rows(), grad);
    }
}

/// The cross-entropy of one row. With a scale, its gradient times that takes the place of the logits.
struct CrossEntropy<'a> {
    logits: &'a mut [f32],
    target: usize,
    scale: Option<f32>,
}

impl Kernel for CrossEntropy<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let Self { logits, target, scale } = self;
        let vocab_size = logits.len();
        let count = vectors::count(logits);
        let mut largest = s.splat(f32::MIN);
        let mut unordered = 0;
        for v in 0..vocab_size / LANES {
            let x = vectors::get(s, logits, v);
            largest = s.max(largest, x);
            unordered |= s.unordered(x, x);
        }
        let mut lanes = [0.0; LANES];
        s.store(largest, &mut lanes);
        let rest = &logits[vocab_size / LANES * LANES..];
        // The largest and the weights would pass a NaN over.
        if unordered != 0 || rest.iter().any(|x| x.is_nan()) {
            logits.fill(f32::NAN);
            return f32::NAN;
        }
        let max = lanes.iter().chain(rest).copied().fold(f32::MIN, f32::max);
        let weight = |logits: &[f32], v| {
            let below = s.sub(vectors::get(s, logits, v), s.splat(max));
            s.keep(vectors::lane_mask(vocab_size, v), exp(s, below))
        };
        let picked = logits[target];
        let mut sum = s.splat(0.0);
        for v in 0..count {
            let weight = weight(logits, v);
            sum = s.add(sum, weight);
            vectors::set(s, logits, v, weight);
        }
        let sum = s.sum(sum);
        if let Some(scale) = scale {
            let factor = s.splat(scale / sum);
            for v in 0..count {
                let grad = s.mul(vectors::get(s, logits, v), factor);
                vectors::set(s, logits, v, grad);
            }
            logits[target] -= scale;
        }
        max + sum.ln() - picked
    }
}
