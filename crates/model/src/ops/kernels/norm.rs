//! Layer norm and RMSNorm.

use candle_core::{D, DType, Result, Tensor, bail};
use tinygpt_sampler::kernels::{Arg, Grid, Kernels, Module};

use super::{Element, dropout_args, is_aligned};
use crate::{
    Dropout,
    config::Norm,
    ops::{launches::count_launch, tape},
};

const MODULE: Module = Module { name: "norm", ptx: include_str!("../../../kernels/norm.ptx") };

/// The warps of a block, each with a row.
const WARPS: usize = 4;

/// The blocks of the backward pass at most, each of which leaves a row of sums: two for each multiprocessor of a large card, and no
/// more than one launch adds up.
const BLOCKS: usize = SUMMED_ROWS;

/// Kernels of rows that a warp holds in registers, of both norms.
struct Held {
    /// The most channels.
    most: usize,
    forward: [&'static str; 3],
    backward: [&'static str; 3],
}

macro_rules! held {
    ($most:literal, $fours:literal) => {
        Held {
            most: $most,
            forward: [
                concat!("norm_forward_float_", $fours),
                concat!("norm_forward_bf16_", $fours),
                concat!("norm_forward_f16_", $fours),
            ],
            backward: [
                concat!("norm_backward_float_", $fours),
                concat!("norm_backward_bf16_", $fours),
                concat!("norm_backward_f16_", $fours),
            ],
        }
    };
}

static HELD: [Held; 3] = [held!(384, "3"), held!(768, "6"), held!(1024, "8")];

/// The warps of a block of their backward pass.
const HELD_WARPS: usize = 8;

/// The kernels that hold rows of `c` channels, if there are: channels have to be fours, at 16 bytes.
fn held(c: usize, tensors: &[Option<&Tensor>]) -> Option<&'static Held> {
    let fours = c.is_multiple_of(4) && tensors.iter().flatten().all(|x| is_aligned(x));
    HELD.iter().find(|held| fours && c <= held.most)
}

/// The rows that one block of [`sum_rows`] takes.
const SUMMED_ROWS: usize = 256;

/// The bytes of sums that the warps of a block share at most, which every card has.
pub(super) const SHARED: usize = 96 << 10;

/// Whether the kernels take rows of `c` channels: a warp's sums have to be in shared memory.
pub(crate) fn fits(c: usize, bias: bool) -> bool {
    4 * c * (1 + usize::from(bias)) <= SHARED
}

/// A norm's forward and backward kernel, and its epsilon. Both take the residual sum before the norm as well.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NormKernels {
    forward: [&'static str; 3],
    backward: [&'static str; 3],
    norm: Norm,
    eps: f64,
}

/// The weight `(C)` of a norm and its bias `(C)`.
pub(crate) type NormParams<'a> = (&'a Tensor, Option<&'a Tensor>);

/// The dropout of a branch before it is added to the residual stream, and its site.
pub(crate) type BranchDropout<'a> = Option<(&'a Dropout, u32)>;

impl NormKernels {
    pub(crate) fn of(norm: Norm, eps: f64) -> Self {
        match norm {
            Norm::Layer => Self {
                forward: for_each_element!("layer_norm_forward"),
                backward: for_each_element!("layer_norm_backward"),
                norm,
                eps,
            },
            Norm::Rms => Self {
                forward: for_each_element!("rms_norm_forward"),
                backward: for_each_element!("rms_norm_backward"),
                norm,
                eps,
            },
        }
    }

    /// Which norm it is, for a kernel of both.
    fn rms(self) -> Arg<'static> {
        Arg::U32(u32::from(self.norm == Norm::Rms))
    }

    /// Norms rows of `x (.., C)` to values of a type, recorded.
    pub(crate) fn apply(self, kernels: Kernels, x: &Tensor, (w, b): NormParams<'_>, dtype: DType) -> Result<Tensor> {
        let y = self.forward(&kernels, x, (w, b), None, dtype)?;
        let (of_x, of_w) = (x.clone(), w.clone());
        let inputs: Vec<&Tensor> = [x, w].into_iter().chain(b).collect();
        let bias = b.is_some();
        tape::record_adding("norm", &inputs, &y, move |dy, before| {
            self.backward(&kernels, (&of_x, &of_w, bias), dy, before, None)
        });
        Ok(y)
    }

    /// The sum of `x (.., C)` and a branch in `dtype`, in f32, and its norm in `dtype`. Unrecorded.
    pub(super) fn residual_forward(
        self,
        kernels: &Kernels,
        x: &Tensor,
        branch: (&Tensor, BranchDropout<'_>),
        params: NormParams<'_>,
        dtype: DType,
    ) -> Result<[Tensor; 2]> {
        let sum = kernels.output(x.shape(), DType::F32)?;
        let y = self.forward(kernels, x, params, Some((branch, &sum)), dtype)?;
        Ok([sum, y])
    }

    fn forward(
        self,
        kernels: &Kernels,
        x: &Tensor,
        (w, b): NormParams<'_>,
        branch: Option<((&Tensor, BranchDropout<'_>), &Tensor)>,
        dtype: DType,
    ) -> Result<Tensor> {
        let Some(element) = Element::of_type(dtype) else { bail!("norm: no kernel writes {dtype:?}") };
        let c = x.dim(D::Minus1)?;
        let n = x.elem_count() / c;
        let y = kernels.output(x.shape(), dtype)?;
        let grid = Grid::new(n.div_ceil(WARPS), 32 * WARPS as u32);
        let ((branch, dropout), sum) = match branch {
            Some(((branch, dropout), sum)) => ((Some(branch), dropout), Some(sum)),
            None => ((None, None), None),
        };
        let tensors = [Some(x), branch, sum, Some(w), b, Some(&y)];
        let held = held(c, &tensors);
        let name = element.pick(held.map_or(self.forward, |held| held.forward));
        let shape = [Arg::U32(n as u32), Arg::U32(c as u32), Arg::F32(self.eps as f32)];
        let mut args = [&tensors.map(Arg::optional)[..], &shape, &dropout_args(dropout)].concat();
        args.extend(held.map(|_| self.rms()));
        count_launch(kernels.launch(MODULE, name, grid, &args).map(|()| y))
    }

    /// The gradients of `x`, to which `before` is added, of the weight, and with `bias` of the bias. Where `x` is a residual sum, that
    /// of the branch is written to a tensor of the type of `dy`.
    pub(super) fn backward(
        self,
        kernels: &Kernels,
        (x, w, bias): (&Tensor, &Tensor, bool),
        dy: &Tensor,
        before: Option<Tensor>,
        branch: Option<(&Tensor, BranchDropout<'_>)>,
    ) -> Result<Vec<Tensor>> {
        let c = x.dim(D::Minus1)?;
        let n = x.elem_count() / c;
        let width = if bias { 2 * c } else { c };
        let Some(element) = Element::of(dy) else { bail!("norm: no kernel reads a gradient in {:?}", dy.dtype()) };
        let (dy, before) = (dy.contiguous()?, before.map(|before| before.contiguous()).transpose()?);
        let dx = kernels.output(x.shape(), DType::F32)?;
        let (d_branch, dropout) = branch.map_or((None, None), |(d_branch, dropout)| (Some(d_branch), dropout));
        let held = held(c, &[Some(x), Some(w), Some(&dy), before.as_ref()]);
        let (warps, shared) = match held {
            Some(_) => (HELD_WARPS, 0),
            None => {
                let warps = (SHARED / (4 * width).max(1)).clamp(1, WARPS);
                (warps, 4 * warps * width)
            }
        };
        let rows = n.div_ceil(BLOCKS).next_multiple_of(warps).max(warps);
        let blocks = n.div_ceil(rows);
        let sums = kernels.output((blocks, width), DType::F32)?;
        let grid = Grid { shared: shared as u32, ..Grid::new(blocks, 32 * warps as u32) };
        let tensors =
            [Some(x), Some(w), Some(&dy), before.as_ref(), Some(&dx), d_branch, Some(&sums)].map(Arg::optional);
        let shape = [n, c, rows, usize::from(bias)].map(|n| Arg::U32(n as u32));
        let mut args = [&tensors[..], &shape, &[Arg::F32(self.eps as f32)], &dropout_args(dropout)].concat();
        args.extend(held.map(|_| self.rms()));
        let name = element.pick(held.map_or(self.backward, |held| held.backward));
        let dx = count_launch(kernels.launch(MODULE, name, grid, &args).map(|()| dx))?;
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
    let y = count_launch(kernels.launch(MODULE, element.pick(for_each_element!("sum_rows")), grid, &args).map(|()| y))?;
    if parts == 1 { y.squeeze(0) } else { sum_rows(kernels, &y, Element::F32) }
}
