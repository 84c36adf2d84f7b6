//! `config.json`: the shape of a model. A GPT-2's is Hugging Face's, and `transformers` loads it; a network with keys that
//! GPT-2 lacks is of a type of its own, which opens here alone.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{MODEL_FORMAT, check_format};
use crate::{GptConfig, Mlp, config::LAYER_NORM_EPS, files::FileError};

/// The type of a network that is no GPT-2.
const OWN_TYPE: &str = "tinygpt";

/// What Hugging Face needs, and what is true. Its own defaults would be gelu_new and token 50256.
pub(super) fn write(config: &GptConfig, end_of_text: Option<u32>) -> Value {
    if !config.is_gpt2() {
        return json!({
            "architectures": ["TinyGptForCausalLM"],
            "model_type": OWN_TYPE,
            "vocab_size": config.vocab_size,
            "bos_token_id": end_of_text,
            "eos_token_id": end_of_text,
            "torch_dtype": "float32",
            "tinygpt": { "format": MODEL_FORMAT, "model": config },
        });
    }
    json!({
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.block_size,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": null,
        "activation_function": config.mlp.name(),
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "layer_norm_epsilon": LAYER_NORM_EPS,
        "initializer_range": 0.02,
        "tie_word_embeddings": true,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "torch_dtype": "float32",
        "tinygpt": { "format": MODEL_FORMAT, "bias": config.bias },
    })
}

/// The shape that the file at `path` gives.
///
/// # Errors
/// When it is broken, or asks for what this program does not do.
pub(super) fn parse(path: &Path, value: &Value) -> Result<GptConfig, FileError> {
    let bad = |reason: String| FileError::content(path, reason);
    let number = |key: &str| {
        value[key].as_u64().map(|n| n as usize).ok_or_else(|| bad(format!("`{key}` is missing or not a number")))
    };
    if value["model_type"] == OWN_TYPE {
        check_format(path, value)?;
        let model =
            GptConfig::deserialize(&value["tinygpt"]["model"]).map_err(|e| bad(format!("tinygpt.model: {e}")))?;
        let config = GptConfig { vocab_size: number("vocab_size")?, ..model };
        config.validate().map_err(|e| bad(e.to_string()))?;
        return Ok(config);
    }
    if value["model_type"] != "gpt2" {
        return Err(bad(format!(
            "its model_type is {}, this program knows \"gpt2\" and \"tinygpt\" only",
            value["model_type"]
        )));
    }
    check_format(path, value)?;
    // What other GPT-2 folders may ask for and this program does not do must not be computed wrongly in silence.
    for (key, supported) in [
        ("n_inner", json!(null)),
        ("layer_norm_epsilon", json!(LAYER_NORM_EPS)),
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
    let mlp = match value["activation_function"].as_str() {
        Some("gelu") => Mlp::Gelu,
        Some("gelu_new") | None => Mlp::GeluNew, // Hugging Face's default
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
        mlp,
        ..GptConfig::default()
    };
    config.validate().map_err(|e| bad(e.to_string()))?;
    Ok(config)
}
