//! Activations, SwiGLU, dropout, residual sums, biases, and the rounding of matrices.

use candle_core::{D, DType, Result, Tensor, bail};
use tinygpt_sampler::kernels::{Arg, Grid, Kernels, Module};

use super::{Element, dropout_args, kernels_for_values, norm::sum_rows};
use crate::{
    Dropout,
    ops::{Activation, launches::count_launch, tape},
};

pub(super) const MODULE: Module = Module { name: "elementwise", ptx: include_str!("../../../kernels/elementwise.ptx") };

/// The elements of a block, eight a thread.
const BLOCK: usize = 8 * 256;

/// Enough blocks for `n` elements.
pub(super) fn grid(n: usize) -> Grid {
    Grid::new(n.div_ceil(BLOCK), 256)
}

/// The rows that a block takes where it adds up gradients of a bias.
const SUMMED_ROWS: usize = 256;

/// What an MLP computes of its hidden values, each element's activation or SwiGLU, by kernels: forward, backward, and backward with
/// the gradient of a bias that is added before.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MlpFunction {
    forward: [&'static str; 3],
    backward: [&'static str; 3],
    bias_backward: [&'static str; 3],
    /// The inputs of an output.
    inputs: usize,
}

macro_rules! mlp_function {
    ($name:literal, $inputs:literal) => {
        MlpFunction {
            forward: for_each_element!($name, "_forward"),
            backward: for_each_element!($name, "_backward"),
            bias_backward: for_each_element!($name, "_bias_backward"),
            inputs: $inputs,
        }
    };
}

impl From<Activation> for MlpFunction {
    fn from(activation: Activation) -> Self {
        match activation {
            Activation::Gelu => mlp_function!("gelu", 1),
            Activation::GeluNew => mlp_function!("gelu_new", 1),
            Activation::Relu2 => mlp_function!("relu2", 1),
        }
    }
}

impl MlpFunction {
    pub(crate) const SWIGLU: Self = mlp_function!("swiglu", 2);

    /// The function of `x (.., C)`, with a bias `(C)` added before it or without one, recorded; nothing where there is no kernel for
    /// it.
    pub(crate) fn apply(self, x: &Tensor, bias: Option<&Tensor>) -> Result<Option<Tensor>> {
        let takes_bias = bias.is_none_or(|bias| bias.dtype() == DType::F32 && bias.is_contiguous());
        let Some(of) = kernels_for_values(x).filter(|_| takes_bias) else { return Ok(None) };
        let y = self.forward(&of, x, bias)?;
        let input = x.clone();
        match bias {
            Some(bias) => {
                let of_bias = bias.clone();
                tape::record("activation", [x, bias], &y, move |dy| {
                    self.bias_backward(&of, (&input, &of_bias), &dy.contiguous()?)
                });
            }
            None => {
                tape::record("activation", [x], &y, move |dy| Ok([self.backward(&of, &input, &dy.contiguous()?)?]))
            }
        }
        Ok(Some(y))
    }

    fn forward(self, (kernels, element): &(Kernels, Element), x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let (n, c) = (x.elem_count() / self.inputs, x.dim(D::Minus1)? / self.inputs);
        let mut dims = x.dims().to_vec();
        dims.pop();
        dims.push(c);
        let y = kernels.output(dims, x.dtype())?;
        let args = [Arg::Tensor(x), Arg::optional(bias), Arg::Tensor(&y), Arg::U64(n as u64), Arg::U32(c as u32)];
        count_launch(kernels.launch(MODULE, element.pick(self.forward), grid(n), &args).map(|()| y))
    }

    /// The gradient of `x` from that of its function, of the same type.
    fn backward(self, (kernels, element): &(Kernels, Element), x: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let (n, c) = (dy.elem_count(), dy.dim(D::Minus1)?);
        let dx = kernels.output(x.shape(), x.dtype())?;
        let args = [Arg::Tensor(x), Arg::Tensor(dy), Arg::Tensor(&dx), Arg::U64(n as u64), Arg::U32(c as u32)];
        count_launch(kernels.launch(MODULE, element.pick(self.backward), grid(n), &args).map(|()| dx))
    }

    /// The gradients of `x`, of its type, and of the bias, in f32.
    fn bias_backward(
        self,
        (kernels, element): &(Kernels, Element),
        (x, bias): (&Tensor, &Tensor),
        dy: &Tensor,
    ) -> Result<[Tensor; 2]> {
        let c = dy.dim(D::Minus1)?;
        let n = dy.elem_count() / c;
        let parts = n.div_ceil(SUMMED_ROWS).max(1);
        let dx = kernels.output(x.shape(), x.dtype())?;
        let sums = kernels.output((parts, bias.elem_count()), DType::F32)?;
        let grid = Grid { blocks: (parts as u32, c.div_ceil(32) as u32, 1), threads: 256, shared: 0 };
        let tensors = [x, bias, dy, &dx, &sums].map(Arg::Tensor);
        let args = [&tensors[..], &[n, c, SUMMED_ROWS].map(|n| Arg::U32(n as u32))].concat();
        count_launch(kernels.launch(MODULE, element.pick(self.bias_backward), grid, &args))?;
        let d_bias = if parts == 1 { sums.squeeze(0)? } else { sum_rows(kernels, &sums, Element::F32)? };
        Ok([dx, d_bias])
    }
}

/// `x (.., c)` plus a bias `(c)` in f32, of the type of `x`.
pub(crate) fn add_bias(kernels: &Kernels, (x, element): (&Tensor, Element), bias: &Tensor) -> Result<Tensor> {
    let n = x.elem_count();
    let y = kernels.output(x.shape(), x.dtype())?;
    let args =
        [Arg::Tensor(x), Arg::Tensor(bias), Arg::Tensor(&y), Arg::U64(n as u64), Arg::U32(bias.elem_count() as u32)];
    let name = element.pick(for_each_element!("add_bias"));
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
    let name = element.pick(["masked_sum_float_float", "masked_sum_bf16_float", "masked_sum_f16_float"]);
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
    let dx = kernels.output(dy.shape(), element.dtype())?;
    let args = [Arg::Tensor(dy), Arg::Null, Arg::Tensor(&dx), Arg::U64(n as u64)];
    let args = [&args[..], &dropout_args(dropout)].concat();
    let name = element.pick(for_each_element!("masked_sum_float"));
    count_launch(kernels.launch(MODULE, name, grid(n), &args).map(|()| dx))
}

/// Matrices are at multiples of this many elements, so that products find them aligned.
const MATRIX_ALIGNMENT: usize = 128;

/// f32 matrices rounded to 16 bits, in one launch; each is a view of one tensor.
pub(crate) fn round_matrices(kernels: &Kernels, matrices: &[&Tensor], dtype: DType) -> Result<Vec<Tensor>> {
    let name = match dtype {
        DType::BF16 => "round_matrices_bf16",
        DType::F16 => "round_matrices_f16",
        other => bail!("no kernel rounds matrices to {other:?}"),
    };
    let (mut table, mut blocks, mut end) = (Vec::new(), 0, 0);
    let mut starts = Vec::with_capacity(matrices.len());
    for matrix in matrices {
        let n = matrix.elem_count();
        let words = [kernels.address(matrix)?, blocks as u64, n as u64, end as u64];
        table.extend(words.map(u64::cast_signed));
        starts.push(end);
        blocks += n.div_ceil(BLOCK);
        end += n.next_multiple_of(MATRIX_ALIGNMENT);
    }
    let rows = table.len();
    let table = count_launch(Tensor::from_vec(table, rows, matrices[0].device()))?;
    let y = kernels.output(end, dtype)?;
    let args = [Arg::Tensor(&table), Arg::U32(matrices.len() as u32), Arg::Tensor(&y)];
    let y = count_launch(kernels.launch(MODULE, name, Grid::new(blocks, 256), &args).map(|()| y))?;
    let view = |(matrix, start): (&&Tensor, usize)| y.narrow(0, start, matrix.elem_count())?.reshape(matrix.shape());
    matrices.iter().zip(starts).map(view).collect()
}
