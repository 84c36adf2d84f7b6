//! Where the nucleus of a long row may end: what is certain, and what a sample of the row suggests.

use super::row_kernels::MassBelow;
use super::softmax_scale::{SoftmaxScale, SoftmaxWeights};
use crate::simd::{LANES, Lanes, SimdLevel};

/// By what fraction the weights below the pivots differ from the one below the best guess of the cut.
const PIVOT_MARGIN: f64 = 0.15;

/// The rule: the heaviest tokens that have `top_p`, below 1, of the weight.
#[derive(Debug, Clone, Copy)]
pub(super) struct Nucleus {
    pub(super) top_p: f64,
    pub(super) temperature: f64,
    /// The logit that weighs 1.
    pub(super) origin: f32,
}

impl Nucleus {
    /// The weight outside the nucleus of a row of this weight.
    pub(super) fn outside(&self, total_weight: f64) -> f64 {
        (1.0 - self.top_p) * total_weight
    }

    /// A logit below which no token is in the nucleus of a row of this weight and length.
    ///
    /// Together, all tokens lighter than (1 - p) / V of the total weigh less than 1 - p of it, so they are outside. The
    /// threshold is a little lower, for the rounding of weights.
    pub(super) fn certain_threshold(&self, total_weight: f64, vocab: usize) -> f32 {
        let lightest = self.outside(total_weight) / vocab as f64;
        let threshold = f64::from(self.origin) + self.temperature * (lightest.ln() - 1e-4);
        (threshold as f32).next_down().max(f32::MIN)
    }
}

/// How the weight of a row's lighter tokens is spread, as a sample has it.
#[derive(Debug, Clone, Copy)]
pub(super) struct LowerTail {
    /// Equally spaced.
    thresholds: Lanes,
    /// The weight of the row below each of them.
    below: [f64; LANES],
}

impl LowerTail {
    /// That of a row of `vocab` logits, from `lowest` to `highest`, by vectors of it. `weights` has room for whole blocks of them.
    pub(super) fn of_sample(
        level: SimdLevel,
        sample: &[Lanes],
        vocab: usize,
        scale: SoftmaxScale,
        lowest: f32,
        highest: f32,
        weights: &mut [f32],
    ) -> Self {
        let values = sample.as_flattened();
        level.run(SoftmaxWeights { values, scale, weights, block_sums: None });
        let step = (highest - lowest) / LANES as f32;
        let thresholds: Lanes = std::array::from_fn(|n| lowest + n as f32 * step);
        let weights = &weights[..values.len()];
        let below = level.run(MassBelow { values, weights, thresholds: &thresholds });
        let rows = vocab as f64 / values.len() as f64;
        Self { thresholds, below: below.map(|weight| rows * f64::from(weight)) }
    }

    /// A threshold below which about `weight` of the row lies; the lowest where there is more below that already.
    pub(super) fn threshold(&self, weight: f64) -> f32 {
        let Self { thresholds, below } = self;
        // Interpolates linearly between the last threshold with less than that below it and the next. The weight is
        // convex in the threshold, so this is rather too low than too high.
        let n = below.iter().rposition(|&below| below <= weight).unwrap_or(0);
        let Some(next) = below.get(n + 1) else { return thresholds[n] };
        let fraction = ((weight - below[n]) / (next - below[n])) as f32;
        thresholds[n] + (thresholds[n + 1] - thresholds[n]) * fraction.clamp(0.0, 1.0)
    }

    /// Whether a threshold is the last of all: the sample knows of no higher one.
    pub(super) fn is_last(&self, threshold: f32) -> bool {
        threshold >= self.thresholds[LANES - 1]
    }

    /// Two logits, the lower one first, likely to enclose the one below which `weight` of the row lies.
    pub(super) fn pivots(&self, weight: f64) -> (f32, f32) {
        (self.threshold((1.0 - PIVOT_MARGIN) * weight), self.threshold((1.0 + PIVOT_MARGIN) * weight))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::uniform;

    /// Rows of whole vectors, all of which are the sample.
    fn row(logit: impl Fn(u64) -> f64) -> Vec<Lanes> {
        (0..600).map(|v| std::array::from_fn(|lane| logit(16 * v + lane as u64) as f32)).collect()
    }

    fn tail(row: &[Lanes], lowest: f32, highest: f32) -> LowerTail {
        let mut weights = vec![0.0; row.len() * LANES + 256];
        let scale = SoftmaxScale::new(highest, 1.0);
        LowerTail::of_sample(SimdLevel::detect(), row, row.len() * LANES, scale, lowest, highest, &mut weights)
    }

    fn weight_below(row: &[Lanes], threshold: f32, origin: f32) -> f64 {
        row.as_flattened().iter().filter(|x| **x < threshold).map(|x| f64::from(x - origin).exp()).sum()
    }

    #[test]
    fn a_threshold_has_about_the_weight_below_it_and_pivots_enclose_it() {
        let row = row(|n| 8.0 * uniform(1, 2, n));
        let tail = tail(&row, 0.0, 8.0);
        let total = weight_below(&row, 9.0, 8.0);
        for share in [0.01, 0.1, 0.3] {
            let threshold = tail.threshold(share * total);
            let below = weight_below(&row, threshold, 8.0);
            // Rather too low: the interpolation is linear, over a sixteenth of the range.
            assert!(below <= 1.01 * share * total && below >= 0.75 * share * total, "{share}: {}", below / total);
            let (low, high) = tail.pivots(share * total);
            assert!(low < threshold && threshold < high && !tail.is_last(threshold));
        }
    }

    #[test]
    fn of_equal_logits_and_of_lone_peaks_the_sample_knows_the_last_threshold_alone() {
        let flat = tail(&row(|_| 2.0), 0.0, 2.0);
        let peaked = tail(&row(|n| if n == 5000 { 20.0 } else { 0.0 }), 1.0, 20.0);
        for (tail, weight) in [(flat, 100.0), (peaked, 0.1)] {
            let threshold = tail.threshold(weight);
            assert!(tail.is_last(threshold));
            assert_eq!(tail.pivots(weight), (threshold, threshold));
        }
    }

    #[test]
    fn what_lies_below_the_certain_threshold_is_outside() {
        for (top_p, temperature) in [(0.5, 1.0), (0.9, 0.3), (0.99, 2.5)] {
            let row = row(|n| 8.0 * uniform(3, 4, n));
            let nucleus = Nucleus { top_p, temperature, origin: 8.0 };
            let weight = |x: &f32| (f64::from(x - 8.0) / temperature).exp();
            let total: f64 = row.as_flattened().iter().map(weight).sum();
            let threshold = nucleus.certain_threshold(total, row.len() * LANES);
            let below: f64 = row.as_flattened().iter().filter(|x| **x < threshold).map(weight).sum();
            assert!(below < nucleus.outside(total));
        }
    }
}
