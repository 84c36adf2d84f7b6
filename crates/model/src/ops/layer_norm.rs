//! Layer norm over a row: `(x - mean) / sqrt(var + eps) * w + b`, with the biased variance (Ba et al., 2016).

use candle_core::{DType, Tensor};
use tinygpt_sampler::simd::{Kernel, Simd, SimdLevel};

use super::{
    Operation,
    kernels::{
        kernels_for,
        norm::{self, NormKernels, NormParams},
    },
    launches::{count_launch, mean, sum_rows},
    linear::add_bias,
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

/// Layer norm of each row.
#[derive(Debug, Clone)]
pub(crate) struct LayerNorm {
    pub(crate) x: Value,
    pub(crate) y: Value,
    /// `(C)`.
    weight: ParamId,
    /// `(C)`.
    bias: Option<ParamId>,
    eps: f64,
}

impl LayerNorm {
    /// Its kind, epsilon and parameters.
    pub(crate) fn norm(&self) -> InputNorm {
        InputNorm { kind: Norm::Layer, eps: self.eps, weight: self.weight, bias: self.bias }
    }
}

impl NetworkBuilder {
    /// Layer norm of `x (T, C)`: `(T, C)`, with the epsilon of the configuration.
    pub fn layer_norm(&mut self, x: Value, module: &str) -> Value {
        let c = self.cols[x.0];
        let weight = self.param(format!("{module}.weight"), &[c], Role::Norm, Init::Ones);
        let bias = self.bias(module, c);
        let (y, eps) = (self.value(c), self.config.norm_eps(Norm::Layer));
        self.push(LayerNorm { x, y, weight, bias, eps })
    }
}

impl Operation for LayerNorm {
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
        let bias = self.bias.map(|bias| pass.param(bias));
        let params = (pass.param(self.weight), bias);
        layer_norm_to(&pass.value(self.x)?, params, self.eps, pass.operand_dtype())
    }

    fn kept_floats(&self, net: &Network, t: usize) -> usize {
        2 * t + (1 + usize::from(self.bias.is_some())) * net.cols(self.y)
    }

    fn fuse(&self, fusion: &mut Fusion<'_>) -> Option<()> {
        fusion.norm(self.x, self.norm(), self.y)
    }

    fn training(&self, setup: &TrainSetup<'_>) -> Box<dyn TrainOp> {
        let c = setup.net.cols(self.y);
        Box::new(LayerNormTape {
            op: self.clone(),
            stats: vec![LayerNormStats::default(); setup.block_size],
            dw: vec![0.0; c],
            db: self.bias.map(|_| vec![0.0; c]),
        })
    }

    fn decoding<'a>(&self, setup: &DecodeSetup<'_, 'a>) -> Option<Box<dyn DecodeOp + 'a>> {
        Some(Box::new(DecodeLayerNorm {
            x: self.x,
            y: self.y,
            weight: setup.param(self.weight),
            bias: self.bias.map(|bias| setup.param(bias)),
            eps: self.eps as f32,
            stats: Vec::new(),
        }))
    }
}

/// A layer norm with its tape of one sequence.
#[derive(Debug)]
struct LayerNormTape {
    op: LayerNorm,
    /// The statistics of each row, `(block_size)`.
    stats: Vec<LayerNormStats>,
    /// The gradient of the weight, `(C)`, summed over the sequence.
    dw: Vec<f32>,
    /// The gradient of the bias, `(C)`, summed over the sequence.
    db: Option<Vec<f32>>,
}

impl TrainOp for LayerNormTape {
    fn forward(&mut self, pass: &mut TrainPass<'_>) {
        let LayerNorm { x, y, weight, bias, eps } = self.op;
        let (w, b) = (pass.weights.param(weight), bias.map(|bias| pass.weights.param(bias)));
        let (x, y) = pass.values.pair(x, y, &mut pass.scratch.rows);
        forward(pass.level, pass.t, x.rows(), (w, b, eps as f32), &mut self.stats, y);
    }

    /// Adds to the gradient of `x`.
    fn backward(&mut self, pass: &mut TrainPass<'_>) {
        let LayerNorm { x, y, weight, .. } = self.op;
        self.dw.fill(0.0);
        if let Some(db) = &mut self.db {
            db.fill(0.0);
        }
        let w = pass.weights.param(weight);
        let (dx, dy) = pass.grads.both_rows_mut(x, y);
        let forward = (pass.values.rows(x), &*self.stats);
        backward(pass.level, pass.t, forward, w, dy, dx, (&mut self.dw, self.db.as_deref_mut()));
    }

    fn add_vector_grads(&self, layout: &ParamLayout, grads: &mut [f32]) {
        layout.add(self.op.weight, &self.dw, grads);
        if let (Some(bias), Some(db)) = (self.op.bias, &self.db) {
            layout.add(bias, db, grads);
        }
    }
}

#[derive(Debug)]
struct DecodeLayerNorm<'a> {
    x: Value,
    y: Value,
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: f32,
    stats: Vec<LayerNormStats>,
}

impl DecodeOp for DecodeLayerNorm<'_> {
    fn run(&mut self, step: &mut DecodeStep<'_, '_>) {
        if self.stats.len() < step.n {
            self.stats.resize(step.n, LayerNormStats::default());
        }
        let (x, y) = step.values.pair(self.x, self.y);
        forward(step.level, step.n, x, (self.weight, self.bias, self.eps), &mut self.stats, y);
    }
}

/// Layer norm over the last dimension: `(x - mean) / sqrt(var + eps) * w + b`, with the biased variance.
///
/// # Errors
/// On a shape mismatch.
pub fn layer_norm(x: &Tensor, w: &Tensor, b: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    layer_norm_to(x, (w, b), eps, w.dtype())
}

/// [`layer_norm`] whose kernels write values of a narrower type where products alone read them.
pub(super) fn layer_norm_to(x: &Tensor, (w, b): NormParams<'_>, eps: f64, dtype: DType) -> Result<Tensor> {
    let x = &tape::cast(x, w.dtype())?;
    let inputs: Vec<&Tensor> = [x, w].into_iter().chain(b).collect();
    if norm::fits(w.elem_count(), b.is_some())
        && let Some(kernels) = kernels_for(&inputs)
    {
        return Ok(NormKernels::of(Norm::Layer, eps).apply(kernels, x, (w, b), dtype)?);
    }
    let y = count_launch(Normalized::new(x, eps)?.z.broadcast_mul(w))?;
    let inputs = (x.clone(), w.clone());
    tape::record_adding("layer norm", &[x, w], &y, move |dy, before| {
        let (x, w) = (&inputs.0, &inputs.1);
        let Normalized { z, rstd } = Normalized::new(x, eps)?;
        let dw = sum_rows(&count_launch(dy.mul(&z))?)?;
        // dx = (g - mean(g) - z mean(g z)) rstd with g = dy * w
        let g = count_launch(dy.broadcast_mul(w))?;
        let along = count_launch(z.broadcast_mul(&mean(&count_launch(g.mul(&z))?)?))?;
        let centred = count_launch(g.broadcast_sub(&mean(&g)?))?;
        let dx = count_launch(count_launch(centred - along)?.broadcast_mul(&rstd))?;
        Ok(vec![tape::plus(before, dx)?, dw])
    });
    add_bias(y, b)
}

/// Normalized rows, and the reciprocal standard deviations.
struct Normalized {
    /// Rows of mean 0 and variance 1, `(.., C)`.
    z: Tensor,
    /// `1 / sqrt(var + eps)`, `(.., 1)`.
    rstd: Tensor,
}

impl Normalized {
    fn new(x: &Tensor, eps: f64) -> candle_core::Result<Self> {
        let centred = count_launch(x.broadcast_sub(&mean(x)?))?;
        let var = mean(&count_launch(centred.sqr())?)?;
        let rstd = count_launch(count_launch(count_launch(var + eps)?.sqrt())?.recip())?;
        Ok(Self { z: count_launch(centred.broadcast_mul(&rstd))?, rstd })
    }
}

/// The mean and the reciprocal standard deviation of a row, which the backward pass reads.
#[derive(Debug, Clone, Copy, Default)]
struct LayerNormStats {
    mean: f32,
    /// `1 / sqrt(var + eps)`.
    rstd: f32,
}

/// Normalizes the first `n` rows of `x (n, C)` into `y (n, C)`.
fn forward(
    level: SimdLevel,
    n: usize,
    x: &Rows,
    (w, b, eps): (&[f32], Option<&[f32]>, f32),
    stats: &mut [LayerNormStats],
    y: &mut Rows,
) {
    level.run(Forward { n, x, w, b, eps, stats, y });
}

/// Adds the gradients of the first `n` rows of `x (n, C)` to `dx (n, C)`, and those of weight and bias to `dw (C)` and
/// `db (C)`. Overwrites `dy (n, C)`.
fn backward(
    level: SimdLevel,
    n: usize,
    (x, stats): (&Rows, &[LayerNormStats]),
    w: &[f32],
    dy: &mut Rows,
    dx: &mut Rows,
    (dw, db): (&mut [f32], Option<&mut [f32]>),
) {
    level.run(Backward { n, x, stats, w, dy, dx, dw, db });
}

struct Forward<'a> {
    n: usize,
    x: &'a Rows,
    w: &'a [f32],
    b: Option<&'a [f32]>,
    eps: f32,
    stats: &'a mut [LayerNormStats],
    y: &'a mut Rows,
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let cols = self.x.cols;
        let zero = s.splat(0.0);
        for (i, stats) in self.stats.iter_mut().enumerate().take(self.n) {
            let (x, y) = (self.x.row(i), self.y.row_mut(i));
            let mut sum = zero;
            for v in 0..vectors::count(x) {
                sum = s.add(sum, vectors::get(s, x, v));
            }
            let mean = s.sum(sum) / cols as f32;
            let mut squares = zero;
            for v in 0..vectors::count(x) {
                let centred = s.keep(vectors::lane_mask(cols, v), s.sub(vectors::get(s, x, v), s.splat(mean)));
                squares = s.mul_add(centred, centred, squares);
            }
            let rstd = 1.0 / (s.sum(squares) / cols as f32 + self.eps).sqrt();
            for v in 0..vectors::count(x) {
                let normed = s.mul(s.sub(vectors::get(s, x, v), s.splat(mean)), s.splat(rstd));
                let bias = self.b.map_or(zero, |b| vectors::get(s, b, v));
                vectors::set(s, y, v, s.mul_add(normed, vectors::get(s, self.w, v), bias));
            }
            *stats = LayerNormStats { mean, rstd };
        }
    }
}

struct Backward<'a> {
    n: usize,
    x: &'a Rows,
    stats: &'a [LayerNormStats],
    w: &'a [f32],
    dy: &'a mut Rows,
    dx: &'a mut Rows,
    dw: &'a mut [f32],
    db: Option<&'a mut [f32]>,
}

impl Kernel for Backward<'_> {
    type Output = ();

    /// With `g = dy w` and `z` the normed row: `dx = rstd (g - mean(g) - z mean(g z))`.
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let scale = 1.0 / self.x.cols as f32;
        for (i, &LayerNormStats { mean, rstd }) in self.stats.iter().enumerate().take(self.n) {
            let (x, dy, dx) = (self.x.row(i), self.dy.row_mut(i), self.dx.row_mut(i));
            let normed = |v| s.mul(s.sub(vectors::get(s, x, v), s.splat(mean)), s.splat(rstd));
            let (mut sum, mut product) = (s.splat(0.0), s.splat(0.0));
            for v in 0..vectors::count(x) {
                let (grad, z) = (vectors::get(s, dy, v), normed(v));
                vectors::set(s, self.dw, v, s.mul_add(grad, z, vectors::get(s, self.dw, v)));
                if let Some(db) = &mut self.db {
                    vectors::set(s, db, v, s.add(grad, vectors::get(s, db, v)));
                }
                // Zero behind the row's end, as the weight is.
                let g = s.mul(grad, vectors::get(s, self.w, v));
                vectors::set(s, dy, v, g);
                sum = s.add(sum, g);
                product = s.mul_add(g, z, product);
            }
            let (mean_g, mean_gz) = (s.splat(s.sum(sum) * scale), s.splat(s.sum(product) * scale));
            for v in 0..vectors::count(x) {
                let centred = s.sub(s.sub(vectors::get(s, dy, v), mean_g), s.mul(normed(v), mean_gz));
                vectors::set(s, dx, v, s.mul_add(centred, s.splat(rstd), vectors::get(s, dx, v)));
            }
        }
    }
}
