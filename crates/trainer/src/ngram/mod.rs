//! N-gram models by maximum likelihood from a training split: what a network is compared with.
//!
//! Counting sorts. Of every token the n-gram that starts there is packed into a key of 128 bits; [`RUN_TOKENS`] keys at a time
//! are sorted and counted, and where there is more than one such run, each goes to a temporary file (in `TMPDIR`; 20 bytes for
//! each distinct n-gram of the run) and all are merged into the tables of the model. Memory is bounded by the sum of
//!
//! - 16 bytes for each of at most [`RUN_TOKENS`] keys: 128 MiB, and 32 KiB for each run while they are merged;
//! - three times the tables, which grow by doubling: 8 bytes for each distinct n-gram of the order and 12 for each shorter one
//!   ([`NgramModel`] says what a model adds to the tables later, which is less than they took);
//! - while `k` is tuned, 48 bytes for each distinct pair of counts that the held-out tokens have: at most one for each distinct
//!   n-gram.
//!
//! The tokens themselves stay in the file that they are mapped from. Results are the same for any number of threads and any
//! length of the runs.

mod count;
mod kneser_ney;
mod tune;

use rayon::prelude::*;
use tinygpt_model::ngram::{MAX_ORDER, NgramCounts, NgramError, NgramModel, Smoothing};

pub use count::RUN_TOKENS;

use crate::{Result, data::Split, evaluate::Evaluation};

/// How an n-gram model is smoothed; its parameters come from the training split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Add-k. Counts of the first nine tenths of the split and the loss on the last tenth give `k`: the best of a grid of two
    /// points a decade, refined by golden-section search on `ln k`. With fewer than ten tokens `k` is 1. The model then has the
    /// counts of the whole split.
    AddK,
    /// Interpolated Kneser-Ney with three discounts for each length, from the numbers of n-grams that occur once to four times.
    KneserNey,
}

/// Trains an n-gram model on a split. `on_progress(done, all)` is told how many tokens are read, and may end the work by an
/// error.
///
/// # Errors
/// When there is no such order or vocabulary, the split is empty, too long to be counted or cannot be read, temporary files
/// cannot be written, or `on_progress` fails.
pub fn train(
    split: &Split,
    vocab_size: usize,
    order: usize,
    method: Method,
    on_progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<NgramModel> {
    let len = split.len();
    match method {
        Method::AddK => {
            let ks = tune(split, vocab_size, order, &mut |done| on_progress(done, 2 * len))?;
            let k = ks.last().copied().ok_or(NgramError::Order { order })?;
            let counts = count(split, vocab_size, order, &mut |done| on_progress(len + done, 2 * len))?;
            Ok(NgramModel::new(counts, Smoothing::AddK { k })?)
        }
        Method::KneserNey => {
            kneser_ney::model(&count(split, vocab_size, order, &mut |done| on_progress(done, len))?, split)
        }
    }
}

/// Trains the add-k models of all orders from 1 to `max_order`, in this order, and the Kneser-Ney model of `max_order`. They are
/// those of [`train`], which would count for each of them.
///
/// # Errors
/// As [`train`].
pub fn baselines(
    split: &Split,
    vocab_size: usize,
    max_order: usize,
    on_progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Vec<NgramModel>> {
    let len = split.len();
    let ks = tune(split, vocab_size, max_order, &mut |done| on_progress(done, 2 * len))?;
    let counts = count(split, vocab_size, max_order, &mut |done| on_progress(len + done, 2 * len))?;
    let mut models = Vec::with_capacity(max_order + 1);
    for (order, k) in (1..).zip(ks) {
        models.push(NgramModel::new(counts.truncated(order)?, Smoothing::AddK { k })?);
    }
    models.push(kneser_ney::model(&counts, split)?);
    Ok(models)
}

/// The loss of a model on a split: every token but the first is predicted once, from the `order - 1` tokens before it or as
/// many as there are.
///
/// # Errors
/// When the split has no token to predict, cannot be read, or has a token outside the vocabulary.
pub fn evaluate(model: &NgramModel, split: &Split) -> Result<Evaluation> {
    /// The tokens of a task; the loss depends on their number in its last bits only.
    const TASK_TOKENS: usize = 1 << 16;
    split.check("evaluated", 2)?;
    let sums: Vec<f64> = (1..split.len())
        .into_par_iter()
        .step_by(TASK_TOKENS)
        .map(|start| {
            let end = split.len().min(start + TASK_TOKENS);
            // The context of the first: the token before it at least, which is given.
            let from = start.saturating_sub((model.order() - 1).max(1));
            let mut tokens = vec![0; end - from];
            split.read(from, &mut tokens)?;
            let (context, predicted) = tokens.split_at(start - from);
            let mut scorer = model.scorer();
            for &token in context {
                scorer.advance(token)?;
            }
            predicted.iter().try_fold(0.0, |sum, &token| Ok(sum - scorer.advance(token)?))
        })
        .collect::<Result<_>>()?;
    let tokens = (split.len() - 1) as u64;
    let floor = split.surprisal(1..split.len()).map(|sum| sum / tokens as f64);
    Ok(Evaluation { loss: sums.iter().sum::<f64>() / tokens as f64, floor, tokens })
}

/// The best `k` for each order up to `order`. `on_read` is told how many tokens are read.
fn tune(
    split: &Split,
    vocab_size: usize,
    order: usize,
    on_read: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Vec<f64>> {
    let held_out = split.len() - split.len() / 10..split.len();
    if held_out.is_empty() {
        return Ok(vec![1.0; order.min(MAX_ORDER)]);
    }
    let counts = count::count(split, 0..held_out.start, vocab_size, order, RUN_TOKENS, on_read)?;
    tune::best_k(counts, split, held_out, on_read)
}

fn count(
    split: &Split,
    vocab_size: usize,
    order: usize,
    on_read: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<NgramCounts> {
    count::count(split, 0..split.len(), vocab_size, order, RUN_TOKENS, on_read)
}
