//! The GPT-2 model of tinygpt.
//!
//! Read it in this order: [`config`] (the shape), [`mod@network`] (the network, written once), [`ops`] (an operation a file,
//! in every form), [`plan`] (what a network is made of), then what executes it: `tensors` (candle, on any device) and
//! [`cpu`]; [`decode`] and [`mod@generate`] (logits, and the token loop).
//!
//! Shapes are written `(B, T, C)`: batch, time (positions), channels (`n_embd`). `V` is the vocabulary size,
//! `nh` the number of heads and `hs = C / nh` the size of one head. Matrices are stored `(in, out)`, as Hugging Face's
//! `Conv1D` does, so a linear layer is `x @ w + b`.

pub mod config;
pub mod cpu;
pub mod decode;
pub mod dropout;
mod error;
pub mod generate;
pub mod network;
pub mod ops;
pub mod params;
pub mod plan;
mod tensors;

pub use config::{Activation, GptConfig, Precision};
pub use decode::{ContextPolicy, Decoder, Logits};
pub use dropout::Dropout;
pub use error::{ModelError, Result};
pub use generate::{Generation, generate};
pub use network::network;
pub use params::{init_params, param_specs};
pub use plan::{Network, ParamSpec};
pub use tensors::{Gpt, KvCache, TensorDecoder};
