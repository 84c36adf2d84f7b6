//! The precisions that the CPU trains in.

use tinygpt_sampler::simd::SimdLevel;

use crate::{ModelError, Precision, Result};

/// The precision to which CPU training rounds the operands of linear layers, head and attention. The CPU has neither f16 nor tf32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CpuPrecision {
    /// f32, not rounded.
    F32,
    /// bf16, multiplied in pairs. All processors give the same bits, but only those with AVX512-BF16 are faster than in f32.
    Bf16,
}

impl CpuPrecision {
    /// Converts a [`Precision`] that this processor is fast in.
    ///
    /// # Errors
    /// [`ModelError::NoBf16`], [`ModelError::NoF16`] or [`ModelError::NoTf32`].
    pub fn of(precision: Precision) -> Result<Self> {
        Self::on(precision, SimdLevel::detect())
    }

    fn on(precision: Precision, level: SimdLevel) -> Result<Self> {
        match precision {
            Precision::F32 => Ok(Self::F32),
            Precision::Bf16 if level.has_bf16() => Ok(Self::Bf16),
            Precision::Bf16 => Err(ModelError::NoBf16),
            Precision::F16 => Err(ModelError::NoF16),
            Precision::Tf32 => Err(ModelError::NoTf32),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_bits_are_refused_where_the_processor_or_the_backend_has_none() {
        let refusal = |precision, level| CpuPrecision::on(precision, level).err().map(|error| error.to_string());
        for level in SimdLevel::available() {
            assert_eq!(refusal(Precision::F32, level), None);
            assert_eq!(refusal(Precision::Bf16, level).is_none(), level.has_bf16(), "{level:?}");
            assert!(refusal(Precision::F16, level).unwrap().contains("f16 is for GPUs"));
            assert_eq!(refusal(Precision::Tf32, level).unwrap(), "tf32 is for CUDA GPUs; on the CPU, use f32 or bf16");
        }
        let without = SimdLevel::available().pop().unwrap();
        let refused = refusal(Precision::Bf16, without).unwrap();
        assert!(refused.starts_with("bf16 needs a CPU with AVX512-BF16"), "{refused}");
        assert!(refused.ends_with("on this one it would be slower than f32; use f32"), "{refused}");
    }
}
