//! The gate of SwiGLU: `silu(gate) * up` with `silu(x) = x sigmoid(x)` (Shazeer, 2020, "GLU Variants Improve Transformer").

use candle_core::{D, Tensor};
use tinygpt_sampler::simd::{Kernel, Simd};

use super::{
    Operation,
    activation::{Sigmoid, sigmoid as sigmoid_lanes},
    kernels::{decode::Epilogue, elementwise::MlpFunction},
    launches::{cat_last, count_launch},
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
    plan::{NetworkBuilder, Value},
    tensors::{Fusion, Pass},
};

/// Gates channels with others.
#[derive(Debug, Clone)]
pub(crate) struct Swiglu {
    /// Gates and what they gate side by side, `(T, 2H)`.
    pub(crate) x: Value,
    /// `(T, H)`.
    pub(crate) y: Value,
}

impl NetworkBuilder {
    /// `silu(gate) * up` of gates and what they gate side by side: `(T, 2H)` to `(T, H)`.
    pub fn swiglu(&mut self, x: Value) -> Value {
        let y = self.value(self.cols[x.0] / 2);
        self.push(Swiglu { x, y })
    }
}

impl Operation for Swiglu {
    fn inputs(&self) -> Vec<Value> {
        vec![self.x]
    }

    fn output(&self) -> Value {
        self.y
    }

    fn kept(&self) -> Vec<Value> {
        vec![self.x]
    }

    fn forward(&self, pass: &mut Pass<'_>) -> Result<Tensor> {
        swiglu(&pass.value(self.x)?)
    }

    fn fuse(&self, fusion: &mut Fusion<'_>) -> Option<()> {
        fusion.epilogue(self.x, Epilogue::Swiglu, self.y)
    }

    fn training(&self, _: &TrainSetup<'_>) -> Box<dyn TrainOp> {
        Box::new(self.clone())
    }

    fn decoding<'a>(&self, _: &DecodeSetup<'_, 'a>) -> Option<Box<dyn DecodeOp + 'a>> {
        Some(Box::new(self.clone()))
    }
}

/// `silu(gate) * up` of gates and what they gate side by side: `(.., 2H)` to `(.., H)`.
///
/// # Errors
/// When the last dimension is odd, or the device is out of memory.
pub fn swiglu(x: &Tensor) -> Result<Tensor> {
    swiglu_biased(x, None)
}

/// [`swiglu()`] of `x (.., 2H)` with a bias `(2H)` added before it, or without one.
///
/// # Errors
/// As [`swiglu()`], and when the bias has another shape.
pub fn swiglu_biased(x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    if x.dim(D::Minus1)?.is_multiple_of(2)
        && let Some(y) = MlpFunction::SWIGLU.apply(x, bias)?
    {
        return Ok(y);
    }
    let x = add_bias(x.clone(), bias)?;
    let y = {
        let (gate, up) = halves(&x)?;
        let silu = count_launch(gate.mul(&sigmoid(&gate)?))?;
        count_launch(silu.mul(&up))?
    };
    let input = x.clone();
    tape::record("swiglu", [&x], &y, move |dy| {
        let (gate, up) = halves(&input)?;
        let sigmoid = sigmoid(&gate)?;
        let silu = count_launch(gate.mul(&sigmoid))?;
        // The derivative of silu is sigmoid + silu (1 - sigmoid).
        let d_silu = count_launch(silu.mul(&count_launch(sigmoid.affine(-1.0, 1.0))?))?;
        let d_silu = count_launch(sigmoid + d_silu)?;
        let d_gate = count_launch(count_launch(dy.mul(&up))?.mul(&d_silu))?;
        Ok([cat_last(&[d_gate, count_launch(dy.mul(&silu))?])?])
    });
    Ok(y)
}

/// The two halves of the last dimension, contiguous.
fn halves(x: &Tensor) -> candle_core::Result<(Tensor, Tensor)> {
    let n = x.dim(D::Minus1)?;
    if !n.is_multiple_of(2) {
        candle_core::bail!("swiglu of {n} channels, which are no pairs of gates and what they gate");
    }
    let half = |i: usize| count_launch(x.narrow(D::Minus1, i * n / 2, n / 2)?.contiguous());
    Ok((half(0)?, half(1)?))
}

/// `1 / (1 + exp(-x))`.
fn sigmoid(x: &Tensor) -> candle_core::Result<Tensor> {
    count_launch(count_launch(count_launch(count_launch(x.neg())?.exp())? + 1.0)?.recip())
}

impl TrainOp for Swiglu {
    fn forward(&mut self, pass: &mut TrainPass<'_>) {
        let (x, y) = pass.values.pair(self.x, self.y, &mut pass.scratch.rows);
        pass.level.run(Forward { n: pass.t, x: x.rows(), y });
    }

    fn backward(&mut self, pass: &mut TrainPass<'_>) {
        let x = pass.values.rows(self.x);
        let (dy, dx) = pass.grads.pair(self.y, self.x, &mut pass.scratch.rows);
        pass.level.run(Backward { n: pass.t, x, dy: dy.rows(), dx });
    }
}

impl DecodeOp for Swiglu {
    fn run(&mut self, step: &mut DecodeStep<'_, '_>) {
        let (x, y) = step.values.pair(self.x, self.y);
        step.level.run(Forward { n: step.n, x, y });
    }
}

struct Forward<'a> {
    n: usize,
    /// `(n, 2H)`.
    x: &'a Rows,
    /// `(n, H)`.
    y: &'a mut Rows,
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let hidden = self.y.cols;
        for i in 0..self.n {
            let ((gate, up), y) = (self.x.row(i).split_at(hidden), self.y.row_mut(i));
            for v in 0..vectors::count(gate) {
                let (silu, _) = silu(s, vectors::get(s, gate, v));
                vectors::set(s, y, v, s.mul(silu, vectors::get(s, up, v)));
            }
        }
    }
}

struct Backward<'a> {
    n: usize,
    /// `(n, 2H)`.
    x: &'a Rows,
    /// `(n, H)`.
    dy: &'a Rows,
    /// `(n, 2H)`, overwritten.
    dx: &'a mut Rows,
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let hidden = self.dy.cols;
        for i in 0..self.n {
            let ((gate, up), dy) = (self.x.row(i).split_at(hidden), self.dy.row(i));
            let (d_gate, d_up) = self.dx.row_mut(i).split_at_mut(hidden);
            for v in 0..vectors::count(gate) {
                let (silu, d_silu) = silu(s, vectors::get(s, gate, v));
                let grad = vectors::get(s, dy, v);
                vectors::set(s, d_gate, v, s.mul(s.mul(grad, vectors::get(s, up, v)), d_silu));
                vectors::set(s, d_up, v, s.mul(grad, silu));
            }
        }
    }
}

/// `x sigmoid(x)`, and its derivative `sigmoid(x) + x sigmoid(x) (1 - sigmoid(x))`.
#[inline(always)]
fn silu<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
    let Sigmoid { value, small, large } = sigmoid_lanes(s, x);
    let silu = s.mul(x, value);
    (silu, s.mul_add(s.mul(x, small), large, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tinygpt_sampler::simd::SimdLevel;

    #[test]
    fn values_and_derivatives_are_exact_to_a_millionth_on_every_level_and_of_the_same_bits() {
        let gates: Vec<f32> = (-1203..=1204).map(|i| i as f32 / 97.0).collect();
        let ups: Vec<f32> = (0..gates.len()).map(|i| (i % 23) as f32 / 5.0 - 2.0).collect();
        let n = gates.len();
        let mut first: Option<Vec<u32>> = None;
        for level in SimdLevel::available() {
            let (mut x, mut dx) = (Rows::zeros(1, 2 * n), Rows::zeros(1, 2 * n));
            let (mut y, mut dy) = (Rows::zeros(1, n), Rows::zeros(1, n));
            x.row_mut(0)[..n].copy_from_slice(&gates);
            x.row_mut(0)[n..].copy_from_slice(&ups);
            dy.row_mut(0).fill(1.0);
            level.run(Forward { n: 1, x: &x, y: &mut y });
            level.run(Backward { n: 1, x: &x, dy: &dy, dx: &mut dx });
            for i in 0..n {
                let (gate, up) = (f64::from(gates[i]), f64::from(ups[i]));
                let sigmoid = 1.0 / (1.0 + (-gate).exp());
                let silu = gate * sigmoid;
                let d_gate = up * (sigmoid + silu * (1.0 - sigmoid));
                for (what, got, expected) in
                    [("y", y.row(0)[i], silu * up), ("d gate", dx.row(0)[i], d_gate), ("d up", dx.row(0)[n + i], silu)]
                {
                    let error = (f64::from(got) - expected).abs() / expected.abs().max(1.0);
                    assert!(error < 1e-6, "{level:?} {what} at {gate}, {up}: {got}, not {expected}");
                }
            }
            let bits = y.row(0).iter().chain(dx.row(0)).map(|x| x.to_bits()).collect();
            assert_eq!(*first.get_or_insert_with(|| Vec::clone(&bits)), bits, "{level:?}");
        }
    }
}
