//! The shape of a model in GGUF's metadata, there and back. What llama.cpp takes for granted of an architecture but is not so of
//! every network here stands under keys of our own, `tinygpt.*`, which it passes over.

use super::{Gguf, TensorType, rope, writer::GgufValue};
use crate::{
    GptConfig, Mlp,
    config::{Architecture, Norm, Position, RopeScaling},
};

/// The MLP, where it is another than llama.cpp computes.
pub(super) const OWN_MLP: &str = "tinygpt.mlp";
/// Whether there are biases; where there are none, those in the file are zeros.
pub(super) const OWN_BIAS: &str = "tinygpt.bias";

/// The base of the angles where the file names none, as llama.cpp has it.
const DEFAULT_ROPE_THETA: f64 = 10_000.0;
/// The version of the formats of quantized tensors (`GGML_QNT_VERSION`).
const QUANTIZATION_VERSION: u32 = 2;
/// The matrix of an untied head.
pub(super) const OUTPUT: &str = "output.weight";

/// The metadata of a model of this shape and name.
pub(super) fn describe(
    config: &GptConfig,
    architecture: Architecture,
    kind: TensorType,
    name: &str,
) -> Vec<(String, GgufValue)> {
    let number = |n: usize| GgufValue::U32(n as u32); // no dimension is above 2^24
    let general = [
        ("architecture", GgufValue::String(architecture.model_type().into())),
        ("type", GgufValue::String("model".into())),
        ("name", GgufValue::String(name.into())),
        ("file_type", GgufValue::U32(kind.file_type())),
        ("quantization_version", GgufValue::U32(QUANTIZATION_VERSION)),
        ("alignment", number(super::format::ALIGNMENT)),
    ];
    let mut shape = vec![
        ("vocab_size", number(config.vocab_size)),
        ("context_length", number(config.block_size)),
        ("embedding_length", number(config.n_embd)),
        ("block_count", number(config.n_layer)),
        ("feed_forward_length", number(config.hidden())),
        ("attention.head_count", number(config.n_head)),
        ("attention.head_count_kv", number(config.kv_heads())),
    ];
    let mut own = Vec::new();
    match architecture {
        Architecture::Gpt2 => {
            shape.push(("attention.layer_norm_epsilon", GgufValue::F32(config.norm_eps(Norm::Layer) as f32)));
            own.push((OWN_MLP.to_owned(), GgufValue::String(config.mlp.name().into())));
            own.push((OWN_BIAS.to_owned(), GgufValue::Bool(config.bias)));
        }
        Architecture::Llama | Architecture::Qwen3 => shape.extend([
            ("attention.key_length", number(config.head_size())),
            ("attention.value_length", number(config.head_size())),
            ("attention.layer_norm_rms_epsilon", GgufValue::F32(config.norm_eps(Norm::Rms) as f32)),
            ("rope.dimension_count", number(config.head_size())),
            ("rope.freq_base", GgufValue::F32(config.rope_theta as f32)),
        ]),
    }
    if config.rope_scaling == RopeScaling::Linear {
        shape.push(("rope.scaling.type", GgufValue::String(config.rope_scaling.name().into())));
        shape.push(("rope.scaling.factor", GgufValue::F32(config.rope_factor as f32)));
    }
    let general = general.map(|(key, value)| (format!("general.{key}"), value));
    let shape = shape.into_iter().map(|(key, value)| (format!("{}.{key}", architecture.model_type()), value));
    general.into_iter().chain(shape).chain(own).collect()
}

/// The shape of the model in a file.
///
/// # Errors
/// Which key is missing, of another type, or asks for what this program does not compute; which two contradict each other.
pub(super) fn parse(gguf: &Gguf<'_>) -> Result<GptConfig, String> {
    Keys { gguf, architecture: architecture(gguf)? }.config()
}

/// The architecture that a file names.
///
/// # Errors
/// When it is none of those that are read here.
pub(super) fn architecture(gguf: &Gguf<'_>) -> Result<Architecture, String> {
    let name = gguf.text("general.architecture")?.ok_or("it has no `general.architecture`")?;
    let known = [Architecture::Gpt2, Architecture::Qwen3, Architecture::Llama];
    known.into_iter().find(|architecture| architecture.model_type() == name).ok_or_else(|| {
        format!("its architecture is {name:?}, this program knows \"gpt2\", \"qwen3\" and \"llama\" only")
    })
}

/// The keys of an architecture, whose names begin with its name.
struct Keys<'g, 'a> {
    gguf: &'g Gguf<'a>,
    architecture: Architecture,
}

/// The keys of every architecture that are read, or must have the one value that this program computes with.
const COMMON: &[&str] = &[
    "vocab_size",
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
];
/// Those of a GPT-2 alone.
const GPT2: &[&str] = &["attention.layer_norm_epsilon"];
/// Those of a Llama and a Qwen3.
const LLAMA: &[&str] = &[
    "attention.layer_norm_rms_epsilon",
    "attention.key_length",
    "attention.value_length",
    "attention.causal",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "expert_count",
    "expert_used_count",
];

impl Keys<'_, '_> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture.model_type())
    }

    fn whole(&self, key: &str) -> Result<Option<usize>, String> {
        self.gguf.whole(&self.name(key))
    }

    fn needed(&self, key: &str) -> Result<usize, String> {
        self.whole(key)?.ok_or_else(|| format!("it has no `{}`", self.name(key)))
    }

    /// Refuses another value of a key than this one.
    fn check(&self, key: &str, found: Option<usize>, supported: usize) -> Result<(), String> {
        match found {
            Some(found) if found != supported => {
                Err(format!("`{}` is {found}; this program supports {supported} only", self.name(key)))
            }
            _ => Ok(()),
        }
    }

    fn config(&self) -> Result<GptConfig, String> {
        let gguf = self.gguf;
        let is_gpt2 = self.architecture == Architecture::Gpt2;
        self.check_names()?;
        let embedding = gguf.tensor("token_embd.weight").ok_or("it has no tensor token_embd.weight")?;
        let &[vocab_size, _] = &embedding.shape[..] else {
            return Err(format!("token_embd.weight has shape {:?}, and needs two dimensions", embedding.shape));
        };
        let n_layer = self.needed("block_count")?;
        // A block has tensors, so that a file has fewer blocks than these; what is made for each then stays within bounds.
        if n_layer > gguf.tensor_names().len() {
            return Err(format!(
                "`{}` is {n_layer}, which are more blocks than it has tensors",
                self.name("block_count")
            ));
        }
        let mut config = GptConfig {
            vocab_size,
            block_size: self.needed("context_length")?,
            n_layer,
            n_head: self.needed("attention.head_count")?,
            n_embd: self.needed("embedding_length")?,
            bias: is_gpt2,
            // What llama.cpp computes for this architecture.
            mlp: if is_gpt2 { Mlp::GeluNew } else { Mlp::Swiglu },
            norm: if is_gpt2 { Norm::Layer } else { Norm::Rms },
            position: if is_gpt2 { Position::Learned } else { Position::Rope },
            tie_embeddings: self.head_is_tied(),
            qk_norm: self.architecture == Architecture::Qwen3,
            ..GptConfig::default()
        };
        let hidden = self.needed("feed_forward_length")?;
        let n_kv_head = self.whole("attention.head_count_kv")?.unwrap_or(config.n_head);
        for (key, n) in [
            ("attention.head_count", config.n_head),
            ("feed_forward_length", hidden),
            ("attention.head_count_kv", n_kv_head),
        ] {
            if n == 0 {
                return Err(format!("`{}` is 0; it must be at least 1", self.name(key)));
            }
        }
        // Where they follow from the rest, keys stay 0, as in most configurations.
        if config.hidden() != hidden {
            config.mlp_hidden = hidden;
        }
        if n_kv_head != config.n_head {
            config.n_kv_head = n_kv_head;
        }
        if is_gpt2 {
            self.own_keys(&mut config)?;
        } else {
            config.rope_theta = gguf.number(&self.name("rope.freq_base"))?.unwrap_or(DEFAULT_ROPE_THETA);
            let head_size = self.head_size(&config)?;
            if Some(config.n_embd) != head_size.checked_mul(config.n_head) {
                config.head_size = head_size;
            }
            self.rope_scaling(&mut config)?;
            self.check_llama(head_size)?;
        }
        self.check("vocab_size", self.whole("vocab_size")?, vocab_size)?;
        config.norm_eps = self.norm_eps(config.norm)?;
        config.validate().map_err(|error| error.to_string())?;
        Ok(config)
    }

    /// Refuses keys that say what this program does not know of.
    fn check_names(&self) -> Result<(), String> {
        let prefix = self.name("");
        let own = if self.architecture == Architecture::Gpt2 { GPT2 } else { LLAMA };
        let is_known = |key| COMMON.contains(&key) || own.contains(&key);
        let mut unknown: Vec<&str> =
            self.gguf.keys().filter(|key| key.strip_prefix(&*prefix).is_some_and(|key| !is_known(key))).collect();
        unknown.sort_unstable();
        match unknown[..] {
            [] => Ok(()),
            _ => Err(format!("this program does not know what to do about its `{}`", unknown.join("`, `"))),
        }
    }

    /// The key `norm_eps` of the epsilon, which stays 0 where that is the default here.
    fn norm_eps(&self, norm: Norm) -> Result<f64, String> {
        let key = match norm {
            Norm::Layer => "attention.layer_norm_epsilon",
            Norm::Rms => "attention.layer_norm_rms_epsilon",
        };
        let name = self.name(key);
        match self.gguf.number(&name)? {
            None => Err(format!("it has no `{name}`")),
            Some(0.0) => Err(format!("`{name}` is 0; it must be at least 1e-12")),
            Some(found) if found == norm.default_eps() => Ok(0.0),
            Some(found) => Ok(found),
        }
    }

    /// The channels of a head: those of keys; where the file does not say, as they follow from the rest.
    fn head_size(&self, config: &GptConfig) -> Result<usize, String> {
        match self.whole("attention.key_length")? {
            Some(0) => Err(format!("`{}` is 0; it must be at least 1", self.name("attention.key_length"))),
            Some(head_size) => Ok(head_size),
            None => Ok(config.n_embd / config.n_head),
        }
    }

    /// How the angles are scaled, by keys or, as Llama 3's, by a tensor of factors.
    fn rope_scaling(&self, config: &mut GptConfig) -> Result<(), String> {
        let name = self.name("rope.scaling.type");
        if self.architecture == Architecture::Llama {
            rope::read(self.gguf, config)?;
        }
        if config.rope_scaling != RopeScaling::None && !matches!(self.gguf.text(&name)?, None | Some("none")) {
            return Err(format!("its angles are scaled twice, by `{name}` and by its tensor {}", rope::ROPE_FACTORS));
        }
        match self.gguf.text(&name)? {
            None | Some("none") => Ok(()),
            Some("linear") => {
                let factor = self.name("rope.scaling.factor");
                config.rope_scaling = RopeScaling::Linear;
                config.rope_factor = self.gguf.number(&factor)?.ok_or_else(|| format!("it has no `{factor}`"))?;
                Ok(())
            }
            Some(found) => Err(format!("`{name}` is {found:?}; this program supports \"none\" and \"linear\" only")),
        }
    }

    /// Refuses what a Llama can be elsewhere and not here.
    fn check_llama(&self, head_size: usize) -> Result<(), String> {
        for key in ["attention.key_length", "attention.value_length", "rope.dimension_count"] {
            self.check(key, self.whole(key)?, head_size)?;
        }
        for key in ["expert_count", "expert_used_count"] {
            self.check(key, self.whole(key)?, 0)?;
        }
        let causal = self.name("attention.causal");
        match self.gguf.bool(&causal)? {
            Some(false) => Err(format!("`{causal}` is false; this program supports true only")),
            _ => Ok(()),
        }
    }

    /// The keys of our own.
    fn own_keys(&self, config: &mut GptConfig) -> Result<(), String> {
        match self.gguf.text(OWN_MLP)? {
            None => {}
            Some(name) => {
                let known = [Mlp::Gelu, Mlp::GeluNew].into_iter().find(|mlp| mlp.name() == name);
                config.mlp = known.ok_or_else(|| format!("`{OWN_MLP}` is {name:?}, not \"gelu\" or \"gelu_new\""))?;
            }
        }
        config.bias = self.gguf.bool(OWN_BIAS)?.unwrap_or(true);
        Ok(())
    }

    /// Whether the head is the token embedding: where it has no matrix, or that of older converters, a copy.
    fn head_is_tied(&self) -> bool {
        let (embedding, output) = (self.gguf.tensor("token_embd.weight"), self.gguf.tensor(OUTPUT));
        match (embedding, output) {
            (Some(embedding), Some(output)) => (embedding.kind, embedding.bytes) == (output.kind, output.bytes),
            _ => true,
        }
    }
}
