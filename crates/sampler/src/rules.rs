//! All that is asked of a sampler, on the host or on a device: the parameters, the temperature schedule and the
//! adaptive threshold.

use crate::{SamplingParams, Schedule, xtc_coin};

/// The rules of a sampler. [`Sampler`](crate::Sampler) has checked every field.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    pub(crate) params: SamplingParams,
    pub(crate) schedule: Schedule,
    /// The position at which the schedule begins; positions before it have the schedule's first temperature.
    pub(crate) schedule_start: u64,
    /// A row is greedy where its largest probability, after all other rules, exceeds this.
    pub(crate) adaptive: Option<f64>,
}

impl Rules {
    /// The rules of `params` at a constant temperature and without an adaptive threshold.
    pub(crate) fn new(params: SamplingParams) -> Self {
        Self { params, schedule: Schedule::Constant, schedule_start: 0, adaptive: None }
    }

    /// Whether XTC acts at this place.
    pub(crate) fn xtc_acts(&self, sequence: u64, position: u64) -> bool {
        let probability = self.params.xtc_probability;
        probability > 0.0 && xtc_coin(self.params.seed, sequence, position) < probability
    }

    /// The temperature of a draw at this position.
    pub(crate) fn temperature(&self, position: u64) -> f64 {
        self.schedule.temperature(self.params.temperature, position.saturating_sub(self.schedule_start))
    }
}
