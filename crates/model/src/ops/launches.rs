//! The count of launches, and small operations that launch.

use std::cell::Cell;

use candle_core::{D, DType, Result, Tensor};

use super::kernels::{kernels_for_values, norm};
use crate::Precision;

thread_local! {
    static LAUNCHES: Cell<usize> = const { Cell::new(0) };
}

/// The launches on this thread since the last call: kernels, products, copies and uploads of the operations of this
/// crate, as marked by [`count_launch`]. Not counted is what candle adds, as the upload of a number that a tensor is compared with.
#[doc(hidden)]
pub fn take_launches() -> usize {
    LAUNCHES.take()
}

/// Counts one launch and returns the operation's result. Views (`reshape` of contiguous tensors, `narrow`, `broadcast_as`,
/// `t`) launch nothing and are not counted.
///
/// # Errors
/// Returns the operation's own error.
#[doc(hidden)]
pub fn count_launch<T>(result: Result<T>) -> Result<T> {
    LAUNCHES.set(LAUNCHES.get() + 1);
    result
}

/// Concatenates contiguous tensors along the first dimension, with one launch (a copy) for each; a single tensor is not
/// copied.
///
/// # Errors
/// When there is no tensor, or shapes differ in another dimension.
#[doc(hidden)]
#[expect(clippy::disallowed_methods, reason = "the callers' tensors are contiguous, which is asserted")]
pub fn cat(tensors: &[Tensor]) -> Result<Tensor> {
    debug_assert!(tensors.iter().all(Tensor::is_contiguous));
    if tensors.len() > 1 {
        LAUNCHES.set(LAUNCHES.get() + tensors.len());
    }
    Tensor::cat(tensors, 0)
}

/// Concatenates contiguous tensors along the last dimension, with one launch (a copy) for each.
///
/// # Errors
/// When there is no tensor, or shapes differ in another dimension.
#[doc(hidden)]
#[expect(clippy::disallowed_methods, reason = "the callers' tensors are contiguous, which is asserted")]
pub fn cat_last(tensors: &[Tensor]) -> Result<Tensor> {
    debug_assert!(tensors.iter().all(Tensor::is_contiguous));
    LAUNCHES.set(LAUNCHES.get() + tensors.len());
    Tensor::cat(tensors, D::Minus1)
}

/// The mean over the last dimension, which is kept. candle launches a sum and a product for it.
pub(crate) fn mean(x: &Tensor) -> Result<Tensor> {
    count_launch(count_launch(x.mean_keepdim(D::Minus1)))
}

/// The sum `(C)` of the rows of `x (.., C)`: by a kernel, else as a product with ones. On CUDA candle's own sum over anything but
/// the last dimension is one block for each column, whose threads read addresses that are `C` apart.
pub(crate) fn sum_rows(x: &Tensor) -> Result<Tensor> {
    let c = x.dim(D::Minus1)?;
    let rows = x.contiguous()?.reshape(((), c))?; // (.., C) to (N, C)
    if let Some((kernels, element)) = kernels_for_values(&rows) {
        return norm::sum_rows(&kernels, &rows, element);
    }
    let ones = count_launch(Tensor::ones((1, rows.dim(0)?), x.dtype(), x.device()))?;
    count_launch(ones.matmul(&rows))?.squeeze(0) // (1, C) to (C)
}

/// Rounds `x` to the precision of a product's operands, contiguous.
pub(crate) fn to_operand(x: &Tensor, precision: Precision) -> Result<Tensor> {
    match precision.dtype() {
        // A cast reads any layout and writes a contiguous one.
        Some(dtype) => count_launch(x.to_dtype(dtype)),
        None if x.is_contiguous() => Ok(x.clone()),
        None => count_launch(x.contiguous()),
    }
}

/// Casts the result of a product to `dtype`, that of activations, contiguous.
pub(crate) fn upcast(y: &Tensor, dtype: DType) -> Result<Tensor> {
    if y.dtype() != dtype {
        count_launch(y.to_dtype(dtype))
    } else if y.is_contiguous() {
        Ok(y.clone())
    } else {
        count_launch(y.contiguous())
    }
}
