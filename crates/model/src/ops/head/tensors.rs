//! The head with its loss on candle tensors, in chunks of a batch's logits.

use candle_core::{D, DType, Device, Tensor};
use tinygpt_sampler::kernels::Kernels;

use super::LogitCap;
use crate::{
    Precision, Result,
    ops::{
        kernels::{Element, cross_entropy, kernels_for_values},
        launches::{cat, count_launch, to_operand, upcast},
        softmax, tape,
    },
};

/// The most bytes of f32 logits in one chunk, of which about five tensors are alive at a time. At GPT-2's vocabulary that is
/// 1300 rows, enough to keep a GPU busy.
#[doc(hidden)]
pub const LOGIT_BYTES: usize = 256 << 20;

/// The cross-entropy of each prediction, in nats: `x (N, C)`, a head `w (V, C)` and targets `(N)` to losses `(N)`.
/// Equals [`cross_entropy()`] of `x @ w^T`, whose operands are rounded to `precision`, but computes the logits once more
/// in the backward pass, chunk by chunk of at most `logit_bytes`, instead of keeping them.
///
/// # Errors
/// On a shape mismatch, or a target outside the vocabulary.
pub fn head_loss(x: &Tensor, w: &Tensor, targets: &Tensor, precision: Precision, logit_bytes: usize) -> Result<Tensor> {
    capped_head_loss((x, (w, None), None), targets, precision, logit_bytes)
}

/// [`head_loss`] of logits that are capped, with the head as an operand of products where the caller has it rounded already.
pub(crate) fn capped_head_loss(
    (x, (w, rounded), cap): (&Tensor, (&Tensor, Option<&Tensor>), Option<LogitCap>),
    targets: &Tensor,
    precision: Precision,
    logit_bytes: usize,
) -> Result<Tensor> {
    if w.dtype() == DType::F32
        && targets.dtype() == DType::U32
        && let Some((kernels, _)) = kernels_for_values(x)
    {
        return head_loss_by_kernels(kernels, (x, (w, rounded), cap), targets, precision, logit_bytes);
    }
    let (n, v, dtype) = (x.dim(0)?, w.dim(0)?, x.dtype());
    let chunks = move || chunks(n, v, logit_bytes);

    let losses = {
        let (x, w) = (to_operand(x, precision)?, to_operand(w, precision)?);
        let losses = chunks().map(|(from, len)| {
            let logits = upcast(&count_launch(x.narrow(0, from, len)?.matmul(&w.t()?))?, dtype)?; // (n, V)
            cross_entropy(&LogitCap::apply_to(cap, logits)?, &targets.narrow(0, from, len)?)
        });
        cat(&losses.collect::<Result<Vec<_>>>()?)?
    };
    let (inputs, targets) = ((x.clone(), w.clone()), targets.clone());
    tape::record("head loss", [x, w], &losses, move |d_losses| {
        let (x, w) = (to_operand(&inputs.0, precision)?, to_operand(&inputs.1, precision)?);
        let tokens = all_tokens(v, x.device())?;
        let (mut dx, mut dw) = (Vec::new(), None);
        for (from, len) in chunks() {
            let x = x.narrow(0, from, len)?;
            let logits = upcast(&count_launch(x.matmul(&w.t()?))?, dtype)?; // (n, V)
            let logits = LogitCap::apply_to(cap, logits)?;
            let part = (&targets.narrow(0, from, len)?, &d_losses.narrow(0, from, len)?);
            let mut d_logits = cross_entropy_gradient(&logits, part, &tokens)?;
            if let Some(cap) = cap {
                d_logits = count_launch(d_logits.mul(&cap.derivative(&logits)?))?;
            }
            let d_logits = to_operand(&d_logits, precision)?;
            dx.push(count_launch(d_logits.matmul(&w))?); // (n, C)
            let part = upcast(&count_launch(d_logits.t()?.matmul(&x))?, dtype)?; // (V, C)
            dw = Some(tape::plus(dw, part)?);
        }
        let dw = dw.map_or_else(|| w.zeros_like()?.to_dtype(dtype), Ok)?;
        Ok([upcast(&cat(&dx)?, dtype)?, dw])
    });
    Ok(losses)
}

/// Where there are several chunks of more rows than this, they have a multiple of it: whole tiles of a product.
const ROWS_OF_TILES: usize = 128;

/// The first row and the length of each chunk of `n` rows, whose logits of `v` tokens take at most `logit_bytes` in f32.
pub(super) fn chunks(n: usize, v: usize, logit_bytes: usize) -> impl Iterator<Item = (usize, usize)> {
    let most = (logit_bytes / (v * DType::F32.size_in_bytes())).clamp(1, n.max(1));
    let at_once = if most < n && most > ROWS_OF_TILES { most / ROWS_OF_TILES * ROWS_OF_TILES } else { most };
    (0..n).step_by(at_once).map(move |from| (from, at_once.min(n - from)))
}

/// [`capped_head_loss`] with the loss and the gradient of the logits by kernels, and products into the places of their results.
fn head_loss_by_kernels(
    kernels: Kernels,
    (x, (w, rounded), cap): (&Tensor, (&Tensor, Option<&Tensor>), Option<LogitCap>),
    targets: &Tensor,
    precision: Precision,
    logit_bytes: usize,
) -> Result<Tensor> {
    let (n, c, v) = (x.dim(0)?, x.dim(1)?, w.dim(0)?);
    let wider = DType::F32.size_in_bytes() / x.dtype().size_in_bytes();
    let chunks = move || chunks(n, v, wider * logit_bytes);
    // Values in 16 bits have logits in them, as they have other products; operands that are rounded here have them in f32.
    let dtype = x.dtype();
    let operands = (to_operand(x, precision)?, aligned_head(&to_operand(rounded.unwrap_or(w), precision)?)?);
    let element = Element::of_type(dtype).ok_or_else(|| candle_core::Error::msg("no kernel reads the logits' type"))?;
    // The rows of a chunk's logits are as long as the head has tokens with those that align it.
    let logits = move |kernels: &Kernels, x: &Tensor, w: &Tensor| -> candle_core::Result<_> {
        let logits = kernels.output((x.dim(0)?, w.dim(0)?), dtype)?; // (n, V')
        count_launch(kernels.product(x, &w.t()?, &logits, false).map(|()| logits))
    };

    let (losses, log_sums) = (kernels.output(n, DType::F32)?, kernels.output(n, DType::F32)?);
    for (from, len) in chunks() {
        let logits = logits(&kernels, &operands.0.narrow(0, from, len)?, &operands.1)?;
        let part = |x: &Tensor| x.narrow(0, from, len);
        let outputs = (&part(&losses)?, &part(&log_sums)?);
        cross_entropy::forward(&kernels, (&logits, element, v), &part(targets)?, cap, outputs)?;
    }
    let targets = targets.clone();
    tape::record("head loss", [x, w], &losses, move |d_losses| {
        let (x, w) = operands;
        let (dx, dw) = (kernels.output((n, c), dtype)?, kernels.output((w.dim(0)?, c), DType::F32)?);
        for (from, len) in chunks() {
            let part = |x: &Tensor| x.narrow(0, from, len);
            let x = part(&x)?;
            let given = (&part(&targets)?, &part(&log_sums)?, &part(d_losses)?);
            let logits = logits(&kernels, &x, &w)?;
            let d_logits = cross_entropy::backward(&kernels, (logits, element, v), given, cap)?;
            let d_logits = to_operand(&d_logits, precision)?;
            count_launch(kernels.product(&d_logits, &w, &part(&dx)?, false))?; // (n, C)
            count_launch(kernels.product(&d_logits.t()?, &x, &dw, from > 0))?; // (V', C)
        }
        Ok([dx, if n == 0 { w.zeros_like()?.to_dtype(DType::F32)? } else { dw }.narrow(0, 0, v)?])
    });
    Ok(losses)
}

/// The tokens of a head of 16 bits are a multiple of this: where rows of logits do not begin at 16 bytes, cuBLAS takes kernels for
/// older cards, which took five times as long on an H100.
const ALIGNED_TOKENS: usize = 8;

/// A head `(V, C)` of 16 bits with as many zeros behind it that its tokens are a multiple of [`ALIGNED_TOKENS`]: `(V', C)`.
fn aligned_head(w: &Tensor) -> candle_core::Result<Tensor> {
    let v = w.dim(0)?;
    if w.dtype() == DType::F32 || v.is_multiple_of(ALIGNED_TOKENS) {
        return Ok(w.clone());
    }
    let zeros =
        count_launch(Tensor::zeros((v.next_multiple_of(ALIGNED_TOKENS) - v, w.dim(1)?), w.dtype(), w.device()))?;
    cat(&[w.clone(), zeros])
}

/// The cross-entropy of each prediction, in nats: logits `(N, V)` and targets `(N)` to losses `(N)`.
///
/// # Errors
/// On a shape mismatch, or a target outside the vocabulary.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let max = count_launch(logits.max_keepdim(D::Minus1))?; // (N, 1)
    let shifted = count_launch(logits.broadcast_sub(&max))?;
    let log_sum = count_launch(count_launch(count_launch(shifted.exp())?.sum_keepdim(D::Minus1))?.log())?; // (N, 1)
    let picked = count_launch(shifted.gather(&targets.unsqueeze(1)?, 1))?; // (N, 1)
    let losses = count_launch(log_sum - picked)?.squeeze(1)?;
    let (input, targets) = (logits.clone(), targets.clone());
    tape::record("cross-entropy", [logits], &losses, move |d_losses| {
        let tokens = all_tokens(input.dim(1)?, input.device())?;
        Ok([cross_entropy_gradient(&input, (&targets, d_losses), &tokens)?])
    });
    Ok(losses)
}

/// All tokens of a vocabulary, `(1, V)`.
fn all_tokens(v: usize, device: &Device) -> candle_core::Result<Tensor> {
    count_launch(Tensor::arange(0, v as u32, device))?.reshape((1, v))
}

/// The gradient of logits `(N, V)`, the probabilities less 1 at the target, times the losses' gradients `(N)`.
fn cross_entropy_gradient(
    logits: &Tensor,
    (targets, d_losses): (&Tensor, &Tensor),
    tokens: &Tensor,
) -> candle_core::Result<Tensor> {
    let p = softmax(logits)?; // (N, V)
    let ones = count_launch(count_launch(targets.unsqueeze(1)?.broadcast_eq(tokens))?.to_dtype(logits.dtype()))?; // (N, V)
    count_launch(count_launch(p - ones)?.broadcast_mul(&d_losses.unsqueeze(1)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_have_whole_tiles_where_there_are_several_and_cover_all_rows() {
        let of = |n: usize, at_once: usize| chunks(n, 10, 4 * 10 * at_once).collect::<Vec<_>>();
        assert_eq!(of(1000, 1000), [(0, 1000)]);
        assert_eq!(of(1000, 300), [(0, 256), (256, 256), (512, 256), (768, 232)]);
        assert_eq!(of(5, 2), [(0, 2), (2, 2), (4, 1)]);
        assert_eq!(of(0, 2), []);
    }

    #[test]
    fn a_head_of_16_bits_has_zeros_up_to_a_multiple_of_eight_tokens() {
        for (v, dtype, expected) in [(5, DType::BF16, 8), (8, DType::BF16, 8), (9, DType::F16, 16), (5, DType::F32, 5)]
        {
            let head = Tensor::ones((v, 3), dtype, &Device::Cpu).unwrap();
            let aligned = aligned_head(&head).unwrap();
            let rows = aligned.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
            assert_eq!(rows.len(), expected, "{v} tokens in {dtype:?}");
            for (token, row) in rows.iter().enumerate() {
                assert_eq!(row, &[if token < v { 1.0 } else { 0.0 }; 3], "token {token} of {v}");
            }
        }
    }
}
