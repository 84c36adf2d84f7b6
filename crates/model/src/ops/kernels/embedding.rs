//! Embeddings of tokens and positions, with the dropout behind them.

use candle_core::{DType, Result, Tensor};
use tinygpt_sampler::kernels::{Arg, Grid, Kernels};

use super::{
    dropout_args,
    elementwise::{self, MODULE},
    kernels_for,
    norm::BranchDropout,
    residual::has_masks,
};
use crate::ops::launches::count_launch;

/// The rows `(B, T, C)` of a table `(V, C)` for tokens `(B, T)`, plus those of the first `T` of `positions (>= T, C)`, times the mask
/// of the dropout; unrecorded. Nothing where there is no kernel for it.
pub(crate) fn embed(
    table: &Tensor,
    tokens: &Tensor,
    positions: Option<&Tensor>,
    dropout: BranchDropout<'_>,
) -> Result<Option<(Kernels, Tensor)>> {
    let read: Vec<&Tensor> = [table].into_iter().chain(positions).collect();
    let suits = has_masks(dropout) && tokens.dtype() == DType::U32 && tokens.is_contiguous();
    let Some(kernels) = kernels_for(&read).filter(|_| suits) else { return Ok(None) };
    let ((b, t), c) = (tokens.dims2()?, table.dim(1)?);
    let y = kernels.output((b, t, c), DType::F32)?;
    let n = b * t * c;
    let tensors = [Arg::Tensor(tokens), Arg::Tensor(table), Arg::optional(positions), Arg::Tensor(&y)];
    let shape = [Arg::U64(n as u64), Arg::U32(c as u32), Arg::U32(t as u32)];
    let args = [&tensors[..], &shape, &dropout_args(dropout)].concat();
    count_launch(kernels.launch(MODULE, "embed", elementwise::grid(n), &args))?;
    Ok(Some((kernels, y)))
}

/// The gradient of positions `(rows, C)` from that of the sums, `dy (B, T, C)`: a sum over the batch, and zeros behind the first `T`.
pub(crate) fn positions_backward(kernels: &Kernels, dy: &Tensor, rows: usize) -> Result<Tensor> {
    let (b, t, c) = dy.dims3()?;
    let y = kernels.output((rows, c), DType::F32)?;
    let args =
        [Arg::Tensor(dy), Arg::Tensor(&y), Arg::U64((rows * c) as u64), Arg::U64((t * c) as u64), Arg::U32(b as u32)];
    count_launch(kernels.launch(MODULE, "sum_batch", Grid::over(rows * c, 128), &args).map(|()| y))
}
