//! The GPT-2 model of tinygpt: from a checkpoint to logits to text.
//!
//! Read it in this order: [`config`] (the shape), [`params`] (names, shapes and initial weights of every parameter),
//! [`ops`] (the tensor operations a block is made of), [`gpt`] (the model), [`kv_cache`] and [`decode`]
//! (logits for the next token), [`mod@generate`] (the token loop). [`checkpoint`] is a model on disk and [`tokenizer`] its
//! text; [`cpu`] is the model by hand.
//!
//! Shapes are written `(B, T, C)`: batch, time (positions), channels (`n_embd`). `V` is the vocabulary size,
//! `nh` the number of heads and `hs = C / nh` the size of one head. Matrices are stored `(in, out)`, as Hugging Face's
//! `Conv1D` does, so a linear layer is `x @ w + b`.

pub mod checkpoint;
pub mod config;
pub mod cpu;
pub mod decode;
pub mod dropout;
mod error;
pub mod files;
pub mod generate;
pub mod gpt;
pub mod kv_cache;
pub mod ops;
pub mod params;
pub mod tokenizer;

pub use checkpoint::{Checkpoint, GenerationDefaults, ModelFolder};
pub use config::{Activation, GptConfig, Precision};
pub use decode::{ContextPolicy, Decoder, Logits, TensorDecoder};
pub use dropout::Dropout;
pub use error::{ModelError, Result};
pub use generate::{Generation, generate};
pub use gpt::Gpt;
pub use kv_cache::KvCache;
pub use params::{ParamSpec, init_params, param_specs};
pub use tokenizer::{Tokenizer, TokenizerError};
