//! The GPT-2 model of tinygpt: from a checkpoint to logits to text.
//!
//! Read it in this order: [`config`] (the shape), [`mod@network`] (the network, written once), [`ops`] (an operation a file,
//! in every form), [`plan`] (what a network is made of), then what executes it: `tensors` (candle, on any device) and
//! [`cpu`]; [`decode`], [`batch_decode`] and [`mod@generate`] (logits, and the token loop). [`checkpoint`] is a model on disk and
//! [`tokenizer`] its text. [`ngram`] has what a network is compared with.
//!
//! Shapes are written `(B, T, C)`: batch, time (positions), channels (`n_embd`). `V` is the vocabulary size,
//! `nh` the number of heads and `hs = C / nh` the size of one head. Matrices are stored `(in, out)`, as Hugging Face's
//! `Conv1D` does, so a linear layer is `x @ w + b`.
//!
//! ```
//! use std::ops::ControlFlow;
//!
//! use tinygpt_model::{Checkpoint, ContextPolicy, Device, Generation, cpu::WeightFormat, generate};
//! # use tinygpt_model::{GenerationDefaults, GptConfig, ModelFolder, Tokenizer, TokenizerError, init_params};
//! use tinygpt_sampler::{Sampler, SamplingParams};
//!
//! # let folder = tempfile::tempdir()?;
//! # let tokenizer = Tokenizer::train_char([Ok::<_, TokenizerError>("Once upon a time\n")])?;
//! # let config = GptConfig { vocab_size: tokenizer.vocab_size(), n_layer: 1, n_embd: 16, ..GptConfig::default() };
//! # let model = ModelFolder::new(folder.path());
//! # model.write_description(&config, &tokenizer, &GenerationDefaults::default())?;
//! # model.write_weights(&config, &init_params(&config, 1))?;
//! let checkpoint = Checkpoint::open(&folder)?; // a run, or a GPT-2, Qwen3 or Llama of Hugging Face
//! let prompt = checkpoint.tokenizer().encode("Once")?;
//! let mut decoder = checkpoint.decoder(ContextPolicy::Half, WeightFormat::F32, &Device::Cpu)?;
//! let mut sampler = Sampler::new(SamplingParams { seed: 42, ..SamplingParams::default() })?;
//! let request = Generation { prompt: &prompt, first_sequence: 0, rows: 1, max_new_tokens: 20 };
//! let mut tokens = Vec::new();
//! // Gets every token when it is drawn; a row is over when it breaks. What can fail in it keeps its error and breaks.
//! generate(decoder.as_mut(), &mut sampler, request, |_row, token| {
//!     tokens.push(token);
//!     ControlFlow::Continue(())
//! })?;
//! assert_eq!(checkpoint.tokenizer().decode(&tokens)?.chars().count(), 20);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod adapter;
pub mod batch_decode;
pub mod checkpoint;
pub mod components;
pub mod config;
pub mod constraint;
pub mod cpu;
pub mod decode;
pub mod device;
pub mod dropout;
mod error;
pub mod files;
pub mod generate;
pub mod gguf;
pub mod language_model;
pub mod network;
pub mod ngram;
pub mod ops;
pub mod params;
pub mod plan;
mod q4_0;
mod tensors;
pub mod tokenizer;

pub use adapter::{Adapter, AdapterShape};
pub use batch_decode::{BatchDecoder, NextLogits};
/// Where tensors live; of the one version of candle that this crate works with.
pub use candle_core::Device;
pub use checkpoint::{Checkpoint, GenerationDefaults, ModelFolder};
pub use config::{Architecture, GptConfig, MODEL_KEYS, Mlp, ModelKey, Precision};
pub use decode::{ContextPolicy, Decoder, Logits};
pub use dropout::Dropout;
pub use error::{ModelError, Result};
pub use generate::{Generation, GenerationHooks, generate, generate_with};
pub use language_model::{LanguageModel, Windows, open_language_model};
pub use network::network;
pub use params::{init_params, param_specs};
pub use plan::{Network, ParamSpec};
pub use tensors::{Gpt, Inspection, KvCache, ParamSpread, Spread, TensorDecoder, ValueSpread};
/// The rules of drawing tokens.
pub use tinygpt_sampler::SamplingParams;
pub use tokenizer::{Tokenizer, TokenizerError};
