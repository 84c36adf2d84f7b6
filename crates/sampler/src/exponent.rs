//! From logits to weights: e to the power of each, on vectors, and their sums.

use crate::kernels::{Blocks, VECTORS};
use crate::simd::{Kernel, LANES, Simd, exp2_of_eighths};

/// `weight(x) = 2^((x - origin) * log2(e) / temperature)`: e to the power of the logit's distance from the one of weight 1.
///
/// The factor is held in two floats and multiplied with fused operations, so the exponent's error is that of
/// `x - origin` alone (half a unit in its last place). Below `2^-125` a weight is 0. Relative error of the rest: 2e-7.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exponent {
    pub(crate) origin: f32,
    high: f32,
    low: f32,
    least: f32,
}

impl Exponent {
    /// Temperatures for which neither the factor nor `least` leaves the range of f32.
    pub(crate) const TEMPERATURES: std::ops::RangeInclusive<f64> = 1.0 / 1_099_511_627_776.0..=1_099_511_627_776.0;

    pub(crate) fn new(origin: f32, temperature: f64) -> Self {
        let factor = 8.0 * std::f64::consts::LOG2_E / temperature;
        let high = factor as f32;
        Self { origin, high, low: (factor - f64::from(high)) as f32, least: (-1000.0 / factor) as f32 }
    }

    /// Whether the largest logit of a row is near enough to the origin: where it weighs more than `2^24`, the rounding of
    /// its distance could show in a draw.
    pub(crate) fn reaches(&self, max: f32) -> bool {
        (f64::from(max) - f64::from(self.origin)) * f64::from(self.high) <= 8.0 * 24.0
    }

    #[inline(always)]
    pub(crate) fn weights<S: Simd>(&self, s: S, x: S::V) -> S::V {
        let distance = s.sub(x, s.splat(self.origin));
        let inside = s.ge(distance, s.splat(self.least));
        s.keep(inside, exp2_of_eighths(s, distance, s.splat(self.high), s.splat(self.low)))
    }
}

/// The sum of the weights of each block.
pub(crate) struct Sums<'a> {
    pub(crate) row: &'a [f32],
    pub(crate) exponent: Exponent,
    pub(crate) sums: &'a mut Vec<f64>,
}

impl Kernel for Sums<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let blocks = Blocks::new(self.row, f32::NEG_INFINITY);
        self.sums.clear();
        for n in 0..blocks.count {
            let mut sum = s.splat(0.0);
            for lanes in blocks.get(n) {
                sum = s.add(sum, self.exponent.weights(s, s.load(lanes)));
            }
            self.sums.push(f64::from(s.sum(sum)));
        }
    }
}

/// The weights of a slice and, where asked for, their sums by block. `weights` needs whole blocks.
pub(crate) struct Weigh<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) exponent: Exponent,
    pub(crate) weights: &'a mut [f32],
    pub(crate) sums: Option<&'a mut Vec<f64>>,
}

impl Kernel for Weigh<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let blocks = Blocks::new(self.values, f32::NEG_INFINITY);
        let weights = self.weights.as_chunks_mut::<LANES>().0;
        if let Some(sums) = &mut self.sums {
            sums.clear();
        }
        for (n, to) in weights.chunks_exact_mut(VECTORS).take(blocks.count).enumerate() {
            let mut sum = s.splat(0.0);
            for (lanes, to) in blocks.get(n).iter().zip(to) {
                let weights = self.exponent.weights(s, s.load(lanes));
                s.store(weights, to);
                sum = s.add(sum, weights);
            }
            if let Some(sums) = &mut self.sums {
                sums.push(f64::from(s.sum(sum)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::SimdLevel;

    fn weigh(level: SimdLevel, values: &[f32], max: f32, temperature: f64) -> (Vec<f32>, Vec<f64>) {
        let mut weights = vec![0.0; values.len().next_multiple_of(256)];
        let mut sums = Vec::new();
        level.run(Weigh {
            values,
            exponent: Exponent::new(max, temperature),
            weights: &mut weights,
            sums: Some(&mut sums),
        });
        weights.truncate(values.len());
        (weights, sums)
    }

    #[test]
    fn weights_are_those_of_the_definition() {
        for temperature in [1e-12, 0.01, 0.7, 1.0, 3.0, 1e12] {
            let max = 11.25f32;
            // Differences that f32 holds exactly, so that only the function is tested.
            let values: Vec<f32> = (0..20_000).map(|n| max - (n as f64 * temperature / 200.0) as f32).collect();
            let (weights, _) = weigh(SimdLevel::detect(), &values, max, temperature);
            for (x, w) in values.iter().zip(weights) {
                let exact = (f64::from(x - max) / temperature).exp();
                if exact > 1e-37 {
                    assert!((f64::from(w) / exact - 1.0).abs() < 2e-7, "{x} {w} {exact}");
                } else {
                    assert!(f64::from(w) <= 1e-36);
                }
            }
        }
    }

    #[test]
    fn the_maximum_weighs_exactly_one_and_minus_infinity_nothing() {
        for max in [-3.7f32, 0.0, 1e30] {
            let (weights, sums) = weigh(SimdLevel::detect(), &[max, f32::NEG_INFINITY], max, 0.3);
            assert_eq!(weights, [1.0, 0.0]);
            assert_eq!(sums, [1.0]);
        }
    }

    #[test]
    fn every_level_gives_the_same_weights_and_sums() {
        let values: Vec<f32> = (0..3001).map(|n| ((n * 7919) % 3001) as f32 * -0.03).collect();
        let expected = weigh(SimdLevel::Scalar, &values, 0.0, 0.8);
        for level in SimdLevel::available() {
            assert_eq!(weigh(level, &values, 0.0, 0.8), expected);
            let mut sums = Vec::new();
            let exponent = Exponent::new(0.0, 0.8);
            level.run(Sums { row: &values, exponent, sums: &mut sums });
            assert_eq!(sums, expected.1);
        }
    }
}
