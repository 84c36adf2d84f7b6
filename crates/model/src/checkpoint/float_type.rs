//! The types of numbers in which the weights of a model folder are written.

use safetensors::tensor::Dtype;

use crate::gguf::TensorType;

/// A type of floats that a safetensors file of a model is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FloatType {
    /// f32, as weights are trained.
    #[default]
    F32,
    /// Rounded to f16.
    F16,
    /// Rounded to bf16.
    Bf16,
}

impl FloatType {
    /// The name: `f32`, `f16` or `bf16`.
    pub fn name(self) -> &'static str {
        self.tensor_type().name()
    }

    /// PyTorch's name, as `config.json` has it.
    pub(super) fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }

    /// The type in a safetensors file.
    pub(super) fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::BF16,
        }
    }

    /// The bytes of some numbers, rounded to nearest.
    ///
    /// # Errors
    /// The first number that the type cannot hold.
    pub(super) fn encode(self, values: &[f32]) -> Result<Vec<u8>, f32> {
        let mut bytes = Vec::with_capacity(size_of_val(values));
        self.tensor_type().encode(values, &mut bytes)?;
        Ok(bytes)
    }

    fn tensor_type(self) -> TensorType {
        match self {
            Self::F32 => TensorType::F32,
            Self::F16 => TensorType::F16,
            Self::Bf16 => TensorType::Bf16,
        }
    }
}
