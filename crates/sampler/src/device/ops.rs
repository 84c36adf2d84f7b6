//! The tensor operations of the device path, each counted.
//!
//! Everything that launches a kernel goes through here, so the table in the module's documentation can be tested
//! rather than believed. Views (`reshape` of contiguous tensors, `narrow`, `broadcast_as`) launch nothing.

use candle_core::{D, DType, Device, Result, Tensor, WithDType};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;

/// What a draw of a batch cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Kernels launched, and uploads.
    pub launches: usize,
    /// The elements of each launch, summed: of the input for a reduction, of the output for everything else.
    pub elements: usize,
    /// Times that something was read back to the host.
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
    Equal,
    Above,
    AtLeast,
    AtMost,
}

/// A reduction over the last dimension.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reduce {
    Max,
    Min,
    Sum,
}

/// A reduction of windows of a row.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pool {
    Max,
    /// Up to a factor.
    Sum,
}

/// The order of a sort.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Rising,
    Falling,
}

/// A small tensor that does not change from step to step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Constant {
    /// One number, by the bits of its f64.
    Scalar(u64),
    /// `start, start + step, start + 2 step, ...`, so many: `(1, n)`.
    Ramp { start: usize, count: usize, step: usize },
    /// `(rows, n)`, 1 where the column is below the row (or, inclusive, equal to it).
    Triangle { rows: usize, columns: usize, inclusive: bool },
    /// The limbs of a share by its bits, `(limbs, 1, 1)`; see `share`.
    Share(u64),
    /// The units of those limbs, `(limbs, 1, 1)`.
    LimbUnits,
    /// Of each round, the first being number `from`: `1, 2, ... count` times `unit / (count + 1)^(round + 1)`, in a row.
    Steps { count: usize, from: usize, rounds: usize, unit: u8 },
}

/// Runs operations on one device, counts them, and keeps the constants there.
#[derive(Debug)]
pub(super) struct Ops {
    device: Device,
    cost: Cell<Cost>,
    constants: RefCell<HashMap<(Constant, DType), Tensor>>,
    tiles: RefCell<HashMap<(Constant, DType, usize, usize), Tensor>>,
    /// The most columns that a sort takes.
    pub(super) sort_limit: usize,
    /// Whether there are operations on f64, which Metal has none of.
    pub(super) doubles: bool,
    /// Sorts put equals in the wrong order, as those of a GPU may.
    #[cfg(test)]
    pub(super) unstable: bool,
}

impl Ops {
    pub(super) fn new(device: &Device) -> Self {
        Self {
            device: device.clone(),
            cost: Cell::default(),
            constants: RefCell::default(),
            tiles: RefCell::default(),
            // A row of a sort has to fit the shared memory of a block. CUDA's limit serves the CPU too, which has none.
            sort_limit: if device.is_metal() { 1024 } else { 8192 },
            doubles: !device.is_metal(),
            #[cfg(test)]
            unstable: false,
        }
    }

    pub(super) fn is_on(&self, device: &Device) -> bool {
        self.device.same_device(device)
    }

    pub(super) fn cost(&self) -> Cost {
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

    fn counted(&self, out: Result<Tensor>) -> Result<Tensor> {
        let out = out?;
        self.count(1, out.elem_count());
        Ok(out)
    }

    pub(super) fn binary(&self, op: Binary, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        self.counted(match op {
            Binary::Add => a.broadcast_add(b),
            Binary::Sub => a.broadcast_sub(b),
            Binary::Mul => a.broadcast_mul(b),
            Binary::Div => a.broadcast_div(b),
            Binary::Min => a.broadcast_minimum(b),
            Binary::Max => a.broadcast_maximum(b),
            Binary::Equal => a.broadcast_eq(b),
            Binary::Above => a.broadcast_gt(b),
            Binary::AtLeast => a.broadcast_ge(b),
            Binary::AtMost => a.broadcast_le(b),
        })
    }

    /// With a number of the tensor's type.
    pub(super) fn with(&self, op: Binary, a: &Tensor, number: f64) -> Result<Tensor> {
        self.binary(op, a, &self.scalar(number, a.dtype())?)
    }

    /// The last dimension becomes 1.
    pub(super) fn reduce(&self, op: Reduce, x: &Tensor) -> Result<Tensor> {
        self.count(1, x.elem_count());
        match op {
            Reduce::Max => x.max_keepdim(D::Minus1),
            Reduce::Min => x.min_keepdim(D::Minus1),
            Reduce::Sum => x.sum_keepdim(D::Minus1),
        }
    }

    /// Over the windows of `size` that begin every `stride`: `(B, n)` to `(B, (n - size) / stride + 1)`. What is behind
    /// the last whole window is left out.
    ///
    /// Candle's pooling reads its input where it lies, so that no chunk has to divide a row.
    pub(super) fn pool(&self, op: Pool, x: &Tensor, size: usize, stride: usize) -> Result<Tensor> {
        let (rows, n) = x.dims2()?;
        let windows = (n - size) / stride + 1;
        self.count(1, rows * windows * size);
        let image = x.reshape((rows, 1, 1, n))?; // (B, n) -> (B, 1, 1, n)
        let pooled = match op {
            // On the CPU a sum is vectorised and pooling is not.
            Pool::Sum if self.device.is_cpu() && windows * size == n => {
                return x.reshape((rows, windows, size))?.sum(D::Minus1); // (B, n) -> (B, windows, size)
            }
            Pool::Sum => image.avg_pool2d_with_stride((1, size), (1, stride))?,
            Pool::Max => image.max_pool2d_with_stride((1, size), (1, stride))?,
        };
        pooled.reshape((rows, windows)) // (B, 1, 1, windows) -> (B, windows)
    }

    /// Elements of `yes` or of `no`, which broadcast.
    pub(super) fn choose(&self, condition: &Tensor, yes: &Tensor, no: &Tensor) -> Result<Tensor> {
        let shape = condition.shape();
        self.counted(condition.where_cond(&yes.broadcast_as(shape)?, &no.broadcast_as(shape)?))
    }

    /// Elements of `yes`, or a number.
    pub(super) fn choose_or(&self, condition: &Tensor, yes: &Tensor, no: f64) -> Result<Tensor> {
        self.choose(condition, yes, &self.scalar(no, yes.dtype())?)
    }

    pub(super) fn scale(&self, x: &Tensor, factor: f64) -> Result<Tensor> {
        self.counted(x.affine(factor, 0.0))
    }

    /// `x + summand`, of floats. Unlike [`Ops::with`] it keeps no constant.
    pub(super) fn shift(&self, x: &Tensor, summand: f64) -> Result<Tensor> {
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

    /// Side by side, one copy for each part. Contiguous parts only: of others candle makes a transposed view, which
    /// everything after it reads against the grain.
    #[expect(clippy::disallowed_methods, reason = "of contiguous parts it is one copy each")]
    pub(super) fn concat(&self, parts: &[&Tensor]) -> Result<Tensor> {
        debug_assert!(parts.iter().all(|part| part.is_contiguous()));
        let out = Tensor::cat(parts, D::Minus1)?;
        self.count(parts.len(), out.elem_count());
        Ok(out)
    }

    /// A view made contiguous.
    pub(super) fn copy(&self, x: &Tensor) -> Result<Tensor> {
        self.counted(x.force_contiguous())
    }

    /// Of each row, the elements at its indices.
    pub(super) fn gather(&self, x: &Tensor, indices: &Tensor) -> Result<Tensor> {
        self.counted(x.gather(indices, 1))
    }

    /// The first `count` indices of each row in sorted order, `(B, n)` to `(B, count)`. Equals come in any order: sorts
    /// on GPUs are not stable.
    #[expect(
        clippy::disallowed_methods,
        reason = "within the limit of the device, and made stable by keys that all differ"
    )]
    pub(super) fn sort(&self, x: &Tensor, order: Order, count: usize) -> Result<Tensor> {
        let (_, n) = x.dims2()?;
        debug_assert!(n <= self.sort_limit, "{n} columns");
        #[cfg(test)]
        if self.unstable {
            // Equals in falling order of their indices.
            let reversed = x.flip(&[1])?.contiguous()?;
            let order = self.counted(reversed.arg_sort_last_dim(order == Order::Rising))?;
            let last = self.scalar((n - 1) as f64, DType::U32)?;
            return last.broadcast_sub(&order)?.narrow(1, 0, count)?.force_contiguous();
        }
        let sorted = self.counted(x.arg_sort_last_dim(order == Order::Rising))?;
        if count == n { Ok(sorted) } else { self.copy(&sorted.narrow(1, 0, count)?) }
    }

    /// The inclusive prefix sums of the last dimension, n; exclusive ones, of which there are `n + 1`, end in the total.
    ///
    /// By a triangle of ones, since candle's own prefix sums are of floats: n^2 elements of work, for short lists.
    pub(super) fn prefixes(&self, x: &Tensor, inclusive: bool) -> Result<Tensor> {
        let columns = x.dim(D::Minus1)?;
        let rows = if inclusive { columns } else { columns + 1 };
        let mut shape = x.dims().to_vec();
        shape.insert(x.rank() - 1, rows);
        // Of bytes: as integers it would be the largest of all constants.
        let triangle = self.constant(Constant::Triangle { rows, columns, inclusive }, DType::U8)?;
        // (..., n) -> (..., 1, n), where (rows, n)
        let terms = self.choose_or(&triangle.broadcast_as(shape)?, &x.unsqueeze(x.rank() - 1)?, 0.0)?;
        self.reduce(Reduce::Sum, &terms)?.squeeze(D::Minus1) // (..., rows, 1) -> (..., rows)
    }

    /// `0, step, 2 step, ...`, `(1, count)` u32.
    pub(super) fn ramp(&self, count: usize, step: usize) -> Result<Tensor> {
        self.constant(Constant::Ramp { start: 0, count, step }, DType::U32)
    }

    /// `start, start + 1, ...`, `(rows, count)` u32.
    pub(super) fn ramps(&self, rows: usize, start: usize, count: usize) -> Result<Tensor> {
        self.tile(Constant::Ramp { start, count, step: 1 }, DType::U32, rows, count)
    }

    pub(super) fn scalar(&self, number: f64, dtype: DType) -> Result<Tensor> {
        self.constant(Constant::Scalar(number.to_bits()), dtype)
    }

    /// A constant, uploaded the first time.
    pub(super) fn constant(&self, which: Constant, dtype: DType) -> Result<Tensor> {
        if let Some(known) = self.constants.borrow().get(&(which, dtype)) {
            return Ok(known.clone());
        }
        let (values, shape): (Vec<f64>, Vec<usize>) = match which {
            Constant::Scalar(bits) => (vec![f64::from_bits(bits)], vec![1]),
            Constant::Ramp { start, count, step } => {
                ((0..count).map(|n| (start + n * step) as f64).collect(), vec![1, count])
            }
            Constant::Triangle { rows, columns, inclusive } => {
                let one = |at: usize| at % columns < at / columns + usize::from(inclusive);
                ((0..rows * columns).map(|at| f64::from(u8::from(one(at)))).collect(), vec![rows, columns])
            }
            Constant::Share(bits) => {
                (super::share::limbs(f64::from_bits(bits)).to_vec(), vec![super::share::LIMBS, 1, 1])
            }
            Constant::LimbUnits => (super::share::units().to_vec(), vec![super::share::LIMBS, 1, 1]),
            Constant::Steps { count, from, rounds, unit } => {
                let step = |round: usize| f64::from(unit) / ((count + 1) as f64).powi(round as i32 + 1);
                let of_round = |round| (1..=count).map(move |n| n as f64 * step(round));
                ((from..from + rounds).flat_map(of_round).collect(), vec![1, rounds * count])
            }
        };
        let tensor = self.upload(values, &shape, dtype)?;
        self.constants.borrow_mut().insert((which, dtype), tensor.clone());
        Ok(tensor)
    }

    /// A constant repeated to `(rows, columns)`, once: a choice between contiguous tensors is several times faster on the
    /// CPU, and sends no strides on CUDA. For short rows, since it is kept.
    pub(super) fn tile(&self, which: Constant, dtype: DType, rows: usize, columns: usize) -> Result<Tensor> {
        let key = (which, dtype, rows, columns);
        if let Some(known) = self.tiles.borrow().get(&key) {
            return Ok(known.clone());
        }
        let tile = self.copy(&self.constant(which, dtype)?.broadcast_as((rows, columns))?)?;
        self.tiles.borrow_mut().insert(key, tile.clone());
        Ok(tile)
    }

    /// Numbers of the host.
    pub(super) fn upload(&self, values: Vec<f64>, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let host = Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?;
        self.counted(host.to_device(&self.device))
    }

    /// A copy of `x` with these values at the indices of each row.
    #[expect(clippy::disallowed_methods, reason = "of the few logits that penalties touch")]
    pub(super) fn scatter(&self, x: &Tensor, indices: &Tensor, values: &Tensor) -> Result<Tensor> {
        self.counted(x.scatter(indices, values, 1))
    }

    /// The rows of these numbers.
    #[expect(clippy::disallowed_methods, reason = "of rows that exist; nothing is differentiated here")]
    pub(super) fn rows(&self, x: &Tensor, rows: &[usize]) -> Result<Tensor> {
        let rows = self.upload(rows.iter().map(|&row| row as f64).collect(), &[rows.len()], DType::U32)?;
        self.counted(x.index_select(&rows, 0))
    }

    /// Reads a small tensor of integers back.
    pub(super) fn read(&self, small: &Tensor) -> Result<Vec<u32>> {
        self.read_as(small)
    }

    /// Reads a small tensor of floats back.
    pub(super) fn read_floats(&self, small: &Tensor) -> Result<Vec<f32>> {
        self.read_as(small)
    }

    fn read_as<T: WithDType>(&self, small: &Tensor) -> Result<Vec<T>> {
        let mut cost = self.cost.get();
        cost.readbacks += 1;
        self.cost.set(cost);
        small.flatten_all()?.to_vec1()
    }
}
