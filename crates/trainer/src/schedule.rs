//! The learning rate: linear warm-up, then a decay to the minimum.

use crate::config::{Schedule, TrainConfig};

/// The learning rate of update `step` (counted from 0): `lr (step + 1) / (warmup + 1)` while warming up, then that of
/// `schedule`, then from [`decay_end`](TrainConfig::decay_end) on `min_lr`. "cosine" falls from `lr` along a half cosine, as in nanoGPT; "linear" in
/// a straight line; "wsd" stays at `lr` and falls in a straight line over the last `decay_fraction` of the updates up to there.
pub fn learning_rate(config: &TrainConfig, step: u64) -> f64 {
    let TrainConfig { lr, min_lr, warmup_steps, .. } = *config;
    let decay_end = config.decay_end();
    if step < warmup_steps {
        return lr * (step + 1) as f64 / (warmup_steps + 1) as f64;
    }
    if step >= decay_end {
        return min_lr;
    }
    let progress = (step - warmup_steps) as f64 / (decay_end - warmup_steps) as f64;
    let height = match config.schedule {
        Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        Schedule::Linear => 1.0 - progress,
        Schedule::Wsd => ((decay_end - step) as f64 / (decay_end as f64 * config.decay_fraction)).min(1.0),
    };
    min_lr + height * (lr - min_lr)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(schedule: Schedule) -> TrainConfig {
        let (lr, min_lr, warmup_steps, decay_steps) = (1e-3, 1e-4, 100, 2000);
        TrainConfig { lr, min_lr, warmup_steps, decay_steps, schedule, ..TrainConfig::default() }
    }

    #[test]
    fn the_rate_warms_up_peaks_falls_and_stays_at_the_minimum() {
        for schedule in [Schedule::Cosine, Schedule::Linear] {
            let config = config(schedule);
            let at = |step| learning_rate(&config, step);
            assert!((at(0) - 1e-3 / 101.0).abs() < 1e-15);
            assert!((at(99) - 1e-3 * 100.0 / 101.0).abs() < 1e-15);
            assert_eq!(at(100), 1e-3);
            assert!((at(1050) - 5.5e-4).abs() < 1e-15, "half way down: {}", at(1050));
            assert_eq!(at(2000), 1e-4);
            assert_eq!(at(9999), 1e-4);
            assert!((100..2000).all(|s| at(s + 1) < at(s)));
        }
        let [cosine, linear] =
            [Schedule::Cosine, Schedule::Linear].map(|schedule| learning_rate(&config(schedule), 575));
        assert!((linear - (1e-4 + 0.75 * 9e-4)).abs() < 1e-15, "a quarter of the way: {linear}");
        assert!((cosine - (1e-4 + 0.5 * (1.0 + 0.5f64.sqrt()) * 9e-4)).abs() < 1e-15, "{cosine}");
    }

    #[test]
    fn warm_up_stable_decay_stays_at_the_peak_and_falls_in_a_line_over_the_last_updates() {
        let config = TrainConfig { decay_fraction: 0.2, ..config(Schedule::Wsd) };
        let at = |step| learning_rate(&config, step);
        assert!((at(99) - 1e-3 * 100.0 / 101.0).abs() < 1e-15);
        assert!((100..=1600).all(|step| at(step) == 1e-3));
        assert!((at(1700) - (1e-4 + 0.75 * 9e-4)).abs() < 1e-15, "{}", at(1700));
        assert!((at(1999) - (1e-4 + 9e-4 / 400.0)).abs() < 1e-15, "{}", at(1999));
        assert_eq!((at(2000), at(9999)), (1e-4, 1e-4));
        // A decay that is longer than what follows the warm-up has begun when that ends.
        let whole = TrainConfig { decay_fraction: 1.0, ..config.clone() };
        assert!((learning_rate(&whole, 100) - (1e-4 + 0.95 * 9e-4)).abs() < 1e-15);
    }

    #[test]
    fn a_decay_of_0_ends_with_the_run_and_never_inside_the_warm_up() {
        for schedule in [Schedule::Cosine, Schedule::Linear, Schedule::Wsd] {
            let given = config(schedule);
            let derived = |max_steps| TrainConfig { decay_steps: 0, max_steps, ..given.clone() };
            let same = |step| learning_rate(&derived(2000), step) == learning_rate(&given, step);
            assert!((0..2100).all(same), "{schedule:?}");
            assert!(learning_rate(&derived(4000), 2000) > 2.0 * given.min_lr, "a longer run decays later");
            assert_eq!(learning_rate(&derived(10), 99), learning_rate(&given, 99), "{schedule:?}");
        }
    }

    #[test]
    fn warm_up_and_decay_may_end_at_the_same_step() {
        for schedule in [Schedule::Cosine, Schedule::Linear, Schedule::Wsd] {
            let config = TrainConfig { warmup_steps: 5, decay_steps: 5, schedule, ..TrainConfig::default() };
            assert_eq!(learning_rate(&config, 5), config.min_lr);
        }
    }
}
