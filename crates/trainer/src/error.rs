//! What can go wrong in training.

use std::path::{Path, PathBuf};

use candle_core::Device;
use tinygpt_model::{
    ModelError, Precision, TokenizerError,
    device::{self, is_out_of_memory},
    files::FileError,
    ngram::NgramError,
};

use crate::{
    chart::ChartError,
    config::ConfigError,
    corpus::CorpusError,
    hub::HubError,
    stories::{Rejected, TruthError},
    token_cache::TokenCacheError,
    token_files::TokenFileError,
    train::CallbackError,
};

/// The result of a trainer operation.
pub type Result<T> = std::result::Result<T, TrainError>;

/// An error of the trainer crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The configuration was refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The corpus could not be read.
    #[error(transparent)]
    Corpus(#[from] CorpusError),
    /// The tokenizer could not be trained or applied.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The token cache could not be written or read.
    #[error(transparent)]
    TokenCache(#[from] TokenCacheError),
    /// A model of the hub could not be had.
    #[error(transparent)]
    Hub(Box<HubError>),
    /// A file of tokens is none, or could not be written.
    #[error(transparent)]
    TokenFile(#[from] TokenFileError),
    /// Tokens without their tokenizer mean nothing.
    #[error(
        "`{path}` holds tokens, and not their text: name the tokenizer that made them by --tokenizer (data.tokenizer_path), a \
         tokenizer.json or a folder with one"
    )]
    NeedsTokenizer {
        /// The file of tokens.
        path: PathBuf,
    },
    /// The documents of a text would run together.
    #[error(
        "the text of {corpus} is cut into documents, and its tokenizer, which comes from elsewhere, has no token that ends one: \
         set data.documents to \"none\" for plain files, or use a tokenizer with an end of text, such as GPT-2's"
    )]
    NoEndOfText {
        /// The corpus as configured.
        corpus: String,
    },
    /// nanoGPT's table of characters.
    #[error(
        "`{path}` is a Python pickle, which this program does not open, since a pickle can run any code: train on the text \
         itself, of which data.tokenizer = \"char\" makes the same table"
    )]
    PickledTokenizer {
        /// The file.
        path: PathBuf,
    },
    /// The text of a run came from standard input, and is asked for again.
    #[error("the text of {run} came from standard input: give the same text again by --data")]
    TextNotKept {
        /// The run.
        run: PathBuf,
    },
    /// A text that should be stories of the grammar is not.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// The truth about a text is not known.
    #[error(transparent)]
    Truth(#[from] TruthError),
    /// A run failed, and its folder could not be deleted.
    #[error("{error}; and its folder stays: {also}")]
    AndNotDiscarded {
        /// Why the run failed.
        error: Box<TrainError>,
        /// Why its folder stays.
        also: Box<TrainError>,
    },
    /// The model refused its shape or its tensors, or a folder holds none.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A split of the corpus is too short for even one window.
    #[error("the {split} split has {tokens} tokens, but needs at least {needed}{}; use a larger corpus, a smaller model.block_size or another data.val_fraction", if *.split == "training" { " (block_size + 1)" } else { "" })]
    SplitTooShort {
        /// `training` or `validation`.
        split: &'static str,
        /// How many tokens it has.
        tokens: usize,
        /// How many it needs.
        needed: usize,
    },
    /// Windows that count a token twice or never, or that the model has no positions for.
    #[error(
        "a context of {context} tokens every {stride}: the context must be from 1 to {block_size}, the model's block_size, and \
         the stride from 1 to the context"
    )]
    Sliding {
        /// The tokens of a window.
        context: usize,
        /// How far a window lies behind the one before.
        stride: usize,
        /// The most tokens that the model sees.
        block_size: usize,
    },
    /// A text of no tokens has no score.
    #[error("the text is empty: there is nothing to score")]
    EmptyText,
    /// A model whose logits are not numbers gives no distribution.
    #[error(
        "the model's logits at position {position} of the text hold a NaN: its weights are damaged, or training diverged"
    )]
    NanLogits {
        /// How many tokens come before.
        position: usize,
    },
    /// Models over different numbers of tokens cannot be compared.
    #[error("one model has {a} tokens and the other {b}: only models of the same vocabulary can be compared")]
    VocabSizes {
        /// The tokens of one.
        a: usize,
        /// Those of the other.
        b: usize,
    },
    /// There is nothing to learn from one distinct token.
    #[error("the corpus has {0} distinct token(s): there is nothing to predict; use a corpus with at least 2")]
    NothingToPredict(usize),
    /// Training in memory reads no other model.
    #[error(
        "an adapter (lora.rank) and a model to stay near (train.reference) need a run: tinygpt_trainer::Run trains them"
    )]
    NeedsRun,
    /// A device without products of a precision.
    #[error(
        "train.precision = \"{}\" does not work on this device ({reason}); use \"f32\"{}",
        .precision.name(), if *.precision == Precision::Bf16 { " or \"f16\"" } else { "" }
    )]
    PrecisionOfDevice {
        /// The precision.
        precision: Precision,
        /// The device's error.
        reason: String,
    },
    /// A model that cannot be stayed near.
    #[error("train.reference = {path}: {reason}")]
    Reference {
        /// Its folder.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A model that no run can start from.
    #[error("{path}: {reason}")]
    InitialModel {
        /// Its folder.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A run that the machine has no memory for.
    #[error(
        "training needs at least {} of memory, and {} is there: {} for {what}; lower {keys}",
        gib(*.needed), gib(*.available), gib(*.bytes)
    )]
    TooLarge {
        /// Bytes that it needs at least.
        needed: f64,
        /// Bytes that there are.
        available: f64,
        /// What most of it is for.
        what: &'static str,
        /// The bytes for that.
        bytes: f64,
        /// The keys to lower.
        keys: &'static str,
    },
    /// A GPU has no memory left.
    #[error("{device} is out of memory: {remedy}")]
    OutOfMemory {
        /// The device, as [`tinygpt_model::device::name`] has it.
        device: String,
        /// What needs less of it.
        remedy: &'static str,
    },
    /// A vocabulary whose n-grams do not fit a key of 128 bits.
    #[error(
        "{order}-grams of a vocabulary of {vocab_size} are too long to be counted: at most {most} tokens are; give a smaller order"
    )]
    NgramVocabulary {
        /// The size of the vocabulary.
        vocab_size: usize,
        /// The order.
        order: usize,
        /// The largest vocabulary of that order.
        most: usize,
    },
    /// The temporary files of counting n-grams cannot be written or read.
    #[error(
        "cannot keep counts of n-grams in `{folder}`: {source}; make room there, or set the environment variable TMPDIR to \
         a folder that has it"
    )]
    NgramRuns {
        /// The folder of temporary files.
        folder: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The loss is not a number any more.
    #[error(
        "the {what} of step {step} is {value}: training has diverged; start again with a lower train.lr or with \
         train.clip = 1.0 (`last/` still holds the state of the last save)"
    )]
    NonFiniteLoss {
        /// The update at which it happened.
        step: u64,
        /// `loss`, `gradient norm` or `validation loss`.
        what: &'static str,
        /// NaN or infinite.
        value: f64,
    },
    /// The validation loss is far above what guessing would give, and the training loss above it too.
    #[error(
        "the validation loss of step {step} is {loss:.2} nats/token, and guessing has {uniform:.2}: training has diverged; \
         `last/` still holds the state of the last save: resume it with a lower train.lr, or start again with one"
    )]
    Diverged {
        /// The update at which it was noticed.
        step: u64,
        /// Nats a token.
        loss: f64,
        /// That of the uniform distribution over the vocabulary.
        uniform: f64,
    },
    /// A parameter would never be trained.
    #[error("parameter {name} has {problem} after the first backward pass: it would never be trained")]
    MissingGradient {
        /// The parameter's name.
        name: String,
        /// `no gradient` or `an all-zero gradient`.
        problem: &'static str,
    },
    /// The optimizer's state has a slot that the optimizer lacks.
    #[error("the optimizer's state has `{name}`, which the optimizer lacks: it was saved by another optimizer")]
    UnknownSlot {
        /// The slot's name.
        name: String,
    },
    /// The optimizer's state lacks a slot.
    #[error("the optimizer's state has no `{name}`: it is damaged, or was saved by another optimizer")]
    MissingSlot {
        /// The slot's name.
        name: String,
    },
    /// An update was asked for with another number of slots of state than the optimizer has.
    #[error("the update has {got} slots of state, and the optimizer {needed}")]
    SlotCount {
        /// How many it was given.
        got: usize,
        /// How many it has.
        needed: usize,
    },
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// The caller's function for events failed, which ends training as an interruption does: the state is saved.
    #[error(transparent)]
    Callback(CallbackError),
    /// A run is to go on to fewer steps than it has made.
    #[error("train.max_steps = {max_steps}, but the run has made {step} steps already; give a larger one")]
    StepsAlreadyMade {
        /// What was asked for.
        max_steps: u64,
        /// What was made.
        step: u64,
    },
    /// Another process writes to the run.
    #[error("{path} is in use: another tinygpt is training there")]
    Busy {
        /// The run's folder.
        path: PathBuf,
    },
    /// The corpus is not the one that the run was started on.
    #[error(
        "the corpus {corpus} has changed since this run was started, so its validation split is another one; give the old text by --data, or start a new run (`tinygpt eval RUN --data FILE` evaluates any text)"
    )]
    CorpusChanged {
        /// The corpus as configured.
        corpus: String,
    },
    /// A sweep has a run of this name with another configuration.
    #[error("{run} was trained with another configuration than this sweep asks for: give another --out")]
    SweptOtherwise {
        /// The run's folder.
        run: PathBuf,
    },
    /// The folder of a sweep holds something else.
    #[error("{path} holds something, and no run of this sweep: give another --out")]
    NoSweep {
        /// The folder.
        path: PathBuf,
    },
    /// Two runs of a sweep would have one folder.
    #[error("two runs of the sweep would both be called {run}: give values that differ in more than punctuation")]
    SameRunTwice {
        /// The name.
        run: String,
    },
    /// There is no run to continue or to generate from.
    #[error("there is no run {wanted} yet: train one with `tinygpt train --config tiny`")]
    NoRun {
        /// What was looked for.
        wanted: String,
    },
    /// The folder of a new run already holds something.
    #[error(
        "{path} is not empty: give --resume to go on with the run in it, --overwrite to replace it, or another --out"
    )]
    RunExists {
        /// The folder.
        path: PathBuf,
    },
    /// `--overwrite` was given for a folder that tinygpt did not write.
    #[error(
        "{path} is not a tinygpt run (it lacks train.toml or config.json, or the current folder lies in it), so --overwrite will not delete it; remove it yourself or give another --out"
    )]
    NotOurs {
        /// The folder.
        path: PathBuf,
    },
    /// A file of a run cannot be read or written, or does not hold what it should.
    #[error(transparent)]
    File(#[from] FileError),
    /// The losses of a run could not be drawn.
    #[error(transparent)]
    Chart(#[from] ChartError),
    /// An error of candle.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

fn gib(bytes: f64) -> String {
    format!("{:.1} GiB", bytes / (1u64 << 30) as f64)
}

impl From<NgramError> for TrainError {
    fn from(error: NgramError) -> Self {
        Self::Model(error.into())
    }
}

impl From<HubError> for TrainError {
    fn from(error: HubError) -> Self {
        Self::Hub(Box::new(error))
    }
}

impl TrainError {
    /// A closure for `map_err` that adds the action and the path to an I/O error.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let error = FileError::io(action, path);
        move |source| Self::File(error(source))
    }

    /// The same error of a device, or [`TrainError::OutOfMemory`] where that is what candle's error says.
    pub(crate) fn on(self, device: &Device, remedy: &'static str) -> Self {
        match self {
            Self::Tensor(error) | Self::Model(ModelError::Tensor(error)) if is_out_of_memory(&error) => {
                Self::OutOfMemory { device: device::name(device), remedy }
            }
            error => error,
        }
    }

    /// A file that does not hold what it should.
    pub(crate) fn bad_file(path: &Path, reason: impl ToString) -> Self {
        Self::File(FileError::content(path, reason))
    }
}
