//! The `config.json` of a GPT-2.

use serde_json::{Value, json};

use super::{MODEL_FORMAT, check_supported, norm_eps, number};
use crate::{GptConfig, Mlp, config::Norm};

/// What Hugging Face needs, and what is true. Its own defaults would be gelu_new and token 50256.
pub(super) fn write(config: &GptConfig, end_of_text: Option<u32>) -> Value {
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
        "layer_norm_epsilon": config.norm_eps(Norm::Layer),
        "initializer_range": 0.02,
        "tie_word_embeddings": true,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "torch_dtype": "float32",
        "tinygpt": { "format": MODEL_FORMAT, "bias": config.bias },
    })
}

/// The shape, or why there is none.
pub(super) fn parse(value: &Value) -> Result<GptConfig, String> {
    for (key, supported) in [
        ("tie_word_embeddings", json!(true)),
        ("scale_attn_weights", json!(true)),
        ("scale_attn_by_inverse_layer_idx", json!(false)),
    ] {
        check_supported(value, key, &supported)?;
    }
    if value["n_inner"].as_u64() != value["n_embd"].as_u64().and_then(|n| n.checked_mul(4)) {
        check_supported(value, "n_inner", &Value::Null)?;
    }
    let mlp = match value["activation_function"].as_str() {
        Some("gelu") => Mlp::Gelu,
        Some("gelu_new") | None => Mlp::GeluNew, // Hugging Face's default
        Some(other) => return Err(format!("activation_function \"{other}\" is not gelu or gelu_new")),
    };
    Ok(GptConfig {
        vocab_size: number(value, "vocab_size")?,
        block_size: number(value, "n_positions")?,
        n_layer: number(value, "n_layer")?,
        n_head: number(value, "n_head")?,
        n_embd: number(value, "n_embd")?,
        dropout: value["resid_pdrop"].as_f64().unwrap_or(0.0),
        bias: value["tinygpt"]["bias"].as_bool().unwrap_or(true),
        mlp,
        norm_eps: norm_eps(value, "layer_norm_epsilon", Norm::Layer)?,
        ..GptConfig::default()
    })
}
