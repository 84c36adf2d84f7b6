//! The activation of the MLP: GELU, exact or by GPT-2's approximation (Hendrycks and Gimpel, 2016), or the square of ReLU
//! (So et al., 2021, "Primer").

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use candle_core::Tensor;
use tinygpt_sampler::simd::{Kernel, Simd, SimdLevel, exp};

use super::{
    Operation,
    kernels::{decode::Epilogue, elementwise::MlpFunction},
    launches::count_launch,
    linear::add_bias,
    tape,
};
use crate::{
    Result,
    cpu::{
        decode::{DecodeOp, DecodeSetup, DecodeStep},
        rows::Rows,
        training::{TrainOp, TrainPass, TrainSetup},
        vectors,
    },
    plan::{Network, NetworkBuilder, Value},
    tensors::{Fusion, Pass},
};

/// A function of each element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// The exact GELU, `x * Phi(x)` with the normal distribution function.
    Gelu,
    /// The tanh approximation of GELU.
    GeluNew,
    /// `max(x, 0)^2`.
    Relu2,
}

/// Applies the activation to each element.
#[derive(Debug, Clone)]
pub(crate) struct Activate {
    pub(crate) x: Value,
    pub(crate) y: Value,
    pub(crate) activation: Activation,
}

impl NetworkBuilder {
    /// The activation of each element of `x`: `(T, C)`.
    pub fn activation(&mut self, x: Value, activation: Activation) -> Value {
        let y = self.value(self.cols[x.0]);
        self.push(Activate { x, y, activation })
    }
}

impl Operation for Activate {
    fn inputs(&self) -> Vec<Value> {
        vec![self.x]
    }

    fn output(&self) -> Value {
        self.y
    }

    fn in_place(&self) -> bool {
        true
    }

    fn forward(&self, pass: &mut Pass<'_>) -> Result<Tensor> {
        activate(&pass.value(self.x)?, self.activation)
    }

    fn kept_floats(&self, net: &Network, t: usize) -> usize {
        t * net.cols(self.y)
    }

    fn fuse(&self, fusion: &mut Fusion<'_>) -> Option<()> {
        fusion.epilogue(self.x, Epilogue::Activation(self.activation), self.y)
    }

    fn training(&self, setup: &TrainSetup<'_>) -> Box<dyn TrainOp> {
        let act_grad = Rows::zeros(setup.block_size, setup.net.cols(self.y));
        Box::new(ActivateTape { op: self.clone(), act_grad })
    }

    fn decoding<'a>(&self, _: &DecodeSetup<'_, 'a>) -> Option<Box<dyn DecodeOp + 'a>> {
        Some(Box::new(self.clone()))
    }
}

/// An activation with its tape of one sequence.
#[derive(Debug)]
struct ActivateTape {
    op: Activate,
    /// The derivative at each element, `(block_size, channels)`.
    act_grad: Rows,
}

impl TrainOp for ActivateTape {
    fn forward(&mut self, pass: &mut TrainPass<'_>) {
        let y = pass.values.rows_mut(self.op.y, &mut pass.scratch.rows);
        forward(pass.level, self.op.activation, pass.t, y, &mut self.act_grad);
    }

    fn backward(&mut self, pass: &mut TrainPass<'_>) {
        let dy = pass.grads.rows_mut(self.op.y, &mut pass.scratch.rows);
        backward(pass.level, pass.t, dy, &self.act_grad);
    }
}

impl DecodeOp for Activate {
    fn run(&mut self, step: &mut DecodeStep<'_, '_>) {
        let x = step.values.rows_mut(self.y);
        step.level.run(DecodeForward { activation: self.activation, n: step.n, x });
    }
}

/// The coefficient of the cube in GPT-2's approximation.
const CUBE: f64 = 0.044_715;

/// The activation of the MLP.
///
/// # Errors
/// When the device is out of memory.
pub fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    activate_biased(x, None, activation)
}

/// The activation of `x (.., C)` with a bias `(C)` added before it, or without one.
///
/// # Errors
/// On a shape mismatch, or when the device is out of memory.
pub fn activate_biased(x: &Tensor, bias: Option<&Tensor>, activation: Activation) -> Result<Tensor> {
    if let Some(y) = MlpFunction::from(activation).apply(x, bias)? {
        return Ok(y);
    }
    let x = add_bias(x.clone(), bias)?;
    let y = match activation {
        Activation::Gelu => count_launch(x.gelu_erf())?,
        Activation::GeluNew => count_launch(x.mul(&count_launch(gelu_new_tanh(&x)?.affine(0.5, 0.5))?))?,
        Activation::Relu2 => count_launch(count_launch(x.relu())?.sqr())?,
    };
    let input = x.clone();
    tape::record("activation", [&x], &y, move |dy| Ok([count_launch(dy.mul(&derivative(&input, activation)?))?]));
    Ok(y)
}

/// The derivative of an activation at each element.
fn derivative(x: &Tensor, activation: Activation) -> candle_core::Result<Tensor> {
    match activation {
        // The derivative of x Phi(x) is Phi(x) + x phi(x).
        Activation::Gelu => {
            let phi = count_launch(count_launch(count_launch(x.sqr())?.affine(-0.5, -0.5 * (2.0 * PI).ln()))?.exp())?;
            let phi = count_launch(x.mul(&phi))?;
            let cdf = count_launch(count_launch(count_launch(x.affine(FRAC_1_SQRT_2, 0.0))?.erf())?.affine(0.5, 0.5))?;
            count_launch(cdf + phi)
        }
        // 0.5 (1 + tanh(u)) + 0.5 x (1 - tanh(u)^2) sqrt(2/pi) (1 + 3 * 0.044715 x^2)
        Activation::GeluNew => {
            let tanh = gelu_new_tanh(x)?;
            let d_tanh =
                count_launch(count_launch(x.sqr())?.affine(1.5 * CUBE * (2.0 / PI).sqrt(), 0.5 * (2.0 / PI).sqrt()))?;
            let d_tanh = count_launch(
                count_launch(x.mul(&d_tanh))?.mul(&count_launch(count_launch(tanh.sqr())?.affine(-1.0, 1.0))?),
            )?;
            count_launch(count_launch(tanh.affine(0.5, 0.5))? + d_tanh)
        }
        Activation::Relu2 => count_launch(count_launch(x.relu())?.affine(2.0, 0.0)),
    }
}

/// `tanh(u)` with `u = sqrt(2/pi) (x + 0.044715 x^3)`: GPT-2's GELU is `0.5 x (1 + tanh(u))`.
fn gelu_new_tanh(x: &Tensor) -> candle_core::Result<Tensor> {
    let inner = count_launch(x.mul(&count_launch(count_launch(x.sqr())?.affine(CUBE, 1.0))?))?;
    count_launch(count_launch(inner.affine((2.0 / PI).sqrt(), 0.0))?.tanh())
}

/// Overwrites the first `n` rows of `x (n, channels)` with their activations, and writes the derivatives to `act_grad`.
fn forward(level: SimdLevel, activation: Activation, n: usize, x: &mut Rows, act_grad: &mut Rows) {
    level.run(Forward { activation, n, x, act_grad });
}

/// Computes `grad *= act_grad` for the first `n` rows, `(n, channels)`.
fn backward(level: SimdLevel, n: usize, grad: &mut Rows, act_grad: &Rows) {
    level.run(Backward { n, grad, act_grad });
}

/// Training's loop: the values and the derivatives.
struct Forward<'a> {
    activation: Activation,
    n: usize,
    x: &'a mut Rows,
    act_grad: &'a mut Rows,
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.activation {
            Activation::Gelu => self.each(s, |x| gelu(s, x)),
            Activation::GeluNew => self.each(s, |x| gelu_new(s, x)),
            Activation::Relu2 => self.each(s, |x| relu2(s, x)),
        }
    }
}

impl Forward<'_> {
    #[inline(always)]
    fn each<S: Simd>(self, s: S, f: impl Fn(S::V) -> (S::V, S::V)) {
        for i in 0..self.n {
            let (x, act_grad) = (self.x.row_mut(i), self.act_grad.row_mut(i));
            for v in 0..vectors::count(x) {
                let (y, dy) = f(vectors::get(s, x, v));
                vectors::set(s, x, v, y);
                vectors::set(s, act_grad, v, dy);
            }
        }
    }
}

/// Decoding's loop: the values alone, of the same bits.
struct DecodeForward<'a> {
    activation: Activation,
    n: usize,
    x: &'a mut Rows,
}

impl Kernel for DecodeForward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.activation {
            Activation::Gelu => self.each(s, |x| gelu(s, x).0),
            Activation::GeluNew => self.each(s, |x| gelu_new(s, x).0),
            Activation::Relu2 => self.each(s, |x| relu2(s, x).0),
        }
    }
}

impl DecodeForward<'_> {
    #[inline(always)]
    fn each<S: Simd>(self, s: S, f: impl Fn(S::V) -> S::V) {
        for i in 0..self.n {
            let x = self.x.row_mut(i);
            for v in 0..vectors::count(x) {
                let y = f(vectors::get(s, x, v));
                vectors::set(s, x, v, y);
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
    let one = s.splat(1.0);
    let square = s.mul(x, x);
    let u = s.mul(s.mul(x, s.splat(TWICE_ROOT)), s.mul_add(square, s.splat(CUBIC), one)); // 2 u
    let Sigmoid { value: sigmoid, small, large } = sigmoid(s, u);
    let du = s.mul(s.splat(TWICE_ROOT), s.mul_add(square, s.splat(3.0 * CUBIC), one));
    let act_grad = s.mul_add(s.mul(x, s.mul(small, large)), du, sigmoid);
    (s.mul(x, sigmoid), act_grad)
}

/// `1 / (1 + exp(-x))`, and the smaller and the larger of it and its complement.
pub(super) struct Sigmoid<V> {
    pub(super) value: V,
    pub(super) small: V,
    pub(super) large: V,
}

/// The sigmoid of each lane.
#[inline(always)]
pub(super) fn sigmoid<S: Simd>(s: S, x: S::V) -> Sigmoid<S::V> {
    let (zero, one) = (s.splat(0.0), s.splat(1.0));
    // Of exp(x) and exp(-x) the one that is at most 1.
    let e = exp(s, s.sub(zero, s.max(x, s.sub(zero, x))));
    let small = s.div(e, s.add(one, e)); // sigmoid(-|x|)
    let negative = s.gt(zero, x);
    let large = s.sub(one, small);
    Sigmoid { value: s.add(s.keep(negative, small), s.keep(!negative, large)), small, large }
}

/// `max(x, 0)^2` and `2 max(x, 0)`.
#[inline(always)]
fn relu2<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
    let zero = s.splat(0.0);
    // The maximum would not propagate a NaN.
    let positive = s.keep(!s.gt(zero, x), x);
    (s.mul(positive, positive), s.add(positive, positive))
}

struct Backward<'a> {
    n: usize,
    grad: &'a mut Rows,
    act_grad: &'a Rows,
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for i in 0..self.n {
            let (grad, act_grad) = (self.grad.row_mut(i), self.act_grad.row(i));
            for v in 0..vectors::count(act_grad) {
                let product = s.mul(vectors::get(s, grad, v), vectors::get(s, act_grad, v));
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
                let d_tanh = root * (1.0 + 3.0 * 0.044715 * x * x) * (1.0 - tanh * tanh);
                (0.5 * x * (1.0 + tanh), 0.5 * (1.0 + tanh) + 0.5 * x * d_tanh)
            }
            Activation::Relu2 => (x.max(0.0).powi(2), 2.0 * x.max(0.0)),
        }
    }

    #[test]
    fn values_and_derivatives_are_exact_to_a_millionth_on_every_level_and_of_the_same_bits() {
        for activation in [Activation::Gelu, Activation::GeluNew, Activation::Relu2] {
            let xs: Vec<f32> = (-1203..=1204).map(|i| i as f32 / 201.0).collect();
            let mut first: Option<Vec<u32>> = None;
            for level in SimdLevel::available() {
                let (mut x, mut act_grad) = (Rows::zeros(1, xs.len()), Rows::zeros(1, xs.len()));
                x.row_mut(0).copy_from_slice(&xs);
                forward(level, activation, 1, &mut x, &mut act_grad);
                for ((&x, &y), &dy) in xs.iter().zip(x.row(0)).zip(act_grad.row(0)) {
                    let x = f64::from(x);
                    let (value, derivative) = exact(activation, x);
                    for (what, got, expected) in [("f", y, value), ("f'", dy, derivative)] {
                        let error = (f64::from(got) - expected).abs() / expected.abs().max(1.0);
                        assert!(error < 1e-6, "{activation:?} {level:?} {what}({x}): {error}");
                    }
                }
                let bits = x.row(0).iter().chain(act_grad.row(0)).map(|x| x.to_bits()).collect();
                assert_eq!(*first.get_or_insert_with(|| Vec::clone(&bits)), bits, "{level:?}");
            }
        }
    }

    #[test]
    fn far_out_the_activation_is_the_identity_or_zero() {
        for activation in [Activation::Gelu, Activation::GeluNew] {
            let (mut x, mut act_grad) = (Rows::zeros(1, 4), Rows::zeros(1, 4));
            x.row_mut(0).copy_from_slice(&[-1e4, -30.0, 30.0, 1e4]);
            forward(SimdLevel::detect(), activation, 1, &mut x, &mut act_grad);
            assert_eq!(x.row(0), [-0.0, -0.0, 30.0, 1e4], "{activation:?}");
            assert_eq!(act_grad.row(0), [0.0, 0.0, 1.0, 1.0], "{activation:?}");
        }
    }
}
