//! What the flags say of every text, beside its prompt.

use std::path::Path;

use anyhow::Context;
use tinygpt_model::{
    GenerationDefaults,
    constraint::{Constraint, Grammar},
    tokenizer::{StopStrings, Tokenizer},
};
use tinygpt_sampler::{Sampler, SamplingParams, Schedule};

use super::{Plan, prompts::unescape};
use crate::{
    args::{GrammarArgs, ScheduleArg, TextArgs},
    generation::{DefaultRules, default_max_new_tokens, dry_breakers},
    generator::Generator,
    output::Usage,
};

/// What the flags say, before the model is opened: what makes no sense with any model is refused.
pub struct Wanted<'a> {
    args: &'a TextArgs,
    defaults: &'a GenerationDefaults,
    rules: SamplingParams,
    grammar: Option<Grammar>,
}

impl<'a> Wanted<'a> {
    /// `seed` is what the flags leave open.
    pub fn new(args: &'a TextArgs, defaults: &'a GenerationDefaults, seed: u64) -> anyhow::Result<Self> {
        let rules = rules(args, defaults, seed);
        args.rules.sampler(rules.clone())?;
        Ok(Self { args, defaults, rules, grammar: grammar(&args.grammar)? })
    }

    /// The settings for a model.
    pub fn settings(self, generator: &Generator) -> anyhow::Result<Settings<'a>> {
        let Self { args, defaults, mut rules, grammar } = self;
        let tokenizer = generator.tokenizer();
        let stops: Vec<String> = args.stop.iter().map(|stop| unescape(stop)).collect();
        StopStrings::new(stops.clone()).map_err(|e| Usage(format!("--stop: {e}")))?;
        let constraint = grammar.map(|grammar| constraint(&grammar, tokenizer)).transpose()?;
        refuse_unknown_biases(&rules, generator.vocab_size())?;
        if rules.dry.multiplier > 0.0 {
            let given = args.dry_breaker.iter().map(|text| unescape(text)).collect();
            rules.dry.breakers =
                dry_breakers(given, tokenizer).map_err(|error| Usage(format!("--dry-breaker: {error}")))?;
        }
        let max_new_tokens = args.max_new_tokens.unwrap_or_else(|| default_max_new_tokens(defaults));
        Ok(Settings { args, rules, stops, constraint, max_new_tokens })
    }
}

/// How every text is drawn from a model.
pub struct Settings<'a> {
    args: &'a TextArgs,
    rules: SamplingParams,
    stops: Vec<String>,
    constraint: Option<Constraint>,
    max_new_tokens: usize,
}

impl Settings<'_> {
    /// Whether the seed says anything.
    pub fn draws(&self) -> bool {
        self.rules.temperature > 0.0 || self.args.temperature_end.is_some()
    }

    pub fn seed(&self) -> u64 {
        self.rules.seed
    }

    /// What is generated behind a prompt. One that the model does not see as a whole is announced.
    pub fn plan(&self, prompt: String, logprobs: Option<usize>, generator: &Generator) -> anyhow::Result<Plan> {
        let tokenizer = generator.tokenizer();
        let (prompt_text, stops) = (prompt, self.stops.clone());
        let prompt = tokenizer.encode_prompt(&prompt_text).context("the prompt")?;
        if let Some(block_size) = generator.block_size()
            && prompt.len() > block_size
        {
            notice!("the prompt has {} tokens, of which the model sees the last {block_size}", prompt.len());
        }
        let (max_new_tokens, constraint) = (self.max_new_tokens, self.constraint.clone());
        Ok(Plan { prompt_text, prompt, stops, max_new_tokens, constraint, logprobs })
    }

    /// The sampler with the temperature's way to `--temperature-end`: it starts at the first new token, whose position is
    /// the prompt's length, and arrives at the last.
    pub fn sampler(&self, plan: &Plan) -> anyhow::Result<Sampler> {
        let sampler = self.args.rules.sampler(self.rules.clone())?;
        let Some(to) = self.args.temperature_end else { return Ok(sampler) };
        let steps = (plan.max_new_tokens as u64).saturating_sub(1).max(1);
        let schedule = match self.args.temperature_schedule {
            ScheduleArg::Linear => Schedule::Linear { to, steps },
            ScheduleArg::Exponential => Schedule::Exponential { to, steps },
        };
        sampler.with_schedule_from(schedule, plan.prompt.len() as u64).map_err(|e| Usage(e.to_string()).into())
    }

    /// What is printed before a sample.
    pub fn echoed<'p>(&self, plan: &'p Plan) -> &'p str {
        if self.args.no_echo { "" } else { &plan.prompt_text }
    }
}

fn rules(args: &TextArgs, defaults: &GenerationDefaults, seed: u64) -> SamplingParams {
    let of_run = DefaultRules::of(defaults, args.rules.mirostat_tau > 0.0);
    args.rules.params(
        args.temperature.unwrap_or(of_run.temperature),
        args.top_k.unwrap_or(of_run.top_k),
        args.top_p.unwrap_or(of_run.top_p),
        args.seed.unwrap_or(seed),
    )
}

/// The grammar of the flags; its files are read.
fn grammar(args: &GrammarArgs) -> anyhow::Result<Option<Grammar>> {
    let read = |path: &Path| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    Ok(match args {
        GrammarArgs { regex: Some(regex), .. } => Some(Grammar::Regex(regex.clone())),
        GrammarArgs { grammar: Some(path), .. } => Some(Grammar::Lark(read(path)?)),
        GrammarArgs { json_schema: Some(path), .. } => {
            let schema = serde_json::from_str(&read(path)?);
            Some(Grammar::JsonSchema(schema.with_context(|| format!("{} is not JSON", path.display()))?))
        }
        _ => None,
    })
}

/// The constraint of a grammar.
fn constraint(grammar: &Grammar, tokenizer: &Tokenizer) -> Result<Constraint, Usage> {
    let flag = match grammar {
        Grammar::Regex(_) => "--regex",
        Grammar::Lark(_) => "--grammar",
        Grammar::JsonSchema(_) => "--json-schema",
    };
    Constraint::new(grammar, tokenizer).map_err(|error| Usage(format!("{flag}: {error}")))
}

/// A bias of a token that the model does not have would fail at the first token, after the prompt was printed.
fn refuse_unknown_biases(rules: &SamplingParams, vocab_size: usize) -> anyhow::Result<()> {
    match rules.logit_bias.iter().find(|(token, _)| *token as usize >= vocab_size) {
        Some((token, _)) => {
            Err(Usage(format!("--logit-bias: token {token} is not below the vocabulary size {vocab_size}")).into())
        }
        None => Ok(()),
    }
}
