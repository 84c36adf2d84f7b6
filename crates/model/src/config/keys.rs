//! The keys of the section `[model]`, with their documentation.

/// A key of the section `[model]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelKey {
    /// With its section: `model.n_layer`.
    pub key: &'static str,
    /// The line that documents it, with its unit.
    pub doc: &'static str,
    /// The words that it takes, if it takes words.
    pub choices: &'static [&'static str],
    /// Whether the first version of the format lacked it: files of older runs do. Its default is what they were trained
    /// with, which is GPT-2's.
    pub later: bool,
}

const fn key(key: &'static str, doc: &'static str) -> ModelKey {
    ModelKey { key, doc, choices: &[], later: false }
}

/// Every key of the section `[model]`, in the order of the file. Those that came `later` stand in the order in which they
/// came, from which a run's missing keys are recognised: new ones go to the end.
pub const MODEL_KEYS: &[ModelKey] = &[
    key("model.block_size", "context length in tokens"),
    key("model.n_layer", "transformer blocks"),
    key("model.n_head", "attention heads; divides n_embd"),
    key("model.n_embd", "channels of the residual stream"),
    key("model.dropout", "probability of dropping a value in training, in [0, 1)"),
    key("model.bias", "whether linear layers and norms have biases"),
    ModelKey {
        choices: &["gelu", "gelu_new", "relu2", "swiglu"],
        ..key(
            "model.mlp",
            "\"gelu\" (exact), \"gelu_new\" (tanh approximation, as GPT-2), \"relu2\" (squared ReLU) or \"swiglu\" (gated, as Llama)",
        )
    },
    ModelKey {
        choices: &["layer", "rms"],
        later: true,
        ..key("model.norm", "\"layer\" (layer norm, as GPT-2) or \"rms\" (RMSNorm, as Llama: no mean, no bias)")
    },
    ModelKey {
        choices: &["learned", "rope"],
        later: true,
        ..key("model.position", "\"learned\" (embeddings, as GPT-2) or \"rope\" (rotated queries and keys, as Llama)")
    },
    ModelKey { later: true, ..key("model.rope_theta", "base of the angles of \"rope\": larger ones reach further") },
    ModelKey {
        later: true,
        ..key("model.tie_embeddings", "whether the head is the token embedding, as in GPT-2, or a matrix of its own")
    },
    ModelKey {
        later: true,
        ..key(
            "model.mlp_hidden",
            "channels inside the MLP; 0 is 4 n_embd, and for \"swiglu\" 8/3 n_embd rounded up to 32",
        )
    },
    ModelKey {
        later: true,
        ..key("model.n_kv_head", "heads of keys and values, each shared by n_head / n_kv_head queries; 0 is n_head")
    },
    ModelKey {
        later: true,
        ..key("model.qk_norm", "whether each head's queries and keys go through an RMSNorm, as in Qwen3")
    },
    ModelKey {
        later: true,
        ..key("model.logit_cap", "logits become cap * tanh(logits / cap), as in Gemma 2; 0 is off")
    },
    ModelKey {
        choices: &["gpt2", "fan_in"],
        later: true,
        ..key("model.init", "standard deviation of initial matrices: \"gpt2\" (0.02) or \"fan_in\" (1 / sqrt(inputs))")
    },
];
