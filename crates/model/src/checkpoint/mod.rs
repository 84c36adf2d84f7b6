//! A model on disk: its shape, weights and tokenizer, and how text is generated from it.
//!
//! [`Checkpoint`] is all of a folder, to generate from; [`ModelFolder`] reads and writes its parts.

mod config_json;
mod decoder;
mod float_type;
mod folder;
mod generation;
pub(crate) mod layout;
mod missing_files;
mod param_values;
pub(crate) mod stored_param;
mod summary;
pub mod tensors;
mod weight_files;
mod weights;

use std::{ops::ControlFlow, path::Path};

use candle_core::Device;
use serde_json::Value;
use tinygpt_sampler::{Sampler, SamplingParams};

pub use decoder::{open_batch_decoder, open_decoder};
pub use float_type::FloatType;
pub use folder::ModelFolder;
pub use generation::GenerationDefaults;
pub(crate) use param_values::ParamValues;
pub use summary::{SafetensorsSummary, TensorSummary};
pub use weights::Weights;

use crate::{
    Adapter, BatchDecoder, ContextPolicy, Decoder, Generation, GptConfig, ModelError, Result,
    cpu::{DecodeFormats, WeightFormat},
    files::FileError,
    generate, param_specs,
    params::check_values,
    tokenizer::Tokenizer,
};

/// The format of what this program adds to `config.json` and `generation_config.json`, and of `model.safetensors`.
pub const MODEL_FORMAT: u64 = 1;
/// The key of our format version among the metadata of a safetensors file.
pub const FORMAT_KEY: &str = "tinygpt_format";

/// The file of the weights.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// The file of the model's shape.
pub const CONFIG_FILE: &str = "config.json";

/// A model folder, or a GGUF file, that was opened: everything that generation needs.
#[derive(Debug)]
pub struct Checkpoint {
    config: GptConfig,
    weights: Weights,
    tokenizer: Tokenizer,
    defaults: GenerationDefaults,
}

impl Checkpoint {
    /// Reads shape, tokenizer and defaults of a run, of a GPT-2, Qwen3 or Llama folder of Hugging Face, or of a GGUF file of one
    /// of these, and maps or reads its weights.
    ///
    /// # Errors
    /// [`crate::ModelError::NotAModelFolder`] where a file is missing; when one is truncated or foreign, or a tensor is
    /// missing or has another shape.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let folder = ModelFolder::new(path.as_ref());
        let (config, weights, tokenizer) = folder.map_with_tokenizer()?;
        let defaults = folder.read_generation_defaults()?;
        Ok(Self { config, weights, tokenizer, defaults })
    }

    /// A model of parameters in memory, given in parameter order.
    ///
    /// # Errors
    /// When the shape is invalid, the parameters do not match it, or the tokenizer has more tokens than it.
    pub fn from_params(config: GptConfig, params: Vec<Vec<f32>>, tokenizer: Tokenizer) -> Result<Self> {
        config.validate()?;
        if tokenizer.vocab_size() > config.vocab_size {
            let reason = format!("the tokenizer has {} tokens", tokenizer.vocab_size());
            return Err(ModelError::Config { field: "vocab_size", value: config.vocab_size.to_string(), reason });
        }
        check_values(&param_specs(&config), &params)?;
        Ok(Self { config, weights: Weights::of_values(params), tokenizer, defaults: GenerationDefaults::default() })
    }

    /// The shape of the model.
    pub fn config(&self) -> &GptConfig {
        &self.config
    }

    /// The parameters.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The shape, the parameters in parameter order, and the tokenizer.
    pub fn into_parts(self) -> (GptConfig, Vec<Vec<f32>>, Tokenizer) {
        (self.config, self.weights.into_values(), self.tokenizer)
    }

    /// From text to tokens and back.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// How text is generated where nobody says otherwise.
    pub fn defaults(&self) -> &GenerationDefaults {
        &self.defaults
    }

    /// The same with the adapter of a folder: the weights are the effective ones. A parameter that it changes is computed when it is
    /// asked for, so that one that is rounded is in memory alone.
    ///
    /// # Errors
    /// As [`Adapter::open`]; [`crate::ModelError::AdapterOfScaledQueries`].
    pub fn with_adapter(self, folder: impl AsRef<Path>) -> Result<Self> {
        let Self { config, weights, tokenizer, defaults } = self;
        let adapter = Adapter::open(folder, &config)?;
        adapter.shape.check_queries(weights.queries_are_scaled())?;
        Ok(Self { config, weights: weights.with_adapter(adapter), tokenizer, defaults })
    }

    /// The fastest decoder of a device for this model, as [`Weights::decoder`].
    ///
    /// # Errors
    /// As [`open_decoder`].
    pub fn decoder(
        &self,
        window: ContextPolicy,
        formats: impl Into<DecodeFormats>,
        device: &Device,
    ) -> Result<Box<dyn Decoder + '_>> {
        self.weights.decoder(&self.config, window, formats, device)
    }

    /// What the model writes behind a prompt, on the CPU: at most `max_new_tokens`, or until it ends the text. An empty prompt is
    /// the start of a text. [`generate`](crate::generate()) is for more than this: several texts, another device, tokens as they come.
    ///
    /// # Errors
    /// When the tokenizer does not know the prompt, or a sampling rule is out of range.
    pub fn complete(&self, prompt: &str, max_new_tokens: usize, rules: SamplingParams) -> Result<String> {
        let tokenizer = &self.tokenizer;
        let prompt = tokenizer.encode_prompt(prompt)?;
        let mut decoder = self.decoder(ContextPolicy::Slide, WeightFormat::F32, &Device::Cpu)?;
        let mut tokens = Vec::new();
        let request = Generation { prompt: &prompt, first_sequence: 0, rows: 1, max_new_tokens };
        generate(decoder.as_mut(), &mut Sampler::new(rules)?, request, |_row, token| {
            if tokenizer.ends_text(token) {
                return ControlFlow::Break(());
            }
            tokens.push(token);
            ControlFlow::Continue(())
        })?;
        Ok(tokenizer.decode(&tokens)?)
    }

    /// A decoder of up to `slots` texts side by side. On the CPU it reads weights in f32 where they lie in the file.
    ///
    /// # Errors
    /// As [`open_batch_decoder`].
    pub fn batch_decoder(
        &self,
        window: ContextPolicy,
        formats: impl Into<DecodeFormats>,
        device: &Device,
        slots: usize,
    ) -> Result<Box<dyn BatchDecoder + '_>> {
        self.weights.batch_decoder(&self.config, window, formats, (device, slots))
    }
}

/// Refuses a file of ours of another format; files that others wrote have none.
fn check_format(path: &Path, value: &Value) -> Result<(), FileError> {
    match value["tinygpt"]["format"].as_u64() {
        Some(found) if found != MODEL_FORMAT => {
            Err(FileError::FormatVersion { path: path.to_owned(), found, expected: MODEL_FORMAT })
        }
        _ => Ok(()),
    }
}
