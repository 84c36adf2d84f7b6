//! The head in CPU training: logits, cross-entropy and gradients in tasks of a few rows, so that `(B * T, V)` logits are
//! never held at once.

use tinygpt_sampler::simd::{Kernel, LANES, Simd, SimdLevel, exp};

use super::LogitCap;
use crate::cpu::{
    CpuPrecision,
    matmul::{Accumulate, Pair},
    operand::{Operand, OperandScratch, OuterProduct, Storage},
    rows::Rows,
    training::PackedMatrix,
    vectors,
};

/// The rows of logits of a task.
pub(crate) const TASK_ROWS: usize = 64;

/// The rows of the weights' gradient that one task computes.
pub(crate) const GRAD_TASK_ROWS: usize = 16;

/// The head for up to [`TASK_ROWS`] rows `n` of one sequence.
pub(crate) struct HeadTask<'a> {
    /// The hidden states of the sequence, `(T, C)`.
    pub(crate) hidden: &'a Operand,
    /// Their quantized rows, `(T, C / 2)` pairs.
    pub(crate) quantized: &'a Rows<Pair>,
    /// The first row of the task, an even number.
    pub(crate) from: usize,
    /// The target token of each row, `(n)`.
    pub(crate) targets: &'a [u32],
    /// The cross-entropy of each row, `(n)`, to be written.
    pub(crate) losses: &'a mut [f32],
    /// The gradients of the rows of `hidden`, `(n, C)`, to be written.
    pub(crate) dx: &'a mut [f32],
    /// The leading dimension of `dx`.
    pub(crate) ld: usize,
    /// The hidden states of the sequence in a model that training stays near, and their quantized rows.
    pub(crate) reference: Option<(&'a Operand, &'a Rows<Pair>)>,
}

/// The head of a model that training stays near.
#[derive(Clone, Copy)]
pub(crate) struct ReferenceHead<'a> {
    /// Its matrix `(V, C)`, and what its logits are capped at.
    pub(crate) head: (&'a PackedMatrix, Option<LogitCap>),
    /// The weight of `KL(reference || model)` in the loss.
    pub(crate) weight: f32,
}

impl HeadTask<'_> {
    fn rows(&self) -> std::ops::Range<usize> {
        self.from..self.from + self.targets.len()
    }
}

/// The buffers of a [`HeadTask`].
#[derive(Debug)]
pub(crate) struct HeadWorkspace {
    /// Logits, then their gradient, `(TASK_ROWS, V)`.
    logits: Operand,
    /// The derivatives of capped logits, `(TASK_ROWS, V)`; no rows where nothing caps them.
    cap_grad: Rows,
    scratch: OperandScratch,
}

impl HeadWorkspace {
    /// Allocates the buffers.
    pub(crate) fn new(precision: CpuPrecision, vocab_size: usize, cap: Option<LogitCap>) -> Self {
        let logits = Operand::new(precision, TASK_ROWS, vocab_size, Storage { matmul_operand: true, kept: false });
        let cap_grad = Rows::zeros(if cap.is_some() { TASK_ROWS } else { 0 }, vocab_size);
        Self { logits, cap_grad, scratch: OperandScratch::new(precision, TASK_ROWS, vocab_size) }
    }

    /// The logits of some rows of a sequence, at most [`TASK_ROWS`]: `(n, V)`, capped, with the derivatives of the cap beside
    /// them.
    pub(crate) fn logits(
        &mut self,
        level: SimdLevel,
        (packed, cap): (&PackedMatrix, Option<LogitCap>),
        (hidden, quantized): (&Operand, &Rows<Pair>),
        rows: std::ops::Range<usize>,
    ) -> &Rows {
        let Self { logits: operand, cap_grad, scratch } = self;
        let logits = operand.rows_mut(&mut scratch.rows);
        let (n, ld) = (rows.len(), logits.ld);
        hidden.multiply(level, rows, quantized, &packed.transposed, Accumulate::Zero, (logits.at_mut(0, 0), ld));
        if let Some(cap) = cap {
            for i in 0..n {
                cap.apply_cpu(level, logits.row_mut(i), Some(cap_grad.row_mut(i)));
            }
        }
        logits
    }

    /// The gradients `scale (p - onehot)` of the cross-entropies of a task under the reference's distributions p, `(n, V)`.
    fn reference_gradients(
        &mut self,
        level: SimdLevel,
        head: (&PackedMatrix, Option<LogitCap>),
        task: &HeadTask<'_>,
        scale: f32,
    ) -> Option<&Rows> {
        self.logits(level, head, task.reference?, task.rows());
        let logits = self.logits.rows_mut(&mut self.scratch.rows);
        for (i, &target) in task.targets.iter().enumerate() {
            level.run(CrossEntropy { logits: logits.row_mut(i), target: target as usize, scale: Some(scale) });
        }
        Some(logits)
    }

    /// Computes the losses of a task, and with `scale` the gradients of `scale` times their sum. `packed` is the head's
    /// matrix `(V, C)`, and `cap` what its logits are capped at. With a reference, and a workspace for it, the gradients are
    /// those of the losses and the weighted divergences from it.
    pub(crate) fn run(
        &mut self,
        level: SimdLevel,
        (packed, cap): (&PackedMatrix, Option<LogitCap>),
        task: &mut HeadTask<'_>,
        scale: Option<f32>,
        reference: Option<(ReferenceHead<'_>, &mut Self)>,
    ) {
        let n = task.targets.len();
        let pull = reference.zip(scale).and_then(|((ReferenceHead { head, weight }, workspace), scale)| {
            Some((workspace.reference_gradients(level, head, task, weight * scale)?, weight))
        });
        self.logits(level, (packed, cap), (task.hidden, task.quantized), task.rows());
        let Self { logits: operand, cap_grad, scratch } = self;
        let logits = operand.rows_mut(&mut scratch.rows);
        for (i, (&target, loss)) in task.targets.iter().zip(&mut *task.losses).enumerate() {
            let row = logits.row_mut(i);
            *loss = level.run(CrossEntropy { logits: row, target: target as usize, scale });
            if let Some((pull, weight)) = pull {
                // (q - onehot) + weight (q - p), from (q - onehot) and weight (p - onehot).
                row.iter_mut().zip(pull.row(i)).for_each(|(grad, pull)| *grad = (1.0 + weight) * *grad - pull);
            }
            if cap.is_some() {
                row.iter_mut().zip(cap_grad.row(i)).for_each(|(grad, cap_grad)| *grad *= cap_grad);
            }
        }
        if scale.is_some() {
            operand.quantize(level, n, scratch);
            operand.multiply(level, 0..n, &scratch.quantized, &packed.weight, Accumulate::Zero, (task.dx, task.ld));
        }
    }

    /// The contribution of the task that was run last to the gradient `(V, C)` of the head's weights.
    pub(crate) fn weight_grads<'a>(&'a self, task: &'a HeadTask<'_>) -> OuterProduct<'a> {
        OuterProduct { x: &self.logits, y: task.hidden, rows: task.rows() }
    }
}

/// The cross-entropy of one row of logits `(V)`. With `scale`, it overwrites the logits with their gradient times `scale`.
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
        // The maximum and `exp` would not propagate a NaN.
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
