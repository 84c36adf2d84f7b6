//! The operations of networks. A file (or folder) has everything about one operation:
//!
//! - the method of [`NetworkBuilder`](crate::plan::NetworkBuilder) that adds it to a network, with its parameters and shapes;
//! - its forward pass on **candle tensors** (`Operation::forward`), on every device, which records its
//!   gradient on a [`Tape`]. `tests/training_ops.rs` holds it against plain tensor code with candle's own gradients.
//!   `candle_nn`'s fused `LayerNorm`, `softmax_last_dim` and `sdpa` are not used: their results have no backward pass, and
//!   the parameters upstream would silently get no gradient. Some neighbours are computed as one (`tensors/fused_ops.rs`);
//! - its place in the launches of a **decoded token on CUDA** (`Operation::fuse`; `tensors/fused/`);
//! - its form in **CPU training** (`TrainOp`): a forward pass, and a backward pass from the tape of a sequence;
//! - its form in **CPU decoding** (`DecodeOp`).
//!
//! `tests/operations.rs` holds all forms against each other. To add an operation, add a file, its module below and its
//! variant of `Op`.
//!
//! Launches of an operation whose arguments all want a gradient, forward and backward, in f32 and with operands of 16 bits
//! (`tests/training_launches.rs` holds them). A chunk is [`SCORE_BYTES`] of scores or [`LOGIT_BYTES`] of logits:
//!
//! | operation | f32 | 16 bits |
//! | --- | --- | --- |
//! | [`linear()`], without bias | 1, 2 | 4, 7 |
//! | [`layer_norm()`], without bias | 11, 23 | as f32 |
//! | [`rms_norm()`] | 8, 17 | as f32 |
//! | rotary positions | 13, 13 | as f32 |
//! | [`activate`], `gelu` | 1, 9 | as f32 |
//! | [`activate`], `gelu_new` | 7, 14 | as f32 |
//! | [`activate`], `relu2` | 2, 3 | as f32 |
//! | [`swiglu()`] | 8, 15 | as f32 |
//! | dropout with the masks of a GPU | 18, 3 | as f32 |
//! | [`TensorAttention`], one chunk | 13, 26 | 16, 34 |
//! | [`TensorAttention`], three chunks | 34, 63 | 41, 79 |
//! | [`TensorAttention`] with dropout, one chunk | 30, 45 | 34, 54 |
//! | [`TensorAttention`] with dropout, three chunks | 85, 118 | 93, 135 |
//! | [`embedding()`], up to [`DIRECT_VOCAB`] tokens | 1, 4 | as f32 |
//! | [`embedding()`], more; one, two, three levels of sums | 1, 6 or 10 or 14 | as f32 |
//! | [`head_loss`], one chunk | 8, 14 | 11, 20 |
//! | [`head_loss`], four chunks | 36, 60 | 42, 75 |
//!
//! A tensor that several operations read has one more launch for each after the first, the sum of its gradients; norms have it
//! in their own.

use std::fmt::Debug;

use candle_core::Tensor;

use crate::{
    Result,
    cpu::{
        decode::{DecodeOp, DecodeSetup},
        rows::Rows,
        training::{ParamLayout, TrainOp, TrainSetup},
    },
    plan::{Network, Value},
    tensors::{Fusion, Pass},
};

mod activation;
mod add;
mod attention;
mod dropout;
mod embedding;
mod head;
pub(crate) mod kernels;
pub(crate) mod launches;
mod layer_norm;
mod linear;
mod positions;
mod qk_norm;
mod residual;
mod rms_norm;
mod rope;
mod swiglu;
pub(crate) mod tape;

pub use activation::{Activation, activate, activate_biased};
pub use attention::{SCORE_BYTES, TensorAttention, causal_mask, softmax};
pub use embedding::{DIRECT_VOCAB, Tokens, embedding};
pub use head::{LOGIT_BYTES, cross_entropy, head_loss};
pub use launches::{cat, cat_last, count_launch, take_launches};
pub use layer_norm::layer_norm;
pub use linear::{linear, linear_by_row};
pub use residual::residual_norm;
pub use rms_norm::rms_norm;
pub use swiglu::{swiglu, swiglu_biased};
pub use tape::{Gradients, Tape, reshape, transpose};

pub(crate) use activation::Activate;
pub(crate) use add::Add;
pub(crate) use attention::{Attention, AttentionScratch, PackedKeys};
pub(crate) use dropout::{ApplyDropout, KeepBits};
pub(crate) use embedding::{Embed, embedding_sum};
pub(crate) use head::{
    Head, HeadInput, LogitCap, capped_head_loss, head_divergence, logits_by_row, training as head_training,
};
pub(crate) use layer_norm::LayerNorm;
pub(crate) use linear::{Linear, ResidualLinear, round_matrices};
pub(crate) use positions::AddPositions;
pub(crate) use qk_norm::QkNorm;
pub(crate) use residual::residual_sum;
pub(crate) use rms_norm::RmsNorm;
pub(crate) use rope::{Angles, Rope};
pub(crate) use swiglu::Swiglu;

/// The interface of an operation.
pub(crate) trait Operation: Debug + Send + Sync {
    /// The values that it reads.
    fn inputs(&self) -> Vec<Value>;

    /// The value that it computes.
    fn output(&self) -> Value;

    /// Whether the CPU overwrites the first input with the output. Nothing else may then read that input.
    fn in_place(&self) -> bool {
        false
    }

    /// The values whose f32 rows the backward pass of CPU training reads.
    fn kept(&self) -> Vec<Value> {
        Vec::new()
    }

    /// Whether the backward pass of CPU training adds to the gradient of the first input instead of overwriting it. Norms
    /// do, since their input, the residual stream, has other readers.
    fn adds_to_input_grad(&self) -> bool {
        false
    }

    /// Whether it adds rows of a table, whose gradient [`Operation::add_table_grads`] computes for the whole batch. Such
    /// operations come first in a network.
    fn reads_table(&self) -> bool {
        false
    }

    /// Whether a position's output depends on the inputs of other positions.
    fn mixes_positions(&self) -> bool {
        false
    }

    /// The multiply-adds of its products for a sequence of `t` positions.
    fn multiply_adds(&self, _: &Network, _t: usize) -> f64 {
        0.0
    }

    /// The floats on the tape of CPU training for a sequence of `t` positions, values and their gradients not included.
    fn kept_floats(&self, _: &Network, _t: usize) -> usize {
        0
    }

    /// Computes the output `(B, T, channels)` on candle tensors, on any device and with a gradient.
    fn forward(&self, pass: &mut Pass<'_>) -> Result<Tensor>;

    /// Adds its launch to those of a decoded token on a GPU, or joins the one before or behind it. Nothing where it can do
    /// neither: tensor operations then compute the token.
    fn fuse(&self, _: &mut Fusion<'_>) -> Option<()> {
        None
    }

    /// Builds its form in CPU training, for one sequence.
    fn training(&self, setup: &TrainSetup<'_>) -> Box<dyn TrainOp>;

    /// Adds the gradient of an embedding table to the flat gradients. `dx` has the gradient `(T, C)` of each sequence's
    /// embeddings in the order of the batch, and `ids` the batch's tokens `(B * T)`, with `T = t`.
    fn add_table_grads(&self, _: &ParamLayout, _ids: &[u32], _t: usize, _dx: &[Rows], _grads: &mut [f32]) {}

    /// What computes it in CPU decoding; nothing where the output is the input.
    fn decoding<'a>(&self, setup: &DecodeSetup<'_, 'a>) -> Option<Box<dyn DecodeOp + 'a>>;
}

macro_rules! operations {
    ($($name:ident),* $(,)?) => {
        /// An operation of a network.
        #[derive(Debug, Clone)]
        pub(crate) enum Op {
            $($name($name),)*
        }

        /// The names of all operations, for the test that holds each in all its forms.
        #[doc(hidden)]
        pub const OPERATION_NAMES: &[&str] = &[$(stringify!($name)),*];

        impl Op {
            /// The operation's name in [`OPERATION_NAMES`].
            pub(crate) fn name(&self) -> &'static str {
                match self {
                    $(Self::$name(_) => stringify!($name),)*
                }
            }

            /// The operation behind its interface.
            pub(crate) fn get(&self) -> &dyn Operation {
                match self {
                    $(Self::$name(op) => op,)*
                }
            }
        }

        $(impl From<$name> for Op {
            fn from(op: $name) -> Self {
                Self::$name(op)
            }
        })*
    };
}

operations!(
    Activate,
    Add,
    AddPositions,
    Attention,
    ApplyDropout,
    Embed,
    LayerNorm,
    Linear,
    QkNorm,
    RmsNorm,
    Rope,
    Swiglu
);
