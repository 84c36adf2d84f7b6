//! What is compared: rules of sampling with a name, or beam search.

use serde::Deserialize;
use tinygpt_sampler::{Dry, Sampler, SamplingError, SamplingParams, Schedule};

/// The file that is compared where no other is given: `configs/lab.toml`.
pub const DEFAULT_STRATEGIES: &str = include_str!("../../configs/lab.toml");

/// The most hypotheses of a beam search.
pub const MAX_BEAM: usize = 64;

/// How a temperature moves to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TemperatureSchedule {
    /// By equal differences.
    #[default]
    Linear,
    /// By equal ratios.
    Exponential,
}

/// A strategy: rules of sampling, named as the flags of `tinygpt generate`, or beam search. The default draws from the model's
/// own distribution.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Strategy {
    /// What tables call it.
    pub name: String,
    /// See [`SamplingParams::temperature`].
    pub temperature: f64,
    /// The temperature at the last new token; that of the first is `temperature`.
    pub temperature_end: Option<f64>,
    /// How it moves there.
    pub temperature_schedule: TemperatureSchedule,
    /// See [`SamplingParams::top_k`].
    pub top_k: usize,
    /// See [`SamplingParams::top_p`].
    pub top_p: f64,
    /// See [`SamplingParams::min_p`].
    pub min_p: f64,
    /// See [`SamplingParams::repetition_penalty`].
    pub repetition_penalty: f64,
    /// See [`SamplingParams::presence_penalty`].
    pub presence_penalty: f64,
    /// See [`SamplingParams::frequency_penalty`].
    pub frequency_penalty: f64,
    /// See [`SamplingParams::logit_bias`].
    pub logit_bias: Vec<(u32, f32)>,
    /// See [`Dry::multiplier`]. A strategy has no breakers.
    pub dry_multiplier: f64,
    /// See [`Dry::base`].
    pub dry_base: f64,
    /// See [`Dry::allowed_length`].
    pub dry_allowed_length: usize,
    /// See [`Dry::last_n`].
    pub dry_range: usize,
    /// See [`SamplingParams::no_repeat_ngram_size`].
    pub no_repeat_ngram_size: usize,
    /// See [`SamplingParams::top_n_sigma`].
    pub top_n_sigma: f64,
    /// See [`SamplingParams::dynatemp_range`].
    pub dynatemp_range: f64,
    /// See [`SamplingParams::dynatemp_exponent`].
    pub dynatemp_exponent: f64,
    /// See [`SamplingParams::typical_p`].
    pub typical_p: f64,
    /// See [`SamplingParams::xtc_probability`].
    pub xtc_probability: f64,
    /// See [`SamplingParams::xtc_threshold`].
    pub xtc_threshold: f64,
    /// See [`SamplingParams::mirostat_tau`].
    pub mirostat_tau: f64,
    /// See [`SamplingParams::mirostat_eta`].
    pub mirostat_eta: f64,
    /// See [`Sampler::with_adaptive`].
    pub adaptive: Option<f64>,
    /// Beam search of this many hypotheses, instead of draws.
    pub beam: Option<usize>,
}

impl Default for Strategy {
    fn default() -> Self {
        let params = SamplingParams::default();
        Self {
            name: String::new(),
            temperature: params.temperature,
            temperature_end: None,
            temperature_schedule: TemperatureSchedule::default(),
            top_k: params.top_k,
            top_p: params.top_p,
            min_p: params.min_p,
            repetition_penalty: params.repetition_penalty,
            presence_penalty: params.presence_penalty,
            frequency_penalty: params.frequency_penalty,
            logit_bias: params.logit_bias,
            dry_multiplier: params.dry.multiplier,
            dry_base: params.dry.base,
            dry_allowed_length: params.dry.allowed_length,
            dry_range: params.dry.last_n,
            no_repeat_ngram_size: params.no_repeat_ngram_size,
            top_n_sigma: params.top_n_sigma,
            dynatemp_range: params.dynatemp_range,
            dynatemp_exponent: params.dynatemp_exponent,
            typical_p: params.typical_p,
            xtc_probability: params.xtc_probability,
            xtc_threshold: params.xtc_threshold,
            mirostat_tau: params.mirostat_tau,
            mirostat_eta: params.mirostat_eta,
            adaptive: None,
            beam: None,
        }
    }
}

/// Strategies that cannot be compared.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum StrategyError {
    /// The text is not TOML, or has a key that no strategy has.
    #[error("{0}")]
    Syntax(String),
    /// There is nothing to compare.
    #[error("there are no strategies: the file needs at least one [[strategy]]")]
    None,
    /// A strategy without a name.
    #[error("[[strategy]] number {0} has no name: give it one, such as name = \"top-p 0.9\"")]
    Unnamed(usize),
    /// Two strategies of one name.
    #[error("two strategies are called `{0}`: give each a name of its own")]
    SameName(String),
    /// A rule outside of its range.
    #[error("strategy `{name}`: {source}")]
    Rule {
        /// The strategy.
        name: String,
        /// What is wrong with the rule.
        source: SamplingError,
    },
    /// A beam without a hypothesis, or with too many.
    #[error("strategy `{name}`: beam is {width}, but must be from 1 to {MAX_BEAM}")]
    BeamWidth {
        /// The strategy.
        name: String,
        /// What was asked for.
        width: usize,
    },
    /// Rules of sampling for beam search.
    #[error("strategy `{name}`: beam search draws nothing, so beam stands alone, without rules of sampling")]
    BeamWithRules {
        /// The strategy.
        name: String,
    },
    /// A bias of a token that the model does not have.
    #[error("strategy `{name}`: token {token} of logit_bias is not below the vocabulary size {vocab_size}")]
    UnknownToken {
        /// The strategy.
        name: String,
        /// The token.
        token: u32,
        /// The number of tokens of the model.
        vocab_size: usize,
    },
}

/// Reads strategies from TOML: tables `[[strategy]]`, in the order in which they are compared.
///
/// # Errors
/// [`StrategyError`]: an unknown key, no strategy, a name missing or given twice, a rule outside of its range.
pub fn parse_strategies(text: &str) -> Result<Vec<Strategy>, StrategyError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        #[serde(default)]
        strategy: Vec<Strategy>,
    }
    let File { strategy: strategies } = toml::from_str(text).map_err(|e| StrategyError::Syntax(e.to_string()))?;
    if strategies.is_empty() {
        return Err(StrategyError::None);
    }
    for (at, strategy) in strategies.iter().enumerate() {
        if strategy.name.trim().is_empty() {
            return Err(StrategyError::Unnamed(at + 1));
        }
        if strategies[..at].iter().any(|other| other.name == strategy.name) {
            return Err(StrategyError::SameName(strategy.name.clone()));
        }
        strategy.check()?;
    }
    Ok(strategies)
}

impl Strategy {
    /// Refuses rules outside of their ranges, and beams that are none.
    fn check(&self) -> Result<(), StrategyError> {
        let name = || self.name.clone();
        if let Some(width) = self.beam {
            if !(1..=MAX_BEAM).contains(&width) {
                return Err(StrategyError::BeamWidth { name: name(), width });
            }
            if (Self { name: name(), beam: self.beam, ..Self::default() }) != *self {
                return Err(StrategyError::BeamWithRules { name: name() });
            }
        }
        // Neither the seed nor the lengths of a generation make rules valid or not.
        self.sampler(0, 1, 1).map(drop).map_err(|source| StrategyError::Rule { name: name(), source })
    }

    /// Refuses a bias of a token that a model of `vocab_size` tokens does not have.
    ///
    /// # Errors
    /// [`StrategyError::UnknownToken`].
    pub fn check_tokens(&self, vocab_size: usize) -> Result<(), StrategyError> {
        match self.logit_bias.iter().find(|(token, _)| *token as usize >= vocab_size) {
            Some(&(token, _)) => Err(StrategyError::UnknownToken { name: self.name.clone(), token, vocab_size }),
            None => Ok(()),
        }
    }

    /// Whether a prompt has one completion alone, whatever the seed.
    #[must_use]
    pub fn is_deterministic(&self) -> bool {
        let stays_cold = self.temperature == 0.0 && self.temperature_end.is_none_or(|end| end == 0.0);
        self.beam.is_some() || self.top_k == 1 || stays_cold
    }

    /// The sampler of these rules. A moving temperature starts at the first new token, whose position is `prompt_len`, and
    /// arrives at the last of `max_new_tokens`, as with `tinygpt generate --temperature-end`.
    ///
    /// # Errors
    /// The first rule outside of its range.
    pub fn sampler(&self, seed: u64, prompt_len: usize, max_new_tokens: usize) -> Result<Sampler, SamplingError> {
        let mut sampler = Sampler::new(SamplingParams {
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.clone(),
            dry: Dry {
                multiplier: self.dry_multiplier,
                base: self.dry_base,
                allowed_length: self.dry_allowed_length,
                last_n: self.dry_range,
                breakers: Vec::new(),
            },
            no_repeat_ngram_size: self.no_repeat_ngram_size,
            top_n_sigma: self.top_n_sigma,
            temperature: self.temperature,
            dynatemp_range: self.dynatemp_range,
            dynatemp_exponent: self.dynatemp_exponent,
            top_k: self.top_k,
            typical_p: self.typical_p,
            top_p: self.top_p,
            min_p: self.min_p,
            xtc_probability: self.xtc_probability,
            xtc_threshold: self.xtc_threshold,
            mirostat_tau: self.mirostat_tau,
            mirostat_eta: self.mirostat_eta,
            seed,
        })?;
        if let Some(threshold) = self.adaptive {
            sampler = sampler.with_adaptive(threshold)?;
        }
        let Some(to) = self.temperature_end else { return Ok(sampler) };
        let steps = (max_new_tokens as u64).saturating_sub(1).max(1);
        let schedule = match self.temperature_schedule {
            TemperatureSchedule::Linear => Schedule::Linear { to, steps },
            TemperatureSchedule::Exponential => Schedule::Exponential { to, steps },
        };
        sampler.with_schedule_from(schedule, prompt_len as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        parse_strategies(text).unwrap_err().to_string()
    }

    #[test]
    fn the_default_file_has_nine_ways_of_sampling_and_beam_search() {
        let strategies = parse_strategies(DEFAULT_STRATEGIES).unwrap();
        let names: Vec<&str> = strategies.iter().map(|strategy| strategy.name.as_str()).collect();
        assert_eq!(names[..4], ["greedy", "temperature 0.7", "temperature 1.0", "temperature 1.4"]);
        assert_eq!(names[4..], ["top-k 40", "top-p 0.9", "min-p 0.05", "adaptive 0.5", "annealed", "beam 4"]);
        let deterministic: Vec<bool> = strategies.iter().map(Strategy::is_deterministic).collect();
        assert_eq!(deterministic.iter().filter(|&&is| is).count(), 2);
        assert!(deterministic[0] && deterministic[9]);
        assert_eq!((strategies[9].beam, strategies[8].temperature_end), (Some(4), Some(0.6)));
    }

    #[test]
    fn a_strategy_has_the_keys_of_generates_flags_and_no_others() {
        let text = "[[strategy]]\nname = 'all'\ntemperature = 2.0\ntemperature_end = 0.5\ntemperature_schedule = 'exponential'\n\
                    top_k = 3\ntop_p = 0.5\nmin_p = 0.1\nrepetition_penalty = 1.5\npresence_penalty = 0.25\n\
                    frequency_penalty = 0.75\nlogit_bias = [[3, -inf], [4, 1.5]]\nadaptive = 0.9\n";
        let strategy = &parse_strategies(text).unwrap()[0];
        assert_eq!(strategy.logit_bias, [(3, f32::NEG_INFINITY), (4, 1.5)]);
        let params = strategy.sampler(7, 2, 10).unwrap().params().clone();
        assert_eq!((params.top_k, params.top_p, params.min_p, params.seed), (3, 0.5, 0.1, 7));
        assert_eq!((params.repetition_penalty, params.presence_penalty, params.frequency_penalty), (1.5, 0.25, 0.75));
        assert!(refused("[[strategy]]\nname = 'a'\ntopk = 3\n").contains("unknown field `topk`"));
        assert!(refused("[[strategies]]\nname = 'a'\n").contains("unknown field `strategies`"));
        assert!(refused("[[strategy]]\nname = 'a'\nseed = 3\n").contains("unknown field `seed`"));
    }

    #[test]
    fn strategies_that_cannot_be_compared_are_refused() {
        assert_eq!(refused(""), "there are no strategies: the file needs at least one [[strategy]]");
        assert!(
            refused("[[strategy]]\nname = 'a'\n[[strategy]]\ntop_k = 3\n")
                .starts_with("[[strategy]] number 2 has no name")
        );
        assert!(
            refused("[[strategy]]\nname = 'a'\n[[strategy]]\nname = 'a'\n").contains("two strategies are called `a`")
        );
        assert!(refused("[[strategy]]\nname = 'a'\ntop_p = 2.0\n").starts_with("strategy `a`: top_p is 2"));
        assert!(refused("[[strategy]]\nname = 'a'\nadaptive = -1.0\n").contains("adaptive is -1"));
        let frozen = "[[strategy]]\nname = 'a'\ntemperature_end = 0.0\ntemperature_schedule = 'exponential'\n";
        assert!(refused(frozen).contains("never reaches 0"));
        assert!(refused("[[strategy]]\nname = 'a'\nbeam = 0\n").contains("beam is 0, but must be from 1 to 64"));
        assert!(refused("[[strategy]]\nname = 'a'\nbeam = 65\n").contains("beam is 65"));
        assert!(refused("[[strategy]]\nname = 'a'\nbeam = 2\ntop_k = 3\n").contains("beam stands alone"));
        let biased = &parse_strategies("[[strategy]]\nname = 'a'\nlogit_bias = [[7, 1.0]]\n").unwrap()[0];
        assert_eq!(biased.check_tokens(8), Ok(()));
        assert!(biased.check_tokens(7).unwrap_err().to_string().contains("token 7 of logit_bias"));
    }

    #[test]
    fn a_strategy_that_is_greedy_at_every_position_is_deterministic() {
        let off = Strategy::default();
        assert!(!off.is_deterministic());
        assert!(Strategy { top_k: 1, ..off.clone() }.is_deterministic());
        assert!(Strategy { temperature: 0.0, ..off.clone() }.is_deterministic());
        assert!(!Strategy { temperature: 0.0, temperature_end: Some(1.0), ..off.clone() }.is_deterministic());
        assert!(!Strategy { temperature: 1.0, temperature_end: Some(0.0), ..off }.is_deterministic());
    }
}
