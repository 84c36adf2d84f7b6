//! The logits of generation, in the type of the hidden states whatever the type of the head's matrix.

use candle_core::{DType, Tensor};

use crate::{
    Result,
    ops::{kernels::kernels_for_values, launches::count_launch, linear_by_row},
};

/// The logits `x w^T` of hidden states `x (B, T, C)` by a head `w (V, C)`: `(B, T, V)`, with one product for each row of the
/// batch, as in [`linear_by_row`]. Operands are rounded to the type of `w`; sums and logits have the type of `x`.
///
/// A product of candle has the type of its operands, and in bf16 two logits of 10 that differ by 0.03 would be equal.
///
/// # Errors
/// On a shape mismatch.
pub(crate) fn logits_by_row(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    if x.dtype() == w.dtype() {
        return linear_by_row(x, &w.t()?, None);
    }
    let rounded = x.to_dtype(w.dtype())?;
    if x.dtype() == DType::F32
        && let Some((kernels, _)) = kernels_for_values(w)
    {
        let (rows, t, _) = x.dims3()?;
        let logits = kernels.output((rows, t, w.dim(0)?), DType::F32)?; // (B, T, V)
        for row in 0..rows {
            count_launch(kernels.product(&rounded.get(row)?, &w.t()?, &logits.get(row)?, false))?;
        }
        return Ok(logits);
    }
    // Widened for each step, which reads the matrix as f32: only cuBLAS has a product whose result is wider than its operands.
    linear_by_row(&rounded.to_dtype(x.dtype())?, &w.to_dtype(x.dtype())?.t()?, None)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn logits_of_a_head_of_16_bits_are_not_rounded_to_16_bits() {
        let (b, t, c, v) = (2, 3, 64, 5);
        let numbers = |n: usize, step: usize| -> Vec<f32> { (0..n).map(|i| (i * step % 97) as f32 / 97.0).collect() };
        let x = Tensor::from_vec(numbers(b * t * c, 31), (b, t, c), &Device::Cpu).unwrap();
        let w = Tensor::from_vec(numbers(v * c, 17), (v, c), &Device::Cpu).unwrap();
        for dtype in [DType::BF16, DType::F16] {
            let narrow = w.to_dtype(dtype).unwrap();
            let logits = logits_by_row(&x, &narrow).unwrap();
            assert_eq!((logits.dims(), logits.dtype()), (&[b, t, v][..], DType::F32));
            let wide = |tensor: &Tensor| tensor.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap();
            let expected = logits_by_row(&wide(&x), &wide(&w)).unwrap();
            let rounded = wide(&expected);
            let [logits, expected, rounded] =
                [logits, expected, rounded].map(|tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap());
            assert_eq!(logits, expected, "{dtype:?}");
            assert_ne!(logits, rounded, "{dtype:?}");
        }
    }
}
