//! What whoever starts or resumes a run should know.

use std::{fmt, path::PathBuf};

use tinygpt_model::GptConfig;

use super::{LoopState, RunDir};
use crate::{
    Dataset, Result,
    config::{Change, OptimizerKind, RunConfig, TokenizerKind},
    evaluate::chosen_windows,
    train::METRICS_FILE,
};

/// A loss of fewer windows than these says little.
const FEW_WINDOWS: usize = 4;
/// A text of more tokens than these has few rare ones, and counting takes time.
const COUNTED_TOKENS: usize = 1 << 24;
/// AdamW's usual rate for a width: 6e-4 of 768 channels, 2e-4 of 2048 (Brown et al., 2020, table 2.1); small models take no
/// more than the second number.
const RATE_TIMES_WIDTH: f64 = 0.46;
const LARGEST_USUAL_RATE: f64 = 1e-2;
/// Muon's usual rate, whatever the width.
const USUAL_RATE_OF_MUON: f64 = 0.02;
/// How many times the usual rate diverges, and what share of it learns next to nothing in the updates of a run.
const TOO_FAST: f64 = 10.0;
const TOO_SLOW: f64 = 1.0 / 30.0;
/// The parameters for each token of an update beyond which its gradient is mostly noise.
const PARAMETERS_PER_TOKEN: usize = 20_000;

/// What whoever starts or resumes a run should know.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Notice {
    /// The run has lost its metrics.
    MetricsGone {
        /// The run's folder.
        run: PathBuf,
        /// The update after which they begin anew.
        step: u64,
    },
    /// There are steps to make after the end of the decay.
    DecayEnded {
        /// The update at which it ends.
        decay_end: u64,
        /// The learning rate since.
        min_lr: f64,
    },
    /// A key of the configuration has another value from here on.
    Changed(Change),
    /// Validation losses are of other windows from here on.
    OtherWindows {
        /// The update of the best one so far.
        best_step: u64,
    },
    /// The run ends before the learning rate has risen.
    WarmUpNotShorter {
        /// Updates of warm-up.
        warmup_steps: u64,
        /// Updates in all.
        max_steps: u64,
    },
    /// The validation split is a few windows.
    FewWindows {
        /// Its tokens.
        tokens: usize,
        /// Tokens of a window.
        block_size: usize,
    },
    /// Most tokens of the vocabulary occur once or never in the training split.
    RareTokens {
        /// How many.
        rare: usize,
        /// Of how many.
        vocab_size: usize,
        /// What they are.
        tokenizer: TokenizerKind,
    },
    /// A learning rate is far from what the size of the model suggests.
    LearningRate {
        /// Its key.
        key: &'static str,
        /// Its value.
        rate: f64,
        /// What is usual.
        usual: f64,
    },
    /// An update reads more than the whole text.
    LargeBatch {
        /// Tokens of an update.
        tokens: usize,
        /// Tokens to train on.
        of_tokens: usize,
    },
    /// An update reads few tokens for the size of the model.
    SmallBatch {
        /// Tokens of an update.
        tokens: usize,
        /// Parameters of the model.
        parameters: usize,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MetricsGone { run, step } => {
                write!(f, "{} has no {METRICS_FILE} any more: it begins anew at step {step}", run.display())
            }
            Self::DecayEnded { decay_end, min_lr } => write!(
                f,
                "the learning rate ends its decay at step {decay_end}: further steps run at train.min_lr = {min_lr} (--set \
                 train.decay_steps=0 has it decay until train.max_steps)"
            ),
            Self::Changed(change) => write!(f, "{change}"),
            Self::OtherWindows { best_step } => write!(
                f,
                "validation losses are of other windows from here on (train.eval_batches): which of them is better than the best so \
                 far, of step {best_step}, is not sure"
            ),
            Self::WarmUpNotShorter { warmup_steps, max_steps } => write!(
                f,
                "warning: train.warmup_steps = {warmup_steps} is not shorter than the run of {max_steps} updates: the learning \
                 rate never reaches train.lr"
            ),
            Self::FewWindows { tokens, block_size } => write!(
                f,
                "warning: {tokens} validation tokens are less than {FEW_WINDOWS} windows of {block_size}: their loss says \
                 little; use more text, a larger data.val_fraction or a smaller model.block_size"
            ),
            Self::RareTokens { rare, vocab_size, tokenizer } => write!(
                f,
                "warning: {rare} of the {vocab_size} tokens of the vocabulary occur at most once in the training text: the model \
                 cannot learn them; use {}, or more text",
                match tokenizer {
                    TokenizerKind::Char => "data.tokenizer = \"bpe\"",
                    TokenizerKind::Bpe => "a smaller data.vocab_size",
                }
            ),
            Self::LearningRate { key, rate, usual } if rate > usual => write!(
                f,
                "warning: {key} = {rate} is more than {TOO_FAST} times what is usual for a model of this width, some \
                 {usual:.1e}: training may diverge"
            ),
            Self::LearningRate { key, rate, usual } => write!(
                f,
                "warning: {key} = {rate} is far below what is usual for a model of this width, some {usual:.1e}: training \
                 will be slow"
            ),
            Self::LargeBatch { tokens, of_tokens } => write!(
                f,
                "warning: an update reads {tokens} tokens, and the text has {of_tokens}: a smaller train.batch_size makes \
                 more updates of the same text"
            ),
            Self::SmallBatch { tokens, parameters } => write!(
                f,
                "warning: {tokens} tokens an update are few for a model of {parameters} parameters: use a larger \
                 train.batch_size, or train.grad_accum"
            ),
        }
    }
}

/// Of a run that goes on, whose last part has what changed, with its configuration before and now: what is to be known of going on,
/// and the warnings that still hold where more updates are made.
pub(super) fn of_resumed(
    dir: &RunDir,
    (before, config): (&RunConfig, &RunConfig),
    gpt: &GptConfig,
    data: &Dataset,
    state: &LoopState,
) -> Result<Vec<Notice>> {
    let changes = state.parts.last().map_or(&[][..], |part| &part.changes);
    let mut notices: Vec<Notice> = changes.iter().cloned().map(Notice::Changed).collect();
    if state.step > 0 && !dir.path().join(METRICS_FILE).exists() {
        notices.push(Notice::MetricsGone { run: dir.path().to_owned(), step: state.step });
    }
    let train = &config.train;
    if state.ending(train).is_some() {
        return Ok(notices);
    }
    if train.max_steps > train.decay_end() {
        notices.push(Notice::DecayEnded { decay_end: train.decay_end(), min_lr: train.min_lr });
    }
    let windows = |train| chosen_windows(&data.val, gpt.block_size, state.eval_windows(train));
    if let Some(best) = state.best
        && windows(&before.train) != windows(train)
    {
        notices.push(Notice::OtherWindows { best_step: best.step });
    }
    notices.extend(warnings(config, gpt, data, state.init_from.is_none())?);
    Ok(notices)
}

/// Where the configuration of a run cannot mean what it says. A run that starts from a model has the model's vocabulary, and is
/// trained as gently as its text needs. A tokenizer that was given is not of this text.
pub(super) fn warnings(config: &RunConfig, gpt: &GptConfig, data: &Dataset, is_fresh: bool) -> Result<Vec<Notice>> {
    let train = &config.train;
    let mut notices = Vec::new();
    if train.warmup_steps >= train.max_steps {
        let (warmup_steps, max_steps) = (train.warmup_steps, train.max_steps);
        notices.push(Notice::WarmUpNotShorter { warmup_steps, max_steps });
    }
    let (tokens, block_size) = (data.val.len(), gpt.block_size);
    if tokens.saturating_sub(1) < FEW_WINDOWS * block_size {
        notices.push(Notice::FewWindows { tokens, block_size });
    }
    let is_trained_here = is_fresh && config.data.tokenizer_path.is_empty();
    if is_trained_here && let Some(rare) = rare_tokens(data)? {
        let (vocab_size, tokenizer) = (data.tokenizer.vocab_size(), config.data.tokenizer);
        notices.push(Notice::RareTokens { rare, vocab_size, tokenizer });
    }
    notices.extend(learning_rate(config, gpt, is_fresh));
    let (tokens, of_tokens, parameters) = (config.tokens_per_step(), data.train.len(), gpt.n_params());
    if tokens > of_tokens {
        notices.push(Notice::LargeBatch { tokens, of_tokens });
    } else if is_fresh && tokens < parameters / PARAMETERS_PER_TOKEN {
        notices.push(Notice::SmallBatch { tokens, parameters });
    }
    Ok(notices)
}

/// How many tokens of the vocabulary occur at most once, where that is more than half of them.
fn rare_tokens(data: &Dataset) -> Result<Option<usize>> {
    if data.train.len() > COUNTED_TOKENS {
        return Ok(None);
    }
    let mut counts = vec![0u32; data.tokenizer.vocab_size()];
    data.train.tokens()?.iter().for_each(|&id| counts[id as usize] += 1);
    let rare = counts.iter().filter(|&&count| count <= 1).count();
    Ok((2 * rare > counts.len()).then_some(rare))
}

/// The rate of the matrices, where it is far from what is usual.
fn learning_rate(config: &RunConfig, gpt: &GptConfig, is_fresh: bool) -> Option<Notice> {
    let train = &config.train;
    let (key, rate) = match train.lr_matrices {
        0.0 => ("train.lr", train.lr),
        rate => ("train.lr_matrices", rate),
    };
    let usual = match train.optimizer {
        OptimizerKind::Muon => USUAL_RATE_OF_MUON,
        OptimizerKind::Adamw => (RATE_TIMES_WIDTH / gpt.n_embd as f64).min(LARGEST_USUAL_RATE),
    };
    let is_far = rate > TOO_FAST * usual || is_fresh && rate < TOO_SLOW * usual;
    is_far.then_some(Notice::LearningRate { key, rate, usual })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{RECIPES, load};

    #[test]
    fn no_recipe_has_an_unusual_learning_rate() {
        for (name, text) in RECIPES.iter().filter(|(name, _)| *name != "finetune-gpt2") {
            let config = load(text, &[], false).unwrap();
            assert_eq!(learning_rate(&config, &config.gpt(65), true), None, "{name}");
        }
        assert_eq!(learning_rate(&RunConfig::default(), &RunConfig::default().gpt(65), true), None);
    }

    #[test]
    fn a_rate_far_from_the_usual_one_is_told_with_its_key() {
        let set = |items: &[&str]| {
            let items: Vec<_> = items.iter().map(|item| item.to_string()).collect();
            let config = load("[model]\nn_embd = 384\nn_head = 6", &items, false).unwrap();
            learning_rate(&config, &config.gpt(65), true).map(|notice| notice.to_string())
        };
        assert!(set(&["train.lr=0.1"]).unwrap().contains("train.lr = 0.1 is more than 10 times what is usual"));
        assert!(set(&["train.lr=1e-5", "train.min_lr=0"]).unwrap().contains("far below what is usual"));
        let muon = set(&["train.optimizer=muon", "train.lr_matrices=1.0"]).unwrap();
        assert!(muon.contains("train.lr_matrices = 1 is more than"), "{muon}");
        assert_eq!(set(&["train.lr=6e-4"]), None);
    }
}
