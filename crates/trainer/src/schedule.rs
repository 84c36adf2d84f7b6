//! The learning rate: linear warm-up, then a cosine down to the minimum.

use crate::config::TrainConfig;

/// The learning rate of update `step` (counted from 0): `lr (step + 1) / (warmup + 1)` while warming up, then a cosine
/// from `lr` to `min_lr` that ends at `decay_steps`, then `min_lr`. The schedule of nanoGPT.
pub fn learning_rate(config: &TrainConfig, step: u64) -> f64 {
    let TrainConfig { lr, min_lr, warmup_steps, decay_steps, .. } = *config;
    if step < warmup_steps {
        return lr * (step + 1) as f64 / (warmup_steps + 1) as f64;
    }
    if step >= decay_steps {
        return min_lr;
    }
    let progress = (step - warmup_steps) as f64 / (decay_steps - warmup_steps) as f64;
    min_lr + 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()) * (lr - min_lr)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_warms_up_peaks_falls_and_stays_at_the_minimum() {
        let config =
            TrainConfig { lr: 1e-3, min_lr: 1e-4, warmup_steps: 100, decay_steps: 2000, ..TrainConfig::default() };
        let at = |step| learning_rate(&config, step);
        assert!((at(0) - 1e-3 / 101.0).abs() < 1e-15);
        assert!((at(99) - 1e-3 * 100.0 / 101.0).abs() < 1e-15);
        assert_eq!(at(100), 1e-3);
        assert!((at(1050) - 5.5e-4).abs() < 1e-15, "half way down: {}", at(1050));
        assert_eq!(at(2000), 1e-4);
        assert_eq!(at(9999), 1e-4);
        assert!((100..2000).all(|s| at(s + 1) < at(s)));
    }

    #[test]
    fn warm_up_and_decay_may_end_at_the_same_step() {
        let config = TrainConfig { warmup_steps: 5, decay_steps: 5, ..TrainConfig::default() };
        assert_eq!(learning_rate(&config, 5), config.min_lr);
    }
}
