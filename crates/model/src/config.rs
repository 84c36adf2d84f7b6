//! The shape of a GPT.

use candle_core::DType;
use serde::{Deserialize, Serialize};

use crate::{ModelError, Result};

/// The activation of the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// The exact GELU, `x * Phi(x)` with the normal distribution function (`gelu` in Hugging Face).
    #[default]
    Gelu,
    /// The tanh approximation of GPT-2 (`gelu_new` in Hugging Face).
    GeluNew,
}

impl Activation {
    /// The name, as configurations and Hugging Face's `activation_function` write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gelu => "gelu",
            Self::GeluNew => "gelu_new",
        }
    }
}

/// The norms of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// Layer norm, as in GPT-2.
    #[default]
    Layer,
    /// RMSNorm, as in Llama: without a mean and without a bias.
    Rms,
}

/// How the network knows positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Position {
    /// A learned embedding of each position is added to the token's, as in GPT-2.
    #[default]
    Learned,
    /// Queries and keys are rotated by angles proportional to the position, as in Llama.
    Rope,
}

/// What the operands of products are rounded to in training: those of linear layers and head, and on a GPU those of
/// attention. Sums, and all else, are f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Not rounded.
    #[default]
    F32,
    /// The upper half of an f32: 8 bits of precision, and twice the speed where the processor multiplies pairs of them.
    Bf16,
    /// 11 bits of precision, but numbers between 6e-8 and 65504 alone: for GPUs without bf16. The loss is scaled up, so
    /// that small gradients are not lost.
    F16,
}

impl Precision {
    /// The name, as configurations write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }

    /// The type of the operands of products, where it is not that of everything else.
    pub fn dtype(self) -> Option<DType> {
        match self {
            Self::F32 => None,
            Self::Bf16 => Some(DType::BF16),
            Self::F16 => Some(DType::F16),
        }
    }
}

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
    /// The activation of the MLP.
    pub activation: Activation,
    /// The norms of the network.
    pub norm: Norm,
    /// How the network knows positions.
    pub position: Position,
    /// The base of the angles of [`Position::Rope`]: channel pair `i` turns by `position * rope_theta^(-2 i / head_size)`.
    pub rope_theta: f64,
    /// Whether the head's matrix is the token embedding, as in GPT-2, or one of its own.
    pub tie_embeddings: bool,
}

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
        choices: &["gelu", "gelu_new"],
        ..key("model.activation", "\"gelu\" (exact) or \"gelu_new\" (tanh approximation, as GPT-2)")
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
];

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
            activation: Activation::Gelu,
            norm: Norm::Layer,
            position: Position::Learned,
            rope_theta: 10_000.0,
            tie_embeddings: true,
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
        if self.position == Position::Rope && !self.head_size().is_multiple_of(2) {
            let reason = "must be an even multiple of n_head: \"rope\" rotates pairs of a head's channels";
            return bad("n_embd", self.n_embd.to_string(), reason);
        }
        if !(self.rope_theta >= 1.0 && self.rope_theta.is_finite()) {
            return bad("rope_theta", self.rope_theta.to_string(), "must be at least 1");
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return bad("dropout", self.dropout.to_string(), "must be at least 0 and below 1");
        }
        Ok(())
    }

    /// Whether this is a GPT-2: whether all keys that came later, and have a meaning here, have their default.
    pub fn is_gpt2(&self) -> bool {
        let gpt2 = Self {
            vocab_size: self.vocab_size,
            block_size: self.block_size,
            n_layer: self.n_layer,
            n_head: self.n_head,
            n_embd: self.n_embd,
            dropout: self.dropout,
            bias: self.bias,
            activation: self.activation,
            // Without rotated positions it says nothing.
            rope_theta: self.rope_theta,
            ..Self::default()
        };
        *self == gpt2
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
            activation: Activation::Gelu,
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
