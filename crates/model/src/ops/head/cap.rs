//! The cap of logits, `cap * tanh(logits / cap)`.

use candle_core::Tensor;
use tinygpt_sampler::simd::{Kernel, Simd, SimdLevel, exp};

use crate::{
    cpu::vectors,
    ops::{launches::count_launch, tape},
};

/// What logits are capped at: a number above 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct LogitCap(pub(crate) f64);

impl LogitCap {
    /// Caps logits of any shape on candle tensors.
    fn apply(self, logits: &Tensor) -> candle_core::Result<Tensor> {
        let capped =
            count_launch(count_launch(count_launch(logits.affine(1.0 / self.0, 0.0))?.tanh())?.affine(self.0, 0.0))?;
        let output = capped.clone();
        tape::record("logit cap", [logits], &capped, move |dy| Ok([count_launch(dy.mul(&self.derivative(&output)?))?]));
        Ok(capped)
    }

    /// [`LogitCap::apply`], if there is a cap.
    pub(crate) fn apply_to(cap: Option<Self>, logits: Tensor) -> candle_core::Result<Tensor> {
        cap.map_or(Ok(logits.clone()), |cap| cap.apply(&logits))
    }

    /// The derivative at capped logits, `1 - (capped / cap)^2`.
    pub(crate) fn derivative(self, capped: &Tensor) -> candle_core::Result<Tensor> {
        count_launch(count_launch(capped.sqr())?.affine(-1.0 / (self.0 * self.0), 1.0))
    }

    /// Caps a row of logits in place. With `derivative`, a row as long, it writes the derivatives there.
    pub(crate) fn apply_cpu(self, level: SimdLevel, logits: &mut [f32], derivative: Option<&mut [f32]>) {
        level.run(Cap { cap: self.0 as f32, logits, derivative });
    }
}

struct Cap<'a> {
    cap: f32,
    logits: &'a mut [f32],
    derivative: Option<&'a mut [f32]>,
}

impl Kernel for Cap<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { cap, logits, mut derivative } = self;
        let (one, zero) = (s.splat(1.0), s.splat(0.0));
        for v in 0..vectors::count(logits) {
            let tanh = tanh(s, s.mul(vectors::get(s, logits, v), s.splat(1.0 / cap)));
            vectors::set(s, logits, v, s.mul(tanh, s.splat(cap)));
            if let Some(derivative) = &mut derivative {
                vectors::set(s, derivative, v, s.mul_add(s.sub(zero, tanh), tanh, one));
            }
        }
    }
}

/// `tanh(x) = (1 - e) / (1 + e)` with `e = exp(-2 |x|)`, of the sign of `x`; where that would cancel, the first terms of its
/// series. NaN stays NaN.
#[inline(always)]
fn tanh<S: Simd>(s: S, x: S::V) -> S::V {
    let (zero, one) = (s.splat(0.0), s.splat(1.0));
    let abs = s.max(x, s.sub(zero, x));
    let e = exp(s, s.mul(abs, s.splat(-2.0)));
    let size = s.div(s.sub(one, e), s.add(one, e));
    let negative = s.gt(zero, x);
    let signed = s.add(s.keep(negative, s.sub(zero, size)), s.keep(!negative, size));
    let square = s.mul(x, x);
    // x - x^3 / 3 + 2 x^5 / 15, which is exact to 6e-9 of x below 0.1.
    let series = s.mul(x, s.mul_add(square, s.mul_add(square, s.splat(2.0 / 15.0), s.splat(-1.0 / 3.0)), one));
    let near = s.gt(s.splat(0.1), abs);
    let signed = s.add(s.keep(near, series), s.keep(!near, signed));
    // Neither the maximum nor `exp` propagates a NaN.
    let nan = s.unordered(x, x);
    s.add(s.keep(nan, x), s.keep(!nan, signed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capped_logits_and_derivatives_are_exact_to_a_millionth_on_every_level_and_of_the_same_bits() {
        let xs: Vec<f32> = (-1203..=1204).map(|i| i as f32 / 20.0).collect();
        let mut first: Option<Vec<u32>> = None;
        for level in SimdLevel::available() {
            let (mut y, mut alone, mut dy) = (xs.clone(), xs.clone(), vec![0.0; xs.len()]);
            LogitCap(15.0).apply_cpu(level, &mut y, Some(&mut dy));
            LogitCap(15.0).apply_cpu(level, &mut alone, None);
            assert_eq!(y, alone);
            for ((&x, &y), &dy) in xs.iter().zip(&y).zip(&dy) {
                let tanh = (f64::from(x) / 15.0).tanh();
                let error = (f64::from(y) - 15.0 * tanh).abs();
                assert!(error <= 1e-6 * (15.0 * tanh).abs(), "{level:?}: {y} at {x}");
                assert!((f64::from(dy) - (1.0 - tanh * tanh)).abs() < 1e-6, "{level:?}: derivative {dy} at {x}");
            }
            let bits = y.iter().chain(&dy).map(|x| x.to_bits()).collect();
            assert_eq!(*first.get_or_insert_with(|| Vec::clone(&bits)), bits, "{level:?}");
        }
    }

    #[test]
    fn a_logit_that_is_no_number_stays_none() {
        let mut row = [1.0, f32::NAN, -2.0];
        LogitCap(5.0).apply_cpu(SimdLevel::detect(), &mut row, None);
        assert!(row[1].is_nan() && row[0] > 0.0 && row[2] < 0.0);
    }
}
