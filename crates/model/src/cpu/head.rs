//! The head: logits, cross-entropy and their gradient for a few rows at a time, so that no `(B * T, V)` is ever held.

use tinygpt_sampler::simd::{Kernel, LANES, Level, Simd, exp};

use super::{
    matmul::{Left, Packed, Right, Start, matmul},
    rows::Rows,
    vectors,
};

/// Rows of a unit of work.
pub(super) const ROWS: usize = 64;

/// Rows of the weights' gradient that are one task.
pub(super) const GRAD_ROWS: usize = 16;

/// What a unit computes of one sequence.
pub(super) struct Job<'a> {
    /// What the head reads, from row `from` on.
    pub(super) hidden: &'a Rows,
    pub(super) from: usize,
    /// The token of each row, at most [`ROWS`].
    pub(super) targets: &'a [u32],
    /// Gets the cross-entropy of each row.
    pub(super) losses: &'a mut [f32],
    /// Gets the gradients of those rows of `hidden`, with its distance between rows.
    pub(super) dx: &'a mut [f32],
}

/// The logits of up to [`ROWS`] rows, which become their gradient.
#[derive(Debug)]
pub(super) struct Unit {
    logits: Rows,
}

impl Unit {
    pub(super) fn new(vocab_size: usize) -> Self {
        Self { logits: Rows::zeros(ROWS, vocab_size) }
    }

    /// The losses of a job, and the gradients of `scale` times their sum. The head is packed as `(C, V)` and `(V, C)`.
    pub(super) fn run(&mut self, level: Level, packed: (&Packed, &Packed), job: &mut Job<'_>, scale: Option<f32>) {
        let (n, c, vocab_size) = (job.targets.len(), job.hidden.cols, self.logits.cols);
        let ld = self.logits.ld;
        let left = Left::rows(job.hidden, job.from, 0);
        matmul(level, (n, vocab_size, c), left, packed.0.right(), Start::Zero, self.logits.at_mut(0, 0), ld);
        for (i, (&target, loss)) in job.targets.iter().zip(&mut *job.losses).enumerate() {
            *loss = level.run(CrossEntropy { logits: self.logits.row_mut(i), target: target as usize, scale });
        }
        if scale.is_some() {
            let left = Left::rows(&self.logits, 0, 0);
            matmul(level, (n, c, vocab_size), left, packed.1.right(), Start::Zero, job.dx, job.hidden.ld);
        }
    }

    /// Adds the share of a job that was run to rows `first..` of the gradient of the head's weights `(V, C)`.
    pub(super) fn add_weight_grads(&self, level: Level, first: usize, grad: &mut [f32], job: &Job<'_>) {
        let c = job.hidden.cols;
        let shape = (grad.len() / c, c, job.targets.len());
        let (left, right) = (Left::columns(&self.logits, 0, first), Right::rows(job.hidden, job.from, 0));
        matmul(level, shape, left, right, Start::Sum, grad, c);
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
        for v in 0..vocab_size / LANES {
            largest = s.max(largest, vectors::get(s, logits, v));
        }
        let mut lanes = [0.0; LANES];
        s.store(largest, &mut lanes);
        let rest = &logits[vocab_size / LANES * LANES..];
        let max = lanes.iter().chain(rest).copied().fold(f32::MIN, f32::max);
        let weight = |logits: &[f32], v| {
            let below = s.sub(vectors::get(s, logits, v), s.splat(max));
            s.keep(vectors::inside(vocab_size, v), exp(s, below))
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
