//! The divergence of the head's distributions from those of a model that training stays near, on candle tensors, in chunks of a
//! batch's logits as the loss beside it.

use candle_core::{D, Tensor};

use super::{LogitCap, tensors::chunks};
use crate::{
    Precision, Result,
    ops::{
        launches::{cat, count_launch, to_operand, upcast},
        tape,
    },
};

/// A head with what it reads.
#[derive(Debug, Clone)]
pub(crate) struct HeadInput {
    /// Hidden states, `(N, C)`.
    pub(crate) x: Tensor,
    /// `(V, C)`.
    pub(crate) w: Tensor,
    /// What logits are capped at.
    pub(crate) cap: Option<LogitCap>,
}

impl HeadInput {
    /// The same with operands of products.
    fn rounded(&self, precision: Precision) -> candle_core::Result<Self> {
        Ok(Self { x: to_operand(&self.x, precision)?, w: to_operand(&self.w, precision)?, cap: self.cap })
    }

    /// The logits of some rows, and their distributions' logarithms: `(n, V)` each, in the type of `like`.
    fn log_probs(&self, (from, len): (usize, usize), like: &Tensor) -> candle_core::Result<(Tensor, Tensor)> {
        let logits = count_launch(self.x.narrow(0, from, len)?.matmul(&self.w.t()?))?;
        let logits = LogitCap::apply_to(self.cap, upcast(&logits, like.dtype())?)?;
        let max = count_launch(logits.max_keepdim(D::Minus1))?; // (n, 1)
        let shifted = count_launch(logits.broadcast_sub(&max))?;
        let log_sum = count_launch(count_launch(count_launch(shifted.exp())?.sum_keepdim(D::Minus1))?.log())?;
        let log_probs = count_launch(shifted.broadcast_sub(&log_sum))?;
        Ok((logits, log_probs))
    }
}

/// The divergences `KL(reference || model)` of each row, `(N)`, in nats: `sum p (log p - log q)` over the vocabulary, where `p`
/// is the reference's distribution and `q` the model's. The gradient of the model's logits is `q - p`; the reference has none.
/// Logits are computed once more in the backward pass, chunk by chunk of at most `logit_bytes`, instead of being kept.
///
/// # Errors
/// On a shape mismatch.
pub(crate) fn head_divergence(
    model: &HeadInput,
    reference: &HeadInput,
    precision: Precision,
    logit_bytes: usize,
) -> Result<Tensor> {
    let (n, v) = (model.x.dim(0)?, model.w.dim(0)?);
    let chunks = move || chunks(n, v, logit_bytes);
    let operands = (model.rounded(precision)?, reference.rounded(precision)?);
    let divergences = chunks().map(|rows| {
        let (_, log_q) = operands.0.log_probs(rows, &model.w)?;
        let (_, log_p) = operands.1.log_probs(rows, &model.w)?;
        let ratio = count_launch(&log_p - log_q)?;
        count_launch(count_launch(count_launch(log_p.exp())?.mul(&ratio))?.sum(D::Minus1)) // (n)
    });
    let divergences = cat(&divergences.collect::<candle_core::Result<Vec<_>>>()?)?;
    let (types, w) = ((model.x.dtype(), model.w.dtype()), model.w.clone());
    tape::record("head divergence", [&model.x, &model.w], &divergences, move |d_divergences| {
        let (model, reference) = operands;
        let (mut dx, mut dw) = (Vec::new(), None);
        for rows in chunks() {
            let (logits, log_q) = model.log_probs(rows, &w)?;
            let (_, log_p) = reference.log_probs(rows, &w)?;
            let difference = count_launch(count_launch(log_q.exp())? - count_launch(log_p.exp())?)?; // (n, V)
            let each = d_divergences.narrow(0, rows.0, rows.1)?.unsqueeze(1)?;
            let mut d_logits = count_launch(difference.broadcast_mul(&each))?;
            if let Some(cap) = model.cap {
                d_logits = count_launch(d_logits.mul(&cap.derivative(&logits)?))?;
            }
            let d_logits = to_operand(&d_logits, precision)?;
            dx.push(count_launch(d_logits.matmul(&model.w))?); // (n, C)
            let x = model.x.narrow(0, rows.0, rows.1)?;
            dw = Some(tape::plus(dw, upcast(&count_launch(d_logits.t()?.matmul(&x))?, types.1)?)?); // (V, C)
        }
        let dw = dw.map_or_else(|| w.zeros_like(), Ok)?;
        Ok([upcast(&cat(&dx)?, types.0)?, dw])
    });
    Ok(divergences)
}
