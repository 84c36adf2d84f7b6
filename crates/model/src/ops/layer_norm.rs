//! Layer norm.

use candle_core::{D, Tensor};

use super::{
    add_bias,
    custom_grad::{count_launch, with_gradients},
};
use crate::{Result, config::LAYER_NORM_EPS};

/// Layer norm over the last dimension: `(x - mean) / sqrt(var + 1e-5) * w + b`, with the biased variance.
///
/// # Errors
/// On a shape mismatch.
pub fn layer_norm(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    let y = count_launch(Normed::new(&x.detach())?.y.broadcast_mul(&w.detach()))?;
    let y = with_gradients("layer norm", (x, w), y, |(x, w), _, dy| {
        let c = x.dim(D::Minus1)?;
        let Normed { y, per_deviation } = Normed::new(x)?;
        let dw = count_launch(count_launch(dy.mul(&y))?.reshape(((), c))?.sum(0))?; // (.., C) to (N, C) to (C)
        // dx = (g - mean(g) - y mean(g y)) / deviation with g = dy * w
        let g = count_launch(dy.broadcast_mul(w))?;
        let along = count_launch(y.broadcast_mul(&mean(&count_launch(g.mul(&y))?)?))?;
        let centred = count_launch(g.broadcast_sub(&mean(&g)?))?;
        Ok((count_launch(count_launch(centred - along)?.broadcast_mul(&per_deviation))?, dw))
    })?;
    add_bias(y, b)
}

/// Rows of mean 0 and variance 1, and what they were multiplied with.
struct Normed {
    y: Tensor,
    per_deviation: Tensor,
}

impl Normed {
    fn new(x: &Tensor) -> candle_core::Result<Self> {
        let centred = count_launch(x.broadcast_sub(&mean(x)?))?;
        let var = mean(&count_launch(centred.sqr())?)?;
        let per_deviation = count_launch(count_launch(count_launch(var + LAYER_NORM_EPS)?.sqrt())?.recip())?;
        Ok(Self { y: count_launch(centred.broadcast_mul(&per_deviation))?, per_deviation })
    }
}

/// A sum and a product.
fn mean(x: &Tensor) -> candle_core::Result<Tensor> {
    count_launch(count_launch(x.mean_keepdim(D::Minus1)))
}
