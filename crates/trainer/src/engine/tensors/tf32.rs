//! TF32, which candle has as a setting of the process.

use candle_core::cuda::{gemm_reduced_precision_f32, set_gemm_reduced_precision_f32};
use tinygpt_model::Precision;

/// How products of f32 are computed on CUDA while it lives: in TF32, or in f32. It ends with the setting from before, so that what
/// is generated after training is computed in f32.
#[derive(Debug)]
pub(super) struct ProductsOfF32 {
    before: bool,
}

impl ProductsOfF32 {
    /// As training in a precision computes them.
    pub(super) fn of(precision: Precision) -> Self {
        let before = gemm_reduced_precision_f32();
        set_gemm_reduced_precision_f32(precision == Precision::Tf32);
        Self { before }
    }
}

impl Drop for ProductsOfF32 {
    fn drop(&mut self) {
        set_gemm_reduced_precision_f32(self.before);
    }
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use super::*;

    #[test]
    fn the_setting_is_that_of_a_precision_and_ends_with_it() {
        let tf32 = ProductsOfF32::of(Precision::Tf32);
        assert!(gemm_reduced_precision_f32());
        drop(ProductsOfF32::of(Precision::Bf16));
        assert!(gemm_reduced_precision_f32());
        drop(tf32);
        assert!(!gemm_reduced_precision_f32());
    }
}
