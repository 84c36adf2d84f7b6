//! The choices that keys of `[model]` take, and the precision of training.

use candle_core::DType;
use serde::{Deserialize, Serialize};

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

/// A function of each element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// The exact GELU, `x * Phi(x)` with the normal distribution function.
    Gelu,
    /// The tanh approximation of GELU.
    GeluNew,
    /// `max(x, 0)^2`.
    Relu2,
}

/// The initial values of matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InitScheme {
    /// Standard deviation 0.02, as in GPT-2.
    #[default]
    Gpt2,
    /// Standard deviation `1 / sqrt(inputs)`, which keeps the variance of what goes through (LeCun et al., 1998,
    /// "Efficient BackProp").
    FanIn,
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

impl Norm {
    /// The name, as configurations write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Layer => "layer",
            Self::Rms => "rms",
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
