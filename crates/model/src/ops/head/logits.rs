//! The logits of generation, in the type of the hidden states whatever the type of the head's matrix.

use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor, bail};

use crate::{Result, ops::linear_by_row};

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
    if x.device().is_cuda() {
        return Ok(rounded.apply_op2_no_bwd(&w.contiguous()?, &F32Product)?);
    }
    // Widened for each step, which reads the matrix as f32: only CUDA has a product whose result is wider than its operands.
    linear_by_row(&rounded.to_dtype(x.dtype())?, &w.to_dtype(x.dtype())?.t()?, None)
}

/// `x w^T` in f32 for `x (B, T, C)` and `w (V, C)` of 16 bits, both contiguous, by cuBLAS.
struct F32Product;

impl CustomOp2 for F32Product {
    fn name(&self) -> &'static str {
        "f32 product of 16 bits"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        bail!("{} is for CUDA", self.name())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &candle_core::CudaStorage,
        x_layout: &Layout,
        w: &candle_core::CudaStorage,
        w_layout: &Layout,
    ) -> candle_core::Result<(candle_core::CudaStorage, Shape)> {
        use candle_core::cuda_backend::{
            CudaStorageSlice as Slice,
            cudarc::cublas::sys::cudaDataType::{CUDA_R_16BF, CUDA_R_16F},
        };

        let ((b, t, c), (v, w_cols)) = (x_layout.shape().dims3()?, w_layout.shape().dims2()?);
        let whole = |layout: &Layout| layout.is_contiguous() && layout.start_offset() == 0;
        if c != w_cols || !whole(x_layout) || !whole(w_layout) {
            bail!("{}: {:?} and {:?}", self.name(), x_layout, w_layout)
        }
        let y = match (&x.slice, &w.slice) {
            (Slice::BF16(x_slice), Slice::BF16(w)) => cuda::product(&x.device, x_slice, w, CUDA_R_16BF, [b, t, c, v])?,
            (Slice::F16(x_slice), Slice::F16(w)) => cuda::product(&x.device, x_slice, w, CUDA_R_16F, [b, t, c, v])?,
            _ => bail!("{}: operands of other types", self.name()),
        };
        Ok((candle_core::CudaStorage::wrap_cuda_slice(y, x.device.clone()), Shape::from((b, t, v))))
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    #![allow(unsafe_code)]

    use std::{ffi::c_void, ptr::from_ref};

    use candle_core::{
        CudaDevice, Error, Result, bail,
        cuda_backend::{
            WrapErr,
            cudarc::{
                cublas::{
                    result::gemm_strided_batched_ex,
                    sys::{cublasComputeType_t, cublasGemmAlgo_t, cublasOperation_t, cudaDataType},
                },
                driver::{CudaSlice, DevicePtr, DevicePtrMut, DeviceRepr},
            },
        },
    };

    /// `y (B, T, V) = x (B, T, C) w^T (C, V)` for the lengths `[B, T, C, V]`.
    pub(super) fn product<T: DeviceRepr>(
        device: &CudaDevice,
        x: &CudaSlice<T>,
        w: &CudaSlice<T>,
        dtype: cudaDataType,
        [b, t, c, v]: [usize; 4],
    ) -> Result<CudaSlice<f32>> {
        if x.len() < b * t * c || w.len() < v * c {
            bail!("a product of {b} x {t} x {c} and {v} x {c} numbers reaches beyond its operands");
        }
        let int = |n: usize| i32::try_from(n).map_err(Error::wrap);
        let [rows, m, n, k] = [int(b)?, int(v)?, int(t)?, int(c)?];
        let stream = device.cuda_stream();
        // SAFETY: the product below writes all of it before anything reads it: both are queued on one stream.
        let mut y = unsafe { device.alloc::<f32>(b * t * v)? };
        {
            let ((x, _x), (w, _w), (y, _y)) = (x.device_ptr(&stream), w.device_ptr(&stream), y.device_ptr_mut(&stream));
            let (alpha, beta) = (1f32, 0f32);
            // cuBLAS has the first index beside the second: to it `w` is `(C, V)`, transposed here, `x` is `(C, T)` and `y` is
            // `(V, T)` for each row of the batch.
            //
            // SAFETY: pointers are of living memory of this device, as long as checked above; leading dimensions and strides
            // are those of contiguous tensors, so that no element is beyond. alpha and beta are f32, as the computation is.
            unsafe {
                gemm_strided_batched_ex(
                    *device.cublas_handle().handle(),
                    cublasOperation_t::CUBLAS_OP_T,
                    cublasOperation_t::CUBLAS_OP_N,
                    m,
                    n,
                    k,
                    from_ref(&alpha).cast(),
                    w as *const c_void,
                    dtype,
                    k,
                    0,
                    x as *const c_void,
                    dtype,
                    k,
                    (t * c) as i64,
                    from_ref(&beta).cast(),
                    y as *mut c_void,
                    cudaDataType::CUDA_R_32F,
                    m,
                    (t * v) as i64,
                    rows,
                    cublasComputeType_t::CUBLAS_COMPUTE_32F,
                    cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT_TENSOR_OP,
                )
            }
            .w()?;
        }
        Ok(y)
    }
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
