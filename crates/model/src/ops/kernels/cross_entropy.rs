//! Cross-entropy of logits.

use candle_core::{Result, Tensor};
use tinygpt_sampler::kernels::{Arg, Grid, Kernels, Module};

use super::Element;
use crate::ops::{LogitCap, launches::count_launch};

const MODULE: Module = Module { name: "cross_entropy", ptx: include_str!("../../../kernels/cross_entropy.ptx") };

const THREADS: u32 = 256;

fn cap_arg(cap: Option<LogitCap>) -> Arg<'static> {
    Arg::F32(cap.map_or(0.0, |cap| cap.0 as f32))
}

/// Writes the losses of logits at targets `(N)`, and the logarithms of the sums of their exponentials: `(N)` each. The logits are the
/// first `v` columns of `(N, V')`.
pub(crate) fn forward(
    kernels: &Kernels,
    (logits, element, v): (&Tensor, Element, usize),
    targets: &Tensor,
    cap: Option<LogitCap>,
    (losses, log_sums): (&Tensor, &Tensor),
) -> Result<()> {
    let (n, row) = logits.dims2()?;
    let tensors = [logits, targets, losses, log_sums].map(Arg::Tensor);
    let args = [&tensors[..], &[Arg::U32(v as u32), Arg::U32(row as u32), cap_arg(cap)]].concat();
    let name = element.pick(for_each_element!("cross_entropy_forward"));
    count_launch(kernels.launch(MODULE, name, Grid::new(n, THREADS), &args))
}

/// Overwrites logits, the first `v` columns of `(N, V')`, which nothing else reads, with their gradient from those of the losses,
/// `(N)`. That of the other columns is 0.
pub(crate) fn backward(
    kernels: &Kernels,
    (logits, element, v): (Tensor, Element, usize),
    (targets, log_sums, d_losses): (&Tensor, &Tensor, &Tensor),
    cap: Option<LogitCap>,
) -> Result<Tensor> {
    let (n, row) = logits.dims2()?;
    let tensors = [&logits, targets, log_sums, d_losses].map(Arg::Tensor);
    let args = [&tensors[..], &[Arg::U32(v as u32), Arg::U32(row as u32), cap_arg(cap)]].concat();
    let name = element.pick(for_each_element!("cross_entropy_backward"));
    let launched = kernels.launch(MODULE, name, Grid::new(n, THREADS), &args);
    count_launch(launched.map(|()| logits))
}
