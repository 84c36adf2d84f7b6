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
    /// The revision of the keys with which it came: 0 for those of the first, whose files lack all later ones. The default of
    /// a later key is what older runs were trained with, which is GPT-2's.
    pub since: u32,
}

const fn key(key: &'static str, doc: &'static str) -> ModelKey {
    ModelKey { key, doc, choices: &[], since: 0 }
}

/// Every key of the section `[model]`, in the order of the file. A new key takes the number after the largest `since` of all
/// keys, those of `[train]` included (`trainer/src/config/schema.rs`): by it a run's missing keys are recognised.
pub const MODEL_KEYS: &[ModelKey] = &[
    key("model.block_size", "context length in tokens"),
    key("model.n_layer", "transformer blocks"),
    key("model.n_head", "attention heads; divides n_embd unless head_size is given"),
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
        since: 2,
        ..key("model.norm", "\"layer\" (layer norm, as GPT-2) or \"rms\" (RMSNorm, as Llama: no mean, no bias)")
    },
    ModelKey { since: 7, ..key("model.norm_eps", "epsilon of norms; 0 is 1e-5 for \"layer\" and 1e-6 for \"rms\"") },
    ModelKey {
        choices: &["learned", "rope"],
        since: 3,
        ..key("model.position", "\"learned\" (embeddings, as GPT-2) or \"rope\" (rotated queries and keys, as Llama)")
    },
    ModelKey { since: 3, ..key("model.rope_theta", "base of the angles of \"rope\": larger ones reach further") },
    ModelKey {
        choices: &["none", "linear", "llama3"],
        since: 7,
        ..key(
            "model.rope_scaling",
            "\"none\", or how frequencies of \"rope\" are lowered for a context longer than that of pretraining: \"linear\" or \"llama3\"",
        )
    },
    ModelKey { since: 7, ..key("model.rope_factor", "rope_scaling: what frequencies are divided by, at least 1") },
    ModelKey {
        since: 7,
        ..key(
            "model.rope_low_freq_factor",
            "\"llama3\": waves that fit less often into rope_original_block_size get the whole factor",
        )
    },
    ModelKey {
        since: 7,
        ..key(
            "model.rope_high_freq_factor",
            "\"llama3\": waves that fit more often into rope_original_block_size stay as they are",
        )
    },
    ModelKey {
        since: 7,
        ..key("model.rope_original_block_size", "\"llama3\": context length of pretraining in tokens")
    },
    ModelKey {
        since: 4,
        ..key("model.tie_embeddings", "whether the head is the token embedding, as in GPT-2, or a matrix of its own")
    },
    ModelKey {
        since: 5,
        ..key(
            "model.mlp_hidden",
            "channels inside the MLP; 0 is 4 n_embd, and for \"swiglu\" 8/3 n_embd rounded up to 32",
        )
    },
    ModelKey {
        since: 5,
        ..key("model.n_kv_head", "heads of keys and values, each shared by n_head / n_kv_head queries; 0 is n_head")
    },
    ModelKey {
        since: 7,
        ..key("model.head_size", "channels of a head of queries, keys or values; 0 is n_embd / n_head")
    },
    ModelKey {
        since: 5,
        ..key("model.qk_norm", "whether each head's queries and keys go through an RMSNorm, as in Qwen3")
    },
    ModelKey { since: 5, ..key("model.logit_cap", "logits become cap * tanh(logits / cap), as in Gemma 2; 0 is off") },
    ModelKey {
        choices: &["gpt2", "fan_in", "xavier", "he"],
        since: 5,
        ..key(
            "model.init",
            "standard deviation of initial linear layers: \"gpt2\" (0.02), \"fan_in\" (1 / sqrt(inputs)), \"xavier\" (sqrt(2 / (inputs + outputs))) or \"he\" (sqrt(2 / inputs))",
        )
    },
];
