//! Gumbel noise: draws as the largest of noisy logits, and the differentiable relaxation of one.
//!
//! The largest of `logit / temperature + noise` has the law of the softmax, and the k largest, in falling order, that of
//! k successive draws without replacement. Here noise and sums are f64: in f32 a token 16 nats below the winner is never
//! drawn. One number is needed for each token, so [`Sampler`](crate::Sampler), which needs one for each row, is faster.

use crate::oracle::check_row;
use crate::params::check_temperature;
use crate::philox::{RngDomain, philox_at, philox4x32_10};
use crate::{SamplingError, TensorSamplingError};
use candle_core::{D, DType, Tensor};

/// Where noise comes from: that of (seed, sequence, position) and token is always the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NoiseSource {
    /// The seed.
    pub seed: u64,
    /// Which text of the run.
    pub sequence: u64,
    /// Which token of that text.
    pub position: u64,
}

impl NoiseSource {
    /// The same source for the row `row` of a batch that starts here.
    fn row(self, row: usize) -> Self {
        Self { sequence: self.sequence.wrapping_add(row as u64), ..self }
    }

    /// Standard Gumbel numbers, `-ln(-ln(u))`, for tokens 0, 1, 2 and so on.
    fn gumbel(self) -> impl Iterator<Item = f64> {
        // Two bijections lead to a key and half a counter for this place, as for draws; the other half counts tokens.
        let [k0, k1, k2, k3] = philox_at(self.seed, RngDomain::Noise, self.sequence, 0);
        let place = [self.position as u32, (self.position >> 32) as u32, k2, k3];
        let [k0, k1, k2, k3] = philox4x32_10(place, [k0, k1]);
        (0u64..).flat_map(move |pair| {
            let [w0, w1, w2, w3] = philox4x32_10([pair as u32, (pair >> 32) as u32, k2, k3], [k0, k1]);
            [gumbel_of(w0, w1), gumbel_of(w2, w3)]
        })
    }
}

/// A Gumbel number of 53 bits, from the middle of their interval: finite, and up to 37.
fn gumbel_of(low: u32, high: u32) -> f64 {
    let bits = (u64::from(high) << 32 | u64::from(low)) >> 11;
    let u = (bits as f64 + 0.5) / (1u64 << 53) as f64;
    -(-u.ln()).ln()
}

/// Draws one token by the Gumbel-max trick: the law is the softmax of `logits / temperature`.
///
/// # Errors
/// A temperature outside its range (0 is greedy); a NaN, a +infinity or no finite logit.
pub fn gumbel_max(logits: &[f32], temperature: f64, noise: NoiseSource) -> Result<u32, SamplingError> {
    Ok(gumbel_top_k(logits, 1, temperature, noise)?[0])
}

/// Draws k different tokens, in the order of successive draws without replacement, by the Gumbel-top-k trick.
///
/// # Errors
/// As for [`gumbel_max`]; a k of 0 or more than the finite logits.
pub fn gumbel_top_k(logits: &[f32], k: usize, temperature: f64, noise: NoiseSource) -> Result<Vec<u32>, SamplingError> {
    check_temperature("temperature", temperature)?;
    check_row(logits)?;
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut keys: Vec<(f64, u32)> = (0u32..)
        .zip(logits)
        .zip(noise.gumbel())
        .filter(|((_, logit), _)| logit.is_finite())
        .map(|((token, &logit), noise)| {
            // Times the temperature, so that 0 is greedy and the order is the same.
            (f64::from(logit) - f64::from(max) + temperature * noise, token)
        })
        .collect();
    if k == 0 || k > keys.len() {
        let allowed = "at least 1 and at most the number of finite logits";
        return Err(SamplingError::Parameter { field: "k", value: k.to_string(), allowed });
    }
    let falling = |a: &(f64, u32), b: &(f64, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    keys.select_nth_unstable_by(k - 1, falling);
    keys.truncate(k);
    keys.sort_unstable_by(falling);
    Ok(keys.into_iter().map(|(_, token)| token).collect())
}

/// The relaxed one-hot draw `softmax((logits + noise) / tau)` over the last dimension; gradients reach the logits.
///
/// `logits` is `[..., V]` of floats on any device; row r has the noise of sequence + r, made on the host. With `hard`
/// the value is one-hot, at the lowest index of the largest, and the gradient that of the soft one (straight-through).
///
/// # Errors
/// A `tau` that is not a finite number above 0; a tensor without dimensions; a failure of the tensor library.
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
    let numbers: Vec<f64> = (0..rows).flat_map(|row| noise.row(row).gumbel().take(vocab)).collect();
    // To f32 on the host: not every device has f64.
    let numbers: Vec<f32> = numbers.into_iter().map(|x| x as f32).collect();
    let numbers = Tensor::from_vec(numbers, logits.shape(), logits.device())?.to_dtype(logits.dtype())?;
    let noisy = ((logits + numbers)? / tau)?;
    let max = noisy.detach().max_keepdim(D::Minus1)?;
    let weights = noisy.broadcast_sub(&max)?.exp()?;
    let soft = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    if !hard {
        return Ok(soft);
    }
    let value = one_hot_of_largest(&soft.detach())?;
    // The value less its soft twin is constant, so the gradient is that of the soft one.
    Ok((soft.clone() + (value - soft.detach())?)?)
}

/// 1 at the lowest index of the largest of each row, 0 elsewhere.
fn one_hot_of_largest(rows: &Tensor) -> Result<Tensor, candle_core::Error> {
    let vocab = rows.dim(D::Minus1)?;
    let is_max = rows.broadcast_eq(&rows.max_keepdim(D::Minus1)?)?;
    let index = Tensor::arange(0u32, vocab as u32, rows.device())?.to_dtype(DType::F32)?;
    let index = index.broadcast_as(rows.shape())?.contiguous()?;
    let beyond = Tensor::full(vocab as f32, rows.shape(), rows.device())?;
    let first = is_max.where_cond(&index, &beyond)?.min_keepdim(D::Minus1)?;
    index.broadcast_eq(&first)?.to_dtype(rows.dtype())
}
