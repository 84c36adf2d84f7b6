//! Temperature schedules: a temperature that moves over the tokens of a generation.

use crate::SamplingError;
use crate::params::check_temperature;
use serde::{Deserialize, Serialize};

/// How the temperature moves, from that of [`SamplingParams`](crate::SamplingParams) at position 0, over the positions
/// of a generation.
///
/// It is a function of the position alone, so a draw still depends on nothing but `(seed, sequence, position)`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Schedule {
    /// The temperature is the same at every position.
    #[default]
    Constant,
    /// The temperature moves by equal differences.
    Linear {
        /// The temperature from position `steps` on. At least 0.
        to: f64,
        /// The number of positions before `to` is reached. At least 1.
        steps: u64,
    },
    /// The temperature moves by equal ratios.
    Exponential {
        /// The temperature from position `steps` on. Above 0, as the first one must be too.
        to: f64,
        /// The number of positions before `to` is reached. At least 1.
        steps: u64,
    },
}

impl Schedule {
    /// Checks the schedule; `from` is the temperature at position 0.
    ///
    /// # Errors
    /// [`SamplingError::Parameter`] for a temperature outside its range, 0 in an exponential schedule, or no steps.
    pub fn validate(&self, from: f64) -> Result<(), SamplingError> {
        check_temperature("temperature", from)?;
        let (Self::Linear { to, steps } | Self::Exponential { to, steps }) = *self else {
            return Ok(());
        };
        check_temperature("the schedule's end temperature", to)?;
        let refuse = |field, value: String, allowed| Err(SamplingError::Parameter { field, value, allowed });
        if steps == 0 {
            return refuse("the schedule's number of steps", steps.to_string(), "at least 1");
        }
        if matches!(self, Self::Exponential { .. }) {
            for (field, value) in [("temperature", from), ("the schedule's end temperature", to)] {
                if value == 0.0 {
                    let allowed = "above 0 in an exponential schedule, which never reaches 0";
                    return refuse(field, value.to_string(), allowed);
                }
            }
        }
        Ok(())
    }

    /// The temperature at a position; `from` is that at position 0.
    #[must_use]
    pub fn temperature(&self, from: f64, position: u64) -> f64 {
        match *self {
            Self::Constant => from,
            Self::Linear { to, steps } | Self::Exponential { to, steps } if position >= steps => to,
            Self::Linear { to, steps } => from + (to - from) * (position as f64 / steps as f64),
            Self::Exponential { to, steps } => from * (to / from).powf(position as f64 / steps as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_start_and_end_where_they_say_and_stay_there() {
        let linear = Schedule::Linear { to: 0.5, steps: 10 };
        let exponential = Schedule::Exponential { to: 0.25, steps: 2 };
        assert_eq!([0, 5, 10, 99].map(|n| linear.temperature(1.5, n)), [1.5, 1.0, 0.5, 0.5]);
        assert_eq!([0, 1, 2, 3].map(|n| exponential.temperature(1.0, n)), [1.0, 0.5, 0.25, 0.25]);
        assert_eq!(Schedule::Constant.temperature(0.7, 5), 0.7);
    }

    #[test]
    fn a_linear_schedule_may_end_greedy_and_an_exponential_one_may_not() {
        assert_eq!(Schedule::Linear { to: 0.0, steps: 1 }.validate(1.0), Ok(()));
        let error = Schedule::Exponential { to: 0.0, steps: 1 }.validate(1.0).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the schedule's end temperature is 0, but must be above 0 in an exponential schedule, which never reaches 0"
        );
        assert!(Schedule::Exponential { to: 1.0, steps: 1 }.validate(0.0).is_err());
    }

    #[test]
    fn a_schedule_needs_steps_and_valid_temperatures() {
        assert!(Schedule::Linear { to: 1.0, steps: 0 }.validate(1.0).is_err());
        for bad in [-1.0, f64::NAN, f64::INFINITY] {
            assert!(Schedule::Linear { to: bad, steps: 3 }.validate(1.0).is_err());
            assert!(Schedule::Constant.validate(bad).is_err());
        }
    }
}
