//! The tensor operations of the device path, each counted.
//!
//! Everything that launches a kernel goes through here, so the table in the module's documentation can be tested
//! rather than believed. Views (`reshape` of contiguous tensors, `broadcast_as`, `unsqueeze`) launch nothing.

use candle_core::{D, DType, Device, Result, Tensor};
use std::cell::Cell;

/// What a draw of a batch cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Kernels launched, uploads of constants included.
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
    NotEqual,
    Above,
    AtLeast,
    AtMost,
}

/// A reduction over the last dimension, which it removes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reduce {
    Max,
    Min,
    Sum,
}

/// Runs operations and counts them.
pub(super) struct Ops {
    pub(super) device: Device,
    cost: Cell<Cost>,
}

impl Ops {
    pub(super) fn new(device: &Device) -> Self {
        Self { device: device.clone(), cost: Cell::new(Cost { launches: 0, elements: 0, readbacks: 0 }) }
    }

    pub(super) fn cost(&self) -> Cost {
        self.cost.get()
    }

    fn count(&self, elements: usize) {
        let mut cost = self.cost.get();
        cost.launches += 1;
        cost.elements += elements;
        self.cost.set(cost);
    }

    fn counted(&self, out: Result<Tensor>) -> Result<Tensor> {
        let out = out?;
        self.count(out.elem_count());
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
            Binary::NotEqual => a.broadcast_ne(b),
            Binary::Above => a.broadcast_gt(b),
            Binary::AtLeast => a.broadcast_ge(b),
            Binary::AtMost => a.broadcast_le(b),
        })
    }

    /// With an integer constant of the tensor's type.
    pub(super) fn with(&self, op: Binary, a: &Tensor, constant: i64) -> Result<Tensor> {
        let constant = self.upload(vec![constant], a.rank(), a.dtype())?;
        self.binary(op, a, &constant)
    }

    pub(super) fn reduce(&self, op: Reduce, x: &Tensor) -> Result<Tensor> {
        self.count(x.elem_count());
        match op {
            Reduce::Max => x.max(D::Minus1),
            Reduce::Min => x.min(D::Minus1),
            Reduce::Sum => x.sum(D::Minus1),
        }
    }

    /// [`Ops::reduce`], leaving a dimension of one.
    pub(super) fn reduce_keep(&self, op: Reduce, x: &Tensor) -> Result<Tensor> {
        self.reduce(op, x)?.unsqueeze(D::Minus1)
    }

    pub(super) fn choose(&self, condition: &Tensor, yes: &Tensor, no: &Tensor) -> Result<Tensor> {
        self.counted(condition.where_cond(yes, no))
    }

    pub(super) fn affine(&self, x: &Tensor, scale: f64, shift: f64) -> Result<Tensor> {
        self.counted(x.affine(scale, shift))
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

    pub(super) fn concat(&self, parts: &[&Tensor]) -> Result<Tensor> {
        self.counted(Tensor::cat(parts, D::Minus1))
    }

    pub(super) fn full(&self, value: f32, shape: &[usize], dtype: DType) -> Result<Tensor> {
        self.counted(Tensor::full(value, shape, &self.device)?.to_dtype(dtype))
    }

    /// Zeros of a tensor's shape and type.
    pub(super) fn zeros(&self, like: &Tensor) -> Result<Tensor> {
        self.counted(like.zeros_like())
    }

    pub(super) fn rows(&self, x: &Tensor, indices: &Tensor) -> Result<Tensor> {
        self.counted(x.index_select(indices, 0))
    }

    /// Integers as a column of `rank` dimensions, all but the first of which are 1.
    pub(super) fn upload(&self, values: Vec<i64>, rank: usize, dtype: DType) -> Result<Tensor> {
        let mut shape = vec![1; rank];
        shape[0] = values.len();
        self.constants(values, &shape, dtype)
    }

    /// Integers of the host in a shape.
    pub(super) fn constants(&self, values: Vec<i64>, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let host = Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?;
        self.counted(host.to_device(&self.device))
    }

    /// Reads a small table of integers back.
    pub(super) fn read(&self, table: &Tensor) -> Result<Vec<Vec<u32>>> {
        let mut cost = self.cost.get();
        cost.readbacks += 1;
        self.cost.set(cost);
        table.to_vec2()
    }
}
