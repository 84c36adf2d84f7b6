//! The sampling parameters and their ranges.

use crate::SamplingError;
use serde::{Deserialize, Serialize};

/// The parameters of a draw, applied in the order of the fields. The default turns every rule off.
///
/// Penalties change the logit x of a token that occurs `count > 0` times in the history:
/// `x <- (x > 0 ? x / repetition : x * repetition) - frequency * count - presence`; the logit bias is added afterwards.
/// Then temperature, top-k, top-p and min-p decide which tokens stay and how much they weigh, and one uniform number
/// chooses among them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingParams {
    /// Divides a positive, and multiplies a negative logit of a token of the history, once. Above 0; 1 is off.
    ///
    /// Source: Keskar et al., *CTRL* (2019).
    pub repetition_penalty: f64,
    /// Subtracted from the logit of every token of the history, once. Finite; 0 is off.
    pub presence_penalty: f64,
    /// Subtracted from the logit of a token of the history as often as it occurs there. Finite; 0 is off.
    pub frequency_penalty: f64,
    /// `(token, bias)`: added to the logit of that token. Finite, or `-inf` to ban it; biases of one token add up.
    pub logit_bias: Vec<(u32, f32)>,
    /// Divides the logits. At least 0; 1 is off, 0 is greedy: the lowest token among those of the largest logit.
    pub temperature: f64,
    /// Keeps the `top_k` largest logits, of equal ones those of the lowest tokens. 0 is off, 1 is greedy.
    pub top_k: usize,
    /// Keeps the nucleus: the fewest most probable tokens whose probabilities, renormalised over what top-k keeps, sum
    /// to at least `top_p`. In `[0, 1]`; 1 is off, 0 keeps one token.
    ///
    /// Source: Holtzman et al., *The curious case of neural text degeneration* (ICLR 2020).
    pub top_p: f64,
    /// Keeps the tokens whose probability is at least `min_p` times the largest. In `[0, 1]`; 0 is off.
    pub min_p: f64,
    /// The seed of the uniform numbers that decide the draws; see [`uniform`](crate::uniform).
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: 0,
        }
    }
}

impl SamplingParams {
    /// Checks that every field is in its range.
    ///
    /// # Errors
    /// [`SamplingError::Parameter`] for the first field that is not.
    pub fn validate(&self) -> Result<(), SamplingError> {
        check(
            self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0,
            "repetition_penalty",
            self.repetition_penalty,
            "a finite number above 0",
        )?;
        check(self.presence_penalty.is_finite(), "presence_penalty", self.presence_penalty, "a finite number")?;
        check(self.frequency_penalty.is_finite(), "frequency_penalty", self.frequency_penalty, "a finite number")?;
        for &(token, bias) in &self.logit_bias {
            check(
                !bias.is_nan() && bias != f32::INFINITY,
                "logit_bias",
                format_args!("{bias} for token {token}"),
                "a finite number or -inf",
            )?;
        }
        check_temperature("temperature", self.temperature)?;
        check_probability("top_p", self.top_p)?;
        check_probability("min_p", self.min_p)
    }

    /// Whether every draw is the largest logit: temperature 0 or top-k 1.
    #[must_use]
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0 || self.top_k == 1
    }

    /// Whether penalties or biases change the logits of a row with this history.
    pub(crate) fn changes_logits(&self, history: &[u32]) -> bool {
        !self.logit_bias.is_empty()
            || (!history.is_empty()
                && (self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0))
    }
}

/// Refuses a value that is not a temperature; `field` names it in the error.
pub(crate) fn check_temperature(field: &'static str, value: f64) -> Result<(), SamplingError> {
    check(value.is_finite() && value >= 0.0, field, value, "a finite number of at least 0 (0 is greedy)")
}

/// Refuses a value outside `[0, 1]`; `field` names it in the error.
pub(crate) fn check_probability(field: &'static str, value: f64) -> Result<(), SamplingError> {
    check((0.0..=1.0).contains(&value), field, value, "between 0 and 1")
}

fn check(
    holds: bool,
    field: &'static str,
    value: impl std::fmt::Display,
    allowed: &'static str,
) -> Result<(), SamplingError> {
    if holds {
        return Ok(());
    }
    Err(SamplingError::Parameter { field, value: value.to_string(), allowed })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(change: impl FnOnce(&mut SamplingParams)) -> String {
        let mut params = SamplingParams::default();
        change(&mut params);
        params.validate().unwrap_err().to_string()
    }

    #[test]
    fn the_default_is_valid_and_changes_nothing() {
        let params = SamplingParams::default();
        assert_eq!(params.validate(), Ok(()));
        assert!(!params.changes_logits(&[1, 2]));
        assert!(!params.is_greedy());
    }

    #[test]
    fn errors_name_the_field_the_value_and_the_range() {
        assert_eq!(
            message(|p| p.temperature = -1.0),
            "temperature is -1, but must be a finite number of at least 0 (0 is greedy)"
        );
        assert_eq!(message(|p| p.top_p = 1.5), "top_p is 1.5, but must be between 0 and 1");
        assert_eq!(
            message(|p| p.logit_bias = vec![(7, f32::INFINITY)]),
            "logit_bias is inf for token 7, but must be a finite number or -inf"
        );
    }

    #[test]
    fn every_field_refuses_what_is_outside_its_range() {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.1] {
            assert!(message(|p| p.temperature = bad).starts_with("temperature"));
            assert!(message(|p| p.top_p = bad).starts_with("top_p"));
            assert!(message(|p| p.min_p = bad).starts_with("min_p"));
            assert!(message(|p| p.repetition_penalty = bad).starts_with("repetition_penalty"));
        }
        assert!(message(|p| p.repetition_penalty = 0.0).starts_with("repetition_penalty"));
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert!(message(|p| p.presence_penalty = bad).starts_with("presence_penalty"));
            assert!(message(|p| p.frequency_penalty = bad).starts_with("frequency_penalty"));
        }
        assert!(message(|p| p.logit_bias = vec![(0, f32::NAN)]).starts_with("logit_bias"));
    }

    #[test]
    fn a_ban_by_minus_infinity_is_allowed() {
        let params = SamplingParams { logit_bias: vec![(3, f32::NEG_INFINITY)], ..Default::default() };
        assert_eq!(params.validate(), Ok(()));
    }
}
