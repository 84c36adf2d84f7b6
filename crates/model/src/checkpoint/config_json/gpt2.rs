//! The `config.json` of a GPT-2.

use serde_json::{Value, json};

use super::{Boundaries, FloatType, MODEL_FORMAT, check_supported, flag, norm_eps, number};
use crate::{GptConfig, Mlp, config::Norm};

/// What Hugging Face needs, and what is true. Its own defaults would be gelu_new and token 50256.
pub(super) fn write(config: &GptConfig, boundaries: Boundaries, kind: FloatType) -> Value {
    // Null is 4 n_embd.
    let n_inner = (config.hidden() != 4 * config.n_embd).then(|| config.hidden());
    json!({
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.block_size,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": n_inner,
        "activation_function": config.mlp.name(),
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "layer_norm_epsilon": config.norm_eps(Norm::Layer),
        "initializer_range": 0.02,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": boundaries.begin,
        "eos_token_id": boundaries.end,
        "torch_dtype": kind.torch_name(),
        "tinygpt": { "format": MODEL_FORMAT, "bias": config.bias },
    })
}

/// The shape, or why there is none.
pub(super) fn parse(value: &Value) -> Result<GptConfig, String> {
    // `reorder_and_upcast_attn` computes the same in f32, as everything here is computed, and so may be either.
    for (key, supported) in
        [("add_cross_attention", json!(false)), ("pruned_heads", json!({})), ("quantization_config", Value::Null)]
    {
        check_supported(value, key, &supported)?;
    }
    let mlp = match value["activation_function"].as_str() {
        Some("gelu" | "gelu_python") => Mlp::Gelu,
        // All are the tanh approximation, computed in different ways.
        Some("gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" | "gelu_python_tanh" | "gelu_accurate") => Mlp::GeluNew,
        Some("relu2") => Mlp::Relu2,
        None if value["activation_function"].is_null() => Mlp::GeluNew, // Hugging Face's default
        _ => {
            return Err(format!(
                "activation_function {} is not gelu, gelu_new (or another name of these two) or relu2",
                value["activation_function"]
            ));
        }
    };
    Ok(GptConfig {
        vocab_size: number(value, "vocab_size")?,
        block_size: number(value, "n_positions")?,
        n_layer: number(value, "n_layer")?,
        n_head: number(value, "n_head")?,
        n_embd: number(value, "n_embd")?,
        dropout: value["resid_pdrop"].as_f64().unwrap_or(0.0),
        bias: flag(&value["tinygpt"], "bias", true)?,
        mlp,
        mlp_hidden: n_inner(value)?,
        tie_embeddings: flag(value, "tie_word_embeddings", true)?,
        norm_eps: norm_eps(value, "layer_norm_epsilon", Norm::Layer)?,
        ..GptConfig::default()
    })
}

/// The channels inside the MLP, 0 where they are 4 n_embd.
fn n_inner(value: &Value) -> Result<usize, String> {
    if value["n_inner"].is_null() {
        return Ok(0);
    }
    match number(value, "n_inner")? {
        0 => Err("`n_inner` is 0; it must be at least 1, or null".into()),
        n if value["n_embd"].as_u64().and_then(|n_embd| n_embd.checked_mul(4)) == Some(n as u64) => Ok(0),
        n => Ok(n),
    }
}
