//! The Hugging Face GPT-2 model folder: `config.json`, `generation_config.json`, `model.safetensors`, `tokenizer.json`,
//! `tokenizer_config.json`. `transformers` loads it, and this program loads GPT-2 folders that others wrote.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device};
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tinygpt_model::{Activation, GptConfig, param_specs};

use super::Weights;
use crate::{Result, TrainError, atomic, config::GenerateConfig, tokenizer::Tokenizer};

/// The format of what this program adds to `config.json` and `generation_config.json`, and of `model.safetensors`.
pub const MODEL_FORMAT: u64 = 1;
/// The key of our format version among the metadata of a safetensors file.
pub(super) const FORMAT_KEY: &str = "tinygpt_format";

/// The file of the weights.
pub(super) const WEIGHTS: &str = "model.safetensors";
/// The file of the model's shape.
pub(super) const CONFIG: &str = "config.json";
const GENERATION: &str = "generation_config.json";
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// A folder with a GPT-2 model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFolder {
    path: PathBuf,
}

/// The defaults in a folder's `generation_config.json`; absent ones are `None`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GenerationDefaults {
    /// 0 is greedy.
    pub temperature: Option<f64>,
    /// 0 is off.
    pub top_k: Option<usize>,
    /// 1 is off.
    pub top_p: Option<f64>,
    /// Tokens after the prompt.
    pub max_new_tokens: Option<usize>,
    /// Whether to draw at all; `false` is greedy.
    pub do_sample: Option<bool>,
}

impl ModelFolder {
    /// The model folder at this path; nothing is read yet.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes everything but the weights.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn write_description(
        &self,
        config: &GptConfig,
        tokenizer: &Tokenizer,
        generate: &GenerateConfig,
    ) -> Result<()> {
        let write_json = |name: &str, value: &Value| {
            let path = self.path.join(name);
            let text = serde_json::to_string_pretty(value).map_err(|e| TrainError::bad_file(&path, e))?;
            atomic::write(&path, (text + "\n").as_bytes())
        };
        atomic::write(&self.path.join(TOKENIZER), tokenizer.json())?;
        write_json(TOKENIZER_CONFIG, &tokenizer.tokenizer_config(config.block_size))?;
        write_json(GENERATION, &generation_json(generate, tokenizer.end_of_text()))?;
        write_json(CONFIG, &config_json(config, tokenizer.end_of_text()))
    }

    /// Writes the weights, given in parameter order. Where the model has no biases, zeros are written, since Hugging
    /// Face's GPT-2 always has them.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn write_weights(&self, config: &GptConfig, params: &[Vec<f32>]) -> Result<()> {
        let mut tensors: HashMap<String, (Vec<usize>, &[f32])> = param_specs(config)
            .into_iter()
            .zip(params)
            .map(|(spec, values)| (spec.name, (spec.shape, values.as_slice())))
            .collect();
        let zeros = vec![0.0; 4 * config.n_embd];
        for spec in param_specs(&GptConfig { bias: true, ..config.clone() }) {
            let n = spec.len();
            tensors.entry(spec.name).or_insert_with(|| (spec.shape, &zeros[..n]));
        }
        // `transformers` loads nothing without this format.
        write_tensors(
            &self.path.join(WEIGHTS),
            tensors,
            json!({ "format": "pt", FORMAT_KEY: MODEL_FORMAT.to_string() }),
        )
    }

    /// Reads the shape and the weights (in parameter order) of the model.
    ///
    /// # Errors
    /// When a file is missing, truncated or foreign, or a tensor is missing or has another shape.
    pub fn read(&self) -> Result<(GptConfig, Vec<Vec<f32>>)> {
        self.check()?;
        let config = self.read_config()?;
        let params = self.read_weights(&config)?;
        Ok((config, params))
    }

    /// Reads the shape of the model and maps its weights.
    ///
    /// # Errors
    /// As [`ModelFolder::read`].
    pub fn map(&self) -> Result<(GptConfig, Weights)> {
        self.check()?;
        let config = self.read_config()?;
        let weights = Weights::open(&self.path.join(WEIGHTS), &config)?;
        Ok((config, weights))
    }

    fn check(&self) -> Result<()> {
        let not_a_run = |reason: String| TrainError::NotARun { path: self.path.clone(), reason };
        if !self.path.is_dir() {
            return Err(not_a_run("there is no such folder".into()));
        }
        for name in [CONFIG, WEIGHTS, TOKENIZER] {
            if !self.path.join(name).is_file() {
                return Err(not_a_run(format!("it has no {name}")));
            }
        }
        Ok(())
    }

    /// Reads the weights, in parameter order.
    ///
    /// # Errors
    /// When the file is missing, truncated or foreign, or a tensor is missing or has another shape.
    pub fn read_weights(&self, config: &GptConfig) -> Result<Vec<Vec<f32>>> {
        read_weights(&self.path.join(WEIGHTS), config)
    }

    /// Reads the shape of the model.
    ///
    /// # Errors
    /// When `config.json` is missing or broken, or asks for what this program does not do.
    pub fn read_config(&self) -> Result<GptConfig> {
        let path = self.path.join(CONFIG);
        let value: Value = read_json(&path)?;
        let bad = |reason: String| TrainError::bad_file(&path, reason);
        if value["model_type"] != "gpt2" {
            return Err(bad(format!("its model_type is {}, this program knows \"gpt2\" only", value["model_type"])));
        }
        check_format(&path, &value)?;
        let number = |key: &str| {
            value[key].as_u64().map(|n| n as usize).ok_or_else(|| bad(format!("`{key}` is missing or not a number")))
        };
        // What other GPT-2 folders may ask for and this program does not do must not be computed wrongly in silence.
        for (key, supported) in [
            ("n_inner", json!(null)),
            ("layer_norm_epsilon", json!(tinygpt_model::config::LAYER_NORM_EPS)),
            ("tie_word_embeddings", json!(true)),
            ("scale_attn_weights", json!(true)),
            ("scale_attn_by_inverse_layer_idx", json!(false)),
        ] {
            let found = &value[key];
            let default_inner = key == "n_inner" && found.as_u64() == value["n_embd"].as_u64().map(|n| 4 * n);
            if !found.is_null() && *found != supported && !default_inner {
                return Err(bad(format!("`{key}` is {found}; this program supports {supported} only")));
            }
        }
        let activation = match value["activation_function"].as_str() {
            Some("gelu") => Activation::Gelu,
            Some("gelu_new") | None => Activation::GeluNew, // Hugging Face's default
            Some(other) => return Err(bad(format!("activation_function \"{other}\" is not gelu or gelu_new"))),
        };
        let config = GptConfig {
            vocab_size: number("vocab_size")?,
            block_size: number("n_positions")?,
            n_layer: number("n_layer")?,
            n_head: number("n_head")?,
            n_embd: number("n_embd")?,
            dropout: value["resid_pdrop"].as_f64().unwrap_or(0.0),
            bias: value["tinygpt"]["bias"].as_bool().unwrap_or(true),
            activation,
        };
        config.validate().map_err(|e| bad(e.to_string()))?;
        Ok(config)
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// When the file is missing or broken.
    pub fn read_tokenizer(&self) -> Result<Tokenizer> {
        Ok(Tokenizer::from_file(self.path.join(TOKENIZER))?)
    }

    /// The defaults for generation; all absent where there is no such file.
    ///
    /// # Errors
    /// When the file is not JSON, or of another format.
    pub fn read_generation_defaults(&self) -> Result<GenerationDefaults> {
        let path = self.path.join(GENERATION);
        if !path.is_file() {
            return Ok(GenerationDefaults::default());
        }
        let value: Value = read_json(&path)?;
        check_format(&path, &value)?;
        serde_json::from_value(value).map_err(|e| TrainError::bad_file(&path, e))
    }
}

/// `config.json`: what Hugging Face needs, and what is true. Its own defaults would be gelu_new and token 50256.
fn config_json(config: &GptConfig, end_of_text: Option<u32>) -> Value {
    json!({
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.block_size,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": null,
        "activation_function": config.activation.name(),
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "layer_norm_epsilon": tinygpt_model::config::LAYER_NORM_EPS,
        "initializer_range": 0.02,
        "tie_word_embeddings": true,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "torch_dtype": "float32",
        "tinygpt": { "format": MODEL_FORMAT, "bias": config.bias },
    })
}

fn generation_json(generate: &GenerateConfig, end_of_text: Option<u32>) -> Value {
    let mut value = json!({
        "do_sample": generate.temperature > 0.0,
        "top_k": generate.top_k,
        "top_p": generate.top_p,
        "max_new_tokens": generate.max_new_tokens,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "tinygpt": { "format": MODEL_FORMAT },
    });
    // Hugging Face refuses a temperature of 0; there, greedy is `do_sample: false`.
    if generate.temperature > 0.0 {
        value["temperature"] = json!(generate.temperature);
    }
    value
}

/// Refuses a file of ours of another format; files that others wrote have none.
fn check_format(path: &Path, value: &Value) -> Result<()> {
    match value["tinygpt"]["format"].as_u64() {
        Some(found) if found != MODEL_FORMAT => {
            Err(TrainError::FormatVersion { path: path.to_owned(), found, expected: MODEL_FORMAT })
        }
        _ => Ok(()),
    }
}

pub(super) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = fs::read(path).map_err(TrainError::io("read", path))?;
    serde_json::from_slice(&bytes).map_err(|e| TrainError::bad_file(path, format!("not the JSON it should be: {e}")))
}

/// Writes f32 tensors as safetensors, atomically. `metadata` is an object of strings.
pub(super) fn write_tensors<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (String, (Vec<usize>, &'a [f32]))>,
    metadata: Value,
) -> Result<()> {
    let bad = |e: safetensors::SafeTensorError| TrainError::bad_file(path, e);
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .into_iter()
        .map(|(name, (shape, values))| (name, shape, values.iter().flat_map(|x| x.to_le_bytes()).collect()))
        .collect();
    let views = bytes
        .iter()
        .map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(bad)?;
    atomic::write(path, &with_metadata(&serialize(views, None).map_err(bad)?, &metadata))
}

/// Where the tensors of a file begin: on a cache line, as vector loads from the mapped file like it.
const ALIGNMENT: usize = 64;

/// A safetensors file with metadata. `serialize` would write them in another order, and so other bytes, each time.
fn with_metadata(file: &[u8], metadata: &Value) -> Vec<u8> {
    // The file: the length of the header (8 bytes), the header (a JSON object, padded), the tensors.
    let (words, _) = file.as_chunks::<8>();
    let tensors_at = 8 + u64::from_le_bytes(words[0]) as usize;
    let entries = &file[9..tensors_at];
    let mut header = format!("{{\"__metadata__\":{metadata},").into_bytes();
    header.extend_from_slice(entries);
    header.resize((8 + header.len()).next_multiple_of(ALIGNMENT) - 8, b' ');
    [&(header.len() as u64).to_le_bytes(), &header[..], &file[tensors_at..]].concat()
}

/// Reads all parameters of a model, in parameter order, from a safetensors file with Hugging Face's GPT-2 names (with or
/// without the prefix `transformer.`).
pub(super) fn read_weights(path: &Path, config: &GptConfig) -> Result<Vec<Vec<f32>>> {
    let tensors = Tensors::read(path)?;
    param_specs(config).iter().map(|spec| tensors.get(&spec.name, &spec.shape)).collect()
}

/// The tensor of a name, with or without the prefix `transformer.`, or why there is none of this shape.
pub(super) fn named<T>(
    name: &str,
    shape: &[usize],
    get: impl Fn(&str) -> Option<T>,
    dims: impl Fn(&T) -> &[usize],
) -> std::result::Result<T, String> {
    let short = name.strip_prefix("transformer.").unwrap_or(name);
    let tensor = get(name).or_else(|| get(short)).ok_or_else(|| format!("it has no tensor {name}"))?;
    if dims(&tensor) != shape {
        return Err(format!("{name} has shape {:?}, the model needs {shape:?}", dims(&tensor)));
    }
    Ok(tensor)
}

/// The tensors of a safetensors file.
pub(super) struct Tensors {
    path: PathBuf,
    tensors: HashMap<String, candle_core::Tensor>,
}

impl Tensors {
    pub(super) fn read(path: &Path) -> Result<Self> {
        if !path.exists() {
            return Err(TrainError::bad_file(path, "it is missing"));
        }
        let tensors = candle_core::safetensors::load(path, &Device::Cpu)
            .map_err(|e| TrainError::bad_file(path, format!("truncated, or not a safetensors file: {e}")))?;
        Ok(Self { path: path.to_owned(), tensors })
    }

    /// What stands before the first `/` of names that have one, in alphabetical order: the slots of an optimizer.
    pub(super) fn prefixes(&self) -> BTreeSet<String> {
        self.tensors.keys().filter_map(|name| Some(name.split_once('/')?.0.to_owned())).collect()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The values of a tensor as f32.
    pub(super) fn get(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let tensor = named(name, shape, |name| self.tensors.get(name), |tensor| tensor.dims())
            .map_err(|reason| TrainError::bad_file(&self.path, reason))?;
        Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    #[test]
    fn the_data_of_a_file_begins_on_a_cache_line_whatever_the_metadata() {
        let data = [1, 2, 3, 4];
        let view = TensorView::new(Dtype::F32, vec![1], &data).unwrap();
        let plain = serialize([("x", view)], None).unwrap();
        for n in 0..ALIGNMENT {
            let file = with_metadata(&plain, &serde_json::json!({ "note": "n".repeat(n) }));
            assert_eq!(file.len() % ALIGNMENT, data.len());
            assert_eq!(SafeTensors::deserialize(&file).unwrap().tensor("x").unwrap().data(), data);
            let (_, header) = SafeTensors::read_metadata(&file).unwrap();
            assert_eq!(header.metadata().as_ref().unwrap()["note"].len(), n);
        }
    }
}
