//! The tensor operations a GPT is made of, on every device.
//!
//! Each is a composition of candle operations. Those of training have gradients in closed form beside them (`custom_grad.rs`);
//! the plain compositions that they equal, with candle's own gradients, are in `tests/training_ops.rs`. `candle_nn`'s
//! fused `LayerNorm`, `softmax_last_dim` and `sdpa` are not used as they are: their results have no backward, and every
//! parameter upstream of one would silently stay as it is.
//!
//! Launches of an operation whose arguments all want a gradient, forward and backward, in f32 and with operands of 16 bits
//! (`tests/training_launches.rs` holds them). A chunk is [`SCORE_BYTES`] of scores or [`LOGIT_BYTES`] of logits:
//!
//! | operation | f32 | 16 bits |
//! | --- | --- | --- |
//! | [`linear()`], without bias | 2, 2 | 5, 7 |
//! | [`layer_norm()`], without bias | 12, 22 | as f32 |
//! | [`activate`], `gelu` | 2, 9 | as f32 |
//! | [`activate`], `gelu_new` | 8, 14 | as f32 |
//! | dropout with the masks of a GPU | 19, 3 | as f32 |
//! | [`Attention`], one chunk | 14, 26 | 17, 34 |
//! | [`Attention`], three chunks | 35, 63 | 42, 79 |
//! | [`Attention`] with dropout, one chunk | 30, 44 | 34, 53 |
//! | [`Attention`] with dropout, three chunks | 83, 115 | 91, 132 |
//! | [`embedding()`], up to [`DIRECT_VOCAB`] tokens | 2, 4 | as f32 |
//! | [`embedding()`], more; one, two, three levels of sums | 2, 6 or 10 or 14 | as f32 |
//! | [`head_loss`], one chunk | 9, 14 | 12, 20 |
//! | [`head_loss`], four chunks | 37, 60 | 43, 75 |
//!
//! Not counted are the two launches that candle adds for each argument in a backward pass, zeros and a sum. One of the
//! forward ones hands the result over to candle's graph, a copy on CUDA, and nothing on Metal.

use candle_core::{D, DType, Device, Tensor};

use crate::Result;

mod activation;
mod attention;
pub(crate) mod custom_grad;
mod embedding;
mod head;
mod layer_norm;
mod linear;

pub use activation::activate;
pub use attention::{Attention, SCORE_BYTES};
pub use custom_grad::{cat, count_launch, take_launches};
pub use embedding::{DIRECT_VOCAB, Tokens, embedding};
pub use head::{LOGIT_BYTES, head_loss};
pub use layer_norm::layer_norm;
pub use linear::linear;

/// [`linear()`] for `(B, T, in)` in which the result of a row of the batch does not depend on the other rows, not even in
/// its last bit: each row is a product of its own.
///
/// A single product over `(B * T, in)` would pick its kernel, and so its order of summation, by the number of rows. It is
/// made in the type of `w`, which may be a shorter one than that of all else.
///
/// # Errors
/// On a shape mismatch.
pub fn linear_by_row(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    let (rows, _, n_in) = x.dims3()?;
    let n_out = w.dim(1)?;
    // y^T = w^T x^T. candle folds a batch that shares its right operand into one product, but not one that shares its left.
    let w = w.t()?.broadcast_as((rows, n_out, n_in))?; // (B, out, in), stride 0 over B
    let y = w.matmul(&x.to_dtype(w.dtype())?.transpose(1, 2)?)?; // (B, out, T)
    add_bias(y.transpose(1, 2)?.contiguous()?.to_dtype(x.dtype())?, b) // (B, T, out)
}

fn add_bias(y: Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    Ok(match b {
        Some(b) => count_launch(y.broadcast_add(b))?,
        None => y,
    })
}

/// Softmax over the last dimension. Entries of -inf get probability 0.
///
/// # Errors
/// When the device is out of memory.
pub fn softmax(x: &Tensor) -> candle_core::Result<Tensor> {
    // Softmax does not change when a row is shifted, so the maximum needs no gradient.
    let max = count_launch(x.detach().max_keepdim(D::Minus1))?;
    let e = count_launch(count_launch(x.broadcast_sub(&max))?.exp())?;
    // Times the reciprocal: the backward of a quotient costs two passes more over the row.
    count_launch(e.broadcast_mul(&count_launch(count_launch(e.sum_keepdim(D::Minus1))?.recip())?))
}

/// The mask of causal attention for `t` new positions behind `past` earlier ones: `(t, past + t)`, 0 where position
/// `past + i` may look, -inf where it may not.
///
/// # Errors
/// When the device is out of memory.
pub fn causal_mask(t: usize, past: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    // Made on the device: T x T numbers are too many to send for each batch.
    let position = |n: usize| count_launch(Tensor::arange(0, n as u32, device));
    let ahead = count_launch(position(past + t)?.reshape((1, past + t))?.broadcast_gt(
        &position(past + t)?.narrow(0, past, t)?.reshape((t, 1))?, // (past + T) to (T, 1)
    ))?;
    let number = |x: f64| {
        count_launch(count_launch(Tensor::new(x as f32, device))?.to_dtype(dtype))?.broadcast_as((t, past + t))
    };
    Ok(count_launch(ahead.where_cond(&number(f64::NEG_INFINITY)?, &number(0.0)?))?)
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
