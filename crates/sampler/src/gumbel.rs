//! Draws by Gumbel noise (Gumbel-max, Gumbel-top-k), and their differentiable relaxation, Gumbel-softmax.
//!
//! The token with the largest `logit / temperature + noise` is distributed as the softmax, and the k largest, in
//! falling order, as k successive draws without replacement. Noise and sums are f64: with f32 noise a token 16 nats
//! below the largest logit would never be drawn. Noise costs a random number a token; [`Sampler`](crate::Sampler),
//! which draws by inverse CDF, needs one a row and is faster.

use crate::oracle::check_row;
use crate::params::check_temperature;
use crate::rng::{RngDomain, philox_at, philox4x32_10};
use crate::{SamplingError, TensorSamplingError};
use candle_core::{D, DType, Tensor};

/// The place whose noise is used: the noise of a token is a function of `(seed, sequence, position)` and the token
/// alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NoiseSource {
    /// The seed of the noise.
    pub seed: u64,
    /// The number of the text in the run.
    pub sequence: u64,
    /// The position of the drawn token in its text.
    pub position: u64,
}

impl NoiseSource {
    /// The source of row `row` of a batch whose row 0 has this source.
    fn of_row(self, row: usize) -> Self {
        Self { sequence: self.sequence.wrapping_add(row as u64), ..self }
    }

    /// Standard Gumbel numbers, `-ln(-ln(u))`, of the tokens 0, 1, 2 and so on.
    fn standard_gumbels(self) -> impl Iterator<Item = f64> {
        // As in `rng::uniform`, two bijections give this place a key and half a counter; the other half counts pairs of
        // tokens.
        let [k0, k1, k2, k3] = philox_at(self.seed, RngDomain::Noise, self.sequence, 0);
        let place = [self.position as u32, (self.position >> 32) as u32, k2, k3];
        let [k0, k1, k2, k3] = philox4x32_10(place, [k0, k1]);
        (0u64..).flat_map(move |pair| {
            let [w0, w1, w2, w3] = philox4x32_10([pair as u32, (pair >> 32) as u32, k2, k3], [k0, k1]);
            [gumbel_from_bits(w0, w1), gumbel_from_bits(w2, w3)]
        })
    }
}

/// A standard Gumbel number of 53 bits. `u` is the middle of its interval of `2^-53`, never 0 or 1, so the number is
/// finite (at most 37).
fn gumbel_from_bits(low: u32, high: u32) -> f64 {
    let bits = (u64::from(high) << 32 | u64::from(low)) >> 11;
    let u = (bits as f64 + 0.5) / (1u64 << 53) as f64;
    -(-u.ln()).ln()
}

/// Draws one token of a row `[V]` by the Gumbel-max trick: with the probabilities `softmax(logits / temperature)`.
///
/// # Errors
/// A temperature that is negative or not finite (0 is greedy); a NaN, a +infinity or no finite logit.
pub fn gumbel_max(logits: &[f32], temperature: f64, noise: NoiseSource) -> Result<u32, SamplingError> {
    Ok(gumbel_top_k(logits, 1, temperature, noise)?[0])
}

/// Draws k different tokens of a row `[V]` by the Gumbel-top-k trick, in the order of successive draws without
/// replacement.
///
/// # Errors
/// As for [`gumbel_max`], and a k of 0 or above the number of finite logits.
///
/// Source: Kool, van Hoof and Welling, *Stochastic beams and where to find them* (ICML 2019).
pub fn gumbel_top_k(logits: &[f32], k: usize, temperature: f64, noise: NoiseSource) -> Result<Vec<u32>, SamplingError> {
    check_temperature("temperature", temperature)?;
    check_row(logits)?;
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut noisy: Vec<(f64, u32)> = (0u32..)
        .zip(logits)
        .zip(noise.standard_gumbels())
        .filter(|((_, logit), _)| logit.is_finite())
        .map(|((token, &logit), noise)| {
            // Scaled by the temperature, which keeps the order and makes 0 greedy.
            (f64::from(logit) - f64::from(max) + temperature * noise, token)
        })
        .collect();
    if k == 0 || k > noisy.len() {
        let allowed = "at least 1 and at most the number of finite logits";
        return Err(SamplingError::Parameter { field: "k", value: k.to_string(), allowed });
    }
    let descending = |a: &(f64, u32), b: &(f64, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    noisy.select_nth_unstable_by(k - 1, descending);
    noisy.truncate(k);
    noisy.sort_unstable_by(descending);
    Ok(noisy.into_iter().map(|(_, token)| token).collect())
}

/// A relaxed one-hot draw, `softmax((logits + noise) / tau)` over the last dimension, that gradients flow through.
///
/// `logits` is `[..., V]` of floats on any device, and the result has its shape, type and device. Row r has the noise
/// of sequence + r, made on the host. With `hard` the value is the one-hot of the largest element (of equal ones the
/// lowest), and the gradient that of the soft draw (straight-through).
///
/// # Errors
/// A `tau` that is not a finite number above 0; a tensor without dimensions; an error of a tensor operation.
///
/// Source: Jang, Gu and Poole, *Categorical reparameterization with Gumbel-softmax* (ICLR 2017).
pub fn gumbel_softmax(
    logits: &Tensor,
    tau: f64,
    hard: bool,
    noise: NoiseSource,
) -> Result<Tensor, TensorSamplingError> {
    if !(tau.is_finite() && tau > 0.0) {
        let allowed = "a finite number above 0";
        return Err(SamplingError::Parameter { field: "tau", value: tau.to_string(), allowed }.into());
    }
    let vocab = logits.dim(D::Minus1)?;
    let rows = logits.elem_count() / vocab.max(1);
    let gumbels: Vec<f64> = (0..rows).flat_map(|row| noise.of_row(row).standard_gumbels().take(vocab)).collect();
    // Metal has no f64.
    let gumbels: Vec<f32> = gumbels.into_iter().map(|x| x as f32).collect();
    let gumbels = Tensor::from_vec(gumbels, logits.shape(), logits.device())?.to_dtype(logits.dtype())?;
    let noisy = ((logits + gumbels)? / tau)?;
    let max = noisy.detach().max_keepdim(D::Minus1)?;
    let weights = noisy.broadcast_sub(&max)?.exp()?;
    let soft = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    if !hard {
        return Ok(soft);
    }
    let hard = one_hot_of_max(&soft.detach())?;
    // The straight-through estimator: the difference is a constant, so the gradient is that of `soft`.
    Ok((soft.clone() + (hard - soft.detach())?)?)
}

/// The one-hot of the largest element of each row, of equal ones the first; by comparisons, since `argmax` of equal
/// elements differs between devices.
fn one_hot_of_max(rows: &Tensor) -> Result<Tensor, candle_core::Error> {
    let vocab = rows.dim(D::Minus1)?;
    let is_max = rows.broadcast_eq(&rows.max_keepdim(D::Minus1)?)?;
    let index = Tensor::arange(0u32, vocab as u32, rows.device())?.to_dtype(DType::F32)?;
    let index = index.broadcast_as(rows.shape())?.contiguous()?;
    let beyond = Tensor::full(vocab as f32, rows.shape(), rows.device())?;
    let first = is_max.where_cond(&index, &beyond)?.min_keepdim(D::Minus1)?;
    index.broadcast_eq(&first)?.to_dtype(rows.dtype())
}
