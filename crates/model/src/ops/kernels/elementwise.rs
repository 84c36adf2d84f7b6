//! Activations, SwiGLU and dropout.

use candle_core::{D, DType, Result, Tensor};
use tinygpt_sampler::kernels::{Arg, Grid, Kernels, Module};

use super::dropout_args;
use crate::{
    Dropout,
    ops::{Activation, launches::count_launch},
};

const MODULE: Module = Module { name: "elementwise", ptx: include_str!("../../../kernels/elementwise.ptx") };

/// Enough blocks for `n` elements, four a thread.
fn grid(n: usize) -> Grid {
    Grid::over(n.div_ceil(4), 256)
}

/// The activations of `x`.
pub(crate) fn activate(kernels: &Kernels, x: &Tensor, activation: Activation) -> Result<Tensor> {
    let name = match activation {
        Activation::Gelu => "gelu_forward",
        Activation::GeluNew => "gelu_new_forward",
        Activation::Relu2 => "relu2_forward",
    };
    let n = x.elem_count();
    let y = kernels.output(x.shape(), DType::F32)?;
    let args = [Arg::Tensor(x), Arg::Tensor(&y), Arg::U64(n as u64)];
    count_launch(kernels.launch(MODULE, name, grid(n), &args).map(|()| y))
}

/// The gradient of `x` from that of its activations.
pub(crate) fn activate_backward(kernels: &Kernels, x: &Tensor, activation: Activation, dy: &Tensor) -> Result<Tensor> {
    let name = match activation {
        Activation::Gelu => "gelu_backward",
        Activation::GeluNew => "gelu_new_backward",
        Activation::Relu2 => "relu2_backward",
    };
    let n = x.elem_count();
    let dx = kernels.output(x.shape(), DType::F32)?;
    let args = [Arg::Tensor(x), Arg::Tensor(dy), Arg::Tensor(&dx), Arg::U64(n as u64)];
    count_launch(kernels.launch(MODULE, name, grid(n), &args).map(|()| dx))
}

/// SwiGLU of `x (.., 2H)`: `(.., H)`.
pub(crate) fn swiglu(kernels: &Kernels, x: &Tensor) -> Result<Tensor> {
    let h = x.dim(D::Minus1)? / 2;
    let n = x.elem_count() / 2;
    let mut dims = x.dims().to_vec();
    dims.pop();
    dims.push(h);
    let y = kernels.output(dims, DType::F32)?;
    let args = [Arg::Tensor(x), Arg::Tensor(&y), Arg::U64(n as u64), Arg::U32(h as u32)];
    count_launch(kernels.launch(MODULE, "swiglu_forward", grid(n), &args).map(|()| y))
}

/// The gradient of `x (.., 2H)` from that of its SwiGLU, `(.., H)`.
pub(crate) fn swiglu_backward(kernels: &Kernels, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let (h, n) = (x.dim(D::Minus1)? / 2, dy.elem_count());
    let dx = kernels.output(x.shape(), DType::F32)?;
    let args = [Arg::Tensor(x), Arg::Tensor(dy), Arg::Tensor(&dx), Arg::U64(n as u64), Arg::U32(h as u32)];
    count_launch(kernels.launch(MODULE, "swiglu_backward", grid(n), &args).map(|()| dx))
}

/// `x` times the mask of a site, computed where it is applied.
pub(crate) fn dropout(kernels: &Kernels, x: &Tensor, dropout: &Dropout, site: u32) -> Result<Tensor> {
    let n = x.elem_count();
    let y = kernels.output(x.shape(), DType::F32)?;
    let args =
        [&[Arg::Tensor(x), Arg::Tensor(&y), Arg::U64(n as u64)][..], &dropout_args(Some((dropout, site)))].concat();
    count_launch(kernels.launch(MODULE, "dropout", grid(n), &args).map(|()| y))
}
