//! Activations, SwiGLU, dropout, residual sums, biases, and the rounding of matrices.

use candle_core::{D, DType, Result, Tensor};
use tinygpt_sampler::kernels::{Arg, Grid, Kernels, Module};

use super::{Element, dropout_args};
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
pub(crate) fn activate(kernels: &Kernels, (x, element): (&Tensor, Element), activation: Activation) -> Result<Tensor> {
    let names = match activation {
        Activation::Gelu => ["gelu_forward_float", "gelu_forward_bf16"],
        Activation::GeluNew => ["gelu_new_forward_float", "gelu_new_forward_bf16"],
        Activation::Relu2 => ["relu2_forward_float", "relu2_forward_bf16"],
    };
    let n = x.elem_count();
    let y = kernels.output(x.shape(), x.dtype())?;
    let args = [Arg::Tensor(x), Arg::Tensor(&y), Arg::U64(n as u64)];
    count_launch(kernels.launch(MODULE, element.pick(names), grid(n), &args).map(|()| y))
}

/// The gradient of `x` from that of its activations, of the same type.
pub(crate) fn activate_backward(
    kernels: &Kernels,
    (x, element): (&Tensor, Element),
    activation: Activation,
    dy: &Tensor,
) -> Result<Tensor> {
    let names = match activation {
        Activation::Gelu => ["gelu_backward_float", "gelu_backward_bf16"],
        Activation::GeluNew => ["gelu_new_backward_float", "gelu_new_backward_bf16"],
        Activation::Relu2 => ["relu2_backward_float", "relu2_backward_bf16"],
    };
    let n = x.elem_count();
    let dx = kernels.output(x.shape(), x.dtype())?;
    let args = [Arg::Tensor(x), Arg::Tensor(dy), Arg::Tensor(&dx), Arg::U64(n as u64)];
    count_launch(kernels.launch(MODULE, element.pick(names), grid(n), &args).map(|()| dx))
}

/// SwiGLU of `x (.., 2H)`: `(.., H)`.
pub(crate) fn swiglu(kernels: &Kernels, (x, element): (&Tensor, Element)) -> Result<Tensor> {
    let h = x.dim(D::Minus1)? / 2;
    let n = x.elem_count() / 2;
    let mut dims = x.dims().to_vec();
    dims.pop();
    dims.push(h);
    let y = kernels.output(dims, x.dtype())?;
    let args = [Arg::Tensor(x), Arg::Tensor(&y), Arg::U64(n as u64), Arg::U32(h as u32)];
    let name = element.pick(["swiglu_forward_float", "swiglu_forward_bf16"]);
    count_launch(kernels.launch(MODULE, name, grid(n), &args).map(|()| y))
}

/// The gradient of `x (.., 2H)` from that of its SwiGLU, `(.., H)`, of the same type.
pub(crate) fn swiglu_backward(kernels: &Kernels, (x, element): (&Tensor, Element), dy: &Tensor) -> Result<Tensor> {
    let (h, n) = (x.dim(D::Minus1)? / 2, dy.elem_count());
    let dx = kernels.output(x.shape(), x.dtype())?;
    let args = [Arg::Tensor(x), Arg::Tensor(dy), Arg::Tensor(&dx), Arg::U64(n as u64), Arg::U32(h as u32)];
    let name = element.pick(["swiglu_backward_float", "swiglu_backward_bf16"]);
    count_launch(kernels.launch(MODULE, name, grid(n), &args).map(|()| dx))
}

/// `x (.., c)` plus a bias `(c)` in f32, of the type of `x`.
pub(crate) fn add_bias(kernels: &Kernels, (x, element): (&Tensor, Element), bias: &Tensor) -> Result<Tensor> {
    let n = x.elem_count();
    let y = kernels.output(x.shape(), x.dtype())?;
    let args =
        [Arg::Tensor(x), Arg::Tensor(bias), Arg::Tensor(&y), Arg::U64(n as u64), Arg::U32(bias.elem_count() as u32)];
    let name = element.pick(["add_bias_float", "add_bias_bf16"]);
    count_launch(kernels.launch(MODULE, name, grid(n), &args).map(|()| y))
}

/// `before + x * mask` in f32, with the mask of a site, or without one, or without what is before.
pub(crate) fn masked_sum(
    kernels: &Kernels,
    before: Option<&Tensor>,
    (x, element): (&Tensor, Element),
    dropout: Option<(&Dropout, u32)>,
) -> Result<Tensor> {
    let n = x.elem_count();
    let y = kernels.output(x.shape(), DType::F32)?;
    let args = [Arg::Tensor(x), Arg::optional(before), Arg::Tensor(&y), Arg::U64(n as u64)];
    let args = [&args[..], &dropout_args(dropout)].concat();
    let name = element.pick(["masked_sum_float_float", "masked_sum_bf16_float"]);
    count_launch(kernels.launch(MODULE, name, grid(n), &args).map(|()| y))
}

/// The gradient of `x` in [`masked_sum`], of its type, from that of the sum.
pub(crate) fn masked_sum_backward(
    kernels: &Kernels,
    element: Element,
    dy: &Tensor,
    dropout: Option<(&Dropout, u32)>,
) -> Result<Tensor> {
    let n = dy.elem_count();
    let dx = kernels.output(dy.shape(), element.pick([DType::F32, DType::BF16]))?;
    let args = [Arg::Tensor(dy), Arg::Null, Arg::Tensor(&dx), Arg::U64(n as u64)];
    let args = [&args[..], &dropout_args(dropout)].concat();
    let name = element.pick(["masked_sum_float_float", "masked_sum_float_bf16"]);
    count_launch(kernels.launch(MODULE, name, grid(n), &args).map(|()| dx))
}

/// Matrices are at multiples of this many elements, so that products find them aligned.
const MATRIX_ALIGNMENT: usize = 128;

/// f32 matrices rounded to bf16, in one launch; each is a view of one tensor.
pub(crate) fn round_matrices(kernels: &Kernels, matrices: &[&Tensor]) -> Result<Vec<Tensor>> {
    let (mut table, mut blocks, mut end) = (Vec::new(), 0, 0);
    let mut starts = Vec::with_capacity(matrices.len());
    for matrix in matrices {
        let n = matrix.elem_count();
        let words = [kernels.address(matrix)?, blocks as u64, n as u64, end as u64];
        table.extend(words.map(u64::cast_signed));
        starts.push(end);
        blocks += n.div_ceil(1024);
        end += n.next_multiple_of(MATRIX_ALIGNMENT);
    }
    let rows = table.len();
    let table = count_launch(Tensor::from_vec(table, rows, matrices[0].device()))?;
    let y = kernels.output(end, DType::BF16)?;
    let args = [Arg::Tensor(&table), Arg::U32(matrices.len() as u32), Arg::Tensor(&y)];
    let y = count_launch(kernels.launch(MODULE, "round_matrices", Grid::new(blocks, 256), &args).map(|()| y))?;
    let view = |(matrix, start): (&&Tensor, usize)| y.narrow(0, start, matrix.elem_count())?.reshape(matrix.shape());
    matrices.iter().zip(starts).map(view).collect()
}
