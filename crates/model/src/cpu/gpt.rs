//! A batch through the network: losses, and the gradients of all parameters.
//!
//! Sequences go through the network side by side, each by one thread, as many at a time as keep the threads busy; then
//! the gradients of the weights are computed, each part of them by one thread over all sequences in order. Every sum is
//! one chain in the order of the batch's rows, so neither the number of threads nor that of sequences at a time shows
//! in a result.

use rayon::prelude::*;
use tinygpt_sampler::simd::SimdLevel;

use super::{
    embedding,
    head::{self, Job, Unit},
    layout::{Affine, Layout},
    operand::InOut,
    rows::{Aligned, Rows},
    sequence::{RowDropout, Saved, Sequence, VectorGrads},
    weights::Weights,
};
use crate::{GptConfig, ModelError, Precision, Result};

/// Rows that are in the network at a time, at least: what is kept of them stays in the cache, and the weights'
/// gradients are walked over once for them all.
const ROWS_AT_A_TIME: usize = 256;

/// Rows of a weight's gradient that are one task.
const GRAD_ROWS: usize = 32;

/// A batch: inputs and the tokens that follow them, `rows` windows of `cols` tokens.
#[derive(Debug, Clone, Copy)]
pub struct BatchRef<'a> {
    /// Input tokens, `rows * cols`.
    pub ids: &'a [u32],
    /// The token after each, `rows * cols`.
    pub targets: &'a [u32],
    /// The length of a window.
    pub cols: usize,
}

/// A GPT on the CPU, with its gradients. All buffers are kept from call to call.
#[derive(Debug)]
pub struct CpuGpt {
    config: GptConfig,
    precision: Precision,
    level: SimdLevel,
    weights: Weights,
    grads: Aligned,
    sequences: Vec<Sequence>,
    units: Vec<Unit>,
    /// The gradient of each sequence's embeddings.
    embedded: Vec<Rows>,
    losses: Vec<f32>,
}

impl CpuGpt {
    /// A model with these parameter values, in parameter order, whose linear layers multiply in a precision.
    ///
    /// # Errors
    /// When the configuration is invalid, the values do not match it, or this processor lacks the precision.
    pub fn new(config: &GptConfig, precision: Precision, values: &[Vec<f32>]) -> Result<Self> {
        precision.check()?;
        let level = SimdLevel::detect();
        let weights = Weights::new(config, precision, level, values)?;
        Ok(Self {
            config: config.clone(),
            precision,
            level,
            grads: Aligned::zeros(weights.layout.len()),
            weights,
            sequences: Vec::new(),
            units: Vec::new(),
            embedded: Vec::new(),
            losses: Vec::new(),
        })
    }

    /// The shape of the model.
    pub fn config(&self) -> &GptConfig {
        &self.config
    }

    /// Where each parameter lies in the flat buffers.
    pub fn layout(&self) -> &Layout {
        &self.weights.layout
    }

    /// What the linear layers multiply in.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// All parameters, flat.
    pub fn params(&self) -> &[f32] {
        &self.weights.flat
    }

    /// The gradients gathered so far, flat.
    pub fn grads(&self) -> &[f32] {
        &self.grads
    }

    /// Lets an optimizer change the parameters, given the layout, the parameters and the gradients; what it leaves in the
    /// gradients is what the next ones are added to.
    pub fn update(&mut self, change: impl FnOnce(&Layout, &mut [f32], &mut [f32])) {
        change(&self.weights.layout, &mut self.weights.flat, &mut self.grads);
        self.weights.pack(self.level);
    }

    /// The sum of the cross-entropies of a batch in nats, without dropout and without gradients.
    ///
    /// # Errors
    /// When the batch is empty or no whole windows, a window longer than `block_size`, or a token outside of the vocabulary.
    pub fn losses(&mut self, batch: BatchRef<'_>) -> Result<f64> {
        self.check(batch)?;
        Ok(in_pool(|| {
            self.run(batch, &|_| None, None);
            self.losses.iter().map(|&loss| f64::from(loss)).sum()
        }))
    }

    /// The mean cross-entropy of a batch in nats a token, its gradients added to those gathered. `dropout(row)` gives
    /// the masks of a row of the batch.
    ///
    /// # Errors
    /// As [`CpuGpt::losses`].
    pub fn loss_and_grads(
        &mut self,
        batch: BatchRef<'_>,
        dropout: &(dyn Fn(usize) -> Option<RowDropout> + Sync),
    ) -> Result<f64> {
        self.check(batch)?;
        let tokens = batch.ids.len() as f64;
        Ok(in_pool(|| {
            self.run(batch, dropout, Some((1.0 / tokens) as f32));
            self.losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / tokens
        }))
    }

    fn check(&self, batch: BatchRef<'_>) -> Result<()> {
        let block_size = self.config.block_size;
        let BatchRef { ids, targets, cols } = batch;
        if cols == 0 {
            return Err(ModelError::NoPositions);
        }
        if cols > block_size {
            return Err(ModelError::ContextFull { positions: cols, block_size });
        }
        if ids.is_empty() || ids.len() != targets.len() || !ids.len().is_multiple_of(cols) {
            return Err(ModelError::BatchShape { ids: ids.len(), targets: targets.len(), cols });
        }
        self.config.check_tokens(ids.iter().chain(targets))
    }

    /// Fills `losses`; and with the weight of a token in the loss, adds to `grads`.
    fn run(
        &mut self,
        batch: BatchRef<'_>,
        dropout: &(dyn Fn(usize) -> Option<RowDropout> + Sync),
        weight: Option<f32>,
    ) {
        let BatchRef { ids, targets, cols } = batch;
        let n = ids.len() / cols;
        let threads = rayon::current_num_threads();
        let at_a_time = (ROWS_AT_A_TIME.div_ceil(cols).next_multiple_of(threads)).min(n);
        self.prepare(n, cols, at_a_time, weight.is_some());
        let Self { config, level, weights, grads, sequences, units, embedded, losses, .. } = self;
        let (config, level, weights) = (&*config, *level, &*weights);
        for first in (0..n).step_by(at_a_time) {
            let range = first..n.min(first + at_a_time);
            let sequences = &mut sequences[..range.len()];
            let tokens = range.start * cols..range.end * cols;
            sequences.par_iter_mut().zip(ids[tokens.clone()].par_chunks(cols)).enumerate().for_each(
                |(i, (sequence, ids))| sequence.forward(level, config, weights, ids, dropout(first + i).as_ref()),
            );
            let grad = weight.map(|weight| (&mut grads[weights.layout.wte.clone()], weight));
            head(level, weights, units, sequences, (&targets[tokens.clone()], &mut losses[tokens]), grad);
            if weight.is_some() {
                sequences.par_iter_mut().zip(&mut embedded[range]).enumerate().for_each(|(i, (sequence, dx))| {
                    sequence.backward(level, config, weights, dropout(first + i).as_ref(), dx);
                });
                weight_grads(level, &weights.layout, sequences, grads);
            }
        }
        if weight.is_some() {
            let layout = &weights.layout;
            let (dwte, rest) = grads.split_at_mut(layout.wpe.start);
            let dwpe = &mut rest[..layout.wpe.len()];
            embedding::backward(ids, cols, &embedded[..n], &mut dwte[layout.wte.clone()], dwpe);
        }
    }

    /// Makes what buffers are missing.
    fn prepare(&mut self, n: usize, cols: usize, at_a_time: usize, gradients: bool) {
        let (config, threads) = (&self.config, rayon::current_num_threads());
        while self.sequences.len() < at_a_time {
            self.sequences.push(Sequence::new(config, self.precision, &self.weights.layout));
        }
        // As many rows of logits at a time as sequences have; but of a large vocabulary, one unit a thread.
        let units =
            (at_a_time * config.block_size.div_ceil(head::ROWS)).min((1 << 21) / (head::ROWS * config.vocab_size));
        while self.units.len() < units.max(threads) {
            self.units.push(Unit::new(self.precision, config.vocab_size));
        }
        self.losses.resize(n * cols, 0.0);
        while gradients && self.embedded.len() < n {
            self.embedded.push(Rows::zeros(config.block_size, config.n_embd));
        }
    }
}

/// Runs on a thread of the pool, which need not be woken for every parallel loop.
fn in_pool<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| work())
}

/// Losses and hidden gradients of the head for some sequences, a few units of rows at a time; `grad` is the gradient of
/// the head's weights, with the weight of a token in the loss.
fn head(
    level: SimdLevel,
    weights: &Weights,
    units: &mut [Unit],
    sequences: &mut [Sequence],
    (targets, losses): (&[u32], &mut [f32]),
    mut grad: Option<(&mut [f32], f32)>,
) {
    let packed = (&weights.head, &weights.head_transposed);
    let (mut targets, mut losses) = (targets, losses);
    let mut jobs = Vec::new();
    for sequence in sequences {
        let (hidden, rounded, ld) = (&sequence.hidden, &sequence.scratch.rounded, sequence.dhidden.ld);
        for (from, dx) in sequence.dhidden.chunks_mut(sequence.t, head::ROWS) {
            let n = head::ROWS.min(sequence.t - from);
            let (here, loss);
            (here, targets) = targets.split_at(n);
            (loss, losses) = std::mem::take(&mut losses).split_at_mut(n);
            jobs.push(Job { hidden, rounded, from, targets: here, losses: loss, dx, ld });
        }
    }
    for jobs in jobs.chunks_mut(units.len()) {
        let scale = grad.as_ref().map(|(_, scale)| *scale);
        jobs.par_iter_mut().zip(&mut *units).for_each(|(job, unit)| unit.run(level, packed, job, scale));
        if let Some((grad, _)) = &mut grad {
            let c = weights.head_transposed.n();
            grad.par_chunks_mut(head::GRAD_ROWS * c).enumerate().for_each(|(i, grad)| {
                for (job, unit) in jobs.iter().zip(&*units) {
                    unit.add_weight_grads(level, i * head::GRAD_ROWS, grad, job);
                }
            });
        }
    }
}

/// Adds to the flat gradients of all parameters but the embeddings, each weight's by tasks of a few of its rows.
fn weight_grads(level: SimdLevel, layout: &Layout, sequences: &[Sequence], grads: &mut [f32]) {
    for (layer, at) in layout.blocks.iter().enumerate() {
        let vectors: [(&Affine, Select<VectorGrads>); 6] = [
            (&at.ln_1, |saved| &saved.ln_1),
            (&at.c_attn, |saved| &saved.c_attn.bias),
            (&at.attn_proj, |saved| &saved.attn_proj.bias),
            (&at.ln_2, |saved| &saved.ln_2),
            (&at.c_fc, |saved| &saved.c_fc.bias),
            (&at.mlp_proj, |saved| &saved.mlp_proj.bias),
        ];
        for (at, select) in vectors {
            for sequence in sequences {
                select(&sequence.layers[layer]).add_to(at, grads);
            }
        }
    }
    for sequence in sequences {
        sequence.ln_f.add_to(&layout.ln_f, grads);
    }

    // The flat gradients cut into tasks; the matrices of the blocks lie in them in this order.
    let mut tasks = Vec::new();
    let (mut rest, mut end) = (grads, 0);
    for (layer, at) in layout.blocks.iter().enumerate() {
        let matrices: [(&Affine, Select<InOut>); 4] = [
            (&at.c_attn, |saved| &saved.c_attn),
            (&at.attn_proj, |saved| &saved.attn_proj),
            (&at.c_fc, |saved| &saved.c_fc),
            (&at.mlp_proj, |saved| &saved.mlp_proj),
        ];
        for (Affine { weight, .. }, select) in matrices {
            let matrix;
            (matrix, rest) = std::mem::take(&mut rest)[weight.start - end..].split_at_mut(weight.len());
            end = weight.end;
            let n_out = sequences.first().map_or(1, |sequence| select(&sequence.layers[layer]).dy.cols());
            for (i, grad) in matrix.chunks_mut(GRAD_ROWS * n_out).enumerate() {
                tasks.push(GradTask { layer, select, first: i * GRAD_ROWS, grad });
            }
        }
    }
    tasks.into_par_iter().for_each(|task| task.run(level, sequences));
}

type Select<T> = fn(&Saved) -> &T;

/// Some rows of a weight's gradient.
struct GradTask<'a> {
    layer: usize,
    select: Select<InOut>,
    first: usize,
    grad: &'a mut [f32],
}

impl GradTask<'_> {
    /// Adds `x^T dy` of one sequence after the other.
    fn run(self, level: SimdLevel, sequences: &[Sequence]) {
        for sequence in sequences {
            let InOut { x, dy, .. } = (self.select)(&sequence.layers[self.layer]);
            x.add_outer(level, self.first, dy, 0..sequence.t, self.grad);
        }
    }
}
