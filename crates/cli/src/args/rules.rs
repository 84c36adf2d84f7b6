//! The sampling rules that `generate` and `sample` share, beside temperature, top-k and top-p.

use std::str::FromStr;

use clap::Args;
use tinygpt_sampler::{Dry, Sampler, SamplingParams};

use crate::output::Usage;

/// Rules that are off by default.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct RuleArgs {
    /// Keep the tokens whose probability is at least this share of the largest; 0 is off.
    #[arg(long, value_name = "P", default_value_t = 0.0, allow_negative_numbers = true)]
    pub min_p: f64,
    /// Divide (if negative, multiply) the logits of the tokens so far; 1 is off.
    #[arg(long, value_name = "R", default_value_t = 1.0, allow_negative_numbers = true)]
    pub repetition_penalty: f64,
    /// Take this from the logits of the tokens so far, once each; 0 is off.
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub presence_penalty: f64,
    /// Take this from the logits of the tokens so far, once for each time; 0 is off.
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub frequency_penalty: f64,
    /// Add to the logit of a token; -inf bans it; repeatable.
    #[arg(long, value_name = "ID=VALUE")]
    pub logit_bias: Vec<TokenBias>,
    /// Take this from the logits of tokens that would prolong a repetition (DRY), more for longer ones; 0 is off.
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub dry_multiplier: f64,
    /// What each further token of a repetition multiplies the penalty by.
    #[arg(long, value_name = "X", default_value_t = 1.75, allow_negative_numbers = true)]
    pub dry_base: f64,
    /// The shortest repetition, in tokens, that is penalised.
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub dry_allowed_length: usize,
    /// Look for repetitions in the last N tokens; 0 is all.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub dry_range: usize,
    /// Never repeat a sequence of N tokens; 0 is off.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub no_repeat_ngram_size: usize,
    /// Keep the logits within N standard deviations of the largest; 0 is off.
    #[arg(long, value_name = "N", default_value_t = 0.0, allow_negative_numbers = true)]
    pub top_n_sigma: f64,
    /// Move the temperature by up to this with the entropy: lower where the model is certain, higher where not; 0 is off.
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub dynatemp_range: f64,
    /// The power of the entropy by which the temperature moves.
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true)]
    pub dynatemp_exponent: f64,
    /// Keep the tokens that are about as surprising as the model expects, of probability P; 1 is off.
    #[arg(long, value_name = "P", default_value_t = 1.0, allow_negative_numbers = true)]
    pub typical_p: f64,
    /// With this probability, drop all top choices but the least probable (XTC); 0 is off.
    #[arg(long, value_name = "P", default_value_t = 0.0, allow_negative_numbers = true)]
    pub xtc_probability: f64,
    /// The probability that makes a token a top choice of XTC.
    #[arg(long, value_name = "P", default_value_t = 0.1, allow_negative_numbers = true)]
    pub xtc_threshold: f64,
    /// Steer the surprise of the text to this many bits a token (mirostat 2), in the place of top-k, top-p and all others that
    /// keep tokens; 0 is off.
    #[arg(long, value_name = "BITS", default_value_t = 0.0, allow_negative_numbers = true)]
    pub mirostat_tau: f64,
    /// How fast mirostat learns.
    #[arg(long, value_name = "X", default_value_t = 0.1, allow_negative_numbers = true)]
    pub mirostat_eta: f64,
    /// Be greedy wherever the largest probability, after all rules, exceeds this.
    #[arg(long, value_name = "THRESHOLD", allow_negative_numbers = true)]
    pub adaptive: Option<f64>,
}

/// `ID=VALUE`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenBias {
    /// The token.
    pub token: u32,
    /// What its logit gains.
    pub bias: f32,
}

impl FromStr for TokenBias {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let (token, bias) = s.split_once('=').ok_or("must be ID=VALUE, for example 13=-2.5")?;
        let token = token.trim().parse().map_err(|_| format!("`{token}` is not the number of a token"))?;
        let bias = bias.trim().parse().map_err(|_| format!("`{bias}` is not a number"))?;
        Ok(Self { token, bias })
    }
}

impl RuleArgs {
    /// All rules; the others are given. DRY has no breakers, which need a tokenizer.
    pub fn params(&self, temperature: f64, top_k: usize, top_p: f64, seed: u64) -> SamplingParams {
        SamplingParams {
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.iter().map(|b| (b.token, b.bias)).collect(),
            dry: Dry {
                multiplier: self.dry_multiplier,
                base: self.dry_base,
                allowed_length: self.dry_allowed_length,
                last_n: self.dry_range,
                breakers: Vec::new(),
            },
            no_repeat_ngram_size: self.no_repeat_ngram_size,
            top_n_sigma: self.top_n_sigma,
            temperature,
            dynatemp_range: self.dynatemp_range,
            dynatemp_exponent: self.dynatemp_exponent,
            top_k,
            typical_p: self.typical_p,
            top_p,
            min_p: self.min_p,
            xtc_probability: self.xtc_probability,
            xtc_threshold: self.xtc_threshold,
            mirostat_tau: self.mirostat_tau,
            mirostat_eta: self.mirostat_eta,
            seed,
        }
    }

    /// A sampler with these rules, and greedy where `--adaptive` says.
    pub fn sampler(&self, params: SamplingParams) -> anyhow::Result<Sampler> {
        let sampler = Sampler::new(params).and_then(|sampler| match self.adaptive {
            Some(threshold) => sampler.with_adaptive(threshold),
            None => Ok(sampler),
        });
        sampler.map_err(|e| Usage(e.to_string()).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bias_is_a_token_and_a_number_and_nothing_else() {
        assert_eq!("13=-2.5".parse(), Ok(TokenBias { token: 13, bias: -2.5 }));
        assert_eq!("0=-inf".parse(), Ok(TokenBias { token: 0, bias: f32::NEG_INFINITY }));
        for bad in ["", "13", "=", "-1=2", "4294967296=1", "a=1", "1=", "1=x"] {
            assert!(bad.parse::<TokenBias>().is_err(), "{bad}");
        }
    }
}
