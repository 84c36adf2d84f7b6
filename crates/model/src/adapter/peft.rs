//! The files of PEFT, Hugging Face's library of adapters: `adapter_config.json` and `adapter_model.safetensors`.

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::{Map, Value, json};

use super::{Adapter, AdapterShape, LinearLayer, linear_layers, short_names};
use crate::{
    GptConfig, Result,
    checkpoint::tensors::{Tensors, write_tensors},
    files::{FileError, atomic, read_json},
};

/// What an adapter is.
pub const ADAPTER_CONFIG_FILE: &str = "adapter_config.json";
/// Its numbers.
pub const ADAPTER_WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// What PEFT puts before the names of the model's layers.
const PREFIX: &str = "base_model.model.";
/// The largest rank that is read; a real one is a few hundreds at most.
pub const MAX_RANK: usize = 1 << 16;

/// Keys that change nothing of what a trained adapter computes. The tensors say which layers it has.
const WITHOUT_EFFECT: &[&str] = &[
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_dropout",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "task_type",
];

/// The ways to begin that leave the weights of the base as they are.
const INITS: &[&str] = &["gaussian", "orthogonal", "eva"];

impl Adapter {
    /// Reads the adapter of a folder for a model of the shape `config`.
    ///
    /// # Errors
    /// When a file is missing, truncated or foreign, a key asks for what this program does not do, or a tensor is missing, has
    /// another shape, or belongs to no linear layer of the model.
    pub fn open(folder: impl AsRef<Path>, config: &GptConfig) -> Result<Self> {
        let path = folder.as_ref().join(ADAPTER_CONFIG_FILE);
        let keys: Map<String, Value> = read_json(&path)?;
        let Keys { rank, alpha, rank_stabilized, targets } =
            Keys::parse(&keys).map_err(|reason| FileError::content(&path, reason))?;
        let path = folder.as_ref().join(ADAPTER_WEIGHTS_FILE);
        let tensors = Tensors::read(&path)?;
        let mut unread: BTreeSet<&str> = tensors.names().collect();
        let (mut layers, mut values) = (Vec::new(), Vec::new());
        let all = linear_layers(config);
        for layer in &all {
            let [a, b] = ["A", "B"].map(|which| tensor_names(layer, which));
            // An adapter of the model without its head has names without the head's prefix.
            let Some(at) = (0..2).find(|&at| unread.contains(&*a[at]) || unread.contains(&*b[at])) else { continue };
            values.push(tensors.get(&a[at], &[rank, layer.n_in])?);
            values.push(tensors.get(&b[at], &[layer.n_out, rank])?);
            unread.remove(&*a[at]);
            unread.remove(&*b[at]);
            layers.push(layer.clone());
        }
        let bad = |reason: String| Err(FileError::content(&path, reason).into());
        if let Some(name) = unread.first() {
            return bad(format!(
                "{name} is no A or B of a linear layer of this model: they are {}, in {} blocks",
                short_names(&all),
                config.n_layer
            ));
        }
        let is_read = |layer: &LinearLayer| layers.contains(layer);
        if let Some(layer) = all.iter().find(|layer| targets.iter().any(|target| layer.is(target)) && !is_read(layer)) {
            return bad(format!("it has no {}, which `target_modules` names", tensor_names(layer, "A")[0]));
        }
        if layers.is_empty() {
            return bad("it has no tensors".into());
        }
        let shape = AdapterShape { rank, alpha, rank_stabilized, layers };
        if !shape.scale().is_finite() {
            return bad(format!("its lora_alpha of {alpha} is too large"));
        }
        Self::new(shape, values)
    }

    /// Writes the adapter to a folder, which is made if it is missing. `base` says where the model is that it is for.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn write(&self, folder: impl AsRef<Path>, config: &GptConfig, base: &str) -> Result<()> {
        let folder = folder.as_ref();
        fs::create_dir_all(folder).map_err(FileError::io("create", folder))?;
        let specs = self.shape.specs();
        let tensors = specs.iter().zip(&self.values);
        let tensors =
            tensors.map(|(spec, values)| (format!("{PREFIX}{}", spec.name), (spec.shape.clone(), values.as_slice())));
        write_tensors(&folder.join(ADAPTER_WEIGHTS_FILE), tensors, json!({ "format": "pt" }))?;
        let path = folder.join(ADAPTER_CONFIG_FILE);
        let text = serde_json::to_string_pretty(&self.keys(config, base)).map_err(|e| FileError::content(&path, e))?;
        Ok(atomic::write(&path, (text + "\n").as_bytes())?)
    }

    /// The keys of `adapter_config.json`.
    fn keys(&self, config: &GptConfig, base: &str) -> Value {
        let AdapterShape { rank, alpha, rank_stabilized, layers } = &self.shape;
        // A whole number is written as one, as PEFT does.
        let alpha =
            if alpha.fract() == 0.0 && alpha.abs() < 2f64.powi(53) { json!(*alpha as i64) } else { json!(alpha) };
        json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": rank,
            "lora_alpha": alpha,
            "use_rslora": rank_stabilized,
            "target_modules": targets(layers, &linear_layers(config)),
            // GPT-2's layers are of the class Conv1D, whose weights are (in, out).
            "fan_in_fan_out": config.is_gpt2(),
            "lora_dropout": 0.0,
            "bias": "none",
            "use_dora": false,
            "modules_to_save": null,
            "init_lora_weights": true,
            "inference_mode": true,
        })
    }
}

/// The shortest list of targets that means these layers and no other of `all`.
fn targets(layers: &[LinearLayer], all: &[LinearLayer]) -> Vec<String> {
    let mut targets = BTreeSet::new();
    for layer in layers {
        let parts: Vec<&str> = layer.name.split('.').collect();
        let ends = (0..parts.len()).rev().map(|at| parts[at..].join("."));
        let means_these = |end: &String| all.iter().filter(|other| other.is(end)).all(|other| layers.contains(other));
        targets.insert(ends.into_iter().find(means_these).unwrap_or_else(|| layer.name.clone()));
    }
    targets.into_iter().collect()
}

/// The names that `A` or `B` of a layer may have: with and without the prefix of the model that the head is on.
fn tensor_names(layer: &LinearLayer, which: &str) -> [String; 2] {
    let name = &*layer.name;
    let short = ["transformer.", "model."].iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
    [name, short].map(|name| format!("{PREFIX}{name}.lora_{which}.weight"))
}

/// What `adapter_config.json` says.
struct Keys {
    rank: usize,
    alpha: f64,
    rank_stabilized: bool,
    /// The layers that must have tensors; none where other keys choose among them.
    targets: Vec<String>,
}

impl Keys {
    fn parse(keys: &Map<String, Value>) -> std::result::Result<Self, String> {
        let get = |key: &str| keys.get(key).unwrap_or(&Value::Null);
        if get("peft_type") != "LORA" {
            return Err(format!("`peft_type` is {}; this program supports \"LORA\" only", get("peft_type")));
        }
        let rank = get("r").as_u64().and_then(|rank| usize::try_from(rank).ok());
        let rank = rank.filter(|rank| (1..=MAX_RANK).contains(rank));
        let rank = rank.ok_or_else(|| format!("`r` is {}; it must be from 1 to {MAX_RANK}", get("r")))?;
        let alpha = get("lora_alpha").as_f64().filter(|alpha| alpha.is_finite());
        let alpha = alpha.ok_or_else(|| format!("`lora_alpha` is {}, not a number", get("lora_alpha")))?;
        let rank_stabilized = match get("use_rslora") {
            Value::Null => false,
            Value::Bool(whether) => *whether,
            other => return Err(format!("`use_rslora` is {other}, not true or false")),
        };
        if !matches!(get("bias"), Value::Null) && get("bias") != "none" {
            return Err(format!("`bias` is {}; this program supports \"none\" only", get("bias")));
        }
        match get("init_lora_weights") {
            Value::Null | Value::Bool(_) => {}
            Value::String(init) if INITS.contains(&init.as_str()) => {}
            other => return Err(format!("`init_lora_weights` is {other}, which changes the weights of the base")),
        }
        let read = ["peft_type", "r", "lora_alpha", "use_rslora", "bias", "init_lora_weights", "target_modules"];
        let has_effect = |key: &str| !read.contains(&key) && !WITHOUT_EFFECT.contains(&key);
        if let Some((key, value)) = keys.iter().find(|(key, value)| has_effect(key) && !is_off(value)) {
            return Err(format!("`{key}` is {value}, which this program does not support"));
        }
        let chosen_otherwise = ["exclude_modules", "layers_to_transform"].iter().any(|key| !is_off(get(key)));
        let targets = match get("target_modules").as_array() {
            Some(list) if !chosen_otherwise => list.iter().filter_map(|t| t.as_str().map(str::to_owned)).collect(),
            _ => Vec::new(),
        };
        Ok(Self { rank, alpha, rank_stabilized, targets })
    }
}

/// Whether a value says that a feature is not used.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Mlp,
        config::{Norm, Position},
    };

    fn tiny() -> GptConfig {
        GptConfig { n_layer: 2, n_head: 2, n_embd: 8, block_size: 4, vocab_size: 11, ..GptConfig::default() }
    }

    fn qwen3() -> GptConfig {
        let (norm, position, mlp) = (Norm::Rms, Position::Rope, Mlp::Swiglu);
        GptConfig { norm, position, mlp, qk_norm: true, ..tiny() }
    }

    fn adapter(config: &GptConfig, targets: &[&str]) -> Adapter {
        let targets: Vec<String> = targets.iter().map(|t| t.to_string()).collect();
        let shape = AdapterShape::new(config, 3, 6.0, &targets).unwrap();
        let values = shape.specs().iter().map(|spec| (0..spec.len()).map(|i| i as f32 / 9.0).collect()).collect();
        Adapter::new(shape, values).unwrap()
    }

    #[test]
    fn an_adapter_is_read_as_it_was_written() {
        for (config, targets) in [
            (tiny(), &["c_attn"][..]),
            (tiny(), &[]),
            (tiny(), &["mlp.c_proj"]),
            (tiny(), &["h.1.attn.c_attn"]),
            (qwen3(), &["q_proj", "v_proj", "gate_proj"]),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let written = adapter(&config, targets);
            written.write(folder.path().join("new"), &config, "the base").unwrap();
            assert_eq!(Adapter::open(folder.path().join("new"), &config).unwrap(), written, "{targets:?}");
        }
    }

    #[test]
    fn the_keys_are_those_of_peft() {
        let keys = |config: &GptConfig, targets: &[&str]| adapter(config, targets).keys(config, "gpt2");
        let gpt2 = keys(&tiny(), &["c_attn", "mlp.c_proj"]);
        assert_eq!(gpt2["target_modules"], json!(["c_attn", "mlp.c_proj"]));
        assert_eq!((&gpt2["r"], &gpt2["lora_alpha"], &gpt2["fan_in_fan_out"]), (&json!(3), &json!(6), &json!(true)));
        assert_eq!(gpt2["base_model_name_or_path"], "gpt2");
        let qwen3 = keys(&qwen3(), &["q_proj"]);
        assert_eq!((&qwen3["target_modules"], &qwen3["fan_in_fan_out"]), (&json!(["q_proj"]), &json!(false)));
    }

    /// A folder with an adapter of the model `tiny`, and its keys changed.
    fn changed(key: &str, value: Value) -> std::result::Result<Adapter, String> {
        let folder = tempfile::tempdir().unwrap();
        adapter(&tiny(), &["c_attn"]).write(folder.path(), &tiny(), "").unwrap();
        let path = folder.path().join(ADAPTER_CONFIG_FILE);
        let mut keys: Value = read_json(&path).unwrap();
        keys[key] = value;
        fs::write(&path, keys.to_string()).unwrap();
        Adapter::open(folder.path(), &tiny()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_this_program_does_not_compute_is_refused_by_name() {
        for (key, value) in [
            ("peft_type", json!("IA3")),
            ("peft_type", json!(null)),
            ("r", json!(0)),
            ("r", json!(1u64 << 40)),
            ("r", json!("8")),
            ("lora_alpha", json!(null)),
            ("use_rslora", json!("yes")),
            ("bias", json!("all")),
            ("init_lora_weights", json!("pissa")),
            ("use_dora", json!(true)),
            ("modules_to_save", json!(["lm_head"])),
            ("rank_pattern", json!({ "c_attn": 4 })),
            ("alpha_pattern", json!({ "c_attn": 4 })),
            ("lora_bias", json!(true)),
            ("layer_replication", json!([[0, 2]])),
            ("trainable_token_indices", json!([1])),
            ("a_key_of_tomorrow", json!(1)),
        ] {
            let error = changed(key, value.clone()).unwrap_err();
            assert!(error.contains(&format!("adapter_config.json: `{key}` is {value}")), "{key}: {error}");
        }
        for (key, value) in [
            ("lora_dropout", json!(0.1)),
            ("modules_to_save", json!(null)),
            ("rank_pattern", json!({})),
            ("init_lora_weights", json!("gaussian")),
            ("target_modules", json!(".*c_attn")),
            ("a_key_of_tomorrow", json!(false)),
        ] {
            assert!(changed(key, value).is_ok(), "{key}");
        }
        assert!(changed("use_rslora", json!(true)).unwrap().shape.rank_stabilized);
    }

    #[test]
    fn tensors_that_contradict_the_keys_or_the_model_are_refused_by_name() {
        let error = changed("r", json!(2)).unwrap_err();
        assert!(error.contains("h.0.attn.c_attn.lora_A.weight has shape [3, 8], the model needs [2, 8]"), "{error}");
        let error = changed("target_modules", json!(["c_attn", "c_fc"])).unwrap_err();
        assert!(error.contains("it has no base_model.model.transformer.h.0.mlp.c_fc.lora_A.weight, which"), "{error}");
        let folder = tempfile::tempdir().unwrap();
        adapter(&tiny(), &["c_attn"]).write(folder.path(), &tiny(), "").unwrap();
        let open = |config: GptConfig| Adapter::open(folder.path(), &config).unwrap_err().to_string();
        let error = open(GptConfig { n_layer: 1, ..tiny() });
        assert!(error.contains("h.1.attn.c_attn.lora_A.weight is no A or B of a linear layer"), "{error}");
        let error = open(GptConfig { n_embd: 16, ..tiny() });
        assert!(error.contains("has shape [3, 8], the model needs [3, 16]"), "{error}");
        assert!(open(qwen3()).contains("they are down_proj, gate_proj, k_proj, o_proj, q_proj"));
    }

    #[test]
    fn a_damaged_adapter_is_an_error_or_another_adapter_and_never_more() {
        let folder = tempfile::tempdir().unwrap();
        let config = GptConfig { n_layer: 1, ..tiny() };
        adapter(&config, &["attn.c_proj"]).write(folder.path(), &config, "").unwrap();
        for name in [ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE] {
            let path = folder.path().join(name);
            let whole = fs::read(&path).unwrap();
            for len in 0..whole.len() - 2 {
                fs::write(&path, &whole[..len]).unwrap();
                let error = Adapter::open(folder.path(), &config).unwrap_err().to_string();
                assert!(error.contains(name), "{len} bytes: {error}");
            }
            for (at, bit) in (0..whole.len()).flat_map(|at| [0, 3, 7].map(|bit| (at, bit))) {
                let mut damaged = whole.clone();
                damaged[at] ^= 1 << bit;
                fs::write(&path, &damaged).unwrap();
                let _opened = Adapter::open(folder.path(), &config);
            }
            fs::write(&path, whole).unwrap();
        }
        Adapter::open(folder.path(), &config).unwrap();
    }
}
