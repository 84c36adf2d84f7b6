//! The shape of a GPT.

mod architecture;
mod heads;
mod keys;
mod precision;
mod rope;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use crate::{ModelError, Result, ops::Activation};

pub use architecture::{Architecture, Blame, Obstacle};
pub use heads::Heads;
pub use keys::{MODEL_KEYS, ModelKey};
pub use precision::Precision;
pub use rope::{RopeFrequencies, RopeScaling};

/// The MLP of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mlp {
    /// Two linear layers and the exact GELU between them (`gelu` in Hugging Face).
    #[default]
    Gelu,
    /// As [`Mlp::Gelu`] with the tanh approximation of GPT-2 (`gelu_new` in Hugging Face).
    GeluNew,
    /// As [`Mlp::Gelu`] with the square of ReLU (So et al., 2021, "Primer").
    Relu2,
    /// A third linear layer gates the channels: `silu(gate) * up` (Shazeer, 2020, "GLU Variants Improve Transformer").
    Swiglu,
}

impl Mlp {
    /// The name, as configurations write it and, for GPT-2's, Hugging Face's `activation_function`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gelu => "gelu",
            Self::GeluNew => "gelu_new",
            Self::Relu2 => "relu2",
            Self::Swiglu => "swiglu",
        }
    }

    /// The function between its two linear layers; `None` where there are three.
    pub fn activation(self) -> Option<Activation> {
        match self {
            Self::Gelu => Some(Activation::Gelu),
            Self::GeluNew => Some(Activation::GeluNew),
            Self::Relu2 => Some(Activation::Relu2),
            Self::Swiglu => None,
        }
    }
}

/// The initial values of the matrices of linear layers: normal, with mean 0. Those of projections back into the residual
/// stream are divided by `sqrt(2 n_layer)` in each scheme, as in GPT-2. Embeddings, positions and an untied head start with
/// standard deviation 0.02 in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InitScheme {
    /// Standard deviation 0.02, as in GPT-2.
    #[default]
    Gpt2,
    /// Standard deviation `1 / sqrt(inputs)`, which keeps the variance of what goes through (LeCun et al., 1998,
    /// "Efficient BackProp").
    FanIn,
    /// Variance `2 / (inputs + outputs)`, a compromise between what goes through forward and backward (Glorot and Bengio,
    /// 2010, "Understanding the difficulty of training deep feedforward neural networks").
    Xavier,
    /// Variance `2 / inputs`, which makes up for a ReLU's half of zeros (He et al., 2015, "Delving Deep into Rectifiers").
    He,
}

impl InitScheme {
    /// The standard deviation of the matrix of a linear layer. Where several lie side by side, `outputs` is that of the first.
    pub fn std(self, inputs: usize, outputs: usize) -> f64 {
        let (inputs, outputs) = (inputs as f64, outputs as f64);
        match self {
            Self::Gpt2 => GPT2_STD,
            Self::FanIn => 1.0 / inputs.sqrt(),
            Self::Xavier => (2.0 / (inputs + outputs)).sqrt(),
            Self::He => (2.0 / inputs).sqrt(),
        }
    }
}

/// The standard deviation of GPT-2's initial weights.
pub(crate) const GPT2_STD: f64 = 0.02;

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

impl Norm {
    /// The name, as configurations write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Layer => "layer",
            Self::Rms => "rms",
        }
    }

    /// The epsilon where `norm_eps` is 0: GPT-2's 1e-5, and 1e-6 for RMSNorm.
    pub fn default_eps(self) -> f64 {
        match self {
            Self::Layer => 1e-5,
            Self::Rms => 1e-6,
        }
    }
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

impl Position {
    /// The name, as configurations write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Learned => "learned",
            Self::Rope => "rope",
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
    /// Number of attention heads; divides `n_embd` unless `head_size` is given.
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
    /// What norms, those of queries and keys included, add to a variance or a mean square before its root; 0 is the default of the
    /// norm ([`GptConfig::norm_eps()`]).
    pub norm_eps: f64,
    /// How the network knows positions.
    pub position: Position,
    /// The base of the angles of [`Position::Rope`]: channel pair `i` turns by `position * rope_theta^(-2 i / head_size)`.
    pub rope_theta: f64,
    /// The scaling of these angles; the four fields below belong to it ([`RopeFrequencies`]).
    pub rope_scaling: RopeScaling,
    /// By what scaling divides frequencies, at least 1.
    pub rope_factor: f64,
    /// Of [`RopeScaling::Llama3`]: below so many waves in the original context a frequency is divided by the whole factor.
    pub rope_low_freq_factor: f64,
    /// Of [`RopeScaling::Llama3`]: above so many waves in the original context a frequency stays.
    pub rope_high_freq_factor: f64,
    /// Of [`RopeScaling::Llama3`]: the context of pretraining.
    pub rope_original_block_size: usize,
    /// Whether the head's matrix is the token embedding, as in GPT-2, or one of its own.
    pub tie_embeddings: bool,
    /// Channels inside the MLP; 0 is what [`GptConfig::hidden`] makes of it.
    pub mlp_hidden: usize,
    /// Heads of keys and values; 0 is `n_head` (Ainslie et al., 2023, "GQA").
    pub n_kv_head: usize,
    /// Channels of a head; 0 is what [`GptConfig::head_size()`] makes of it.
    pub head_size: usize,
    /// Whether each head's queries and keys go through an RMSNorm (Dehghani et al., 2023, "Scaling Vision Transformers to
    /// 22 Billion Parameters"; here as in Qwen3).
    pub qk_norm: bool,
    /// Logits become `cap * tanh(logits / cap)`; 0 is off.
    pub logit_cap: f64,
    /// The initial values of the matrices of linear layers.
    pub init: InitScheme,
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
            norm_eps: 0.0,
            position: Position::Learned,
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::None,
            rope_factor: 1.0,
            rope_low_freq_factor: 1.0,
            rope_high_freq_factor: 4.0,
            rope_original_block_size: 0,
            tie_embeddings: true,
            mlp_hidden: 0,
            n_kv_head: 0,
            head_size: 0,
            qk_norm: false,
            logit_cap: 0.0,
            init: InitScheme::Gpt2,
        }
    }
}

/// The largest size of anything.
const LARGEST: usize = 1 << 24;

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

    /// Checks that a model of this shape can be kept near one of the shape of `reference`.
    ///
    /// # Errors
    /// [`ModelError::Config`], when that has another vocabulary or a shorter context.
    pub fn check_reference(&self, reference: &Self) -> Result<()> {
        let refused = |field, value: usize, reason| Err(ModelError::Config { field, value: value.to_string(), reason });
        if self.vocab_size != reference.vocab_size {
            let reason = format!("must be that of the reference, {}", reference.vocab_size);
            return refused("vocab_size", self.vocab_size, reason);
        }
        if self.block_size > reference.block_size {
            let reason = format!("must be at most that of the reference, {}", reference.block_size);
            return refused("block_size", self.block_size, reason);
        }
        Ok(())
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
            if value > LARGEST {
                return bad(field, value.to_string(), "is larger than 16,777,216, the most this program handles");
            }
        }
        if self.head_size == 0 && !self.n_embd.is_multiple_of(self.n_head) {
            let reason = format!("must be a multiple of n_head = {}", self.n_head);
            return bad("n_embd", self.n_embd.to_string(), &reason);
        }
        if self.head_size.saturating_mul(self.n_head) > LARGEST {
            let reason =
                format!("times n_head = {} is larger than 16,777,216, the most this program handles", self.n_head);
            return bad("head_size", self.head_size.to_string(), &reason);
        }
        if !self.n_head.is_multiple_of(self.kv_heads()) {
            let reason = format!("must divide n_head = {}", self.n_head);
            return bad("n_kv_head", self.n_kv_head.to_string(), &reason);
        }
        if self.norm_eps != 0.0 && !(1e-12..=1.0).contains(&self.norm_eps) {
            let reason = "must be 0, which is the default of the norm, or between 1e-12 and 1";
            return bad("norm_eps", self.norm_eps.to_string(), reason);
        }
        self.validate_rope()?;
        if self.logit_cap != 0.0 && !(0.01..=1e6).contains(&self.logit_cap) {
            return bad(
                "logit_cap",
                self.logit_cap.to_string(),
                "must be 0, which is off, or between 0.01 and 1,000,000",
            );
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return bad("dropout", self.dropout.to_string(), "must be at least 0 and below 1");
        }
        Ok(())
    }

    /// Checks what belongs to rotary positions.
    fn validate_rope(&self) -> Result<()> {
        let bad =
            |field, value: String, reason: &str| Err(ModelError::Config { field, value, reason: reason.to_owned() });
        let rope = self.position == Position::Rope;
        if rope && !self.head_size().is_multiple_of(2) {
            return if self.head_size == 0 {
                let reason = "must be an even multiple of n_head: \"rope\" rotates pairs of a head's channels";
                bad("n_embd", self.n_embd.to_string(), reason)
            } else {
                let reason = "must be even: \"rope\" rotates pairs of a head's channels";
                bad("head_size", self.head_size.to_string(), reason)
            };
        }
        for (field, value) in [("rope_theta", self.rope_theta), ("rope_factor", self.rope_factor)] {
            if !(value >= 1.0 && value.is_finite()) {
                return bad(field, value.to_string(), "must be at least 1");
            }
        }
        let (low, high) = (self.rope_low_freq_factor, self.rope_high_freq_factor);
        if low.is_nan() || low <= 0.0 {
            return bad("rope_low_freq_factor", low.to_string(), "must be larger than 0");
        }
        if !(high > low && high.is_finite()) {
            let reason = format!("must be larger than rope_low_freq_factor = {low}");
            return bad("rope_high_freq_factor", high.to_string(), &reason);
        }
        if self.rope_scaling != RopeScaling::None && !rope {
            let reason = "must be \"none\" without position = \"rope\"";
            return bad("rope_scaling", format!("\"{}\"", self.rope_scaling.name()), reason);
        }
        let original = self.rope_original_block_size;
        if original > LARGEST || self.rope_scaling == RopeScaling::Llama3 && original == 0 {
            let reason = "must be the context of pretraining for rope_scaling = \"llama3\", from 1 to 16,777,216";
            return bad("rope_original_block_size", original.to_string(), reason);
        }
        Ok(())
    }

    /// The epsilon of norms of a kind: `norm_eps`, or [`Norm::default_eps`] where that is 0. Queries and keys have that of
    /// [`Norm::Rms`].
    pub fn norm_eps(&self, norm: Norm) -> f64 {
        if self.norm_eps == 0.0 { norm.default_eps() } else { self.norm_eps }
    }

    /// The frequencies of rotary positions.
    pub fn rope_frequencies(&self) -> RopeFrequencies {
        RopeFrequencies {
            theta: self.rope_theta,
            scaling: self.rope_scaling,
            factor: self.rope_factor,
            low_freq_factor: self.rope_low_freq_factor,
            high_freq_factor: self.rope_high_freq_factor,
            original_block_size: self.rope_original_block_size,
        }
    }

    /// The channels inside the MLP: `mlp_hidden`, or where that is 0, `4 n_embd`, and for SwiGLU, whose three matrices then
    /// have about as many elements as the two of others, `8/3 n_embd` rounded up to a multiple of 32.
    pub fn hidden(&self) -> usize {
        match (self.mlp_hidden, self.mlp) {
            // Saturating, since it is asked before the range of `n_embd` is checked.
            (0, Mlp::Swiglu) => self.n_embd.saturating_mul(8).div_ceil(3).div_ceil(32).saturating_mul(32),
            (0, _) => self.n_embd.saturating_mul(4),
            (hidden, _) => hidden,
        }
    }

    /// The heads of keys and values: `n_kv_head`, or `n_head` where that is 0.
    pub fn kv_heads(&self) -> usize {
        if self.n_kv_head == 0 { self.n_head } else { self.n_kv_head }
    }

    /// The same shape with the numbers that zeros stand for.
    #[must_use]
    pub fn explicit(&self) -> Self {
        Self {
            norm_eps: self.norm_eps(self.norm),
            mlp_hidden: self.hidden(),
            n_kv_head: self.kv_heads(),
            head_size: self.head_size(),
            ..self.clone()
        }
    }

    /// The heads of attention.
    pub fn heads(&self) -> Heads {
        Heads { n_head: self.n_head, n_kv_head: self.kv_heads(), head_size: self.head_size() }
    }

    /// The channels of an attention head: `head_size`, or `n_embd / n_head` where that is 0.
    pub fn head_size(&self) -> usize {
        if self.head_size == 0 { self.n_embd / self.n_head } else { self.head_size }
    }

    /// The number of trainable parameters; a tied head's are the token embedding's.
    pub fn n_params(&self) -> usize {
        crate::param_specs(self).iter().map(|spec| spec.len()).sum()
    }
}
