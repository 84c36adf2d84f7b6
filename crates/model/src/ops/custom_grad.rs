//! Operations with a custom gradient, and the count of launches.
//!
//! candle's autograd keeps every intermediate result, and adds two launches (zeros, and a sum) for each edge of its graph. An
//! operation of this folder is computed without a graph instead, and its result gets one custom gradient, again in tensor
//! operations: the same code on every device, so tests on the CPU cover what a GPU runs.

use std::{
    cell::Cell,
    sync::{Mutex, PoisonError},
};

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, D, DType, Error, InplaceOp1, Layout, MetalStorage, Result, Shape,
    Storage, Tensor,
    backend::{BackendDevice, BackendStorage},
    bail,
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

/// The sum `(C)` of the rows of a contiguous `x (.., C)`, as a product with ones: on CUDA candle's own sum over anything but the
/// last dimension is one block for each column, whose threads read addresses that are `C` apart.
pub(crate) fn sum_rows(x: &Tensor) -> Result<Tensor> {
    let c = x.dim(D::Minus1)?;
    let rows = x.reshape(((), c))?; // (.., C) to (N, C)
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

/// Returns `y`, which was computed from `x` without a graph, with the gradient `dx = backward(x, y, dy)`. No other tensor
/// shares the storage of `y`, which is handed over without a copy.
pub(crate) fn with_gradient<F>(name: &'static str, x: &Tensor, y: Tensor, backward: F) -> Result<Tensor>
where
    F: Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor> + Send + Sync + 'static,
{
    if !x.track_op() {
        return Ok(y);
    }
    x.apply_op1(CustomGrad { name, result: Handover::of(name, y, &[x])?, backward })
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
    a.apply_op2(b, CustomGrad { name, result: Handover::of(name, y, &[a, b])?, backward })
}

/// The storage of a result, from its tensor to candle's graph. A copy instead would hold each result twice on a GPU, for
/// candle keeps the tensors that an operation was given until the backward pass.
#[derive(Default)]
struct Handover(Mutex<Option<(Storage, Shape)>>);

impl Handover {
    /// Takes the storage out of `y`, which shares it with no other tensor; `arguments` are those it was computed from.
    fn of(name: &'static str, y: Tensor, arguments: &[&Tensor]) -> Result<Self> {
        if !y.is_contiguous() || y.layout().start_offset() > 0 {
            bail!("{name}: the result is a part of another tensor")
        }
        let at = |tensor: &Tensor| std::ptr::from_ref(&*tensor.storage_and_layout().0);
        if arguments.iter().any(|argument| at(argument) == at(&y)) {
            bail!("{name}: the result is an argument")
        }
        let handover = Self::default();
        y.inplace_op1(&handover)?;
        Ok(handover)
    }

    fn put<S>(&self, storage: &mut S, layout: &Layout, wrap: fn(S) -> Storage) -> Result<()>
    where
        S: BackendStorage,
        S::Device: BackendDevice<Storage = S>,
    {
        // SAFETY: nobody reads the byte: the tensor that gets it is dropped by `Handover::of`, and is the only one with
        // this storage.
        #[expect(unsafe_code, reason = "zeroing what stands in the place of a storage would be a launch")]
        let placeholder = unsafe { storage.device().alloc_uninit(&Shape::from(1), DType::U8)? };
        let storage = wrap(std::mem::replace(storage, placeholder));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((storage, layout.shape().clone()));
        Ok(())
    }

    /// The storage, for which candle asks once.
    fn take(&self) -> Result<(Storage, Shape)> {
        let taken = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        taken.ok_or_else(|| Error::msg("the result of an operation was asked for twice"))
    }

    fn take_cpu(&self) -> Result<(CpuStorage, Shape)> {
        match self.take()? {
            (Storage::Cpu(storage), shape) => Ok((storage, shape)),
            _ => bail!("the result of an operation on the CPU is on another device"),
        }
    }

    fn take_cuda(&self) -> Result<(CudaStorage, Shape)> {
        match self.take()? {
            (Storage::Cuda(storage), shape) => Ok((storage, shape)),
            _ => bail!("the result of an operation on CUDA is on another device"),
        }
    }

    fn take_metal(&self) -> Result<(MetalStorage, Shape)> {
        match self.take()? {
            (Storage::Metal(storage), shape) => Ok((storage, shape)),
            _ => bail!("the result of an operation on Metal is on another device"),
        }
    }
}

impl InplaceOp1 for Handover {
    fn name(&self) -> &'static str {
        "handover"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        self.put(storage, layout, Storage::Cpu)
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        self.put(storage, layout, Storage::Cuda)
    }

    fn metal_fwd(&self, storage: &mut MetalStorage, layout: &Layout) -> Result<()> {
        self.put(storage, layout, Storage::Metal)
    }
}

/// A candle operation whose result is there already.
struct CustomGrad<F> {
    name: &'static str,
    result: Handover,
    backward: F,
}

impl<F> CustomOp1 for CustomGrad<F>
where
    F: Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.result.take_cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.result.take_cuda()
    }

    fn metal_fwd(&self, _: &MetalStorage, _: &Layout) -> Result<(MetalStorage, Shape)> {
        self.result.take_metal()
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        // Detached, or the gradient would record a graph of its own that keeps these tensors alive.
        (self.backward)(&x.detach(), &y.detach(), dy).map(Some)
    }
}

impl<F> CustomOp2 for CustomGrad<F>
where
    F: Fn((&Tensor, &Tensor), &Tensor, &Tensor) -> Result<(Tensor, Tensor)>,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.result.take_cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.result.take_cuda()
    }

    fn metal_fwd(&self, _: &MetalStorage, _: &Layout, _: &MetalStorage, _: &Layout) -> Result<(MetalStorage, Shape)> {
        self.result.take_metal()
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (da, db) = (self.backward)((&a.detach(), &b.detach()), &y.detach(), dy)?;
        Ok((Some(da), Some(db)))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn a_result_is_handed_over_without_a_copy() {
        let x = Var::new(&[1f32, 2.0, 3.0], &Device::Cpu).unwrap();
        let address = |tensor: &Tensor| match &*tensor.storage_and_layout().0 {
            Storage::Cpu(CpuStorage::F32(values)) => values.as_ptr(),
            _ => panic!("not f32 on the CPU"),
        };
        let y = (x.as_detached_tensor() * 2.0).unwrap();
        let computed = address(&y);
        let y = with_gradient("twice", x.as_tensor(), y, |_, _, dy| dy * 2.0).unwrap();
        assert_eq!((address(&y), y.to_vec1::<f32>().unwrap()), (computed, vec![2.0, 4.0, 6.0]));
        let gradient = y.sum_all().unwrap().backward().unwrap().remove(x.as_tensor()).unwrap();
        assert_eq!(gradient.to_vec1::<f32>().unwrap(), [2.0; 3]);
    }

    #[test]
    fn a_result_that_is_an_argument_or_a_part_of_another_tensor_is_refused() {
        let x = Var::new(&[1f32, 2.0, 3.0], &Device::Cpu).unwrap();
        let refused = |y: Tensor| with_gradient("same", x.as_tensor(), y, |_, _, dy| Ok(dy.clone())).unwrap_err();
        assert!(refused(x.as_detached_tensor()).to_string().contains("the result is an argument"));
        let part = (x.as_detached_tensor() * 2.0).unwrap().narrow(0, 1, 2).unwrap();
        assert!(refused(part).to_string().contains("a part of another tensor"));
    }
}
