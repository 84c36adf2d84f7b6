//! The shape of a GPT.

mod architecture;
mod choices;
mod keys;

use serde::{Deserialize, Serialize};

use crate::{ModelError, Result};

pub use architecture::{Architecture, Blame, Obstacle};
pub use choices::{Activation, InitScheme, Mlp, Norm, Position, Precision};
pub use keys::{MODEL_KEYS, ModelKey};

/// The shape of a GPT. The section `[model]` of a configuration file holds it, but for the vocabulary, which comes from the
/// tokenizer; [`MODEL_KEYS`] documents its keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GptConfig {
    /// Number of tokens in the vocabulary.
    #[serde(skip)]
    pub vocab_size: usize,
    /// Context length: the most positions one forward pass can see.
    pub block_size: usize,
    /// Number of transformer blocks.
    pub n_layer: usize,
    /// Number of attention heads; divides `n_embd`.
    pub n_head: usize,
    /// Number of channels of the residual stream.
    pub n_embd: usize,
    /// Probability with which a value is dropped in training, in [0, 1).
    pub dropout: f64,
    /// Whether linear layers and layer norms have biases, as GPT-2's do.
    pub bias: bool,
    /// The MLP of a block.
    #[serde(alias = "activation")]
    pub mlp: Mlp,
    /// The norms of the network.
    pub norm: Norm,
    /// How the network knows positions.
    pub position: Position,
    /// The base of the angles of [`Position::Rope`]: channel pair `i` turns by `position * rope_theta^(-2 i / head_size)`.
    pub rope_theta: f64,
    /// Whether the head's matrix is the token embedding, as in GPT-2, or one of its own.
    pub tie_embeddings: bool,
    /// Channels inside the MLP; 0 is what [`GptConfig::hidden`] makes of it.
    pub mlp_hidden: usize,
    /// Heads of keys and values; 0 is `n_head` (Ainslie et al., 2023, "GQA").
    pub n_kv_head: usize,
    /// Whether each head's queries and keys go through an RMSNorm (Dehghani et al., 2023, "Scaling Vision Transformers to
    /// 22 Billion Parameters"; here as in Qwen3).
    pub qk_norm: bool,
    /// Logits become `cap * tanh(logits / cap)`; 0 is off.
    pub logit_cap: f64,
    /// The initial values of matrices.
    pub init: InitScheme,
}

/// The heads of attention. A position has queries, keys and values side by side: `(n_head + 2 n_kv_head) * head_size`
/// channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Heads of queries.
    pub n_head: usize,
    /// Heads of keys and of values; divides `n_head`.
    pub n_kv_head: usize,
    /// The channels of a head.
    pub head_size: usize,
}

impl Heads {
    /// The channels of queries, keys and values.
    pub fn qkv(self) -> [usize; 3] {
        [self.n_head, self.n_kv_head, self.n_kv_head].map(|heads| heads * self.head_size)
    }

    /// The head of keys and values that a head of queries attends to.
    pub fn kv_head(self, head: usize) -> usize {
        head * self.n_kv_head / self.n_head
    }
}

impl Default for GptConfig {
    /// The shape of the default recipe, for a vocabulary of 65 characters.
    fn default() -> Self {
        Self {
            vocab_size: 65,
            block_size: 64,
            n_layer: 4,
            n_head: 4,
            n_embd: 128,
            dropout: 0.0,
            bias: false,
            mlp: Mlp::Gelu,
            norm: Norm::Layer,
            position: Position::Learned,
            rope_theta: 10_000.0,
            tie_embeddings: true,
            mlp_hidden: 0,
            n_kv_head: 0,
            qk_norm: false,
            logit_cap: 0.0,
            init: InitScheme::Gpt2,
        }
    }
}

/// The epsilon of every layer norm, as in GPT-2.
pub const LAYER_NORM_EPS: f64 = 1e-5;

impl GptConfig {
    /// Checks that tokens are of the vocabulary.
    ///
    /// # Errors
    /// [`ModelError::TokenOutOfRange`], naming the first that is not.
    pub fn check_tokens<'a>(&self, tokens: impl IntoIterator<Item = &'a u32>) -> Result<()> {
        let vocab_size = self.vocab_size;
        match tokens.into_iter().find(|&&id| id as usize >= vocab_size) {
            Some(&id) => Err(ModelError::TokenOutOfRange { id, vocab_size }),
            None => Ok(()),
        }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`ModelError::Config`], naming the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        let bad =
            |field, value: String, reason: &str| Err(ModelError::Config { field, value, reason: reason.to_owned() });
        for (field, value) in [
            ("vocab_size", self.vocab_size),
            ("block_size", self.block_size),
            ("n_layer", self.n_layer),
            ("n_head", self.n_head),
            ("n_embd", self.n_embd),
            ("mlp_hidden", self.hidden()),
            ("n_kv_head", self.kv_heads()),
        ] {
            if value == 0 {
                return bad(field, value.to_string(), "must be at least 1");
            }
            // Positions, tokens and matrix sizes are 32-bit on the devices.
            if value > 1 << 24 {
                return bad(field, value.to_string(), "is larger than 16,777,216, the most this program handles");
            }
        }
        if !self.n_embd.is_multiple_of(self.n_head) {
            let reason = format!("must be a multiple of n_head = {}", self.n_head);
            return bad("n_embd", self.n_embd.to_string(), &reason);
        }
        if !self.n_head.is_multiple_of(self.kv_heads()) {
            let reason = format!("must divide n_head = {}", self.n_head);
            return bad("n_kv_head", self.n_kv_head.to_string(), &reason);
        }
        if self.position == Position::Rope && !self.head_size().is_multiple_of(2) {
            let reason = "must be an even multiple of n_head: \"rope\" rotates pairs of a head's channels";
            return bad("n_embd", self.n_embd.to_string(), reason);
        }
        if !(self.rope_theta >= 1.0 && self.rope_theta.is_finite()) {
            return bad("rope_theta", self.rope_theta.to_string(), "must be at least 1");
        }
        if !(self.logit_cap >= 0.0 && self.logit_cap.is_finite()) {
            return bad("logit_cap", self.logit_cap.to_string(), "must be at least 0 (0 is off)");
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return bad("dropout", self.dropout.to_string(), "must be at least 0 and below 1");
        }
        Ok(())
    }

    /// The channels inside the MLP: `mlp_hidden`, or where that is 0, `4 n_embd`, and for SwiGLU, whose three matrices then
    /// have about as many elements as the two of others, `8/3 n_embd` rounded up to a multiple of 32.
    pub fn hidden(&self) -> usize {
        match (self.mlp_hidden, self.mlp) {
            (0, Mlp::Swiglu) => (8 * self.n_embd).div_ceil(3).next_multiple_of(32),
            (0, _) => 4 * self.n_embd,
            (hidden, _) => hidden,
        }
    }

    /// The heads of keys and values: `n_kv_head`, or `n_head` where that is 0.
    pub fn kv_heads(&self) -> usize {
        if self.n_kv_head == 0 { self.n_head } else { self.n_kv_head }
    }

    /// The heads of attention.
    pub fn heads(&self) -> Heads {
        Heads { n_head: self.n_head, n_kv_head: self.kv_heads(), head_size: self.head_size() }
    }

    /// The size of one attention head, `n_embd / n_head`.
    pub fn head_size(&self) -> usize {
        self.n_embd / self.n_head
    }

    /// The number of trainable parameters; a tied head's are the token embedding's.
    pub fn n_params(&self) -> usize {
        crate::param_specs(self).iter().map(|spec| spec.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(n_layer: usize, n_head: usize, n_embd: usize, block_size: usize) -> GptConfig {
        GptConfig {
            vocab_size: 65,
            block_size,
            n_layer,
            n_head,
            n_embd,
            dropout: 0.0,
            bias: false,
            mlp: Mlp::Gelu,
            ..GptConfig::default()
        }
    }

    #[test]
    fn the_recipes_have_the_published_parameter_counts() {
        assert_eq!(recipe(4, 4, 128, 64).n_params(), 804_096);
        assert_eq!(recipe(6, 6, 384, 256).n_params(), 10_745_088);
    }

    #[test]
    fn the_parameters_of_gpt2_124m_are_counted_with_their_biases() {
        let config = GptConfig { vocab_size: 50257, bias: true, ..recipe(12, 12, 768, 1024) };
        assert_eq!(config.n_params(), 124_439_808);
    }

    #[test]
    fn an_impossible_shape_is_refused_and_its_field_named() {
        let good = recipe(4, 4, 128, 64);
        assert!(good.validate().is_ok());
        for (config, field) in [
            (GptConfig { vocab_size: 0, ..good.clone() }, "vocab_size"),
            (GptConfig { block_size: 0, ..good.clone() }, "block_size"),
            (GptConfig { n_layer: 0, ..good.clone() }, "n_layer"),
            (GptConfig { n_head: 0, ..good.clone() }, "n_head"),
            (GptConfig { n_head: 3, ..good.clone() }, "n_embd"),
            (GptConfig { n_embd: 1 << 30, ..good.clone() }, "n_embd"),
            (GptConfig { dropout: 1.0, ..good.clone() }, "dropout"),
            (GptConfig { dropout: f64::NAN, ..good.clone() }, "dropout"),
        ] {
            let message = config.validate().unwrap_err().to_string();
            assert!(message.starts_with(&format!("model.{field} = ")), "{message}");
        }
    }
}
