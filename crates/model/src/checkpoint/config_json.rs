//! `config.json`: the shape of a model. That of a GPT-2, a Qwen3 or a Llama is Hugging Face's, and `transformers` loads it;
//! any other network is of a type of its own, which opens here alone.

mod attention_scale;
mod gpt2;
mod llama;

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{FloatType, MODEL_FORMAT, check_format};
use crate::{
    GptConfig, Tokenizer,
    config::{Architecture, Norm},
    files::FileError,
};

pub(super) use attention_scale::{AttentionScale, QueryScale};

/// What the file says of a model.
#[derive(Debug)]
pub(super) struct Description {
    pub(super) config: GptConfig,
    pub(super) attention_scale: AttentionScale,
}

/// The type of a network that is of no architecture of Hugging Face.
const OWN_TYPE: &str = "tinygpt";

/// The ids of the tokens that begin and end a text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Boundaries {
    pub(super) begin: Option<u32>,
    pub(super) end: Option<u32>,
}

impl Boundaries {
    pub(super) fn of(tokenizer: &Tokenizer) -> Self {
        Self { begin: tokenizer.begin_of_text(), end: tokenizer.end_of_text() }
    }
}

/// The content of the file.
pub(super) fn write(config: &GptConfig, boundaries: Boundaries, kind: FloatType) -> Value {
    match config.architecture() {
        Ok(Architecture::Gpt2) => gpt2::write(config, boundaries, kind),
        Ok(Architecture::Qwen3) => llama::write(config, Architecture::Qwen3, boundaries, kind),
        Ok(Architecture::Llama) => llama::write(config, Architecture::Llama, boundaries, kind),
        Err(_) => json!({
            "architectures": ["TinyGptForCausalLM"],
            "model_type": OWN_TYPE,
            "vocab_size": config.vocab_size,
            "bos_token_id": boundaries.begin,
            "eos_token_id": boundaries.end,
            "torch_dtype": kind.torch_name(),
            "tinygpt": { "format": MODEL_FORMAT, "model": config },
        }),
    }
}

/// What the file at `path` says.
///
/// # Errors
/// When it is broken, or asks for what this program does not do: that must not be computed wrongly in silence.
pub(super) fn parse(path: &Path, value: &Value) -> Result<Description, FileError> {
    let bad = |reason: String| FileError::content(path, reason);
    check_format(path, value)?;
    let config = match value["model_type"].as_str() {
        Some("gpt2") => gpt2::parse(value),
        Some("qwen3") => llama::parse(value, Architecture::Qwen3),
        Some("llama") => llama::parse(value, Architecture::Llama),
        Some(OWN_TYPE) => own(value),
        _ => Err(format!(
            "its model_type is {}, this program knows \"gpt2\", \"qwen3\", \"llama\" and \"tinygpt\" only",
            value["model_type"]
        )),
    };
    let config = config.map_err(bad)?;
    config.validate().map_err(|e| bad(e.to_string()))?;
    let attention_scale = match value["model_type"].as_str() {
        Some("gpt2") => AttentionScale::parse(value).map_err(bad)?,
        _ => AttentionScale::default(),
    };
    Ok(Description { config, attention_scale })
}

fn own(value: &Value) -> Result<GptConfig, String> {
    let model = GptConfig::deserialize(&value["tinygpt"]["model"]).map_err(|e| format!("tinygpt.model: {e}"))?;
    Ok(GptConfig { vocab_size: number(value, "vocab_size")?, ..model })
}

/// The whole number of a key.
fn number(value: &Value, key: &str) -> Result<usize, String> {
    value[key].as_u64().map(|n| n as usize).ok_or_else(|| format!("`{key}` is missing or not a number"))
}

/// The truth of a key; absent, or null, it is the default of `transformers`.
fn flag(value: &Value, key: &str, default: bool) -> Result<bool, String> {
    match &value[key] {
        Value::Null => Ok(default),
        Value::Bool(flag) => Ok(*flag),
        other => Err(format!("`{key}` is {other}, neither true nor false")),
    }
}

/// The number of a key; null, or absent, it is none.
fn optional_number(value: &Value, key: &str) -> Result<Option<f64>, String> {
    match &value[key] {
        Value::Null => Ok(None),
        found => found.as_f64().map(Some).ok_or_else(|| format!("`{key}` is {found}, not a number")),
    }
}

/// The key `norm_eps` of an epsilon, which stays 0 where that is the default here; `transformers` has the same defaults.
fn norm_eps(value: &Value, key: &str, norm: Norm) -> Result<f64, String> {
    let eps = optional_number(value, key)?.unwrap_or(norm.default_eps());
    if eps == 0.0 {
        return Err(format!("`{key}` is 0; it must be at least 1e-12"));
    }
    Ok(if eps == norm.default_eps() { 0.0 } else { eps })
}

/// Refuses a value of a key other than the one that this program computes with; absent, or null, it is the latter.
fn check_supported(value: &Value, key: &str, supported: &Value) -> Result<(), String> {
    let found = &value[key];
    if found.is_null() || same(found, supported) {
        return Ok(());
    }
    Err(format!("`{key}` is {found}; this program supports {supported} only"))
}

/// Whether two values are the same: 1 is 1.0.
fn same(a: &Value, b: &Value) -> bool {
    a == b || a.as_f64().is_some_and(|number| b.as_f64() == Some(number))
}
