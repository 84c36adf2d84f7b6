//! The `config.json` of a Llama or a Qwen3.

use serde_json::{Map, Value, json};

use super::{Boundaries, FloatType, MODEL_FORMAT, check_supported, flag, norm_eps, number, optional_number, same};
use crate::{
    GptConfig, Mlp,
    config::{Architecture, Norm, Position, RopeFrequencies, RopeScaling},
};

/// What `transformers` takes where the file has no `rope_theta`.
const DEFAULT_ROPE_THETA: f64 = 10_000.0;
/// What its Qwen3 takes where the file has no `head_dim`; Llama's is hidden_size / num_attention_heads.
const QWEN3_HEAD_DIM: usize = 128;
/// The context of pretraining, among the keys of the angles or beside them.
const ORIGINAL: &str = "original_max_position_embeddings";

/// What Hugging Face needs, and what is true. Angles, and the type of the weights, stand under the keys of `transformers` 4
/// and under those of 5. Its dropout is that of attention's weights alone; ours is kept beside it.
pub(super) fn write(config: &GptConfig, architecture: Architecture, boundaries: Boundaries, kind: FloatType) -> Value {
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
        "rms_norm_eps": config.norm_eps(Norm::Rms),
        "rope_theta": config.rope_theta,
        "rope_scaling": null,
        "rope_parameters": null,
        "attention_bias": false,
        "attention_dropout": config.dropout,
        "initializer_range": 0.02,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": boundaries.begin,
        "eos_token_id": boundaries.end,
        "dtype": "float32",
        "torch_dtype": kind.torch_name(),
    });
    write_rope(&mut file, config);
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
    let block_size = number(value, "max_position_embeddings")?;
    let rope = rope(value, block_size)?;
    let dropout = value["tinygpt"]["dropout"].as_f64().or_else(|| value["attention_dropout"].as_f64());
    let mut config = GptConfig {
        vocab_size: number(value, "vocab_size")?,
        block_size,
        n_layer: number(value, "num_hidden_layers")?,
        n_head,
        n_embd,
        dropout: dropout.unwrap_or(0.0),
        bias: false,
        mlp: Mlp::Swiglu,
        norm: Norm::Rms,
        norm_eps: norm_eps(value, "rms_norm_eps", Norm::Rms)?,
        position: Position::Rope,
        rope_theta: rope.theta,
        rope_scaling: rope.scaling,
        rope_factor: rope.factor,
        rope_low_freq_factor: rope.low_freq_factor,
        rope_high_freq_factor: rope.high_freq_factor,
        rope_original_block_size: rope.original_block_size,
        head_size: head_size(value, architecture, n_embd, n_head)?,
        tie_embeddings: flag(value, "tie_word_embeddings", false)?, // Hugging Face's default
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

/// The key `head_size`, which stays 0 where the size follows from the rest.
fn head_size(value: &Value, architecture: Architecture, n_embd: usize, n_head: usize) -> Result<usize, String> {
    let head_dim = match value.get("head_dim") {
        None if architecture == Architecture::Qwen3 => QWEN3_HEAD_DIM,
        None | Some(Value::Null) => return Ok(0),
        Some(_) => positive(value, "head_dim")?,
    };
    Ok(if head_dim.checked_mul(n_head) == Some(n_embd) { 0 } else { head_dim })
}

/// The objects that have the keys of the angles, in `transformers` 4 and 5.
const ROPE_OBJECTS: [&str; 2] = ["rope_scaling", "rope_parameters"];

/// The keys of both objects that are not null; each of them may have all.
fn rope_entries(value: &Value) -> Result<Value, String> {
    let mut found = Map::new();
    for object in ROPE_OBJECTS {
        let Some(entries) = value[object].as_object() else {
            check_supported(value, object, &Value::Null)?;
            continue;
        };
        for (key, entry) in entries.iter().filter(|(_, entry)| !entry.is_null()) {
            let key = if key == "type" { "rope_type" } else { key };
            let before = found.insert(key.to_owned(), entry.clone());
            if before.is_some_and(|before| !same(&before, entry)) {
                return Err(format!("`rope_scaling` and `rope_parameters` have different values of `{key}`"));
            }
        }
    }
    // The context of pretraining may stand beside the angles, and `transformers` prefers it there.
    if let Some(original) = value.get(ORIGINAL).filter(|original| !original.is_null()) {
        found.insert(ORIGINAL.to_owned(), original.clone());
    }
    Ok(Value::Object(found))
}

/// The angles that the file asks for.
fn rope(value: &Value, block_size: usize) -> Result<RopeFrequencies, String> {
    let found = rope_entries(value)?;
    let named = |reason: String| {
        let object = ROPE_OBJECTS.into_iter().find(|object| value[object].is_object()).unwrap_or("rope_scaling");
        format!("`{object}`: {reason}")
    };
    let base = optional_number(value, "rope_theta")?.unwrap_or(DEFAULT_ROPE_THETA);
    let theta = optional_number(&found, "rope_theta").map_err(named)?.unwrap_or(base);
    let scaling = match &found["rope_type"] {
        Value::Null => RopeScaling::None,
        Value::String(name) if name == "default" => RopeScaling::None,
        Value::String(name) if name == "linear" => RopeScaling::Linear,
        Value::String(name) if name == "llama3" => RopeScaling::Llama3,
        other => {
            let reason = r#"this program supports "default", "linear" and "llama3" only"#;
            return Err(named(format!("`rope_type` is {other}; {reason}")));
        }
    };
    let plain = RopeFrequencies::unscaled(theta);
    let scaled: &[&str] = match scaling {
        RopeScaling::None => &[],
        RopeScaling::Linear => &["factor"],
        RopeScaling::Llama3 => &["factor", "low_freq_factor", "high_freq_factor"],
    };
    // What a scaling does not read must not be there, or the file means another one.
    let known = ["rope_theta", "rope_type", ORIGINAL];
    for (key, entry) in found.as_object().into_iter().flatten() {
        if key == "partial_rotary_factor" {
            check_supported(&found, key, &json!(1.0)).map_err(named)?;
        } else if !known.contains(&key.as_str()) && !scaled.contains(&key.as_str()) {
            return Err(named(format!(
                "`{key}` is {entry}; with `rope_type` \"{}\" there is none",
                rope_type(scaling)
            )));
        }
    }
    let needed = |key: &str| {
        optional_number(&found, key).and_then(|n| n.ok_or_else(|| format!("`{key}` is missing"))).map_err(named)
    };
    Ok(match scaling {
        RopeScaling::None => plain,
        RopeScaling::Linear => RopeFrequencies { scaling, factor: needed("factor")?, ..plain },
        RopeScaling::Llama3 => RopeFrequencies {
            scaling,
            factor: needed("factor")?,
            low_freq_factor: needed("low_freq_factor")?,
            high_freq_factor: needed("high_freq_factor")?,
            original_block_size: match &found[ORIGINAL] {
                Value::Null => block_size, // Hugging Face's default
                _ => positive(&found, ORIGINAL).map_err(named)?,
            },
            ..plain
        },
    })
}

/// Hugging Face's `rope_type`.
fn rope_type(scaling: RopeScaling) -> &'static str {
    if scaling == RopeScaling::None { "default" } else { scaling.name() }
}

/// The keys of the angles: those of `transformers` 4 in `rope_scaling`, null without one, and those of 5 in `rope_parameters`.
fn write_rope(file: &mut Value, config: &GptConfig) {
    let mut parameters = json!({ "rope_type": rope_type(config.rope_scaling) });
    match config.rope_scaling {
        RopeScaling::None => {}
        RopeScaling::Linear => parameters["factor"] = json!(config.rope_factor),
        RopeScaling::Llama3 => {
            parameters["factor"] = json!(config.rope_factor);
            parameters["low_freq_factor"] = json!(config.rope_low_freq_factor);
            parameters["high_freq_factor"] = json!(config.rope_high_freq_factor);
            parameters[ORIGINAL] = json!(config.rope_original_block_size);
        }
    }
    if config.rope_scaling != RopeScaling::None {
        file["rope_scaling"] = parameters.clone();
    }
    parameters["rope_theta"] = json!(config.rope_theta);
    file["rope_parameters"] = parameters;
}
