//! Layer norm and RMSNorm.

use candle_core::{D, DType, Result, Tensor, bail};
use tinygpt_sampler::kernels::{Arg, Grid, Kernels, Module};

use super::Element;
use crate::ops::launches::count_launch;

const MODULE: Module = Module { name: "norm", ptx: include_str!("../../../kernels/norm.ptx") };

/// The warps of a block, each with a row.
const WARPS: usize = 4;

/// The rows of a block of the backward pass, which leaves one row of sums: enough blocks for a large card, few rows to sum after.
const ROWS: usize = 32;

/// The rows that one block of [`sum_rows`] takes.
const SUMMED_ROWS: usize = 256;

/// The bytes of sums that the warps of a block share at most, which every card has.
pub(super) const SHARED: usize = 96 << 10;

/// Whether the kernels take rows of `c` channels: a warp's sums have to be in shared memory.
pub(crate) fn fits(c: usize, bias: bool) -> bool {
    4 * c * (1 + usize::from(bias)) <= SHARED
}

/// A norm's forward and backward kernel, and its epsilon.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NormKernels {
    forward: [&'static str; 2],
    backward: [&'static str; 2],
    eps: f64,
}

impl NormKernels {
    pub(crate) fn layer_norm(eps: f64) -> Self {
        Self {
            forward: ["layer_norm_forward_float", "layer_norm_forward_bf16"],
            backward: ["layer_norm_backward_float", "layer_norm_backward_bf16"],
            eps,
        }
    }

    pub(crate) fn rms_norm(eps: f64) -> Self {
        Self {
            forward: ["rms_norm_forward_float", "rms_norm_forward_bf16"],
            backward: ["rms_norm_backward_float", "rms_norm_backward_bf16"],
            eps,
        }
    }

    /// Norms rows of `x (.., C)` with a weight `(C)` and a bias `(C)`, to values of the type `element`.
    pub(crate) fn forward(
        self,
        kernels: &Kernels,
        (x, w, b): (&Tensor, &Tensor, Option<&Tensor>),
        element: Element,
    ) -> Result<Tensor> {
        let c = x.dim(D::Minus1)?;
        let n = x.elem_count() / c;
        let y = kernels.output(x.shape(), element.pick([DType::F32, DType::BF16]))?;
        let grid = Grid::new(n.div_ceil(WARPS), 32 * WARPS as u32);
        let shape = [Arg::U32(n as u32), Arg::U32(c as u32), Arg::F32(self.eps as f32)];
        let args = [&[Arg::Tensor(x), Arg::Tensor(w), Arg::optional(b), Arg::Tensor(&y)][..], &shape].concat();
        count_launch(kernels.launch(MODULE, element.pick(self.forward), grid, &args).map(|()| y))
    }

    /// The gradients of `x`, to which `before` is added, of the weight, and with `bias` of the bias.
    pub(crate) fn backward(
        self,
        kernels: &Kernels,
        (x, w, bias): (&Tensor, &Tensor, bool),
        dy: &Tensor,
        before: Option<&Tensor>,
    ) -> Result<Vec<Tensor>> {
        let c = x.dim(D::Minus1)?;
        let n = x.elem_count() / c;
        let width = if bias { 2 * c } else { c };
        let warps = (SHARED / (4 * width).max(1)).clamp(1, WARPS);
        let blocks = n.div_ceil(ROWS);
        let Some(element) = Element::of(dy) else { bail!("norm: the gradient is neither f32 nor bf16") };
        let dx = kernels.output(x.shape(), DType::F32)?;
        let sums = kernels.output((blocks, width), DType::F32)?;
        let grid = Grid { shared: (4 * warps * width) as u32, ..Grid::new(blocks, 32 * warps as u32) };
        let args = [
            Arg::Tensor(x),
            Arg::Tensor(w),
            Arg::Tensor(dy),
            Arg::optional(before),
            Arg::Tensor(&dx),
            Arg::Tensor(&sums),
            Arg::U32(n as u32),
            Arg::U32(c as u32),
            Arg::U32(ROWS as u32),
            Arg::U32(bias.into()),
            Arg::F32(self.eps as f32),
        ];
        let dx = count_launch(kernels.launch(MODULE, element.pick(self.backward), grid, &args).map(|()| dx))?;
        let sums = sum_rows(kernels, &sums, Element::F32)?; // (blocks, width) to (width)
        let mut grads = vec![dx, sums.narrow(0, 0, c)?];
        if bias {
            grads.push(sums.narrow(0, c, c)?);
        }
        Ok(grads)
    }
}

/// The sum of all rows of `x (n, c)`, of the type `element`: `(c)` in f32.
pub(crate) fn sum_rows(kernels: &Kernels, x: &Tensor, element: Element) -> Result<Tensor> {
    let (n, c) = x.dims2()?;
    let parts = n.div_ceil(SUMMED_ROWS).max(1);
    let y = kernels.output((parts, c), DType::F32)?;
    let grid = Grid { blocks: (parts as u32, c.div_ceil(32) as u32, 1), threads: 256, shared: 0 };
    let args = [Arg::Tensor(x), Arg::Tensor(&y), Arg::U32(n as u32), Arg::U32(c as u32), Arg::U32(SUMMED_ROWS as u32)];
    let y = count_launch(
        kernels.launch(MODULE, element.pick(["sum_rows_float", "sum_rows_bf16"]), grid, &args).map(|()| y),
    )?;
    if parts == 1 { y.squeeze(0) } else { sum_rows(kernels, &y, Element::F32) }
}
