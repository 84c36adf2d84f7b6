//! The `config.json` of a Llama or a Qwen3.

use serde_json::{Value, json};

use super::{MODEL_FORMAT, check_supported, number};
use crate::{
    GptConfig, Mlp,
    config::{Architecture, Norm, Position},
    ops::RMS_NORM_EPS,
};

/// What `transformers` takes where the file has no `rope_theta`.
const DEFAULT_ROPE_THETA: f64 = 10_000.0;
/// What its Qwen3 takes where the file has no `head_dim`; Llama's is hidden_size / num_attention_heads.
const QWEN3_HEAD_DIM: usize = 128;

/// What Hugging Face needs, and what is true. Angles, and the type of the weights, stand under the keys of `transformers` 4
/// and under those of 5. Its dropout is that of attention's weights alone; ours is kept beside it.
pub(super) fn write(config: &GptConfig, architecture: Architecture, end_of_text: Option<u32>) -> Value {
    let mut file = json!({
        "architectures": [architecture.class()],
        "model_type": architecture.model_type(),
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.block_size,
        "hidden_size": config.n_embd,
        "intermediate_size": config.hidden(),
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.kv_heads(),
        "head_dim": config.head_size(),
        "hidden_act": "silu",
        "rms_norm_eps": RMS_NORM_EPS,
        "rope_theta": config.rope_theta,
        "rope_scaling": null,
        "rope_parameters": { "rope_type": "default", "rope_theta": config.rope_theta },
        "attention_bias": false,
        "attention_dropout": config.dropout,
        "initializer_range": 0.02,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "dtype": "float32",
        "torch_dtype": "float32",
    });
    match architecture {
        Architecture::Qwen3 => {
            file["use_sliding_window"] = json!(false);
            file["sliding_window"] = json!(null);
        }
        Architecture::Llama | Architecture::Gpt2 => file["mlp_bias"] = json!(false),
    }
    file["tinygpt"] = json!({ "format": MODEL_FORMAT, "dropout": config.dropout });
    file
}

/// The shape, or why there is none.
pub(super) fn parse(value: &Value, architecture: Architecture) -> Result<GptConfig, String> {
    for (key, supported) in [
        ("hidden_act", json!("silu")),
        ("rms_norm_eps", json!(RMS_NORM_EPS)),
        ("attention_bias", json!(false)),
        ("mlp_bias", json!(false)),
        ("use_sliding_window", json!(false)),
        ("partial_rotary_factor", json!(1.0)),
        ("quantization_config", Value::Null),
    ] {
        check_supported(value, key, &supported)?;
    }
    if let Some(other) = value["layer_types"].as_array().and_then(|all| all.iter().find(|&t| t != "full_attention")) {
        return Err(format!("`layer_types` has {other}; this program supports \"full_attention\" only"));
    }
    let (n_embd, n_head) = (number(value, "hidden_size")?, number(value, "num_attention_heads")?);
    let (hidden, n_kv_head) = (positive(value, "intermediate_size")?, kv_heads(value, architecture, n_head)?);
    check_head_dim(value, architecture, n_embd, n_head)?;
    let dropout = value["tinygpt"]["dropout"].as_f64().or_else(|| value["attention_dropout"].as_f64());
    let mut config = GptConfig {
        vocab_size: number(value, "vocab_size")?,
        block_size: number(value, "max_position_embeddings")?,
        n_layer: number(value, "num_hidden_layers")?,
        n_head,
        n_embd,
        dropout: dropout.unwrap_or(0.0),
        bias: false,
        mlp: Mlp::Swiglu,
        norm: Norm::Rms,
        position: Position::Rope,
        rope_theta: rope_theta(value)?,
        tie_embeddings: value["tie_word_embeddings"].as_bool().unwrap_or(false), // Hugging Face's default
        qk_norm: architecture == Architecture::Qwen3,
        ..GptConfig::default()
    };
    // Where they follow from the rest, keys stay 0, as in most configurations.
    if config.hidden() != hidden {
        config.mlp_hidden = hidden;
    }
    if n_kv_head != n_head {
        config.n_kv_head = n_kv_head;
    }
    Ok(config)
}

fn kv_heads(value: &Value, architecture: Architecture, n_head: usize) -> Result<usize, String> {
    let key = "num_key_value_heads";
    match value.get(key) {
        // Absent, `transformers` takes 32 for a Qwen3, which no file means.
        None if architecture == Architecture::Llama => Ok(n_head),
        Some(Value::Null) => Ok(n_head),
        _ => positive(value, key),
    }
}

/// The number of a key for which 0 would mean something else here.
fn positive(value: &Value, key: &str) -> Result<usize, String> {
    match number(value, key)? {
        0 => Err(format!("`{key}` is 0; it must be at least 1")),
        n => Ok(n),
    }
}

fn check_head_dim(value: &Value, architecture: Architecture, n_embd: usize, n_head: usize) -> Result<(), String> {
    let (head_dim, absent) = match value.get("head_dim") {
        None if architecture == Architecture::Qwen3 => (QWEN3_HEAD_DIM, " (as it is missing)"),
        None | Some(Value::Null) => return Ok(()),
        Some(_) => (number(value, "head_dim")?, ""),
    };
    if head_dim.checked_mul(n_head) == Some(n_embd) {
        return Ok(());
    }
    Err(format!(
        "`head_dim` is {head_dim}{absent}; this program supports hidden_size / num_attention_heads = {n_embd} / {n_head} only"
    ))
}

/// The base of the angles: that of `rope_parameters` (`transformers` 5) or `rope_scaling`, or else the file's own.
fn rope_theta(value: &Value) -> Result<f64, String> {
    let mut theta = &value["rope_theta"];
    for object in ["rope_scaling", "rope_parameters"] {
        let Some(entries) = value[object].as_object() else {
            check_supported(value, object, &Value::Null)?;
            continue;
        };
        for (key, found) in entries {
            let supported = match key.as_str() {
                "rope_theta" => {
                    theta = found;
                    continue;
                }
                "rope_type" | "type" => json!("default"),
                "partial_rotary_factor" => json!(1.0),
                _ => Value::Null,
            };
            check_supported(&value[object], key, &supported).map_err(|reason| format!("`{object}`: {reason}"))?;
        }
    }
    match theta {
        Value::Null => Ok(DEFAULT_ROPE_THETA),
        number => number.as_f64().ok_or_else(|| format!("`rope_theta` is {number}, not a number")),
    }
}
