//! The precision of training.

use candle_core::DType;
use serde::{Deserialize, Serialize};

/// What the operands of products are rounded to in training: those of linear layers, head and attention.
/// Sums, and all else, are f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Not rounded.
    #[default]
    F32,
    /// The operands of all f32 products are rounded to 11 bits of precision by the tensor cores of a CUDA GPU, which read and
    /// write f32.
    Tf32,
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
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }

    /// The type of the operands of products, where it is not that of everything else.
    pub fn dtype(self) -> Option<DType> {
        match self {
            Self::F32 | Self::Tf32 => None,
            Self::Bf16 => Some(DType::BF16),
            Self::F16 => Some(DType::F16),
        }
    }
}
