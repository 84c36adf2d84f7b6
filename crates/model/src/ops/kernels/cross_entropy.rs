//! Cross-entropy of logits.

use candle_core::{DType, Result, Tensor};
use tinygpt_sampler::kernels::{Arg, Grid, Kernels, Module};

use super::Element;
use crate::ops::{LogitCap, launches::count_launch};

const MODULE: Module = Module { name: "cross_entropy", ptx: include_str!("../../../kernels/cross_entropy.ptx") };

const THREADS: u32 = 256;

fn cap_arg(cap: Option<LogitCap>) -> Arg<'static> {
    Arg::F32(cap.map_or(0.0, |cap| cap.0 as f32))
}

/// The losses of logits `(N, V)` at targets `(N)`, and the logarithms of the sums of their exponentials: `(N)` each.
pub(crate) fn forward(
    kernels: &Kernels,
    (logits, element): (&Tensor, Element),
    targets: &Tensor,
    cap: Option<LogitCap>,
) -> Result<(Tensor, Tensor)> {
    let (n, v) = logits.dims2()?;
    let (losses, log_sums) = (kernels.output(n, DType::F32)?, kernels.output(n, DType::F32)?);
    let args = [
        Arg::Tensor(logits),
        Arg::Tensor(targets),
        Arg::Tensor(&losses),
        Arg::Tensor(&log_sums),
        Arg::U32(v as u32),
        cap_arg(cap),
    ];
    let name = element.pick(for_each_element!("cross_entropy_forward"));
    let launched = kernels.launch(MODULE, name, Grid::new(n, THREADS), &args);
    count_launch(launched.map(|()| losses)).map(|losses| (losses, log_sums))
}

/// Overwrites logits `(N, V)`, which nothing else reads, with their gradient from those of the losses, `(N)`.
pub(crate) fn backward(
    kernels: &Kernels,
    (logits, element): (Tensor, Element),
    (targets, log_sums, d_losses): (&Tensor, &Tensor, &Tensor),
    cap: Option<LogitCap>,
) -> Result<Tensor> {
    let (n, v) = logits.dims2()?;
    let args = [
        Arg::Tensor(&logits),
        Arg::Tensor(targets),
        Arg::Tensor(log_sums),
        Arg::Tensor(d_losses),
        Arg::U32(v as u32),
        cap_arg(cap),
    ];
    let name = element.pick(for_each_element!("cross_entropy_backward"));
    let launched = kernels.launch(MODULE, name, Grid::new(n, THREADS), &args);
    count_launch(launched.map(|()| logits))
}
