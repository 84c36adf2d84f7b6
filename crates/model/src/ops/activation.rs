//! The activation of the MLP.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use candle_core::Tensor;

use super::closed::{run, with_gradient};
use crate::{Activation, Result};

/// The coefficient of the cube in GPT-2's approximation.
const CUBE: f64 = 0.044_715;

/// The activation of the MLP.
///
/// # Errors
/// When the device is out of memory.
pub fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    Ok(match activation {
        Activation::Gelu => with_gradient("gelu", x, run(x.detach().gelu_erf())?, |x, _, dy| {
            // The slope of x Phi(x) is Phi(x) + x phi(x).
            let phi = run(run(run(x.sqr())?.affine(-0.5, -0.5 * (2.0 * PI).ln()))?.exp())?;
            let phi = run(x.mul(&phi))?;
            let cdf = run(run(run(x.affine(FRAC_1_SQRT_2, 0.0))?.erf())?.affine(0.5, 0.5))?;
            run(dy.mul(&run(cdf + phi)?))
        })?,
        Activation::GeluNew => {
            // 0.5 x (1 + tanh(u)) with u = sqrt(2/pi) (x + 0.044715 x^3)
            let gate = |x: &Tensor| {
                let inner = run(x.mul(&run(run(x.sqr())?.affine(CUBE, 1.0))?))?;
                run(run(inner.affine((2.0 / PI).sqrt(), 0.0))?.tanh())
            };
            let detached = x.detach();
            let y = run(detached.mul(&run(gate(&detached)?.affine(0.5, 0.5))?))?;
            with_gradient("gelu_new", x, y, move |x, _, dy| {
                // 0.5 (1 + tanh(u)) + 0.5 x (1 - tanh(u)^2) sqrt(2/pi) (1 + 3 * 0.044715 x^2)
                let tanh = gate(x)?;
                let slope = run(run(x.sqr())?.affine(1.5 * CUBE * (2.0 / PI).sqrt(), 0.5 * (2.0 / PI).sqrt()))?;
                let slope = run(run(x.mul(&slope))?.mul(&run(run(tanh.sqr())?.affine(-1.0, 1.0))?))?;
                run(dy.mul(&run(run(tanh.affine(0.5, 0.5))? + slope)?))
            })?
        }
    })
}
