//! Layer norm over a row: `(x - mean) / sqrt(var + eps) * w + b`, with the biased variance.

use tinygpt_sampler::simd::{Kernel, Simd, SimdLevel};

use super::{rows::Rows, vectors};
use crate::config::LAYER_NORM_EPS;

/// What the backward pass needs of a row.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Moments {
    mean: f32,
    /// `1 / sqrt(var + eps)`.
    rstd: f32,
}

/// Norms rows `0..n` of `x` into `y`.
pub(super) fn forward(
    level: SimdLevel,
    n: usize,
    x: &Rows,
    (w, b): (&[f32], Option<&[f32]>),
    moments: &mut [Moments],
    y: &mut Rows,
) {
    level.run(Forward { n, x, w, b, moments, y });
}

/// Adds to `dx` the gradient that reaches `x` by way of the norm, and to `dw` and `db` those of weight and bias, for
/// rows `0..n`. `dy` is used up.
pub(super) fn backward(
    level: SimdLevel,
    n: usize,
    (x, moments): (&Rows, &[Moments]),
    w: &[f32],
    dy: &mut Rows,
    dx: &mut Rows,
    (dw, db): (&mut [f32], Option<&mut [f32]>),
) {
    level.run(Backward { n, x, moments, w, dy, dx, dw, db });
}

struct Forward<'a> {
    n: usize,
    x: &'a Rows,
    w: &'a [f32],
    b: Option<&'a [f32]>,
    moments: &'a mut [Moments],
    y: &'a mut Rows,
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let cols = self.x.cols;
        let zero = s.splat(0.0);
        for (i, moments) in self.moments.iter_mut().enumerate().take(self.n) {
            let (x, y) = (self.x.row(i), self.y.row_mut(i));
            let mut sum = zero;
            for v in 0..vectors::count(x) {
                sum = s.add(sum, vectors::get(s, x, v));
            }
            let mean = s.sum(sum) / cols as f32;
            let mut squares = zero;
            for v in 0..vectors::count(x) {
                let centred = s.keep(vectors::inside(cols, v), s.sub(vectors::get(s, x, v), s.splat(mean)));
                squares = s.mul_add(centred, centred, squares);
            }
            let rstd = 1.0 / (s.sum(squares) / cols as f32 + LAYER_NORM_EPS as f32).sqrt();
            for v in 0..vectors::count(x) {
                let normed = s.mul(s.sub(vectors::get(s, x, v), s.splat(mean)), s.splat(rstd));
                let bias = self.b.map_or(zero, |b| vectors::get(s, b, v));
                vectors::set(s, y, v, s.mul_add(normed, vectors::get(s, self.w, v), bias));
            }
            *moments = Moments { mean, rstd };
        }
    }
}

struct Backward<'a> {
    n: usize,
    x: &'a Rows,
    moments: &'a [Moments],
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
        for (i, &Moments { mean, rstd }) in self.moments.iter().enumerate().take(self.n) {
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
