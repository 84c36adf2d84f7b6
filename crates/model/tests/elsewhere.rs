//! Models that open elsewhere: Qwen3, Llama and GPT-2 folders are Hugging Face's, and others' open here.
//! `scripts/check_transformers.py` asks `transformers`.

use std::{collections::HashMap, fs, path::Path};

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use tinygpt_model::{
    Checkpoint, ContextPolicy, GenerationDefaults, GptConfig, Mlp, ModelFolder, Tokenizer, TokenizerError,
    checkpoint::open_decoder,
    config::{InitScheme, Norm, Position, RopeScaling},
    cpu::WeightFormat,
    param_specs,
};

use crate::common::{Random, lively_params};

/// A Qwen3 with `qk_norm`, and otherwise a Llama.
pub(crate) fn llama(qk_norm: bool) -> GptConfig {
    GptConfig {
        vocab_size: 4,
        block_size: 8,
        n_layer: 2,
        n_head: 4,
        n_embd: 16,
        n_kv_head: 2,
        norm: Norm::Rms,
        position: Position::Rope,
        mlp: Mlp::Swiglu,
        qk_norm,
        ..GptConfig::default()
    }
}

/// The network with the angles of Llama 3.1.
pub(crate) fn llama3(config: &GptConfig) -> GptConfig {
    GptConfig {
        rope_theta: 500_000.0,
        rope_scaling: RopeScaling::Llama3,
        rope_factor: 8.0,
        rope_high_freq_factor: 3.5,
        rope_original_block_size: 4,
        ..config.clone()
    }
}

pub(crate) fn tokenizer() -> Tokenizer {
    Tokenizer::train_char([Ok::<_, TokenizerError>("abc\n")]).unwrap()
}

pub(crate) fn write(folder: &Path, config: &GptConfig) -> Vec<Vec<f32>> {
    let params = lively_params(config, 7);
    let model = ModelFolder::new(folder);
    model.write_description(config, &tokenizer(), &GenerationDefaults::default()).unwrap();
    model.write_weights(config, &params).unwrap();
    params
}

fn read_config(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap()
}

/// The message of opening the folder, with its `config.json` changed.
fn refusal(folder: &Path, key: &str, value: Value) -> String {
    let before = read_config(folder);
    let mut config = before.clone();
    config[key] = value;
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let message = Checkpoint::open(folder).unwrap_err().to_string();
    fs::write(folder.join("config.json"), before.to_string()).unwrap();
    message
}

pub(crate) fn tensors(folder: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap()
}

#[test]
fn a_qwen3_and_a_llama_come_back_as_they_were_written() {
    for config in [true, false].map(llama) {
        for config in [
            GptConfig { tie_embeddings: false, rope_theta: 12_345.5, ..config.clone() },
            GptConfig { mlp_hidden: 5, n_kv_head: 0, dropout: 0.25, ..config.clone() },
            GptConfig { norm_eps: 1e-5, head_size: 6, ..config.clone() },
            GptConfig { rope_scaling: RopeScaling::Linear, rope_factor: 2.5, ..config.clone() },
            llama3(&config),
            GptConfig { n_kv_head: 1, ..config },
        ] {
            let dir = tempfile::tempdir().unwrap();
            let params = write(dir.path(), &config);
            let checkpoint = Checkpoint::open(&dir).unwrap();
            assert_eq!(checkpoint.config(), &config);
            assert_eq!(checkpoint.weights().slices(), params);
            assert_eq!(ModelFolder::new(dir.path()).read().unwrap().1, params);
            // It computes what the model in memory does.
            let slices: Vec<&[f32]> = params.iter().map(Vec::as_slice).collect();
            let (policy, format) = (ContextPolicy::Slide, WeightFormat::F32);
            let mut read = checkpoint.decoder(policy, format, &Device::Cpu).unwrap();
            let mut given = open_decoder(&config, &slices, policy, format, &Device::Cpu).unwrap();
            let logits = read.start(&[3, 1, 0], 1).unwrap().to_host().unwrap().into_owned();
            assert_eq!(logits, *given.start(&[3, 1, 0], 1).unwrap().to_host().unwrap());
        }
    }
}

#[test]
fn the_configuration_has_hugging_faces_keys() {
    for (qk_norm, class, model_type, own) in
        [(true, "Qwen3ForCausalLM", "qwen3", "use_sliding_window"), (false, "LlamaForCausalLM", "llama", "mlp_bias")]
    {
        let dir = tempfile::tempdir().unwrap();
        let config = GptConfig { dropout: 0.1, init: InitScheme::FanIn, ..llama(qk_norm) };
        write(dir.path(), &config);
        let file = read_config(dir.path());
        for (key, value) in [
            ("architectures", json!([class])),
            ("model_type", json!(model_type)),
            ("vocab_size", json!(4)),
            ("max_position_embeddings", json!(8)),
            ("hidden_size", json!(16)),
            ("intermediate_size", json!(64)),
            ("num_hidden_layers", json!(2)),
            ("num_attention_heads", json!(4)),
            ("num_key_value_heads", json!(2)),
            ("head_dim", json!(4)),
            ("hidden_act", json!("silu")),
            ("rms_norm_eps", json!(1e-6)),
            ("rope_theta", json!(10_000.0)),
            ("rope_parameters", json!({ "rope_type": "default", "rope_theta": 10_000.0 })),
            ("attention_bias", json!(false)),
            ("attention_dropout", json!(0.1)),
            ("tie_word_embeddings", json!(true)),
            (own, json!(false)),
            ("tinygpt", json!({ "format": 1, "dropout": 0.1 })),
        ] {
            assert_eq!(file.get(key), Some(&value), "{key}");
        }
    }
}

#[test]
fn the_weights_have_hugging_faces_names_with_outputs_first() {
    let dir = tempfile::tempdir().unwrap();
    let config = GptConfig { tie_embeddings: false, ..llama(true) };
    let params = write(dir.path(), &config);
    let tensors = tensors(dir.path());
    let mut shapes: Vec<(&str, &[usize])> = tensors.iter().map(|(name, t)| (name.as_str(), t.dims())).collect();
    shapes.retain(|(name, _)| !name.contains(".1."));
    shapes.sort_unstable();
    assert_eq!(
        shapes,
        [
            ("lm_head.weight", &[4, 16][..]),
            ("model.embed_tokens.weight", &[4, 16]),
            ("model.layers.0.input_layernorm.weight", &[16]),
            ("model.layers.0.mlp.down_proj.weight", &[16, 64]),
            ("model.layers.0.mlp.gate_proj.weight", &[64, 16]),
            ("model.layers.0.mlp.up_proj.weight", &[64, 16]),
            ("model.layers.0.post_attention_layernorm.weight", &[16]),
            ("model.layers.0.self_attn.k_norm.weight", &[4]),
            ("model.layers.0.self_attn.k_proj.weight", &[8, 16]),
            ("model.layers.0.self_attn.o_proj.weight", &[16, 16]),
            ("model.layers.0.self_attn.q_norm.weight", &[4]),
            ("model.layers.0.self_attn.q_proj.weight", &[16, 16]),
            ("model.layers.0.self_attn.v_proj.weight", &[8, 16]),
            ("model.norm.weight", &[16]),
        ]
    );
    // Queries, keys and values lie side by side in memory: 16, 8 and 8 columns.
    let at = param_specs(&config).iter().position(|spec| spec.name == "transformer.h.0.attn.c_attn.weight").unwrap();
    let fused = Tensor::from_slice(&params[at], (16, 32), &Device::Cpu).unwrap();
    let keys = tensors["model.layers.0.self_attn.k_proj.weight"].to_vec2::<f32>().unwrap();
    assert_eq!(fused.narrow(1, 16, 8).unwrap().t().unwrap().to_vec2::<f32>().unwrap(), keys);
}

#[test]
fn folders_that_others_wrote_open_in_every_type_of_numbers_and_with_the_defaults_of_transformers() {
    let dir = tempfile::tempdir().unwrap();
    let config = GptConfig { tie_embeddings: false, ..llama(false) };
    write(dir.path(), &config);
    let mut foreign = json!({
        "model_type": "llama", "vocab_size": 4, "max_position_embeddings": 8, "hidden_size": 16, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "torch_dtype": "bfloat16",
        "rope_scaling": { "type": "default" }, "layer_types": ["full_attention", "full_attention"], "rope_theta": 500000,
    });
    let path = dir.path().join("model.safetensors");
    let whole = tensors(dir.path());
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        fs::write(dir.path().join("config.json"), foreign.to_string()).unwrap();
        let rounded: HashMap<String, Tensor> =
            whole.iter().map(|(name, tensor)| (name.clone(), tensor.to_dtype(dtype).unwrap())).collect();
        candle_core::safetensors::save(&rounded, &path).unwrap();
        let checkpoint = Checkpoint::open(&dir).unwrap();
        assert_eq!(checkpoint.config(), &GptConfig { rope_theta: 500_000.0, ..config.clone() });
        let expected = rounded["model.norm.weight"].to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
        let at = param_specs(&config).iter().position(|spec| spec.name == "transformer.ln_f.weight").unwrap();
        assert_eq!(checkpoint.weights().slices()[at], expected);
    }
    // `transformers` 5 has the base of the angles elsewhere.
    foreign["rope_parameters"] = json!({ "rope_type": "default", "rope_theta": 777.0 });
    fs::write(dir.path().join("config.json"), foreign.to_string()).unwrap();
    assert_eq!(Checkpoint::open(&dir).unwrap().config().rope_theta, 777.0);
}

/// Angles of a kind that is not computed here.
fn yarn(rope_type: &str) -> Value {
    json!({ "rope_type": rope_type, "factor": 4.0, "original_max_position_embeddings": 4 })
}

#[test]
fn what_is_not_computed_here_is_refused_by_name_with_what_is() {
    for qk_norm in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &llama(qk_norm));
        for (key, value, supported) in [
            ("head_dim", json!(5), "must be even"),
            ("head_dim", json!(0), "it must be at least 1"),
            ("head_dim", json!("4"), "is missing or not a number"),
            ("rope_scaling", json!({ "type": "linear", "factor": 4.0 }), "have different values of `rope_type`"),
            ("rope_parameters", yarn("yarn"), "`rope_type` is \"yarn\"; this program supports \"default\", \"linear\""),
            ("rope_parameters", yarn("dynamic"), "`rope_type` is \"dynamic\"; this program supports"),
            ("rope_parameters", yarn("longrope"), "`rope_type` is \"longrope\"; this program supports"),
            ("rope_parameters", json!({ "rope_type": "linear" }), "`factor` is missing"),
            ("rope_parameters", json!({ "rope_type": "linear", "factor": "x" }), "`factor` is \"x\", not a number"),
            ("rope_parameters", json!({ "rope_type": "linear", "factor": 0.5 }), "must be at least 1"),
            ("rope_parameters", json!({ "rope_type": "llama3", "factor": 8.0 }), "`low_freq_factor` is missing"),
            (
                "rope_parameters",
                json!({ "rope_type": "linear", "factor": 2.0, "beta_fast": 32 }),
                "`beta_fast` is 32; with `rope_type` \"linear\" there is none",
            ),
            ("rope_parameters", json!({ "rope_type": "default", "partial_rotary_factor": 0.5 }), "supports 1.0 only"),
            ("rope_parameters", json!({ "rope_type": "default", "factor": 2.0 }), "`factor` is 2.0"),
            ("rope_parameters", json!("none"), "`rope_parameters` is \"none\"; this program supports null only"),
            ("rope_parameters", json!({ "rope_theta": "x" }), "`rope_theta` is \"x\", not a number"),
            ("attention_bias", json!(true), "false only"),
            ("mlp_bias", json!(true), "false only"),
            ("hidden_act", json!("gelu"), "\"silu\" only"),
            ("use_sliding_window", json!(true), "false only"),
            ("layer_types", json!(["full_attention", "sliding_attention"]), "\"full_attention\" only"),
            ("rms_norm_eps", json!(0), "`rms_norm_eps` is 0; it must be at least 1e-12"),
            ("rms_norm_eps", json!(2.0), "between 1e-12 and 1"),
            ("rms_norm_eps", json!("1e-6"), "not a number"),
            ("quantization_config", json!({ "bits": 4 }), "null only"),
            ("num_key_value_heads", json!(0), "it must be at least 1"),
            ("num_key_value_heads", json!(3), "must divide n_head"),
            ("intermediate_size", json!(0), "it must be at least 1"),
            ("hidden_size", json!("16"), "is missing or not a number"),
        ] {
            let message = refusal(dir.path(), key, value);
            let named = [key, "n_kv_head", "`rope_theta`", "model.head_size", "model.rope_factor", "model.norm_eps"]
                .iter()
                .any(|key| message.contains(key));
            assert!(named && message.contains(supported), "{key}: {message}");
            assert!(message.contains("config.json: "), "{message}");
        }
    }
}

#[test]
fn a_qwen3_without_a_head_dim_has_that_of_transformers() {
    let dir = tempfile::tempdir().unwrap();
    let written = GptConfig { head_size: 128, ..llama(true) };
    write(dir.path(), &written);
    let mut config = read_config(dir.path());
    config.as_object_mut().unwrap().remove("head_dim");
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    assert_eq!(Checkpoint::open(&dir).unwrap().config(), &written);
}

/// The keys of Llama 3.1 and of Llama 2 with interpolated positions, as `transformers` 4 and 5 write them.
#[test]
fn scaled_angles_are_read_in_both_spellings() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &llama(false));
    let base = read_config(dir.path());
    let scaled = llama3(&llama(false));
    let linear = GptConfig { rope_scaling: RopeScaling::Linear, rope_factor: 4.0, ..llama(false) };
    let original = "original_max_position_embeddings";
    let factors = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 3.5, original: 4,
    });
    let with_theta = |mut object: Value| {
        object["rope_theta"] = json!(500_000.0);
        object
    };
    let without_original = |mut object: Value| {
        object.as_object_mut().unwrap().remove(original);
        object
    };
    let context = GptConfig { rope_original_block_size: 8, ..scaled.clone() };
    for (keys, expected) in [
        (json!({ "rope_scaling": factors, "rope_theta": 500_000.0 }), &scaled),
        (json!({ "rope_parameters": with_theta(factors.clone()) }), &scaled),
        (json!({ "rope_scaling": factors, "rope_parameters": with_theta(factors.clone()) }), &scaled),
        // Where it is in neither, `transformers` takes the context of the model, unless one stands beside the angles.
        (json!({ "rope_parameters": with_theta(without_original(factors.clone())) }), &context),
        (json!({ "rope_parameters": with_theta(without_original(factors.clone())), original: 4 }), &scaled),
        (json!({ "rope_scaling": { "type": "linear", "factor": 4 } }), &linear),
        (json!({ "rope_parameters": { "rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0 } }), &linear),
        (json!({ "rope_scaling": { "type": "linear", "rope_type": "linear", "factor": 4.0, original: 4 } }), &linear),
    ] {
        let mut file = base.clone();
        for key in ["rope_theta", "rope_scaling", "rope_parameters"] {
            file.as_object_mut().unwrap().remove(key);
        }
        file.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        fs::write(dir.path().join("config.json"), file.to_string()).unwrap();
        assert_eq!(Checkpoint::open(&dir).unwrap().config(), expected, "{keys}");
    }
}

/// Whatever is cut or changed, the file opens or there is an error.
#[test]
fn a_damaged_configuration_is_an_error_or_a_model() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &GptConfig { head_size: 6, ..llama3(&llama(true)) });
    let whole = serde_json::to_vec(&read_config(dir.path())).unwrap();
    let open = |bytes: &[u8]| {
        fs::write(dir.path().join("config.json"), bytes).unwrap();
        Checkpoint::open(&dir).map(|checkpoint| assert!(checkpoint.config().validate().is_ok()))
    };
    assert!(open(&whole).is_ok());
    for at in 0..whole.len() {
        assert!(open(&whole[..at]).is_err(), "{at} bytes");
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (at % 7);
        // Either is right: many a number may be another.
        let _ = open(&flipped);
    }
}

#[test]
fn the_epsilon_of_a_gpt2_is_read_and_written() {
    let dir = tempfile::tempdir().unwrap();
    let config = GptConfig { vocab_size: 4, bias: true, norm_eps: 1e-6, ..GptConfig::default() };
    write(dir.path(), &config);
    assert_eq!(read_config(dir.path())["layer_norm_epsilon"], 1e-6);
    assert_eq!(Checkpoint::open(&dir).unwrap().config(), &config);
    let message = refusal(dir.path(), "layer_norm_epsilon", json!(0.0));
    assert!(message.contains("`layer_norm_epsilon` is 0; it must be at least 1e-12"), "{message}");
}

#[test]
fn a_tensor_that_is_missing_or_of_another_shape_is_named() {
    for (name, shape) in [("model.layers.1.self_attn.v_proj.weight", [8, 16]), ("model.embed_tokens.weight", [4, 16])] {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &llama(false));
        let path = dir.path().join("model.safetensors");
        let mut all = tensors(dir.path());
        all.insert(name.into(), Tensor::zeros((3, 16), DType::F32, &Device::Cpu).unwrap());
        candle_core::safetensors::save(&all, &path).unwrap();
        let message = Checkpoint::open(&dir).unwrap_err().to_string();
        assert!(message.contains(&format!("{name} has shape [3, 16], the model needs {shape:?}")), "{message}");
        all.remove(name);
        candle_core::safetensors::save(&all, &path).unwrap();
        let message = Checkpoint::open(&dir).unwrap_err().to_string();
        assert!(message.contains(&format!("it has no tensor {name}")), "{message}");
    }
}

/// The text of the file, and the names and shapes of the tensors, as versions before Llama and Qwen3 wrote them.
#[test]
fn the_folder_of_a_gpt2_is_what_it_always_was() {
    let dir = tempfile::tempdir().unwrap();
    let config = GptConfig { vocab_size: 4, block_size: 8, n_layer: 1, n_head: 2, n_embd: 4, ..GptConfig::default() };
    write(dir.path(), &config);
    let text = fs::read_to_string(dir.path().join("config.json")).unwrap();
    let expected = r#"{
  "architectures": [
    "GPT2LMHeadModel"
  ],
  "model_type": "gpt2",
  "vocab_size": 4,
  "n_positions": 8,
  "n_embd": 4,
  "n_layer": 1,
  "n_head": 2,
  "n_inner": null,
  "activation_function": "gelu",
  "resid_pdrop": 0.0,
  "embd_pdrop": 0.0,
  "attn_pdrop": 0.0,
  "layer_norm_epsilon": 0.00001,
  "initializer_range": 0.02,
  "tie_word_embeddings": true,
  "bos_token_id": null,
  "eos_token_id": null,
  "torch_dtype": "float32",
  "tinygpt": {
    "format": 1,
    "bias": false
  }
}
"#;
    assert_eq!(text, expected);
    let mut names: Vec<String> = tensors(dir.path()).into_keys().collect();
    names.sort_unstable();
    let with_biases = GptConfig { bias: true, ..config };
    let mut specs: Vec<String> = param_specs(&with_biases).into_iter().map(|spec| spec.name).collect();
    specs.sort_unstable();
    assert_eq!(names, specs);
}

#[test]
fn a_network_of_no_architecture_has_a_type_of_its_own_and_our_names() {
    let dir = tempfile::tempdir().unwrap();
    let config = GptConfig { logit_cap: 15.0, ..llama(true) };
    let params = write(dir.path(), &config);
    assert_eq!(read_config(dir.path())["model_type"], "tinygpt");
    assert!(tensors(dir.path()).contains_key("transformer.h.0.mlp.c_fc.weight"));
    let checkpoint = Checkpoint::open(&dir).unwrap();
    assert_eq!(
        (checkpoint.config(), checkpoint.weights().slices()),
        (&config, params.iter().map(|p| &p[..]).collect())
    );
}

#[test]
fn random_shapes_come_back() {
    let mut random = Random::new(3);
    for _ in 0..20 {
        let (n_kv_head, groups, half) = (random.between(1, 3), random.between(1, 3), random.between(1, 4));
        let n_head = n_kv_head * groups;
        let config = GptConfig {
            n_head,
            n_kv_head: if groups == 1 { 0 } else { n_kv_head },
            n_embd: n_head * 2 * half,
            n_layer: random.between(1, 3),
            mlp_hidden: random.between(1, 20),
            tie_embeddings: random.coin(),
            norm_eps: if random.coin() { 1e-5 } else { 0.0 },
            head_size: if random.coin() { 2 * half + 2 } else { 0 },
            ..llama(random.coin())
        };
        let dir = tempfile::tempdir().unwrap();
        let params = write(dir.path(), &config);
        let checkpoint = Checkpoint::open(&dir).unwrap();
        assert_eq!(checkpoint.config(), &config);
        assert_eq!(checkpoint.weights().slices(), params);
    }
}
