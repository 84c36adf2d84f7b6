//! The frequencies of rotary positions, and how they are scaled for contexts longer than those of pretraining.

use std::f64::consts::TAU;

use serde::{Deserialize, Serialize};

/// The scaling of the frequencies of rotary positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RopeScaling {
    /// Frequencies as the base gives them.
    #[default]
    None,
    /// Every frequency is divided by the factor, so that positions are interpolated (Chen et al., 2023, "Extending Context
    /// Window of Large Language Models via Positional Interpolation").
    Linear,
    /// Low frequencies are divided by the factor, high ones stay, and those between are interpolated (Llama 3.1; Grattafiori
    /// et al., 2024, "The Llama 3 Herd of Models"; the formula is that of `apply_scaling` in Meta's `llama-models`).
    Llama3,
}

impl RopeScaling {
    /// The name, as configurations write it and as Hugging Face's `rope_type`, where that of [`RopeScaling::None`] is
    /// `default`.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Linear => "linear",
            Self::Llama3 => "llama3",
        }
    }
}

/// The frequencies of rotary positions, in radians for each position.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeFrequencies {
    /// The base: pair `i` of `n` has the frequency `theta^(-i / n)` before scaling.
    pub theta: f64,
    /// The scaling, to which the fields below belong.
    pub scaling: RopeScaling,
    /// By what frequencies are divided, at least 1.
    pub factor: f64,
    /// Of "llama3": waves that fit less often than this into the original context are divided by the whole factor.
    pub low_freq_factor: f64,
    /// Of "llama3": waves that fit more often than this into the original context stay.
    pub high_freq_factor: f64,
    /// Of "llama3": the context of pretraining, in positions.
    pub original_block_size: usize,
}

impl RopeFrequencies {
    /// Frequencies without scaling.
    pub fn unscaled(theta: f64) -> Self {
        let scaling = RopeScaling::None;
        Self { theta, scaling, factor: 1.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_block_size: 0 }
    }

    /// The frequencies of the `n` pairs of a head's channels, from high to low.
    pub fn of_pairs(&self, n: usize) -> Vec<f64> {
        self.unscaled_of_pairs(n).map(|frequency| frequency / self.divisor(frequency)).collect()
    }

    /// By what scaling divides the frequency of each of the `n` pairs.
    pub(crate) fn divisors_of_pairs(&self, n: usize) -> Vec<f64> {
        self.unscaled_of_pairs(n).map(|frequency| self.divisor(frequency)).collect()
    }

    fn unscaled_of_pairs(&self, n: usize) -> impl Iterator<Item = f64> {
        (0..n).map(move |i| self.theta.powf(-(i as f64) / n as f64))
    }

    /// By what scaling divides a frequency.
    fn divisor(&self, frequency: f64) -> f64 {
        match self.scaling {
            RopeScaling::None => 1.0,
            RopeScaling::Linear => self.factor,
            RopeScaling::Llama3 => {
                let waves = self.original_block_size as f64 * frequency / TAU;
                let (low, high) = (self.low_freq_factor, self.high_freq_factor);
                // The share of the unscaled frequency.
                let smooth = ((waves - low) / (high - low)).clamp(0.0, 1.0);
                1.0 / ((1.0 - smooth) / self.factor + smooth)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pairs of a head of Llama 3.1 and their frequencies.
    const LLAMA_3_1: [(usize, f64); 7] = [
        (0, 1.0),
        (28, 3.211_446_1e-3),
        (29, 2.166_570_6e-3),
        (32, 5.248_460_2e-4),
        (34, 1.785_077_9e-4),
        (35, 9.556_212_2e-5),
        (63, 3.068_925_9e-7),
    ];

    fn llama3() -> RopeFrequencies {
        RopeFrequencies {
            scaling: RopeScaling::Llama3,
            factor: 8.0,
            original_block_size: 8192,
            ..RopeFrequencies::unscaled(500_000.0)
        }
    }

    #[test]
    fn linear_scaling_divides_all_and_none_leaves_the_bits() {
        let plain = RopeFrequencies::unscaled(1e4);
        let linear = RopeFrequencies { scaling: RopeScaling::Linear, factor: 4.0, ..plain };
        for (i, (plain, linear)) in plain.of_pairs(16).into_iter().zip(linear.of_pairs(16)).enumerate() {
            assert_eq!(plain, 1e4f64.powf(-(i as f64) / 16.0));
            assert_eq!(linear, plain / 4.0);
        }
    }

    /// Llama 3.1's heads have 64 pairs. `transformers` 5.24 (`_compute_llama3_parameters`) gives these.
    #[test]
    fn llama3_scaling_keeps_short_waves_divides_long_ones_and_interpolates_between() {
        let (scaled, plain) = (llama3().of_pairs(64), RopeFrequencies::unscaled(500_000.0).of_pairs(64));
        for (i, expected) in LLAMA_3_1 {
            assert!((scaled[i] / expected - 1.0).abs() < 1e-5, "{i}: {} {expected}", scaled[i]);
        }
        assert_eq!(scaled[..29], plain[..29]);
        assert!(scaled.iter().zip(&plain).skip(35).all(|(scaled, plain)| (scaled * 8.0 / plain - 1.0).abs() < 1e-12));
        assert!(scaled.windows(2).all(|pair| pair[0] > pair[1]));
    }
}
