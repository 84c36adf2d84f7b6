//! The tensor operations of the device path, with a count of what they launch.
//!
//! Every operation that launches a kernel goes through [`Ops`], so that tests can hold the table of costs in the
//! documentation of [`device`](super). Views (`reshape` of contiguous tensors, `narrow`, `broadcast_as`) launch
//! nothing.

use super::limbs::{LIMBS, limb_divisors, limbs};
use crate::kernels::{Arg, Grid, Kernels, Module};
use candle_core::{D, DType, Device, Result, Tensor, WithDType};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;

/// The cost of drawing from a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceCost {
    /// The number of kernels launched and uploads.
    pub launches: usize,
    /// The number of elements of all launches: of the input for a reduction, of the output for every other operation.
    pub elements: usize,
    /// The number of tensors read back to the host.
    pub readbacks: usize,
}

/// A binary operation that broadcasts.
#[derive(Debug, Clone, Copy)]
pub(super) enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    Min,
    Max,
    Eq,
    Gt,
    Ge,
    Le,
}

/// A reduction over the last dimension.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reduce {
    Max,
    Min,
    Sum,
}

/// A reduction of the windows of a row.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pool {
    Max,
    /// The sum or the mean, whichever is faster.
    Sum,
}

/// The order of a sort.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Ascending,
    Descending,
}

/// A small tensor that is the same in every step, and so is kept on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Constant {
    /// One number, as the bits of an f64.
    Scalar(u64),
    /// `start, start + step, start + 2 step, ...`, `(1, count)`.
    Arange { start: usize, count: usize, step: usize },
    /// `(rows, columns)`, 1 where the column is below the row (if inclusive, or equal to it), else 0.
    Triangle { rows: usize, columns: usize, inclusive: bool },
    /// The limbs of a fraction given by its bits, `(LIMBS, 1, 1)`; see `fraction`.
    FractionLimbs(u64),
    /// The divisors of those limbs, `(LIMBS, 1, 1)`.
    LimbDivisors,
    /// For each round from number `from` on: `1, 2, ... count` times `units / (count + 1)^(round + 1)`; `(1, rounds *
    /// count)`.
    Steps { count: usize, from: usize, rounds: usize, units: u8 },
}

/// The operations on one device, their count, and the constants that are kept there.
#[derive(Debug)]
pub(super) struct Ops {
    device: Device,
    cost: Cell<DeviceCost>,
    constants: RefCell<HashMap<(Constant, DType), Tensor>>,
    tiles: RefCell<HashMap<(Constant, DType, usize, usize), Tensor>>,
    /// The largest number of columns that a sort takes.
    pub(super) max_sort_columns: usize,
    /// Whether the device has f64; Metal has not.
    pub(super) has_f64: bool,
    /// Makes sorts reverse equal elements, as those of a GPU may.
    #[cfg(test)]
    pub(super) reverse_ties: bool,
}

impl Ops {
    pub(super) fn new(device: &Device) -> Self {
        Self {
            device: device.clone(),
            cost: Cell::default(),
            constants: RefCell::default(),
            tiles: RefCell::default(),
            // On a GPU a row to sort must fit the shared memory of a block. The CPU has no limit and takes that of
            // CUDA.
            max_sort_columns: if device.is_metal() { 1024 } else { 8192 },
            has_f64: !device.is_metal(),
            #[cfg(test)]
            reverse_ties: false,
        }
    }

    /// Whether these are the operations of this device.
    pub(super) fn is_on(&self, device: &Device) -> bool {
        self.device.same_device(device)
    }

    /// The cost since the last [`Ops::reset_cost`].
    pub(super) fn cost(&self) -> DeviceCost {
        self.cost.get()
    }

    pub(super) fn reset_cost(&self) {
        self.cost.take();
    }

    fn count(&self, launches: usize, elements: usize) {
        let mut cost = self.cost.get();
        cost.launches += launches;
        cost.elements += elements;
        self.cost.set(cost);
    }

    /// Counts the launch of an operation by its output.
    fn counted(&self, out: Result<Tensor>) -> Result<Tensor> {
        let out = out?;
        self.count(1, out.elem_count());
        Ok(out)
    }

    /// Applies a binary operation, broadcasting.
    pub(super) fn binary(&self, op: Binary, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        self.counted(match op {
            Binary::Add => a.broadcast_add(b),
            Binary::Sub => a.broadcast_sub(b),
            Binary::Mul => a.broadcast_mul(b),
            Binary::Div => a.broadcast_div(b),
            Binary::Min => a.broadcast_minimum(b),
            Binary::Max => a.broadcast_maximum(b),
            Binary::Eq => a.broadcast_eq(b),
            Binary::Gt => a.broadcast_gt(b),
            Binary::Ge => a.broadcast_ge(b),
            Binary::Le => a.broadcast_le(b),
        })
    }

    /// Applies a binary operation to a tensor and a number, which becomes a constant of the tensor's type.
    pub(super) fn binary_scalar(&self, op: Binary, a: &Tensor, number: f64) -> Result<Tensor> {
        self.binary(op, a, &self.scalar(number, a.dtype())?)
    }

    /// Reduces the last dimension, which becomes 1.
    pub(super) fn reduce(&self, op: Reduce, x: &Tensor) -> Result<Tensor> {
        self.count(1, x.elem_count());
        match op {
            Reduce::Max => x.max_keepdim(D::Minus1),
            Reduce::Min => x.min_keepdim(D::Minus1),
            Reduce::Sum => x.sum_keepdim(D::Minus1),
        }
    }

    /// Reduces the windows of `size` elements that begin every `stride`: `(B, n)` to `(B, (n - size) / stride + 1)`.
    /// Elements after the last whole window are left out.
    ///
    /// Candle's pooling reads its input in place, so the size of a window need not divide the row.
    pub(super) fn pool(&self, op: Pool, x: &Tensor, size: usize, stride: usize) -> Result<Tensor> {
        let (rows, n) = x.dims2()?;
        let windows = (n - size) / stride + 1;
        self.count(1, rows * windows * size);
        let image = x.reshape((rows, 1, 1, n))?; // (B, n) -> (B, 1, 1, n)
        let pooled = match op {
            // On the CPU candle vectorises sums, but not pooling.
            Pool::Sum if self.device.is_cpu() && windows * size == n => {
                return x.reshape((rows, windows, size))?.sum(D::Minus1); // (B, n) -> (B, windows, size)
            }
            Pool::Sum => image.avg_pool2d_with_stride((1, size), (1, stride))?,
            Pool::Max => image.max_pool2d_with_stride((1, size), (1, stride))?,
        };
        pooled.reshape((rows, windows)) // (B, 1, 1, windows) -> (B, windows)
    }

    /// `on_true` where the condition is not 0, else `on_false`; these two broadcast to its shape.
    pub(super) fn where_cond(&self, condition: &Tensor, on_true: &Tensor, on_false: &Tensor) -> Result<Tensor> {
        let shape = condition.shape();
        self.counted(condition.where_cond(&on_true.broadcast_as(shape)?, &on_false.broadcast_as(shape)?))
    }

    /// `on_true` where the condition is not 0, else a number.
    pub(super) fn where_or(&self, condition: &Tensor, on_true: &Tensor, on_false: f64) -> Result<Tensor> {
        self.where_cond(condition, on_true, &self.scalar(on_false, on_true.dtype())?)
    }

    /// `x * factor`, of floats. Unlike [`Ops::binary_scalar`] it keeps no constant.
    pub(super) fn mul_scalar(&self, x: &Tensor, factor: f64) -> Result<Tensor> {
        self.counted(x.affine(factor, 0.0))
    }

    /// `x + summand`, of floats. Unlike [`Ops::binary_scalar`] it keeps no constant.
    pub(super) fn add_scalar(&self, x: &Tensor, summand: f64) -> Result<Tensor> {
        self.counted(x.affine(1.0, summand))
    }

    pub(super) fn exp(&self, x: &Tensor) -> Result<Tensor> {
        self.counted(x.exp())
    }

    pub(super) fn cast(&self, x: &Tensor, dtype: DType) -> Result<Tensor> {
        if x.dtype() == dtype {
            return Ok(x.clone());
        }
        self.counted(x.to_dtype(dtype))
    }

    /// Concatenates contiguous tensors along the last dimension, one copy each. From other tensors candle would make a
    /// transposed view, which is slow to read.
    #[expect(clippy::disallowed_methods, reason = "of contiguous parts it is one copy each")]
    pub(super) fn concat(&self, parts: &[&Tensor]) -> Result<Tensor> {
        debug_assert!(parts.iter().all(|part| part.is_contiguous()));
        let out = Tensor::cat(parts, D::Minus1)?;
        self.count(parts.len(), out.elem_count());
        Ok(out)
    }

    /// A contiguous copy of a view.
    pub(super) fn copy(&self, x: &Tensor) -> Result<Tensor> {
        self.counted(x.force_contiguous())
    }

    /// The elements of each row at its indices: `(B, n)` and `(B, m)` u32 to `(B, m)`.
    pub(super) fn gather(&self, x: &Tensor, indices: &Tensor) -> Result<Tensor> {
        self.counted(x.gather(indices, 1))
    }

    /// The first `count` indices of each row in sorted order, `(B, n)` to `(B, count)` u32. Equal elements come in any
    /// order: GPU sorts are not stable.
    #[expect(
        clippy::disallowed_methods,
        reason = "within the limit of the device, and made stable by keys that all differ"
    )]
    pub(super) fn argsort(&self, x: &Tensor, order: Order, count: usize) -> Result<Tensor> {
        let (_, n) = x.dims2()?;
        debug_assert!(n <= self.max_sort_columns, "a sort of {n} columns");
        #[cfg(test)]
        if self.reverse_ties {
            // Equal elements by falling index.
            let reversed = x.flip(&[1])?.contiguous()?;
            let order = self.counted(reversed.arg_sort_last_dim(order == Order::Ascending))?;
            let last = self.scalar((n - 1) as f64, DType::U32)?;
            return last.broadcast_sub(&order)?.narrow(1, 0, count)?.force_contiguous();
        }
        let sorted = self.counted(x.arg_sort_last_dim(order == Order::Ascending))?;
        if count == n { Ok(sorted) } else { self.copy(&sorted.narrow(1, 0, count)?) }
    }

    /// The inclusive prefix sums of the last dimension, of length n, or the exclusive ones and the total, of length `n
    /// + 1`.
    ///
    /// Computed with a triangle of ones, n^2 work, as candle's `cumsum` is of floats: for short lists.
    pub(super) fn prefix_sums(&self, x: &Tensor, inclusive: bool) -> Result<Tensor> {
        let columns = x.dim(D::Minus1)?;
        let rows = if inclusive { columns } else { columns + 1 };
        let mut shape = x.dims().to_vec();
        shape.insert(x.rank() - 1, rows);
        // As i64 this would be the largest of all constants.
        let triangle = self.constant(Constant::Triangle { rows, columns, inclusive }, DType::U8)?;
        // (..., 1, n) where (rows, n)
        let terms = self.where_or(&triangle.broadcast_as(shape)?, &x.unsqueeze(x.rank() - 1)?, 0.0)?;
        self.reduce(Reduce::Sum, &terms)?.squeeze(D::Minus1) // (..., rows, 1) -> (..., rows)
    }

    /// `0, step, 2 step, ...`, `(1, count)` u32.
    pub(super) fn arange(&self, count: usize, step: usize) -> Result<Tensor> {
        self.constant(Constant::Arange { start: 0, count, step }, DType::U32)
    }

    /// `start, start + 1, ...`, `(rows, count)` u32.
    pub(super) fn arange_rows(&self, rows: usize, start: usize, count: usize) -> Result<Tensor> {
        self.tile(Constant::Arange { start, count, step: 1 }, DType::U32, rows, count)
    }

    /// A constant of one element, `(1,)`.
    pub(super) fn scalar(&self, number: f64, dtype: DType) -> Result<Tensor> {
        self.constant(Constant::Scalar(number.to_bits()), dtype)
    }

    /// A constant, uploaded at the first use.
    pub(super) fn constant(&self, which: Constant, dtype: DType) -> Result<Tensor> {
        if let Some(known) = self.constants.borrow().get(&(which, dtype)) {
            return Ok(known.clone());
        }
        let (values, shape): (Vec<f64>, Vec<usize>) = match which {
            Constant::Scalar(bits) => (vec![f64::from_bits(bits)], vec![1]),
            Constant::Arange { start, count, step } => {
                ((0..count).map(|n| (start + n * step) as f64).collect(), vec![1, count])
            }
            Constant::Triangle { rows, columns, inclusive } => {
                let is_below = |n: usize| n % columns < n / columns + usize::from(inclusive);
                ((0..rows * columns).map(|n| f64::from(u8::from(is_below(n)))).collect(), vec![rows, columns])
            }
            Constant::FractionLimbs(bits) => (limbs(f64::from_bits(bits)).to_vec(), vec![LIMBS, 1, 1]),
            Constant::LimbDivisors => (limb_divisors().to_vec(), vec![LIMBS, 1, 1]),
            Constant::Steps { count, from, rounds, units } => {
                let step = |round: usize| f64::from(units) / ((count + 1) as f64).powi(round as i32 + 1);
                let of_round = |round| (1..=count).map(move |n| n as f64 * step(round));
                ((from..from + rounds).flat_map(of_round).collect(), vec![1, rounds * count])
            }
        };
        let tensor = self.upload(values, &shape, dtype)?;
        self.constants.borrow_mut().insert((which, dtype), tensor.clone());
        Ok(tensor)
    }

    /// A constant repeated to `(rows, columns)` and kept, so for short rows. Operations on contiguous tensors are
    /// several times faster on the CPU, and need no upload of strides on CUDA.
    pub(super) fn tile(&self, which: Constant, dtype: DType, rows: usize, columns: usize) -> Result<Tensor> {
        let key = (which, dtype, rows, columns);
        if let Some(known) = self.tiles.borrow().get(&key) {
            return Ok(known.clone());
        }
        let tile = self.copy(&self.constant(which, dtype)?.broadcast_as((rows, columns))?)?;
        self.tiles.borrow_mut().insert(key, tile.clone());
        Ok(tile)
    }

    /// Uploads numbers of the host as a tensor.
    pub(super) fn upload(&self, values: Vec<f64>, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let host = Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?;
        self.counted(host.to_device(&self.device))
    }

    /// Uploads the words of the arguments of kernels, `(n,)` u32.
    pub(super) fn upload_words(&self, words: Vec<u32>) -> Result<Tensor> {
        let count = words.len();
        self.counted(Tensor::from_vec(words, count, &self.device))
    }

    /// Queues one of the project's own kernels, which reads so many elements.
    pub(super) fn launch(
        &self,
        kernels: &Kernels,
        module: Module,
        name: &'static str,
        grid: Grid,
        args: &[Arg<'_>],
        elements: usize,
    ) -> Result<()> {
        self.count(1, elements);
        kernels.launch(module, name, grid, args)
    }

    /// A copy of `x`, `(B, n)`, with these values, `(B, m)`, at the indices of each row, `(B, m)` u32.
    #[expect(clippy::disallowed_methods, reason = "of the few logits that penalties touch")]
    pub(super) fn scatter(&self, x: &Tensor, indices: &Tensor, values: &Tensor) -> Result<Tensor> {
        self.counted(x.scatter(indices, values, 1))
    }

    /// The rows with these indices.
    #[expect(clippy::disallowed_methods, reason = "of rows that exist; nothing is differentiated here")]
    pub(super) fn select_rows(&self, x: &Tensor, rows: &[usize]) -> Result<Tensor> {
        let rows = self.upload(rows.iter().map(|&row| row as f64).collect(), &[rows.len()], DType::U32)?;
        self.counted(x.index_select(&rows, 0))
    }

    /// Reads a small tensor of integers back.
    pub(super) fn read_u32(&self, small: &Tensor) -> Result<Vec<u32>> {
        self.read_as(small)
    }

    /// Reads a small tensor of floats back.
    pub(super) fn read_f32(&self, small: &Tensor) -> Result<Vec<f32>> {
        self.read_as(small)
    }

    fn read_as<T: WithDType>(&self, small: &Tensor) -> Result<Vec<T>> {
        let mut cost = self.cost.get();
        cost.readbacks += 1;
        self.cost.set(cost);
        small.flatten_all()?.to_vec1()
    }
}
