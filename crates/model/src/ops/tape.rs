//! Gradients: a tape of the operations of a forward pass, which is gone through backwards.
//!
//! An operation computes its result in plain tensor operations, and [records](record) how the gradients of its inputs follow
//! from that of its result, in tensor operations as well: the same code on every device, so tests on the CPU cover what a GPU
//! runs. candle's own autograd is not used. It keeps every intermediate result, adds two launches for each edge of its
//! graph, and silently gives no gradient where an operation has no backward pass.
//!
//! What the backward pass reads is what its closure holds, and is freed as soon as the closure has run.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    fmt,
};

use candle_core::{DType, Result, Shape, Tensor, TensorId};

use super::launches::count_launch;

/// The operations of a forward pass.
#[derive(Default)]
pub struct Tape {
    entries: Vec<Entry>,
    /// The tensors that gradients are computed for: the leaves, and what was computed from them.
    tracked: HashSet<TensorId>,
}

/// Gets the gradient of the result, and the gradient that the first input has from operations after this one, if the entry adds
/// to it. Gives the gradients of the inputs.
type Backward = Box<dyn FnOnce(Tensor, Option<Tensor>) -> Result<Vec<Tensor>>>;

struct Entry {
    name: &'static str,
    inputs: Vec<TensorId>,
    output: TensorId,
    /// Whether the gradient of the first input includes what it was before.
    adds: bool,
    backward: Backward,
}

impl fmt::Debug for Tape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.entries.iter().map(|entry| entry.name)).finish()
    }
}

/// The gradients of the leaves of a [`Tape`].
#[derive(Debug)]
pub struct Gradients(HashMap<TensorId, Tensor>);

impl Gradients {
    /// The gradient of a leaf; nothing where the result does not depend on it.
    pub fn take(&mut self, leaf: &Tensor) -> Option<Tensor> {
        self.0.remove(&leaf.id())
    }
}

thread_local! {
    /// The tape of the forward pass that this thread computes.
    static ACTIVE: RefCell<Option<Tape>> = const { RefCell::new(None) };
}

impl Tape {
    /// Runs a forward pass, and records what it computes from `leaves` on this thread.
    pub fn record<T>(leaves: &[Tensor], forward: impl FnOnce() -> T) -> (T, Self) {
        /// Puts back what was recorded before, after a panic as well.
        struct Restore(Option<Tape>);
        impl Drop for Restore {
            fn drop(&mut self) {
                ACTIVE.set(self.0.take());
            }
        }
        let tape = Self { entries: Vec::new(), tracked: leaves.iter().map(Tensor::id).collect() };
        // A thread that waits for others may be given another forward pass to compute meanwhile.
        let _restore = Restore(ACTIVE.replace(Some(tape)));
        let y = forward();
        (y, ACTIVE.take().unwrap_or_default())
    }

    /// The gradients of the leaves, from the gradient `dy` of a result `y`.
    ///
    /// # Errors
    /// When an operation fails, of memory for one.
    pub fn backward(self, y: &Tensor, dy: Tensor) -> Result<Gradients> {
        self.backward_seen_by(y, dy, |_, _| {})
    }

    /// [`Tape::backward`] that shows each result of an operation, by its id, with its whole gradient.
    pub(crate) fn backward_seen_by(
        self,
        y: &Tensor,
        dy: Tensor,
        mut see: impl FnMut(TensorId, &Tensor),
    ) -> Result<Gradients> {
        let mut grads = HashMap::from([(y.id(), dy)]);
        let Self { mut entries, tracked } = self;
        while let Some(Entry { name, inputs, output, adds, backward }) = entries.pop() {
            // A result that nothing reads has no gradient.
            let Some(dy) = grads.remove(&output) else { continue };
            see(output, &dy);
            let before = if adds { grads.remove(&inputs[0]) } else { None };
            let found = backward(dy, before)?;
            debug_assert_eq!(found.len(), inputs.len(), "{name}");
            for (input, grad) in inputs.into_iter().zip(found) {
                if !tracked.contains(&input) {
                    continue;
                }
                let sum = match grads.remove(&input) {
                    Some(sum) => count_launch(sum + grad)?,
                    None => grad,
                };
                grads.insert(input, sum);
            }
        }
        Ok(Gradients(grads))
    }
}

/// Records that `y` was computed from `inputs`, whose gradients are `backward(dy)`, in their order.
pub(crate) fn record<const N: usize>(
    name: &'static str,
    inputs: [&Tensor; N],
    y: &Tensor,
    backward: impl FnOnce(&Tensor) -> Result<[Tensor; N]> + 'static,
) {
    push(name, &inputs, y, false, |dy, _| Ok(backward(&dy)?.into()));
}

/// [`record`] of a number of inputs that depends on the operation.
pub(crate) fn record_all(
    name: &'static str,
    inputs: &[&Tensor],
    y: &Tensor,
    backward: impl FnOnce(&Tensor) -> Result<Vec<Tensor>> + 'static,
) {
    push(name, inputs, y, false, |dy, _| backward(&dy));
}

/// [`record`] of an operation that adds to the gradient of its first input: `backward(dy, before)` gets what that is so far, and
/// gives the sum. Norms do, since their input, the residual stream, has other readers.
pub(crate) fn record_adding(
    name: &'static str,
    inputs: &[&Tensor],
    y: &Tensor,
    backward: impl FnOnce(&Tensor, Option<Tensor>) -> Result<Vec<Tensor>> + 'static,
) {
    push(name, inputs, y, true, |dy, before| backward(&dy, before));
}

fn push(
    name: &'static str,
    inputs: &[&Tensor],
    y: &Tensor,
    adds: bool,
    backward: impl FnOnce(Tensor, Option<Tensor>) -> Result<Vec<Tensor>> + 'static,
) {
    ACTIVE.with_borrow_mut(|active| {
        let Some(tape) = active else { return };
        if !inputs.iter().any(|input| tape.tracked.contains(&input.id())) {
            return;
        }
        tape.tracked.insert(y.id());
        let inputs = inputs.iter().map(|input| input.id()).collect();
        tape.entries.push(Entry { name, inputs, output: y.id(), adds, backward: Box::new(backward) });
    });
}

/// The sum `before + grad` where there is something before.
pub(crate) fn plus(before: Option<Tensor>, grad: Tensor) -> Result<Tensor> {
    match before {
        Some(before) => count_launch(before + grad),
        None => Ok(grad),
    }
}

/// [`Tensor::reshape`] of a contiguous tensor, recorded.
///
/// # Errors
/// When the number of elements is another.
pub fn reshape(x: &Tensor, shape: impl Into<Shape>) -> Result<Tensor> {
    let y = x.reshape(shape.into())?;
    let dims = x.shape().clone();
    record("reshape", [x], &y, |dy| Ok([dy.reshape(dims)?]));
    Ok(y)
}

/// The view of a matrix `(m, n)` as `(n, m)`, recorded.
///
/// # Errors
/// When `x` is not a matrix.
pub fn transpose(x: &Tensor) -> Result<Tensor> {
    let y = x.t()?;
    record("transpose", [x], &y, |dy| Ok([count_launch(dy.t()?.contiguous())?]));
    Ok(y)
}

/// `x` in another type, recorded; `x` itself where it has it.
pub(crate) fn cast(x: &Tensor, dtype: DType) -> Result<Tensor> {
    if x.dtype() == dtype {
        return Ok(x.clone());
    }
    let y = count_launch(x.to_dtype(dtype))?;
    let of_x = x.dtype();
    record("cast", [x], &y, move |dy| Ok([count_launch(dy.to_dtype(of_x))?]));
    Ok(y)
}

/// The sum of two tensors of one shape, recorded.
pub(crate) fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let sum = count_launch(x + y)?;
    record("add", [x, y], &sum, |dy| Ok([dy.clone(), dy.clone()]));
    Ok(sum)
}

/// `x + factor y`, for two tensors of one shape, recorded.
pub(crate) fn add_scaled(x: &Tensor, y: &Tensor, factor: f64) -> Result<Tensor> {
    let sum = count_launch(x + count_launch(y.affine(factor, 0.0))?)?;
    record("add scaled", [x, y], &sum, move |dy| Ok([dy.clone(), count_launch(dy.affine(factor, 0.0))?]));
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn tensor(values: &[f64]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    fn square(x: &Tensor) -> Tensor {
        let y = x.sqr().unwrap();
        let of_x = x.clone();
        record("square", [x], &y, move |dy| Ok([(dy * of_x.affine(2.0, 0.0)?)?]));
        y
    }

    #[test]
    fn a_tensor_that_is_read_twice_has_the_sum_of_its_gradients() {
        let x = tensor(&[3.0, -2.0]);
        let (y, tape) = Tape::record(std::slice::from_ref(&x), || add(&square(&x), &x).unwrap());
        let dx = tape.backward(&y, tensor(&[1.0, 10.0])).unwrap().take(&x).unwrap();
        assert_eq!(dx.to_vec1::<f64>().unwrap(), [7.0, -30.0]);
    }

    #[test]
    fn what_does_not_depend_on_a_leaf_is_not_recorded_and_has_no_gradient() {
        let (x, other) = (tensor(&[1.0]), tensor(&[2.0]));
        let (y, tape) = Tape::record(std::slice::from_ref(&x), || {
            square(&other);
            square(&x)
        });
        assert_eq!(format!("{tape:?}"), r#"["square"]"#);
        let mut grads = tape.backward(&y, tensor(&[1.0])).unwrap();
        assert!(grads.take(&x).is_some() && grads.take(&other).is_none());
    }

    #[test]
    fn a_forward_pass_within_another_has_a_tape_of_its_own() {
        let x = tensor(&[3.0]);
        let (y, outer) = Tape::record(std::slice::from_ref(&x), || {
            let (_, inner) = Tape::record(std::slice::from_ref(&x), || square(&square(&x)));
            assert_eq!(format!("{inner:?}"), r#"["square", "square"]"#);
            square(&x)
        });
        assert_eq!(format!("{outer:?}"), r#"["square"]"#);
        assert_eq!(outer.backward(&y, tensor(&[1.0])).unwrap().take(&x).unwrap().to_vec1::<f64>().unwrap(), [6.0]);
    }

    #[test]
    fn an_operation_that_adds_gets_the_gradient_of_later_readers_and_nothing_adds_it_again() {
        let x = tensor(&[5.0]);
        let (y, tape) = Tape::record(std::slice::from_ref(&x), || {
            let twice = x.affine(2.0, 0.0).unwrap();
            record_adding("twice", &[&x], &twice, |dy, before| Ok(vec![plus(before, dy.affine(2.0, 0.0)?)?]));
            add(&twice, &x).unwrap()
        });
        let dx = tape.backward(&y, tensor(&[1.0])).unwrap().take(&x).unwrap();
        assert_eq!(dx.to_vec1::<f64>().unwrap(), [3.0]);
    }
}
