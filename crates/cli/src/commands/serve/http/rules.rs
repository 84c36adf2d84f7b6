//! The rules of sampling that a request asks for: those of `tinygpt generate`, by the same names.

use serde::Deserialize;
use serde_json::{Map, Value};
use tinygpt_model::{GenerationDefaults, Tokenizer};
use tinygpt_sampler::{Sampler, SamplingError, SamplingParams};

use super::{error::ApiError, fields::Fields};
use crate::generation::{DefaultRules, dry_breakers, fresh_seed};

/// All rules of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    pub params: SamplingParams,
    /// Greedy wherever the largest probability exceeds this.
    pub adaptive: Option<f64>,
}

/// What the rules depend on beside the request.
#[derive(Clone, Copy)]
pub struct OfModel<'a> {
    pub defaults: &'a GenerationDefaults,
    pub tokenizer: &'a Tokenizer,
    pub vocab_size: usize,
}

impl Rules {
    /// Takes all rules out of a request, and checks them.
    pub fn take(fields: &mut Fields, model: OfModel<'_>) -> Result<Self, ApiError> {
        let mut params = SamplingParams::default();
        fields.set("repetition_penalty", &mut params.repetition_penalty)?;
        fields.set("presence_penalty", &mut params.presence_penalty)?;
        fields.set("frequency_penalty", &mut params.frequency_penalty)?;
        fields.set("dry_multiplier", &mut params.dry.multiplier)?;
        fields.set("dry_base", &mut params.dry.base)?;
        fields.set("dry_allowed_length", &mut params.dry.allowed_length)?;
        fields.set("dry_range", &mut params.dry.last_n)?;
        fields.set("no_repeat_ngram_size", &mut params.no_repeat_ngram_size)?;
        fields.set("top_n_sigma", &mut params.top_n_sigma)?;
        fields.set("dynatemp_range", &mut params.dynatemp_range)?;
        fields.set("dynatemp_exponent", &mut params.dynatemp_exponent)?;
        fields.set("typical_p", &mut params.typical_p)?;
        fields.set("min_p", &mut params.min_p)?;
        fields.set("xtc_probability", &mut params.xtc_probability)?;
        fields.set("xtc_threshold", &mut params.xtc_threshold)?;
        fields.set("mirostat_tau", &mut params.mirostat_tau)?;
        fields.set("mirostat_eta", &mut params.mirostat_eta)?;
        let of_run = DefaultRules::of(model.defaults, params.mirostat_tau > 0.0);
        params.temperature = fields.take("temperature")?.unwrap_or(of_run.temperature);
        params.top_k = fields.take("top_k")?.unwrap_or(of_run.top_k);
        params.top_p = fields.take("top_p")?.unwrap_or(of_run.top_p);
        params.seed = fields.take("seed")?.unwrap_or_else(fresh_seed);
        if let Some(biases) = fields.take("logit_bias")? {
            params.logit_bias = logit_bias(biases, model.vocab_size)?;
        }
        let adaptive = fields.take("adaptive")?;
        let breakers: Option<Vec<String>> = fields.take("dry_breaker")?;
        let sampler = Sampler::new(params.clone()).map_err(refused)?;
        adaptive.map(|threshold| sampler.with_adaptive(threshold)).transpose().map_err(refused)?;
        if params.dry.multiplier > 0.0 {
            params.dry.breakers = dry_breakers(breakers.unwrap_or_default(), model.tokenizer)
                .map_err(|error| ApiError::bad_param("dry_breaker", error))?;
        }
        Ok(Self { params, adaptive })
    }
}

/// The sampler's words, with the key to blame under the name that requests have for it.
fn refused(error: SamplingError) -> ApiError {
    match error {
        SamplingError::Parameter { field, value, allowed } => {
            ApiError::bad_param(field.replace("dry.", "dry_"), format!("is {value}, but must be {allowed}"))
        }
        other => ApiError::bad_request(other.to_string()),
    }
}

/// A number, or "-inf", which JSON has no number for.
#[derive(Deserialize)]
#[serde(untagged)]
enum Bias {
    Number(f32),
    Text(String),
}

/// Biases by the numbers of tokens, which are keys and hence texts.
fn logit_bias(biases: Map<String, Value>, vocab_size: usize) -> Result<Vec<(u32, f32)>, ApiError> {
    let bad = |message: String| ApiError::bad_param("logit_bias", message);
    let bias = |(token, value): (String, Value)| {
        let id: u32 = token.parse().map_err(|_| bad(format!("`{token}` is not the number of a token")))?;
        if id as usize >= vocab_size {
            return Err(bad(format!("token {id} is not below the vocabulary size {vocab_size}")));
        }
        match serde_json::from_value(value.clone()) {
            Ok(Bias::Number(bias)) => Ok((id, bias)),
            Ok(Bias::Text(text)) if text == "-inf" => Ok((id, f32::NEG_INFINITY)),
            _ => Err(bad(format!("the bias of token {id} is {value}, but must be a number or \"-inf\""))),
        }
    };
    biases.into_iter().map(bias).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests {
    use clap::{Args, Command};
    use serde_json::json;

    use super::*;
    use crate::args::RuleArgs;

    fn take(request: Value) -> Result<Rules, ApiError> {
        let tokenizer = Tokenizer::train_char([Ok::<_, std::convert::Infallible>("ab\n")]).unwrap();
        let mut fields = Fields::parse(request.to_string().as_bytes()).unwrap();
        let model = OfModel {
            defaults: &GenerationDefaults::default(),
            tokenizer: &tokenizer,
            vocab_size: tokenizer.vocab_size(),
        };
        let rules = Rules::take(&mut fields, model)?;
        fields.finish()?;
        Ok(rules)
    }

    #[test]
    fn every_rule_of_the_command_line_is_a_key() {
        for arg in RuleArgs::augment_args(Command::new("rules")).get_arguments() {
            let key = arg.get_id().as_str();
            // What it says of a value of a wrong type shows that it reads the key.
            let error = take(json!({ key: [[]] })).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(key), "{}", error.message);
            assert_ne!(error.code, Some("unknown_key"));
        }
    }

    #[test]
    fn a_rule_outside_of_its_range_is_refused_by_name() {
        let message = |request| take(request).unwrap_err().message;
        assert_eq!(message(json!({ "top_p": 2 })), "top_p: is 2, but must be between 0 and 1");
        assert_eq!(message(json!({ "adaptive": -1 })), "adaptive: is -1, but must be between 0 and 1");
        let dry = message(json!({ "dry_base": 0.5 }));
        assert_eq!(dry, "dry_base: is 0.5, but must be a finite number of at least 1");
        let mirostat = message(json!({ "mirostat_tau": 3, "top_k": 5 }));
        assert_eq!(mirostat, "mirostat_tau: is 3, but must be 0, since mirostat replaces top_k");
    }

    #[test]
    fn biases_are_numbers_by_token_and_minus_infinity_is_a_text() {
        let rules = take(json!({ "logit_bias": { "1": -100, "0": "-inf" } })).unwrap();
        assert_eq!(rules.params.logit_bias, [(1, -100.0), (0, f32::NEG_INFINITY)]);
        for bad in
            [json!({ "x": 1 }), json!({ "3": 1 }), json!({ "1": "inf" }), json!({ "1": null }), json!({ "-1": 0 })]
        {
            assert_eq!(take(json!({ "logit_bias": bad })).unwrap_err().param.as_deref(), Some("logit_bias"));
        }
    }

    #[test]
    fn breakers_are_looked_up_where_dry_is_on() {
        assert!(take(json!({ "dry_multiplier": 1, "dry_breaker": ["a"] })).unwrap().params.dry.breakers.len() == 1);
        assert!(take(json!({ "dry_breaker": ["a"] })).unwrap().params.dry.breakers.is_empty());
    }
}
