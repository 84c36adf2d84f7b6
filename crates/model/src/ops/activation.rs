//! The activation of the MLP.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use candle_core::Tensor;

use super::custom_grad::{count_launch, with_gradient};
use crate::{Activation, Result};

/// The coefficient of the cube in GPT-2's approximation.
const CUBE: f64 = 0.044_715;

/// The activation of the MLP.
///
/// # Errors
/// When the device is out of memory.
pub fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    Ok(match activation {
        Activation::Gelu => with_gradient("gelu", x, count_launch(x.detach().gelu_erf())?, |x, _, dy| {
            // The slope of x Phi(x) is Phi(x) + x phi(x).
            let phi = count_launch(count_launch(count_launch(x.sqr())?.affine(-0.5, -0.5 * (2.0 * PI).ln()))?.exp())?;
            let phi = count_launch(x.mul(&phi))?;
            let cdf = count_launch(count_launch(count_launch(x.affine(FRAC_1_SQRT_2, 0.0))?.erf())?.affine(0.5, 0.5))?;
            count_launch(dy.mul(&count_launch(cdf + phi)?))
        })?,
        Activation::GeluNew => {
            // 0.5 x (1 + tanh(u)) with u = sqrt(2/pi) (x + 0.044715 x^3)
            let gate = |x: &Tensor| {
                let inner = count_launch(x.mul(&count_launch(count_launch(x.sqr())?.affine(CUBE, 1.0))?))?;
                count_launch(count_launch(inner.affine((2.0 / PI).sqrt(), 0.0))?.tanh())
            };
            let detached = x.detach();
            let y = count_launch(detached.mul(&count_launch(gate(&detached)?.affine(0.5, 0.5))?))?;
            with_gradient("gelu_new", x, y, move |x, _, dy| {
                // 0.5 (1 + tanh(u)) + 0.5 x (1 - tanh(u)^2) sqrt(2/pi) (1 + 3 * 0.044715 x^2)
                let tanh = gate(x)?;
                let slope = count_launch(
                    count_launch(x.sqr())?.affine(1.5 * CUBE * (2.0 / PI).sqrt(), 0.5 * (2.0 / PI).sqrt()),
                )?;
                let slope = count_launch(
                    count_launch(x.mul(&slope))?.mul(&count_launch(count_launch(tanh.sqr())?.affine(-1.0, 1.0))?),
                )?;
                count_launch(dy.mul(&count_launch(count_launch(tanh.affine(0.5, 0.5))? + slope)?))
            })?
        }
    })
}
