//! Operations with a custom gradient, and the count of launches.
//!
//! candle's autograd keeps every intermediate result, and adds two launches (zeros, and a sum) for each edge of its graph. An
//! operation of this folder is computed without a graph instead, and its result gets one custom gradient, again in tensor
//! operations: the same code on every device, so tests on the CPU cover what a GPU runs.

use std::cell::Cell;

use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, CustomOp3, D, DType, Layout, MetalStorage, Result, Shape, Tensor,
    backend::BackendStorage, bail,
};

use crate::Precision;

thread_local! {
    static LAUNCHES: Cell<usize> = const { Cell::new(0) };
}

/// The launches on this thread since the last call: kernels, products, copies and uploads of the operations of this
/// crate, as marked by [`count_launch`]. Not counted is what candle adds: in the backward pass two launches for each
/// argument of an operation, a buffer of zeros, and the upload of a number that a tensor is compared with.
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
pub fn count_launch(result: Result<Tensor>) -> Result<Tensor> {
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
#[expect(clippy::disallowed_methods, reason = "the callers' tensors are contiguous, which is asserted")]
pub(crate) fn cat_last(tensors: &[Tensor]) -> Result<Tensor> {
    debug_assert!(tensors.iter().all(Tensor::is_contiguous));
    LAUNCHES.set(LAUNCHES.get() + tensors.len());
    Tensor::cat(tensors, D::Minus1)
}

/// The mean over the last dimension, which is kept. candle launches a sum and a product for it.
pub(crate) fn mean(x: &Tensor) -> Result<Tensor> {
    count_launch(count_launch(x.mean_keepdim(D::Minus1)))
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

/// Returns `y`, which was computed from `x` without a graph, with the gradient `dx = backward(x, y, dy)`.
pub(crate) fn with_gradient<F>(name: &'static str, x: &Tensor, y: Tensor, backward: F) -> Result<Tensor>
where
    F: Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor> + Send + Sync + 'static,
{
    if !x.track_op() {
        return Ok(y);
    }
    count_launch(x.apply_op2(&y, CustomGrad { name, backward }))
}

/// [`with_gradient`] for two arguments: `(da, db) = backward((a, b), y, dy)`.
pub(crate) fn with_gradients<F>(
    name: &'static str,
    (a, b): (&Tensor, &Tensor),
    y: Tensor,
    backward: F,
) -> Result<Tensor>
where
    F: Fn((&Tensor, &Tensor), &Tensor, &Tensor) -> Result<(Tensor, Tensor)> + Send + Sync + 'static,
{
    if !a.track_op() && !b.track_op() {
        return Ok(y);
    }
    count_launch(a.apply_op3(b, &y, CustomGrad { name, backward }))
}

/// A candle operation whose last argument is its own result; that argument gets no gradient.
struct CustomGrad<F> {
    name: &'static str,
    backward: F,
}

impl<F> CustomGrad<F> {
    /// The storage of the result: a copy on the CPU and on CUDA, another handle on Metal.
    fn result_storage<S: BackendStorage>(&self, y: &S, layout: &Layout) -> Result<(S, Shape)> {
        if !layout.is_contiguous() || layout.start_offset() > 0 {
            bail!("{}: the result is a part of another tensor", self.name)
        }
        Ok((y.try_clone(layout)?, layout.shape().clone()))
    }
}

impl<F> CustomOp2 for CustomGrad<F>
where
    F: Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, y: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        self.result_storage(y, l)
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout, y: &CudaStorage, l: &Layout) -> Result<(CudaStorage, Shape)> {
        self.result_storage(y, l)
    }

    fn metal_fwd(&self, _: &MetalStorage, _: &Layout, y: &MetalStorage, l: &Layout) -> Result<(MetalStorage, Shape)> {
        self.result_storage(y, l)
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        // Detached, or the gradient would record a graph of its own that keeps these tensors alive.
        let dx = (self.backward)(&x.detach(), &y.detach(), dy)?;
        Ok((Some(dx), None))
    }
}

impl<F> CustomOp3 for CustomGrad<F>
where
    F: Fn((&Tensor, &Tensor), &Tensor, &Tensor) -> Result<(Tensor, Tensor)>,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        y: &CpuStorage,
        l: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.result_storage(y, l)
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        y: &CudaStorage,
        l: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.result_storage(y, l)
    }

    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
        y: &MetalStorage,
        l: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        self.result_storage(y, l)
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (da, db) = (self.backward)((&a.detach(), &b.detach()), &y.detach(), dy)?;
        Ok((Some(da), Some(db), None))
    }
}
