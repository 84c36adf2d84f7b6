//! Training on the CPU: the losses of a batch and the gradients of all parameters.
//!
//! `lowering.rs` turns the network into a schedule of steps, `sequence.rs` runs one sequence through it forward and backward,
//! `head.rs` computes logits and losses, and this file runs a batch. Sequences are computed in parallel, one thread each, as
//! many at a time as keep the threads busy. Then the gradients of the weights are computed in parallel by blocks of rows, each
//! by one thread over all sequences in order. Every sum is one chain in the order of the batch's rows, so a result does not
//! depend on the number of threads or of sequences in flight.

mod buffers;
mod head;
mod layout;
mod lowering;
mod memory;
mod op;
mod sequence;
mod weights;

use rayon::prelude::*;
use tinygpt_sampler::simd::SimdLevel;

use self::{
    head::{head_logits, run_head},
    lowering::{Lowered, MatrixGrad},
    sequence::Sequence,
    weights::Weights,
};
use super::{
    CpuPrecision,
    operand::add_outer_products,
    rows::{Aligned, Rows},
};
use crate::{
    GptConfig, ModelError, Network, Result,
    language_model::{VisitLogits, Windows},
    network,
    ops::head_training::{HeadWorkspace, TASK_ROWS},
};

pub use layout::ParamLayout;
pub use memory::TrainingFloats;
pub use op::RowDropout;
pub(crate) use op::{TrainOp, TrainPass, TrainSetup};
pub(crate) use weights::PackedMatrix;

/// The fewest rows (sequences times positions) in flight at a time: as few as make up for a pass over the weights' gradients, since
/// the activations of few stay in the second-level cache.
const MIN_ROWS_IN_FLIGHT: usize = 64;

/// The rows of a weight's gradient that one task computes: as many as leave each thread some 16 tasks. A task reads the operand `dy`
/// of all sequences once, so that few rows cost more memory traffic.
const GRAD_TASK_ROWS: std::ops::RangeInclusive<usize> = 32..=128;

/// A borrowed batch: inputs and targets of `rows` windows of `cols` tokens.
#[derive(Debug, Clone, Copy)]
pub struct BatchRef<'a> {
    /// Input tokens, `rows * cols`.
    pub ids: &'a [u32],
    /// The token after each, `rows * cols`.
    pub targets: &'a [u32],
    /// The length of a window.
    pub cols: usize,
}

/// A GPT on the CPU with its gradients. All buffers are reused from call to call.
#[derive(Debug)]
pub struct CpuGpt {
    net: Network,
    lowered: Lowered,
    precision: CpuPrecision,
    level: SimdLevel,
    weights: Weights,
    /// The accumulated gradients, flat; empty before the first.
    grads: Aligned,
    /// The buffers of each sequence in flight.
    sequences: Vec<Sequence>,
    /// The logits of each task of the head in flight.
    workspaces: Vec<HeadWorkspace>,
    /// The gradient of each sequence's embeddings, `(block_size, C)`.
    d_embedded: Vec<Rows>,
    /// The cross-entropy of each prediction of the last batch, `(rows * cols)`.
    losses: Vec<f32>,
    reference: Option<Box<CpuReference>>,
}

/// A model that training stays near.
#[derive(Debug)]
pub struct CpuReference {
    /// The model, which is not trained.
    pub gpt: CpuGpt,
    /// The weight of the mean of `KL(reference || model)` over positions in what is minimised.
    pub weight: f32,
}

impl CpuGpt {
    /// Creates a model with these parameter values, in parameter order. The products of linear layers, head and attention are
    /// computed in `precision`.
    ///
    /// # Errors
    /// When the configuration is invalid or the values do not match it.
    pub fn new(config: &GptConfig, precision: CpuPrecision, values: &[Vec<f32>]) -> Result<Self> {
        config.validate()?;
        Self::over(network(config), precision, values)
    }

    /// [`CpuGpt::new`] of any network.
    ///
    /// # Errors
    /// When the values do not match it.
    #[doc(hidden)]
    pub fn over(net: Network, precision: CpuPrecision, values: &[Vec<f32>]) -> Result<Self> {
        let level = SimdLevel::detect();
        Ok(Self {
            weights: Weights::new(&net, precision, level, values)?,
            lowered: Lowered::new(&net),
            net,
            precision,
            level,
            grads: Aligned::zeros(0),
            sequences: Vec::new(),
            workspaces: Vec::new(),
            d_embedded: Vec::new(),
            losses: Vec::new(),
            reference: None,
        })
    }

    /// The shape of the model.
    pub fn config(&self) -> &GptConfig {
        self.net.config()
    }

    /// Sets the model that [`CpuGpt::forward_backward`] keeps this one near, and gives back the one before. Losses are without
    /// the divergence.
    ///
    /// # Errors
    /// When it has another vocabulary, or a shorter context.
    pub fn stay_near(&mut self, reference: Option<CpuReference>) -> Result<Option<CpuReference>> {
        if let Some(reference) = &reference {
            self.config().check_reference(reference.gpt.config())?;
        }
        let before = std::mem::replace(&mut self.reference, reference.map(Box::new));
        Ok(before.map(|reference| *reference))
    }

    /// The layout of the parameters in the flat buffers.
    pub fn layout(&self) -> &ParamLayout {
        &self.weights.layout
    }

    /// The precision of the products of linear layers, head and attention.
    pub fn precision(&self) -> CpuPrecision {
        self.precision
    }

    /// All parameters, flat.
    pub fn params(&self) -> &[f32] {
        &self.weights.flat
    }

    /// The accumulated gradients, flat; empty before the first.
    pub fn grads(&self) -> &[f32] {
        &self.grads
    }

    /// Runs `step(layout, params, grads)`, which updates the parameters, then packs the weights anew. Later gradients are
    /// added to what `step` leaves in `grads`, so it zeroes them.
    pub fn optimizer_step(&mut self, step: impl FnOnce(&ParamLayout, &mut [f32], &mut [f32])) {
        self.make_grads();
        step(&self.weights.layout, &mut self.weights.flat, &mut self.grads);
        self.weights.pack(self.level);
    }

    /// Runs `add(layout, params, grads)`, which adds to the accumulated gradients.
    pub fn add_to_grads(&mut self, add: impl FnOnce(&ParamLayout, &[f32], &mut [f32])) {
        self.make_grads();
        add(&self.weights.layout, &self.weights.flat, &mut self.grads);
    }

    /// Allocates the gradients, zeros, if there are none.
    fn make_grads(&mut self) {
        if self.grads.is_empty() {
            self.grads = Aligned::zeros(self.weights.layout.len());
        }
    }

    /// The sum of the cross-entropies of a batch in nats, without dropout and without gradients.
    ///
    /// # Errors
    /// When the batch is empty or not a whole number of windows, a window is longer than `block_size`, or a token is outside
    /// the vocabulary.
    pub fn losses(&mut self, batch: BatchRef<'_>) -> Result<f64> {
        self.check(batch)?;
        Ok(in_pool(|| {
            self.run(batch, 0, &|_| None, None);
            self.losses.iter().map(|&loss| f64::from(loss)).sum()
        }))
    }

    /// [`LanguageModel::losses`](crate::LanguageModel::losses) of windows and targets that are checked.
    pub(crate) fn window_losses(&mut self, windows: Windows<'_>, targets: &[u32]) -> Vec<f32> {
        let Windows { ids, cols, from } = windows;
        in_pool(|| {
            self.run(BatchRef { ids, targets, cols }, from, &|_| None, None);
            self.losses.chunks(cols).flat_map(|losses| &losses[from..]).copied().collect()
        })
    }

    /// [`LanguageModel::logits`](crate::LanguageModel::logits) of windows that are checked.
    pub(crate) fn window_logits(&mut self, windows: Windows<'_>, visit: VisitLogits<'_>) {
        let Windows { ids, cols, from } = windows;
        in_pool(|| {
            let n = windows.rows();
            let in_flight = in_flight(n, cols);
            self.prepare(n, cols, in_flight, false);
            let Self { net, lowered, level, weights, sequences, workspaces, .. } = self;
            for (first, ids) in (0..n).step_by(in_flight).zip(ids.chunks(in_flight * cols)) {
                let sequences = &mut sequences[..ids.len() / cols];
                forward((*level, lowered, weights), sequences, ids, cols, &|_| None);
                head_logits(*level, (net, weights), workspaces, sequences, from, &|row, col, logits| {
                    visit((first + row) * cols + col, logits);
                });
            }
        });
    }

    /// Computes the mean cross-entropy of a batch, in nats per token, and adds its gradients to the accumulated ones.
    /// `dropout(row)` gives the masks of a row of the batch.
    ///
    /// # Errors
    /// As [`CpuGpt::losses`].
    pub fn forward_backward(
        &mut self,
        batch: BatchRef<'_>,
        dropout: &(dyn Fn(usize) -> Option<RowDropout> + Sync),
    ) -> Result<f64> {
        self.check(batch)?;
        self.make_grads();
        let tokens = batch.ids.len() as f64;
        Ok(in_pool(|| {
            self.run(batch, 0, dropout, Some((1.0 / tokens) as f32));
            self.losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / tokens
        }))
    }

    fn check(&self, batch: BatchRef<'_>) -> Result<()> {
        let block_size = self.net.config().block_size;
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
        self.net.config().check_tokens(ids.iter().chain(targets))
    }

    /// Fills `losses` from position `from` of each window on. With `weight`, the weight of a token in the loss, it also adds to
    /// `grads`.
    fn run(
        &mut self,
        batch: BatchRef<'_>,
        from: usize,
        dropout: &(dyn Fn(usize) -> Option<RowDropout> + Sync),
        weight: Option<f32>,
    ) {
        let BatchRef { ids, targets, cols } = batch;
        let n = ids.len() / cols;
        let in_flight = in_flight(n, cols);
        self.prepare(n, cols, in_flight, weight.is_some());
        let mut reference = self.reference.as_deref_mut().filter(|_| weight.is_some());
        if let Some(CpuReference { gpt, .. }) = &mut reference {
            gpt.prepare(n, cols, in_flight, false);
        }
        let Self { net, lowered, level, weights, grads, sequences, workspaces, d_embedded, losses, .. } = self;
        let (lowered, level, weights) = (&*lowered, *level, &*weights);
        for first in (0..n).step_by(in_flight) {
            let range = first..n.min(first + in_flight);
            let sequences = &mut sequences[..range.len()];
            let tokens = range.start * cols..range.end * cols;
            forward((level, lowered, weights), sequences, &ids[tokens.clone()], cols, &|i| dropout(first + i));
            if let Some(CpuReference { gpt, .. }) = &mut reference {
                let CpuGpt { lowered, weights, sequences, .. } = gpt;
                forward((level, lowered, weights), &mut sequences[..range.len()], &ids[tokens.clone()], cols, &|_| {
                    None
                });
            }
            let grad = weight.map(|weight| (&mut grads[weights.layout.range(net.head.weight)], weight));
            let predicted = (&targets[tokens.clone()], &mut losses[tokens], from);
            run_head(level, (net, weights), workspaces, sequences, predicted, grad, reference.as_deref_mut());
            if weight.is_some() {
                sequences.par_iter_mut().zip(&mut d_embedded[range]).enumerate().for_each(|(i, (sequence, dx))| {
                    sequence.backward(level, lowered, weights, dropout(first + i).as_ref(), dx);
                });
                for sequence in &*sequences {
                    sequence.add_vector_grads(&weights.layout, grads);
                }
                matrix_grads(level, &weights.layout, &lowered.matrices, sequences, grads);
            }
        }
        if weight.is_some() {
            for op in &net.ops {
                op.get().add_table_grads(&weights.layout, ids, cols, &d_embedded[..n], grads);
            }
        }
    }

    /// Allocates the missing buffers for `n` windows of `cols` tokens, `in_flight` at a time.
    fn prepare(&mut self, n: usize, cols: usize, in_flight: usize, gradients: bool) {
        let Self { net, precision, .. } = self;
        let GptConfig { block_size, vocab_size, n_embd, .. } = *net.config();
        let setup = TrainSetup { net, precision: *precision, block_size };
        while self.sequences.len() < in_flight {
            self.sequences.push(Sequence::new(&self.lowered, &setup));
        }
        // One workspace for each task of the sequences in flight, but at most 2^21 logits, and one for each thread.
        let workspaces = (in_flight * block_size.div_ceil(TASK_ROWS)).min((1 << 21) / (TASK_ROWS * vocab_size));
        while self.workspaces.len() < workspaces.max(rayon::current_num_threads()) {
            self.workspaces.push(HeadWorkspace::new(*precision, vocab_size, net.head.cap));
        }
        self.losses.resize(n * cols, 0.0);
        while gradients && self.d_embedded.len() < n {
            self.d_embedded.push(Rows::zeros(block_size, n_embd));
        }
    }
}

/// Runs `work` on a thread of the rayon pool. From outside the pool, each parallel loop would wake a thread first.
fn in_pool<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| work())
}

/// How many of `n` windows of `cols` tokens are computed at a time.
fn in_flight(n: usize, cols: usize) -> usize {
    MIN_ROWS_IN_FLIGHT.div_ceil(cols).next_multiple_of(rayon::current_num_threads()).min(n)
}

/// The forward passes of some sequences, one for each window of `ids (rows * cols)`.
fn forward(
    (level, lowered, weights): (SimdLevel, &Lowered, &Weights),
    sequences: &mut [Sequence],
    ids: &[u32],
    cols: usize,
    dropout: &(dyn Fn(usize) -> Option<RowDropout> + Sync),
) {
    sequences.par_iter_mut().zip(ids.par_chunks(cols)).enumerate().for_each(|(i, (sequence, ids))| {
        sequence.forward(level, lowered, weights, ids, dropout(i).as_ref());
    });
}

/// Adds `x^T dy` of each sequence to the flat gradients of the weight matrices of all linear layers. A task computes
/// some rows of one matrix over all sequences in order.
fn matrix_grads(
    level: SimdLevel,
    layout: &ParamLayout,
    matrices: &[MatrixGrad],
    sequences: &[Sequence],
    grads: &mut [f32],
) {
    let rows: usize = matrices.iter().map(|matrix| layout.specs[matrix.weight.0].shape[0]).sum();
    let (least, most) = GRAD_TASK_ROWS.into_inner();
    let task_rows = 1 << (rows / (16 * rayon::current_num_threads())).clamp(least, most).ilog2();
    // The tasks own disjoint slices of the flat gradients, split off in the order of the matrices.
    let mut tasks = Vec::new();
    let (mut rest, mut end) = (grads, 0);
    for &MatrixGrad { weight, x, y } in matrices {
        let range = layout.range(weight);
        let matrix;
        (matrix, rest) = std::mem::take(&mut rest)[range.start - end..].split_at_mut(range.len());
        end = range.end;
        let n_out = layout.specs[weight.0].shape[1];
        for (i, grad) in matrix.chunks_mut(task_rows * n_out).enumerate() {
            tasks.push((x, y, i * task_rows, grad));
        }
    }
    tasks.into_par_iter().for_each(|(x, y, first, grad)| {
        let products: Vec<_> = sequences.iter().map(|sequence| sequence.weight_grad(x, y)).collect();
        add_outer_products(level, first, &products, grad);
    });
}
