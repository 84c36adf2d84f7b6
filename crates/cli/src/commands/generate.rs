//! `tinygpt generate`.

mod logprobs;
mod texts;

use std::path::Path;

use anyhow::Context;
use serde_json::json;
use tinygpt_model::{
    Decoder, Generation, GenerationDefaults, ModelFolder,
    constraint::{Constraint, Grammar},
    generate_with,
    tokenizer::{StopStrings, Tokenizer},
};
use tinygpt_sampler::{Sampler, SamplingParams, Schedule};
use tinygpt_trainer::{RunDir, run::RUNS};

use crate::{
    args::{GenerateArgs, GrammarArgs, ScheduleArg},
    generation::{DefaultRules, default_max_new_tokens, dry_breakers, fresh_seed},
    generator::Generator,
    hub,
    output::{Usage, print_json, print_stdout},
};
use texts::{Sample, Texts};

/// Samples that are computed side by side. The text does not depend on it.
const ROWS: u64 = 16;

/// What is generated, resolved from flags and the run's defaults.
struct Plan {
    prompt_text: String,
    prompt: Vec<u32>,
    stops: Vec<String>,
    max_new_tokens: usize,
    /// What the generated text must be, before its first token.
    constraint: Option<Constraint>,
    /// How many of the most probable tokens are told beside each token.
    logprobs: Option<usize>,
}

pub fn run(args: &GenerateArgs) -> anyhow::Result<()> {
    if args.first_sample.checked_add(args.num_samples - 1).is_none() {
        return Err(Usage(format!("--first-sample {} leaves no numbers for --num-samples", args.first_sample)).into());
    }
    let folder = match &args.checkpoint {
        Some(path) => ModelFolder::new(&hub::folder(path)?),
        None => RunDir::latest(Path::new(RUNS))?.model(),
    };
    let defaults = folder.read_generation_defaults()?;
    // Refused before anything is read, and used once the prompt's length is known.
    let mut rules = rules(args, &defaults);
    args.rules.sampler(rules.clone())?;
    let grammar = grammar(&args.grammar)?;
    let generator = Generator::open(folder.path(), args.adapter.as_deref())?;
    let tokenizer = generator.tokenizer();
    let plan = plan(args, &defaults, tokenizer, grammar.as_ref())?;
    refuse_unknown_biases(&rules, generator.vocab_size())?;
    if rules.dry.multiplier > 0.0 {
        let given = args.dry_breaker.iter().map(|text| unescape(text)).collect();
        rules.dry.breakers =
            dry_breakers(given, tokenizer).map_err(|error| Usage(format!("--dry-breaker: {error}")))?;
    }
    let mut sampler = scheduled(args.rules.sampler(rules.clone())?, args, &plan)?;
    let rows = ROWS.min(args.num_samples) as usize;
    let mut decoder = generator.decoder((args.window.into(), args.weights.into(), args.device), rows)?;
    if args.seed.is_none() && (rules.temperature > 0.0 || args.temperature_end.is_some()) {
        notice!("seed {}", rules.seed);
    }
    let decoder = decoder.as_mut();
    if args.json {
        let samples = batches(args, |first, rows| samples(decoder, &mut sampler, tokenizer, &plan, first, rows))?;
        let seed = sampler.params().seed;
        return print_json(&json!({ "prompt": plan.prompt_text, "seed": seed, "samples": samples }));
    }
    if args.num_samples == 1 {
        return streamed(decoder, &mut sampler, tokenizer, &plan, args);
    }
    let mut first = true;
    batches(args, |start, rows| {
        for sample in samples(decoder, &mut sampler, tokenizer, &plan, start, rows)? {
            let separator =
                if first || args.separator.is_empty() { String::new() } else { format!("{}\n", args.separator) };
            print_stdout(&format!("{separator}{}{}\n", plan.echoed(args), sample.text))?;
            first = false;
        }
        Ok(Vec::<()>::new())
    })?;
    Ok(())
}

/// Calls `work(first sample, rows)` for one batch of samples after the other.
fn batches<T>(
    args: &GenerateArgs,
    mut work: impl FnMut(u64, usize) -> anyhow::Result<Vec<T>>,
) -> anyhow::Result<Vec<T>> {
    let mut all = Vec::new();
    let mut done = 0;
    while done < args.num_samples {
        let rows = ROWS.min(args.num_samples - done);
        all.extend(work(args.first_sample + done, rows as usize)?);
        done += rows;
    }
    Ok(all)
}

fn rules(args: &GenerateArgs, defaults: &GenerationDefaults) -> SamplingParams {
    let of_run = DefaultRules::of(defaults, args.rules.mirostat_tau > 0.0);
    args.rules.params(
        args.temperature.unwrap_or(of_run.temperature),
        args.top_k.unwrap_or(of_run.top_k),
        args.top_p.unwrap_or(of_run.top_p),
        args.seed.unwrap_or_else(fresh_seed),
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

/// The sampler with the temperature's way to `--temperature-end`: it starts at the first new token, whose position is
/// the prompt's length, and arrives at the last.
fn scheduled(sampler: Sampler, args: &GenerateArgs, plan: &Plan) -> anyhow::Result<Sampler> {
    let Some(to) = args.temperature_end else { return Ok(sampler) };
    let steps = (plan.max_new_tokens as u64).saturating_sub(1).max(1);
    let schedule = match args.temperature_schedule {
        ScheduleArg::Linear => Schedule::Linear { to, steps },
        ScheduleArg::Exponential => Schedule::Exponential { to, steps },
    };
    sampler.with_schedule_from(schedule, plan.prompt.len() as u64).map_err(|e| Usage(e.to_string()).into())
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

fn plan(
    args: &GenerateArgs,
    defaults: &GenerationDefaults,
    tokenizer: &Tokenizer,
    grammar: Option<&Grammar>,
) -> anyhow::Result<Plan> {
    let prompt_text = match (&args.prompt, &args.prompt_file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) => {
            let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            String::from_utf8(bytes).map_err(|e| {
                anyhow::anyhow!("{} is not UTF-8: bad byte at offset {}", path.display(), e.utf8_error().valid_up_to())
            })?
        }
        (None, None) => String::new(),
    };
    let prompt = if prompt_text.is_empty() {
        vec![tokenizer.start_token()]
    } else {
        tokenizer.encode(&prompt_text).context("the prompt")?
    };
    let stops: Vec<String> = args.stop.iter().map(|stop| unescape(stop)).collect();
    StopStrings::new(stops.clone()).map_err(|e| Usage(format!("--stop: {e}")))?;
    let max_new_tokens = args.max_new_tokens.unwrap_or_else(|| default_max_new_tokens(defaults));
    let constraint = |grammar: &Grammar| {
        let flag = match grammar {
            Grammar::Regex(_) => "--regex",
            Grammar::Lark(_) => "--grammar",
            Grammar::JsonSchema(_) => "--json-schema",
        };
        Constraint::new(grammar, tokenizer).map_err(|error| Usage(format!("{flag}: {error}")))
    };
    let constraint = grammar.map(constraint).transpose()?;
    Ok(Plan { prompt_text, prompt, stops, max_new_tokens, constraint, logprobs: args.logprobs })
}

impl Plan {
    /// What is printed before a sample.
    fn echoed(&self, args: &GenerateArgs) -> &str {
        if args.no_echo { "" } else { &self.prompt_text }
    }
}

/// Line breaks and tabs are hard to type in a shell.
fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, chars.as_str().chars().next()) {
            ('\\', Some(next @ ('n' | 't' | '\\'))) => {
                chars.next();
                out.push(match next {
                    'n' => '\n',
                    't' => '\t',
                    other => other,
                });
            }
            _ => out.push(c),
        }
    }
    out
}

/// One sample, printed token by token.
fn streamed(
    decoder: &mut dyn Decoder,
    sampler: &mut Sampler,
    tokenizer: &Tokenizer,
    plan: &Plan,
    args: &GenerateArgs,
) -> anyhow::Result<()> {
    print_stdout(plan.echoed(args))?;
    let texts = Texts::new(tokenizer, plan, args.first_sample, 1, print_stdout)?;
    generated(decoder, sampler, plan, texts)?;
    Ok(print_stdout("\n")?)
}

/// Some samples side by side.
fn samples(
    decoder: &mut dyn Decoder,
    sampler: &mut Sampler,
    tokenizer: &Tokenizer,
    plan: &Plan,
    first: u64,
    rows: usize,
) -> anyhow::Result<Vec<Sample>> {
    generated(decoder, sampler, plan, Texts::new(tokenizer, plan, first, rows, |_| Ok(()))?)
}

/// Generates some texts to their ends.
fn generated(
    decoder: &mut dyn Decoder,
    sampler: &mut Sampler,
    plan: &Plan,
    mut texts: Texts<'_>,
) -> anyhow::Result<Vec<Sample>> {
    let (first_sequence, rows) = texts.place();
    let request = Generation { prompt: &plan.prompt, first_sequence, rows, max_new_tokens: plan.max_new_tokens };
    generate_with(decoder, sampler, request, &mut texts)?;
    texts.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_in_stop_strings_are_understood_and_other_backslashes_kept() {
        assert_eq!(unescape(r"a\nb\tc\\n"), "a\nb\tc\\n");
        assert_eq!(unescape(r"\x \"), r"\x \");
    }
}
