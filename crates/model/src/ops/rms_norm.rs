//! RMSNorm over a row: `x / sqrt(mean(x^2) + eps) * w` (Zhang and Sennrich, 2019, "Root Mean Square Layer Normalization").

use candle_core::{DType, Tensor};
use tinygpt_sampler::simd::{Kernel, Simd, SimdLevel};

use super::{
    Operation,
    kernels::{
        kernels_for,
        norm::{self, NormKernels},
    },
    launches::{count_launch, mean, sum_rows},
    tape,
};
use crate::{
    Result,
    config::Norm,
    cpu::{
        decode::{DecodeOp, DecodeSetup, DecodeStep},
        rows::Rows,
        training::{ParamLayout, TrainOp, TrainPass, TrainSetup},
        vectors,
    },
    plan::{Init, Network, NetworkBuilder, ParamId, Role, Value},
    tensors::{Fusion, InputNorm, Pass},
};

/// RMSNorm of each row.
#[derive(Debug, Clone)]
pub(crate) struct RmsNorm {
    pub(crate) x: Value,
    pub(crate) y: Value,
    /// `(C)`.
    weight: ParamId,
    eps: f64,
}

impl RmsNorm {
    /// Its kind, epsilon and parameters.
    pub(crate) fn norm(&self) -> InputNorm {
        InputNorm { kind: Norm::Rms, eps: self.eps, weight: self.weight, bias: None }
    }
}

impl NetworkBuilder {
    /// RMSNorm of `x (T, C)`: `(T, C)`, with the epsilon of the configuration. It has a weight and no bias.
    pub fn rms_norm(&mut self, x: Value, module: &str) -> Value {
        let c = self.cols[x.0];
        let weight = self.param(format!("{module}.weight"), &[c], Role::Norm, Init::Ones);
        let (y, eps) = (self.value(c), self.config.norm_eps(Norm::Rms));
        self.push(RmsNorm { x, y, weight, eps })
    }
}

impl Operation for RmsNorm {
    fn inputs(&self) -> Vec<Value> {
        vec![self.x]
    }

    fn output(&self) -> Value {
        self.y
    }

    fn kept(&self) -> Vec<Value> {
        vec![self.x]
    }

    fn adds_to_input_grad(&self) -> bool {
        true
    }

    fn forward(&self, pass: &mut Pass<'_>) -> Result<Tensor> {
        rms_norm_to(&pass.value(self.x)?, pass.param(self.weight), self.eps, pass.operand_dtype())
    }

    fn kept_floats(&self, net: &Network, t: usize) -> usize {
        t + net.cols(self.y)
    }

    fn fuse(&self, fusion: &mut Fusion<'_>) -> Option<()> {
        fusion.norm(self.x, self.norm(), self.y)
    }

    fn training(&self, setup: &TrainSetup<'_>) -> Box<dyn TrainOp> {
        let c = setup.net.cols(self.y);
        Box::new(RmsNormTape { op: self.clone(), rrms: vec![0.0; setup.block_size], dw: vec![0.0; c] })
    }

    fn decoding<'a>(&self, setup: &DecodeSetup<'_, 'a>) -> Option<Box<dyn DecodeOp + 'a>> {
        let (weight, eps) = (setup.param(self.weight), self.eps as f32);
        Some(Box::new(DecodeRmsNorm { x: self.x, y: self.y, weight, eps, rrms: Vec::new() }))
    }
}

/// RMSNorm over the last dimension: `x / sqrt(mean(x^2) + eps) * w`.
///
/// # Errors
/// On a shape mismatch.
pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
    rms_norm_to(x, w, eps, w.dtype())
}

/// [`rms_norm`] whose kernels write values of a narrower type where products alone read them.
pub(super) fn rms_norm_to(x: &Tensor, w: &Tensor, eps: f64, dtype: DType) -> Result<Tensor> {
    let x = &tape::cast(x, w.dtype())?;
    if norm::fits(w.elem_count(), false)
        && let Some(kernels) = kernels_for(&[x, w])
    {
        return Ok(NormKernels::of(Norm::Rms, eps).apply(kernels, x, (w, None), dtype)?);
    }
    let y = value(x, w, eps)?;
    let inputs = (x.clone(), w.clone());
    tape::record_adding("rms norm", &[x, w], &y, move |dy, before| {
        let [dx, dw] = gradients(&inputs.0, &inputs.1, eps, dy)?;
        Ok(vec![tape::plus(before, dx)?, dw])
    });
    Ok(y)
}

/// [`rms_norm`], unrecorded.
pub(super) fn value(x: &Tensor, w: &Tensor, eps: f64) -> candle_core::Result<Tensor> {
    count_launch(normed(x, eps)?.0.broadcast_mul(w))
}

/// The gradients of `x (.., C)` and `w (C)`: `dx = rrms (g - z mean(g z))` with `g = dy * w` and `z` the normed rows.
pub(super) fn gradients(x: &Tensor, w: &Tensor, eps: f64, dy: &Tensor) -> candle_core::Result<[Tensor; 2]> {
    let (z, rrms) = normed(x, eps)?;
    let dw = sum_rows(&count_launch(dy.mul(&z))?)?;
    let g = count_launch(dy.broadcast_mul(w))?;
    let along = count_launch(z.broadcast_mul(&mean(&count_launch(g.mul(&z))?)?))?;
    Ok([count_launch(count_launch(g - along)?.broadcast_mul(&rrms))?, dw])
}

/// Normalized rows of mean square 1, `(.., C)`, and the reciprocal root mean squares, `(.., 1)`.
fn normed(x: &Tensor, eps: f64) -> candle_core::Result<(Tensor, Tensor)> {
    let mean_square = mean(&count_launch(x.sqr())?)?;
    let rrms = count_launch(count_launch(count_launch(mean_square + eps)?.sqrt())?.recip())?;
    Ok((count_launch(x.broadcast_mul(&rrms))?, rrms))
}

/// An RMSNorm with its tape of one sequence.
#[derive(Debug)]
struct RmsNormTape {
    op: RmsNorm,
    /// The reciprocal root mean square of each row, `(block_size)`.
    rrms: Vec<f32>,
    /// The gradient of the weight, `(C)`, summed over the sequence.
    dw: Vec<f32>,
}

impl TrainOp for RmsNormTape {
    fn forward(&mut self, pass: &mut TrainPass<'_>) {
        let RmsNorm { x, y, weight, eps } = self.op;
        let w = pass.weights.param(weight);
        let (x, y) = pass.values.pair(x, y, &mut pass.scratch.rows);
        forward(pass.level, pass.t, x.rows(), (w, eps as f32), &mut self.rrms, y);
    }

    /// Adds to the gradient of `x`.
    fn backward(&mut self, pass: &mut TrainPass<'_>) {
        let RmsNorm { x, y, weight, .. } = self.op;
        self.dw.fill(0.0);
        let w = pass.weights.param(weight);
        let (dx, dy) = pass.grads.both_rows_mut(x, y);
        let (n, x) = (pass.t, pass.values.rows(x));
        pass.level.run(Backward { n, x, rrms: &self.rrms, w, dy, dx, dw: &mut self.dw });
    }

    fn add_vector_grads(&self, layout: &ParamLayout, grads: &mut [f32]) {
        layout.add(self.op.weight, &self.dw, grads);
    }
}

#[derive(Debug)]
struct DecodeRmsNorm<'a> {
    x: Value,
    y: Value,
    weight: &'a [f32],
    eps: f32,
    rrms: Vec<f32>,
}

impl DecodeOp for DecodeRmsNorm<'_> {
    fn run(&mut self, step: &mut DecodeStep<'_, '_>) {
        if self.rrms.len() < step.n {
            self.rrms.resize(step.n, 0.0);
        }
        let (x, y) = step.values.pair(self.x, self.y);
        forward(step.level, step.n, x, (self.weight, self.eps), &mut self.rrms, y);
    }
}

/// Normalizes the first `n` rows of `x (n, C)` into `y (n, C)`.
fn forward(level: SimdLevel, n: usize, x: &Rows, (w, eps): (&[f32], f32), rrms: &mut [f32], y: &mut Rows) {
    level.run(Forward { n, x, w, eps, rrms, y });
}

struct Forward<'a> {
    n: usize,
    x: &'a Rows,
    w: &'a [f32],
    eps: f32,
    rrms: &'a mut [f32],
    y: &'a mut Rows,
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (i, rrms) in self.rrms.iter_mut().enumerate().take(self.n) {
            *rrms = normalize_row(s, self.x.row(i), (self.w, self.eps), self.y.row_mut(i));
        }
    }
}

/// Normalizes a row `(C)` into `y (C)`, and returns its reciprocal root mean square.
#[inline(always)]
pub(super) fn normalize_row<S: Simd>(s: S, x: &[f32], (w, eps): (&[f32], f32), y: &mut [f32]) -> f32 {
    let mut squares = s.splat(0.0);
    for v in 0..vectors::count(x) {
        let x = vectors::get(s, x, v);
        squares = s.mul_add(x, x, squares);
    }
    let rrms = 1.0 / (s.sum(squares) / x.len() as f32 + eps).sqrt();
    for v in 0..vectors::count(x) {
        let normed = s.mul(vectors::get(s, x, v), s.splat(rrms));
        vectors::set(s, y, v, s.mul(normed, vectors::get(s, w, v)));
    }
    rrms
}

/// With `z` the normed row: adds `dy z` to `dw (C)`, overwrites `dy (C)` with `g = dy w`, and returns the mean of `g z`.
#[inline(always)]
pub(super) fn weight_grad_row<S: Simd>(s: S, x: &[f32], rrms: f32, w: &[f32], dy: &mut [f32], dw: &mut [f32]) -> f32 {
    let rrms = s.splat(rrms);
    let mut product = s.splat(0.0);
    for v in 0..vectors::count(x) {
        let (grad, z) = (vectors::get(s, dy, v), s.mul(vectors::get(s, x, v), rrms));
        vectors::set(s, dw, v, s.mul_add(grad, z, vectors::get(s, dw, v)));
        let g = s.mul(grad, vectors::get(s, w, v));
        vectors::set(s, dy, v, g);
        product = s.mul_add(g, z, product);
    }
    s.sum(product) * (1.0 / x.len() as f32)
}

struct Backward<'a> {
    n: usize,
    x: &'a Rows,
    rrms: &'a [f32],
    w: &'a [f32],
    /// `(n, C)`, overwritten.
    dy: &'a mut Rows,
    /// `(n, C)`, added to.
    dx: &'a mut Rows,
    dw: &'a mut [f32],
}

impl Kernel for Backward<'_> {
    type Output = ();

    /// With `g = dy w` and `z` the normed row: `dx = rrms (g - z mean(g z))`.
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (i, &rrms) in self.rrms.iter().enumerate().take(self.n) {
            let (x, dy, dx) = (self.x.row(i), self.dy.row_mut(i), self.dx.row_mut(i));
            let mean_gz = s.splat(weight_grad_row(s, x, rrms, self.w, dy, self.dw));
            let rrms = s.splat(rrms);
            for v in 0..vectors::count(x) {
                let z = s.mul(vectors::get(s, x, v), rrms);
                let across = s.sub(vectors::get(s, dy, v), s.mul(z, mean_gz));
                vectors::set(s, dx, v, s.mul_add(across, rrms, vectors::get(s, dx, v)));
            }
        }
    }
}
