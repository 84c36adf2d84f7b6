//! What can go wrong in the model.

use std::path::PathBuf;

use candle_core::Device;
use tinygpt_sampler::{SamplingError, TensorSamplingError};

use crate::{
    constraint::ConstraintError,
    device::{self, is_out_of_memory},
    files::FileError,
    ngram::NgramError,
    tokenizer::TokenizerError,
};

/// The result of a model operation.
pub type Result<T, E = ModelError> = std::result::Result<T, E>;

/// An error of the model crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A field of [`crate::GptConfig`] has a value that no model can have.
    #[error("model.{field} = {value}: {reason}")]
    Config {
        /// The field's name.
        field: &'static str,
        /// The offending value, as text.
        value: String,
        /// What is allowed.
        reason: String,
    },
    /// Products of bf16 on a processor without instructions for them, where those of f32 are faster.
    #[error(
        "bf16 needs a CPU with AVX512-BF16 (AMD from Zen 4 on, Intel from Sapphire Rapids on): on this one it would be \
         slower than f32; use f32"
    )]
    NoBf16,
    /// Products of f16 on the CPU.
    #[error("f16 is for GPUs without bf16; on the CPU, use f32 or bf16")]
    NoF16,
    /// Products of tf32 on the CPU.
    #[error("tf32 is for CUDA GPUs; on the CPU, use f32 or bf16")]
    NoTf32,
    /// The given tensors do not match the parameters of the configuration.
    #[error("parameter {name}: expected shape {expected:?}, got {got:?}")]
    ParamShape {
        /// The parameter's name.
        name: String,
        /// The shape the configuration asks for.
        expected: Vec<usize>,
        /// The shape that was given.
        got: Vec<usize>,
    },
    /// A target of an adapter that no linear layer has as its name, or as the end of it.
    #[error("`{target}` is no linear layer of this model: they are {known}")]
    AdapterTarget {
        /// The target.
        target: String,
        /// The last parts of the names that there are.
        known: String,
    },
    /// An adapter of queries would be added to weights that are others than in the file.
    #[error(
        "this GPT-2 scales its attention by scale_attn_weights or scale_attn_by_inverse_layer_idx, which is a part of its queries' \
         weights here: an adapter of c_attn does not fit them; adapters of the other layers do"
    )]
    AdapterOfScaledQueries,
    /// The number of given tensors is not the number of parameters.
    #[error("the configuration has {expected} parameters, got {got} tensors")]
    ParamCount {
        /// How many parameters the configuration has.
        expected: usize,
        /// How many tensors were given.
        got: usize,
    },
    /// More positions than the model has.
    #[error("{positions} positions do not fit the context of {block_size} (block_size)")]
    ContextFull {
        /// The number of positions asked for.
        positions: usize,
        /// The model's context.
        block_size: usize,
    },
    /// The model was given tokens of no position at all.
    #[error("there are no positions: the model needs at least one token of each sequence")]
    NoPositions,
    /// A batch that is not made of whole windows.
    #[error("a batch of {ids} inputs and {targets} targets is not made of windows of {cols} tokens")]
    BatchShape {
        /// The number of inputs.
        ids: usize,
        /// The number of targets.
        targets: usize,
        /// The length of a window.
        cols: usize,
    },
    /// A token id outside of the vocabulary.
    #[error("token {id} is outside the vocabulary of {vocab_size}")]
    TokenOutOfRange {
        /// The token.
        id: u32,
        /// The vocabulary's size.
        vocab_size: usize,
    },
    /// A step of generation got tokens for another number of rows than were started.
    #[error("{expected} rows were started, but {got} tokens given")]
    RowCount {
        /// How many rows were started.
        expected: usize,
        /// How many tokens were given.
        got: usize,
    },
    /// Generation needs at least one token to start from.
    #[error("the prompt is empty: generation needs at least one token to start from")]
    EmptyPrompt,
    /// Generation was asked for no sequences.
    #[error("no rows were asked for: generation needs at least one sequence to continue")]
    NoRows,
    /// A slot of a [`crate::BatchDecoder`] cannot do what it was asked for now.
    #[error("slot {slot} {reason}")]
    Slot {
        /// The index of the slot.
        slot: usize,
        /// What it is in the middle of.
        reason: &'static str,
    },
    /// Weights of 8 or 4 bits on a device that has no products of them here.
    #[error("weights in int8 and int4 are for the CPU; on a GPU, use bf16 or f32")]
    IntegersOnGpu,
    /// A key-value cache of 16 bits on a device that keeps it in f32.
    #[error("key-value caches in bf16 are for the CPU; on a GPU they are in f32")]
    KvCacheOnGpu,
    /// A GPU has no memory left for generation.
    #[error(
        "{device} is out of memory: generate fewer sequences at once, store the weights in bf16 (--weights bf16), or use the \
         CPU"
    )]
    OutOfMemory {
        /// The device, as [`crate::device::name`] has it.
        device: String,
    },
    /// A folder that should hold a model does not.
    #[error("{path} is not a run or a model folder: {reason}")]
    NotAModelFolder {
        /// The folder.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// A model that GGUF has no place for, or this program does not write there.
    #[error("this model cannot be written as GGUF: {reason}")]
    NoGguf {
        /// What stands in the way.
        reason: String,
    },
    /// A file of a model cannot be read or written, or does not hold what it should.
    #[error(transparent)]
    File(#[from] FileError),
    /// An n-gram model was refused.
    #[error(transparent)]
    Ngram(#[from] NgramError),
    /// The tokenizer could not be read or applied.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A grammar was refused, or allows no token.
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
    /// A sampling rule was refused, or a row of logits was not finite.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// An error of candle: a shape mismatch, or the device failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl ModelError {
    /// The same error of a device, or [`ModelError::OutOfMemory`] where that is what candle's error says.
    pub(crate) fn on(self, device: &Device) -> Self {
        match self {
            Self::Tensor(error) if is_out_of_memory(&error) => Self::OutOfMemory { device: device::name(device) },
            error => error,
        }
    }
}

impl From<TensorSamplingError> for ModelError {
    fn from(error: TensorSamplingError) -> Self {
        match error {
            TensorSamplingError::Tensor(error) => Self::Tensor(error),
            TensorSamplingError::Sampling(error) => Self::Sampling(error),
            // The enum may grow.
            other => Self::Tensor(candle_core::Error::wrap(other)),
        }
    }
}
