//! The head with its loss on candle tensors, in chunks of a batch's logits.

use candle_core::{D, DType, Tensor};

use super::LogitCap;
use crate::{
    Precision, Result,
    ops::{
        custom_grad::{cat, count_launch, to_operand, upcast, with_gradients},
        softmax,
    },
};

/// The most bytes of f32 logits in one chunk, of which about five tensors are alive at a time. At GPT-2's vocabulary that is
/// 1300 rows, enough to keep a GPU busy.
#[doc(hidden)]
pub const LOGIT_BYTES: usize = 256 << 20;

/// The cross-entropy of each prediction, in nats: `x (N, C)`, a head `w (V, C)` and targets `(N)` to losses `(N)`.
/// Equals [`cross_entropy`] of `x @ w^T`, whose operands are rounded to `precision`, but computes the logits once more
/// in the backward pass, chunk by chunk of at most `logit_bytes`, instead of keeping them.
///
/// # Errors
/// On a shape mismatch, or a target outside the vocabulary.
pub fn head_loss(x: &Tensor, w: &Tensor, targets: &Tensor, precision: Precision, logit_bytes: usize) -> Result<Tensor> {
    capped_head_loss((x, w, None), targets, precision, logit_bytes)
}

/// [`head_loss`] of logits that are capped.
pub(crate) fn capped_head_loss(
    (x, w, cap): (&Tensor, &Tensor, Option<LogitCap>),
    targets: &Tensor,
    precision: Precision,
    logit_bytes: usize,
) -> Result<Tensor> {
    let (n, v, dtype) = (x.dim(0)?, w.dim(0)?, x.dtype());
    let at_once = (logit_bytes / (v * DType::F32.size_in_bytes())).clamp(1, n.max(1));
    let chunks = move || (0..n).step_by(at_once).map(move |from| (from, at_once.min(n - from)));

    let losses = {
        let (x, w) = (to_operand(&x.detach(), precision)?, to_operand(&w.detach(), precision)?);
        let losses = chunks().map(|(from, len)| {
            let logits = upcast(&count_launch(x.narrow(0, from, len)?.matmul(&w.t()?))?, dtype)?; // (n, V)
            cross_entropy(&LogitCap::apply_to(cap, logits)?, &targets.narrow(0, from, len)?)
        });
        cat(&losses.collect::<Result<Vec<_>>>()?)?
    };
    let targets = targets.clone();
    Ok(with_gradients("head loss", (x, w), losses, move |(x, w), _, d_losses| {
        let (x, w) = (to_operand(x, precision)?, to_operand(w, precision)?);
        let tokens = count_launch(Tensor::arange(0, v as u32, x.device()))?.reshape((1, v))?;
        let (mut dx, mut dw) = (Vec::new(), None::<Tensor>);
        for (from, len) in chunks() {
            let x = x.narrow(0, from, len)?;
            let logits = upcast(&count_launch(x.matmul(&w.t()?))?, dtype)?; // (n, V)
            let logits = LogitCap::apply_to(cap, logits)?;
            let p = softmax(&logits)?; // (n, V)
            let targets = targets.narrow(0, from, len)?.reshape((len, 1))?;
            let ones = count_launch(count_launch(targets.broadcast_eq(&tokens))?.to_dtype(dtype))?; // (n, V)
            let d_losses = d_losses.narrow(0, from, len)?.reshape((len, 1))?;
            let mut d_logits = count_launch(count_launch(p - ones)?.broadcast_mul(&d_losses))?;
            if let Some(cap) = cap {
                d_logits = count_launch(d_logits.mul(&cap.derivative(&logits)?))?;
            }
            let d_logits = to_operand(&d_logits, precision)?;
            dx.push(count_launch(d_logits.matmul(&w))?); // (n, C)
            let part = upcast(&count_launch(d_logits.t()?.matmul(&x))?, dtype)?; // (V, C)
            dw = Some(match dw {
                Some(sum) => count_launch(sum + part)?,
                None => part,
            });
        }
        let dw = dw.map_or_else(|| w.zeros_like()?.to_dtype(dtype), Ok)?;
        Ok((upcast(&cat(&dx)?, dtype)?, dw))
    })?)
}

/// The cross-entropy of each prediction, in nats: logits `(N, V)` and targets `(N)` to losses `(N)`.
///
/// # Errors
/// On a shape mismatch, or a target outside the vocabulary.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let max = count_launch(logits.detach().max_keepdim(D::Minus1))?; // (N, 1)
    let shifted = count_launch(logits.broadcast_sub(&max))?;
    let log_sum = count_launch(count_launch(count_launch(shifted.exp())?.sum_keepdim(D::Minus1))?.log())?; // (N, 1)
    let picked = count_launch(shifted.gather(&targets.unsqueeze(1)?, 1))?; // (N, 1)
    Ok(count_launch(log_sum - picked)?.squeeze(1)?)
}
