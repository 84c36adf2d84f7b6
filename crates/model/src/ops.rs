//! The tensor operations a GPT is made of, as plain compositions of candle operations.
//!
//! All are differentiable by candle's autograd, on every device. That is why `candle_nn`'s fused `LayerNorm`,
//! `softmax_last_dim` and `sdpa` are not used: their results have no backward, and every parameter upstream of one would
//! silently stay as it is.

use candle_core::{D, DType, Device, Tensor};

use crate::{Activation, Result, config::LAYER_NORM_EPS};

/// `x @ w + b` over the last dimension: `(.., in)`, `(in, out)`, `(out)` to `(.., out)`.
///
/// # Errors
/// On a shape mismatch.
pub fn linear(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    let y = x.broadcast_matmul(w)?;
    add_bias(y, b)
}

/// [`linear`] for `(B, T, in)` in which the result of a row of the batch does not depend on the other rows, not even in
/// its last bit: each row is a product of its own.
///
/// A single product over `(B * T, in)` would pick its kernel, and so its order of summation, by the number of rows.
///
/// # Errors
/// On a shape mismatch.
pub fn linear_by_row(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    let (rows, _, n_in) = x.dims3()?;
    let n_out = w.dim(1)?;
    // y^T = w^T x^T. candle folds a batch that shares its right operand into one product, but not one that shares its left.
    let w = w.t()?.broadcast_as((rows, n_out, n_in))?; // (B, out, in), stride 0 over B
    let y = w.matmul(&x.transpose(1, 2)?)?; // (B, out, T)
    add_bias(y.transpose(1, 2)?.contiguous()?, b) // (B, T, out)
}

fn add_bias(y: Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    Ok(match b {
        Some(b) => y.broadcast_add(b)?,
        None => y,
    })
}

/// Layer norm over the last dimension: `(x - mean) / sqrt(var + 1e-5) * w + b`, with the biased variance.
///
/// # Errors
/// On a shape mismatch.
pub fn layer_norm(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let var = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = centred.broadcast_mul(&(var + LAYER_NORM_EPS)?.sqrt()?.recip()?)?;
    add_bias(normed.broadcast_mul(w)?, b)
}

/// Softmax over the last dimension. Entries of -inf get probability 0.
///
/// # Errors
/// When the device is out of memory.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    // Softmax does not change when a row is shifted, so the maximum needs no gradient.
    let max = x.detach().max_keepdim(D::Minus1)?;
    let e = x.broadcast_sub(&max)?.exp()?;
    // Times the reciprocal: the backward of a quotient costs two passes more over the row.
    Ok(e.broadcast_mul(&e.sum_keepdim(D::Minus1)?.recip()?)?)
}

/// The activation of the MLP.
///
/// # Errors
/// When the device is out of memory.
pub fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::Gelu => Ok(x.gelu_erf()?),
        Activation::GeluNew => {
            // 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))); candle's own backward of it is a scalar powf an element.
            let inner = (x * x.sqr()?.affine(0.044_715, 1.0)?)?.affine((2.0 / std::f64::consts::PI).sqrt(), 0.0)?;
            Ok((x * inner.tanh()?.affine(0.5, 0.5)?)?)
        }
    }
}

/// The mask of causal attention for `t` new positions behind `past` earlier ones: `(t, past + t)`, 0 where position
/// `past + i` may look, -inf where it may not.
///
/// # Errors
/// When the device is out of memory.
pub fn causal_mask(t: usize, past: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    let mask: Vec<f32> =
        (0..t).flat_map(|i| (0..past + t).map(move |j| if j > past + i { f32::NEG_INFINITY } else { 0.0 })).collect();
    Ok(Tensor::from_vec(mask, (t, past + t), device)?.to_dtype(dtype)?)
}

/// The cross-entropy of each prediction, in nats: logits `(N, V)` and targets `(N)` to losses `(N)`.
///
/// # Errors
/// On a shape mismatch, or a target outside the vocabulary.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let max = logits.detach().max_keepdim(D::Minus1)?; // (N, 1)
    let shifted = logits.broadcast_sub(&max)?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?; // (N, 1)
    let picked = shifted.gather(&targets.unsqueeze(1)?, 1)?; // (N, 1)
    Ok((log_sum - picked)?.squeeze(1)?)
}
