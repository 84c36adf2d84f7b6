//! The activation of the MLP with its derivative, both from one pass forward.

use tinygpt_sampler::simd::{Kernel, Simd, SimdLevel, exp};

use super::{rows::Rows, vectors};
use crate::Activation;

/// `x` becomes its activation, and `slope` the derivative, for rows `0..n`.
pub(super) fn forward(level: SimdLevel, activation: Activation, n: usize, x: &mut Rows, slope: &mut Rows) {
    level.run(Forward { activation, n, x, slope });
}

/// `grad *= slope` for rows `0..n`.
pub(super) fn backward(level: SimdLevel, n: usize, grad: &mut Rows, slope: &Rows) {
    level.run(Backward { n, grad, slope });
}

struct Forward<'a> {
    activation: Activation,
    n: usize,
    x: &'a mut Rows,
    slope: &'a mut Rows,
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.activation {
            Activation::Gelu => self.each(s, |x| gelu(s, x)),
            Activation::GeluNew => self.each(s, |x| gelu_new(s, x)),
        }
    }
}

impl Forward<'_> {
    #[inline(always)]
    fn each<S: Simd>(self, s: S, f: impl Fn(S::V) -> (S::V, S::V)) {
        for i in 0..self.n {
            let (x, slope) = (self.x.row_mut(i), self.slope.row_mut(i));
            for v in 0..vectors::count(x) {
                let (y, dy) = f(vectors::get(s, x, v));
                vectors::set(s, x, v, y);
                vectors::set(s, slope, v, dy);
            }
        }
    }
}

/// `x Phi(x)` and `Phi(x) + x phi(x)`, Phi being the normal distribution and phi its density.
///
/// Phi from erfc by formula 7.1.26 of Abramowitz and Stegun (*Handbook of Mathematical Functions*, 1964), whose error is
/// at most 1.5e-7: a polynomial in `t = 1 / (1 + p |z|)` times `exp(-z^2)`, which the density needs too.
#[inline(always)]
fn gelu<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
    const P: f32 = 0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2;
    // The coefficients halved, for erfc / 2 = Phi(-|x|).
    const A: [f32; 5] = [0.530_702_7, -0.726_576, 0.710_706_9, -0.142_248_37, 0.127_414_8];
    let zero = s.splat(0.0);
    let abs = s.max(x, s.sub(zero, x));
    let bell = exp(s, s.mul(s.mul(x, s.splat(-0.5)), x)); // exp(-x^2 / 2)
    let t = s.div(s.splat(1.0), s.mul_add(abs, s.splat(P), s.splat(1.0)));
    let poly = A[1..].iter().fold(s.splat(A[0]), |sum, &a| s.mul_add(sum, t, s.splat(a)));
    let tail = s.mul(s.mul(poly, t), bell); // Phi(-|x|)
    // Phi(x) is the tail where x < 0 and one minus it elsewhere.
    let negative = s.gt(zero, x);
    let phi = s.add(s.keep(negative, tail), s.keep(!negative, s.sub(s.splat(1.0), tail)));
    let density = s.mul(bell, s.splat(0.398_942_3));
    (s.mul(x, phi), s.mul_add(x, density, phi))
}

/// `x / (1 + exp(-2 u))` with `u = sqrt(2 / pi) (x + 0.044715 x^3)`, which is `0.5 x (1 + tanh(u))`, and its derivative.
#[inline(always)]
fn gelu_new<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
    const TWICE_ROOT: f32 = 1.595_769_2; // 2 sqrt(2 / pi)
    const CUBIC: f32 = 0.044_715;
    let (zero, one) = (s.splat(0.0), s.splat(1.0));
    let square = s.mul(x, x);
    let u = s.mul(s.mul(x, s.splat(TWICE_ROOT)), s.mul_add(square, s.splat(CUBIC), one)); // 2 u
    // Of exp(2u) and exp(-2u) the one that is at most 1.
    let e = exp(s, s.sub(zero, s.max(u, s.sub(zero, u))));
    let small = s.div(e, s.add(one, e)); // sigmoid(-|2u|)
    let negative = s.gt(zero, u);
    let large = s.sub(one, small);
    let sigmoid = s.add(s.keep(negative, small), s.keep(!negative, large));
    let du = s.mul(s.splat(TWICE_ROOT), s.mul_add(square, s.splat(3.0 * CUBIC), one));
    let slope = s.mul_add(s.mul(x, s.mul(small, large)), du, sigmoid);
    (s.mul(x, sigmoid), slope)
}

struct Backward<'a> {
    n: usize,
    grad: &'a mut Rows,
    slope: &'a Rows,
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for i in 0..self.n {
            let (grad, slope) = (self.grad.row_mut(i), self.slope.row(i));
            for v in 0..vectors::count(slope) {
                let product = s.mul(vectors::get(s, grad, v), vectors::get(s, slope, v));
                vectors::set(s, grad, v, product);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The error function by its Taylor series, in f64.
    fn erf(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / n as f64;
            sum += term / (2 * n + 1) as f64;
        }
        2.0 / std::f64::consts::PI.sqrt() * sum
    }

    /// Value and derivative.
    fn exact(activation: Activation, x: f64) -> (f64, f64) {
        use std::f64::consts::PI;
        match activation {
            Activation::Gelu => {
                let phi = 0.5 * (1.0 + erf(x / 2f64.sqrt()));
                (x * phi, phi + x * (-x * x / 2.0).exp() / (2.0 * PI).sqrt())
            }
            Activation::GeluNew => {
                let root = (2.0 / PI).sqrt();
                let tanh = (root * (x + 0.044715 * x.powi(3))).tanh();
                let slope = root * (1.0 + 3.0 * 0.044715 * x * x) * (1.0 - tanh * tanh);
                (0.5 * x * (1.0 + tanh), 0.5 * (1.0 + tanh) + 0.5 * x * slope)
            }
        }
    }

    #[test]
    fn values_and_slopes_are_exact_to_a_millionth_on_every_level_and_of_the_same_bits() {
        for activation in [Activation::Gelu, Activation::GeluNew] {
            let xs: Vec<f32> = (-1203..=1204).map(|i| i as f32 / 201.0).collect();
            let mut first: Option<Vec<u32>> = None;
            for level in SimdLevel::available() {
                let (mut x, mut slope) = (Rows::zeros(1, xs.len()), Rows::zeros(1, xs.len()));
                x.row_mut(0).copy_from_slice(&xs);
                forward(level, activation, 1, &mut x, &mut slope);
                for ((&x, &y), &dy) in xs.iter().zip(x.row(0)).zip(slope.row(0)) {
                    let x = f64::from(x);
                    let (value, derivative) = exact(activation, x);
                    for (what, got, expected) in [("f", y, value), ("f'", dy, derivative)] {
                        let error = (f64::from(got) - expected).abs();
                        assert!(error < 1e-6, "{activation:?} {level:?} {what}({x}): {error}");
                    }
                }
                let bits = x.row(0).iter().chain(slope.row(0)).map(|x| x.to_bits()).collect();
                assert_eq!(*first.get_or_insert_with(|| Vec::clone(&bits)), bits, "{level:?}");
            }
        }
    }

    #[test]
    fn far_out_the_activation_is_the_identity_or_zero() {
        for activation in [Activation::Gelu, Activation::GeluNew] {
            let (mut x, mut slope) = (Rows::zeros(1, 4), Rows::zeros(1, 4));
            x.row_mut(0).copy_from_slice(&[-1e4, -30.0, 30.0, 1e4]);
            forward(SimdLevel::detect(), activation, 1, &mut x, &mut slope);
            assert_eq!(x.row(0), [-0.0, -0.0, 30.0, 1e4], "{activation:?}");
            assert_eq!(slope.row(0), [0.0, 0.0, 1.0, 1.0], "{activation:?}");
        }
    }
}
