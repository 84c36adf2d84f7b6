//! What candle does not say of a device: its name, and whether an error means that it is out of memory.

use candle_core::{Device, DeviceLocation, Error};

/// The name of a device, as `--device` of the program takes it: `cpu`, `cuda:N` or `metal`.
pub fn name(device: &Device) -> String {
    match device.location() {
        DeviceLocation::Cpu => "cpu".into(),
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        DeviceLocation::Metal { .. } => "metal".into(),
    }
}

/// Whether an error says that a CUDA device, or cuBLAS on it, has no memory left. The next allocation may succeed again.
pub fn is_out_of_memory(error: &Error) -> bool {
    match error {
        Error::WithBacktrace { inner, .. } | Error::Context { inner, .. } | Error::WithPath { inner, .. } => {
            is_out_of_memory(inner)
        }
        #[cfg(feature = "cuda")]
        Error::Cuda(error) => cuda_is_out_of_memory(error.as_ref()),
        _ => false,
    }
}

#[cfg(feature = "cuda")]
fn cuda_is_out_of_memory(error: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    use candle_core::cuda_backend::{
        CudaError,
        cudarc::{
            cublas::{result::CublasError, sys::cublasStatus_t},
            driver::{DriverError, sys::CUresult},
        },
    };
    let Some(CudaError::Cuda(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY))) = error.downcast_ref() else {
        let cublas = CublasError(cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED);
        return matches!(error.downcast_ref(), Some(CudaError::Cublas(error)) if *error == cublas);
    };
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_error_of_memory_says_that_a_device_is_full() {
        assert!(!is_out_of_memory(&Error::Msg("out of memory".into()).bt()));
        #[cfg(feature = "cuda")]
        {
            use candle_core::cuda_backend::{
                CudaError, WrapErr,
                cudarc::driver::{DriverError, sys::CUresult},
            };
            let error = |code| Err::<(), CudaError>(DriverError(code).into()).w().unwrap_err();
            assert!(is_out_of_memory(&error(CUresult::CUDA_ERROR_OUT_OF_MEMORY)));
            assert!(is_out_of_memory(&error(CUresult::CUDA_ERROR_OUT_OF_MEMORY).context("a product")));
            assert!(!is_out_of_memory(&error(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS)));
        }
    }
}
