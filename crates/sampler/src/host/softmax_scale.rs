//! From logits to softmax weights: `exp((x - origin) / temperature)` on vectors, and sums of weights.

use super::blocks::{Block, Blocks, VECTORS_PER_BLOCK};
use crate::simd::{Kernel, LANES, Simd, exp2_scaled_of};

/// The weight of a logit x at a temperature: `exp((x - origin) / temperature)`. A logit equal to the origin weighs 1.
///
/// The reciprocal of the temperature is held in two floats and multiplied by fused operations, so the exponent has the
/// rounding error of `x - origin` alone (half a unit in the last place). Weights below `2^-125` are 0; the relative
/// error of the others, given the exponent, is 2e-7.
#[derive(Debug, Clone, Copy)]
pub(super) struct SoftmaxScale {
    pub(super) origin: f32,
    /// `8 log2(e) / temperature`, rounded, and the rest.
    factor_high: f32,
    factor_low: f32,
    /// Distances `x - origin` below this, where the weight falls below `2^-125`, get the weight 0.
    min_distance: f32,
}

impl SoftmaxScale {
    /// Temperatures, from `2^-40` to `2^40`, for which neither the factor nor `min_distance` leaves the range of f32.
    pub(super) const TEMPERATURES: std::ops::RangeInclusive<f64> = 1.0 / 1_099_511_627_776.0..=1_099_511_627_776.0;

    pub(super) fn new(origin: f32, temperature: f64) -> Self {
        let factor = 8.0 * std::f64::consts::LOG2_E / temperature;
        let factor_high = factor as f32;
        Self {
            origin,
            factor_high,
            factor_low: (factor - f64::from(factor_high)) as f32,
            min_distance: (-1000.0 / factor) as f32,
        }
    }

    /// Whether the largest logit of a row weighs at most `2^24`. Beyond, the rounding of its distance from the origin
    /// could change a draw.
    pub(super) fn is_near(&self, max: f32) -> bool {
        (f64::from(max) - f64::from(self.origin)) * f64::from(self.factor_high) <= 8.0 * 24.0
    }

    /// The weights of sixteen logits. That of NaN, and of logits whose distance from the origin is beyond f32, is NaN; that of
    /// logits that are not near the origin ([`SoftmaxScale::is_near`]) may be any number.
    #[inline(always)]
    pub(super) fn weights<S: Simd>(&self, s: S, x: S::V) -> S::V {
        let [weights] = self.weights_of(s, [x]);
        weights
    }

    /// [`SoftmaxScale::weights`] of several vectors.
    #[inline(always)]
    pub(super) fn weights_of<S: Simd, const N: usize>(&self, s: S, x: [S::V; N]) -> [S::V; N] {
        let distance: [S::V; N] = std::array::from_fn(|n| s.sub(x[n], s.splat(self.origin)));
        let inside: [u16; N] = std::array::from_fn(|n| s.not_lt(distance[n], s.splat(self.min_distance)));
        let weights = exp2_scaled_of(s, distance, s.splat(self.factor_high), s.splat(self.factor_low));
        std::array::from_fn(|n| s.keep(inside[n], weights[n]))
    }

    /// The sum of the weights of a block.
    #[inline(always)]
    pub(super) fn block_sum<S: Simd>(&self, s: S, block: &Block) -> f64 {
        let mut sum = s.splat(0.0);
        for lanes in block {
            sum = s.add(sum, self.weights(s, s.load(lanes)));
        }
        f64::from(s.sum(sum))
    }
}

/// Sums the weights of each block of a row.
pub(super) struct BlockSums<'a> {
    pub(super) row: &'a [f32],
    pub(super) scale: SoftmaxScale,
    pub(super) block_sums: &'a mut Vec<f64>,
}

impl Kernel for BlockSums<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let blocks = Blocks::new(self.row, f32::NEG_INFINITY);
        self.block_sums.clear();
        for n in 0..blocks.count {
            self.block_sums.push(self.scale.block_sum(s, blocks.get(n)));
        }
    }
}

/// Writes the weights of `values`, and their sums by block if `block_sums` is given. `weights` must have room for whole
/// blocks; the rest of the last one gets weights of 0.
pub(super) struct SoftmaxWeights<'a> {
    pub(super) values: &'a [f32],
    pub(super) scale: SoftmaxScale,
    pub(super) weights: &'a mut [f32],
    pub(super) block_sums: Option<&'a mut Vec<f64>>,
}

impl Kernel for SoftmaxWeights<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let blocks = Blocks::new(self.values, f32::NEG_INFINITY);
        let weights = self.weights.as_chunks_mut::<LANES>().0;
        if let Some(block_sums) = &mut self.block_sums {
            block_sums.clear();
        }
        for (n, to) in weights.chunks_exact_mut(VECTORS_PER_BLOCK).take(blocks.count).enumerate() {
            let mut sum = s.splat(0.0);
            for (lanes, to) in blocks.get(n).iter().zip(to) {
                let weights = self.scale.weights(s, s.load(lanes));
                s.store(weights, to);
                sum = s.add(sum, weights);
            }
            if let Some(block_sums) = &mut self.block_sums {
                block_sums.push(f64::from(s.sum(sum)));
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
        let mut block_sums = Vec::new();
        level.run(SoftmaxWeights {
            values,
            scale: SoftmaxScale::new(max, temperature),
            weights: &mut weights,
            block_sums: Some(&mut block_sums),
        });
        weights.truncate(values.len());
        (weights, block_sums)
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
            let (weights, block_sums) = weigh(SimdLevel::detect(), &[max, f32::NEG_INFINITY], max, 0.3);
            assert_eq!(weights, [1.0, 0.0]);
            assert_eq!(block_sums, [1.0]);
        }
    }

    #[test]
    fn every_level_gives_the_same_weights_and_sums() {
        let values: Vec<f32> = (0..3001).map(|n| ((n * 7919) % 3001) as f32 * -0.03).collect();
        let expected = weigh(SimdLevel::SCALAR, &values, 0.0, 0.8);
        for level in SimdLevel::available() {
            assert_eq!(weigh(level, &values, 0.0, 0.8), expected);
            let mut block_sums = Vec::new();
            let scale = SoftmaxScale::new(0.0, 0.8);
            level.run(BlockSums { row: &values, scale, block_sums: &mut block_sums });
            assert_eq!(block_sums, expected.1);
        }
    }
}
