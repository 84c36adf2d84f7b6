//! The sampling parameters and their ranges.

use crate::SamplingError;
use serde::{Deserialize, Serialize};

/// The parameters of a draw, applied in the order of the fields. The default turns every rule off.
///
/// # The order of the rules
/// 1. **What changes logits.** A token that occurs `count > 0` times in the history gets
///    `x <- (x > 0 ? x / repetition : x * repetition) - frequency * count - presence`; then the logit bias is added, then
///    the penalty of [`Dry`], then `no_repeat_ngram_size` bans tokens. A caller's mask (a grammar's) is logits of -inf,
///    which no rule changes.
/// 2. **How much tokens weigh.** Top-n-sigma drops tokens by their logits; then the temperature, with its dynamic range.
/// 3. **Which tokens stay.** Top-k, typical-p, top-p, min-p and XTC, each over the probabilities of what the ones before
///    it left, renormalised. Mirostat stands in the place of all of them, and is refused beside one.
/// 4. **The draw**: one uniform number chooses among what is left.
///
/// Temperature 0 and top-k 1 are greedy over the logits after 1, whatever the other rules.
///
/// Each rule alone is that of llama.cpp or transformers, which differ in the order: llama.cpp's default chain is
/// penalties, DRY, top-n-sigma, top-k, typical-p, top-p, min-p, XTC and the temperature last; transformers has
/// penalties and n-grams, temperature, top-k, top-p, min-p, typical-p. Here the temperature comes first, as in
/// transformers, and what follows is in the order of llama.cpp.
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
    /// The penalty of tokens that would prolong a repetition.
    pub dry: Dry,
    /// Bans the tokens that would complete a sequence of this many tokens which the history already has. 0 is off.
    ///
    /// Source: Paulus et al., *A deep reinforced model for abstractive summarization* (ICLR 2018).
    pub no_repeat_ngram_size: usize,
    /// Keeps the logits of at least `max - top_n_sigma * sigma`, where sigma is the standard deviation of all finite
    /// logits. Finite and at least 0; 0 is off.
    ///
    /// Source: Tang et al., *Top-n sigma: not all logits are you need* (ACL 2025).
    pub top_n_sigma: f64,
    /// Divides the logits. At least 0; 1 is off, 0 is greedy: the lowest token among those of the largest logit.
    pub temperature: f64,
    /// Moves the temperature with the entropy of the row at temperature 1, relative to that of as many equally probable
    /// tokens: from `max(0, temperature - dynatemp_range)`, where one token is certain, to `temperature +
    /// dynatemp_range`. Finite and at least 0; 0 is off.
    ///
    /// Source: Zhang et al., *EDT: improving large language models' generation by entropy-based dynamic temperature
    /// sampling* (2024), in the form of llama.cpp.
    pub dynatemp_range: f64,
    /// The power of the relative entropy. Finite and above 0; 1 is linear.
    pub dynatemp_exponent: f64,
    /// Keeps the `top_k` largest logits, of equal ones those of the lowest tokens. 0 is off, 1 is greedy.
    pub top_k: usize,
    /// Keeps the locally typical tokens: the fewest, those first whose surprise `-ln p` is nearest to the entropy, whose
    /// probabilities sum to at least `typical_p`; of equally near ones the more probable, then the lower token first. In
    /// `[0, 1]`; 1 is off, 0 keeps one token.
    ///
    /// Source: Meister et al., *Locally typical sampling* (TACL 2023).
    pub typical_p: f64,
    /// Keeps the nucleus: the fewest most probable tokens whose probabilities, renormalised over what the rules before it keep,
    /// sum to at least `top_p`. In `[0, 1]`; 1 is off, 0 keeps one token.
    ///
    /// Source: Holtzman et al., *The curious case of neural text degeneration* (ICLR 2020).
    pub top_p: f64,
    /// Keeps the tokens whose probability is at least `min_p` times the largest. In `[0, 1]`; 0 is off.
    pub min_p: f64,
    /// The probability with which XTC acts at a position; one more number of `(seed, sequence, position)` decides
    /// ([`xtc_coin`](crate::xtc_coin)). In `[0, 1]`; 0 is off.
    ///
    /// Where it acts, and two or more tokens reach `xtc_threshold`, all of them but the least probable are dropped (of
    /// equal ones the highest token stays).
    ///
    /// Source: Weidmann, *Exclude top choices* (text-generation-webui, 2024).
    pub xtc_probability: f64,
    /// The probability that XTC's tokens reach. In `[0, 1]`; no two tokens exceed 0.5.
    pub xtc_threshold: f64,
    /// The surprise, in bits, that mirostat 2 steers the draws of a text to. Finite and at least 0; 0 is off.
    ///
    /// It keeps the tokens whose surprise `-log2 p` is at most `mu`, at least the most probable, and after a draw takes
    /// `mirostat_eta` times the excess of the drawn token's surprise, among what was kept, over `mirostat_tau` from `mu`.
    /// A text starts with `mu = 2 tau` and carries it on as a [`TextState`](crate::TextState).
    ///
    /// Source: Basu et al., *Mirostat: a neural text decoding algorithm that directly controls perplexity* (ICLR 2021).
    pub mirostat_tau: f64,
    /// How fast mirostat learns. Finite and at least 0.
    pub mirostat_eta: f64,
    /// The seed of the uniform numbers that decide the draws; see [`uniform`](crate::uniform).
    pub seed: u64,
}

/// DRY ("don't repeat yourself"): a penalty of the tokens that would prolong a sequence which the text repeats already.
///
/// Where the last n tokens of the history occur before and a token followed them there, that token's logit loses
/// `multiplier * base^(n - allowed_length)`, if n, the largest for that token, is at least `allowed_length`.
///
/// Source: Weidmann, *DRY: a modern repetition penalty that reliably prevents looping* (text-generation-webui, 2024).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dry {
    /// The penalty of a repetition of `allowed_length`. Finite and at least 0; 0 is off.
    pub multiplier: f64,
    /// What each further token multiplies it by. Finite and at least 1.
    pub base: f64,
    /// The shortest repetition that is not free. At least 1.
    pub allowed_length: usize,
    /// How many tokens of the history's end are looked at. 0 is all.
    pub last_n: usize,
    /// Sequences of tokens that no repetition reaches across, such as that of a line break. A token that is one by itself
    /// has no penalty. None is empty.
    pub breakers: Vec<Vec<u32>>,
}

impl Default for Dry {
    fn default() -> Self {
        Self { multiplier: 0.0, base: 1.75, allowed_length: 2, last_n: 0, breakers: Vec::new() }
    }
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            dry: Dry::default(),
            no_repeat_ngram_size: 0,
            top_n_sigma: 0.0,
            temperature: 1.0,
            dynatemp_range: 0.0,
            dynatemp_exponent: 1.0,
            top_k: 0,
            typical_p: 1.0,
            top_p: 1.0,
            min_p: 0.0,
            xtc_probability: 0.0,
            xtc_threshold: 0.1,
            mirostat_tau: 0.0,
            mirostat_eta: 0.1,
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
        self.dry.validate()?;
        check_not_negative("top_n_sigma", self.top_n_sigma)?;
        check_temperature("temperature", self.temperature)?;
        check_not_negative("dynatemp_range", self.dynatemp_range)?;
        check(
            self.dynatemp_exponent.is_finite() && self.dynatemp_exponent > 0.0,
            "dynatemp_exponent",
            self.dynatemp_exponent,
            "a finite number above 0",
        )?;
        check_probability("typical_p", self.typical_p)?;
        check_probability("top_p", self.top_p)?;
        check_probability("min_p", self.min_p)?;
        check_probability("xtc_probability", self.xtc_probability)?;
        check_probability("xtc_threshold", self.xtc_threshold)?;
        check_not_negative("mirostat_tau", self.mirostat_tau)?;
        check_not_negative("mirostat_eta", self.mirostat_eta)?;
        self.check_mirostat_is_alone()
    }

    /// Mirostat decides alone which tokens stay.
    fn check_mirostat_is_alone(&self) -> Result<(), SamplingError> {
        let cuts = [
            (self.top_n_sigma > 0.0, "0, since mirostat replaces top_n_sigma"),
            (self.top_k > 0, "0, since mirostat replaces top_k"),
            (self.typical_p < 1.0, "0, since mirostat replaces typical_p"),
            (self.top_p < 1.0, "0, since mirostat replaces top_p"),
            (self.min_p > 0.0, "0, since mirostat replaces min_p"),
            (self.xtc_probability > 0.0, "0, since mirostat replaces xtc_probability"),
        ];
        let beside = cuts.iter().find(|(is_on, _)| *is_on);
        match beside {
            Some((_, allowed)) => check(self.mirostat_tau == 0.0, "mirostat_tau", self.mirostat_tau, allowed),
            None => Ok(()),
        }
    }

    /// Whether every draw is the largest logit: temperature 0 or top-k 1.
    #[must_use]
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0 || self.top_k == 1
    }

    /// Whether the rules are on that only the host has: top-n-sigma, a dynamic temperature, typical-p, XTC or mirostat. With
    /// them [`DeviceSampler`](crate::DeviceSampler) reads the logits back.
    #[must_use]
    pub fn draws_on_host(&self) -> bool {
        self.top_n_sigma > 0.0
            || self.dynatemp_range > 0.0
            || self.typical_p < 1.0
            || self.xtc_probability > 0.0
            || self.mirostat_tau > 0.0
    }

    /// Whether penalties, biases or bans change the logits of a row with this history.
    pub(crate) fn changes_logits(&self, history: &[u32]) -> bool {
        let by_history = self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
            || self.dry.multiplier != 0.0
            || self.no_repeat_ngram_size > 0;
        !self.logit_bias.is_empty() || (!history.is_empty() && by_history)
    }
}

impl Dry {
    fn validate(&self) -> Result<(), SamplingError> {
        check_not_negative("dry.multiplier", self.multiplier)?;
        check(self.base.is_finite() && self.base >= 1.0, "dry.base", self.base, "a finite number of at least 1")?;
        check(self.allowed_length > 0, "dry.allowed_length", self.allowed_length, "at least 1")?;
        let empty = self.breakers.iter().position(Vec::is_empty);
        check(empty.is_none(), "dry.breakers", "an empty sequence", "sequences of at least one token")
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

fn check_not_negative(field: &'static str, value: f64) -> Result<(), SamplingError> {
    check(value.is_finite() && value >= 0.0, field, value, "a finite number of at least 0 (0 is off)")
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
            assert!(message(|p| p.top_n_sigma = bad).starts_with("top_n_sigma"));
            assert!(message(|p| p.dynatemp_range = bad).starts_with("dynatemp_range"));
            assert!(message(|p| p.dynatemp_exponent = bad).starts_with("dynatemp_exponent"));
            assert!(message(|p| p.typical_p = bad).starts_with("typical_p"));
            assert!(message(|p| p.xtc_probability = bad).starts_with("xtc_probability"));
            assert!(message(|p| p.xtc_threshold = bad).starts_with("xtc_threshold"));
            assert!(message(|p| p.mirostat_tau = bad).starts_with("mirostat_tau"));
            assert!(message(|p| p.mirostat_eta = bad).starts_with("mirostat_eta"));
            assert!(message(|p| p.dry.multiplier = bad).starts_with("dry.multiplier"));
            assert!(message(|p| p.dry.base = bad).starts_with("dry.base"));
        }
        assert!(message(|p| p.dry.allowed_length = 0).starts_with("dry.allowed_length"));
        assert!(message(|p| p.dry.breakers = vec![vec![]]).starts_with("dry.breakers"));
        assert!(message(|p| p.repetition_penalty = 0.0).starts_with("repetition_penalty"));
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert!(message(|p| p.presence_penalty = bad).starts_with("presence_penalty"));
            assert!(message(|p| p.frequency_penalty = bad).starts_with("frequency_penalty"));
        }
        assert!(message(|p| p.logit_bias = vec![(0, f32::NAN)]).starts_with("logit_bias"));
    }

    #[test]
    fn mirostat_is_refused_beside_every_rule_that_it_replaces() {
        let beside = |change: fn(&mut SamplingParams)| {
            message(|p| {
                p.mirostat_tau = 5.0;
                change(p);
            })
        };
        assert_eq!(beside(|p| p.top_k = 40), "mirostat_tau is 5, but must be 0, since mirostat replaces top_k");
        assert!(beside(|p| p.top_p = 0.9).ends_with("top_p"));
        assert!(beside(|p| p.min_p = 0.1).ends_with("min_p"));
        assert!(beside(|p| p.typical_p = 0.9).ends_with("typical_p"));
        assert!(beside(|p| p.top_n_sigma = 1.0).ends_with("top_n_sigma"));
        assert!(beside(|p| p.xtc_probability = 0.5).ends_with("xtc_probability"));
    }

    #[test]
    fn a_ban_by_minus_infinity_is_allowed() {
        let params = SamplingParams { logit_bias: vec![(3, f32::NEG_INFINITY)], ..Default::default() };
        assert_eq!(params.validate(), Ok(()));
    }
}
