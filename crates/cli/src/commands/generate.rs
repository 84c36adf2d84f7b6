//! `tinygpt generate`.

use std::{ops::ControlFlow, path::Path};

use anyhow::Context;
use serde::Serialize;
use serde_json::json;
use tinygpt_model::{
    Decoder, Generation, GenerationDefaults, ModelFolder, generate,
    tokenizer::{StopStrings, TextStream, Tokenizer},
};
use tinygpt_sampler::{Sampler, SamplingParams, Schedule};
use tinygpt_trainer::{RunDir, run::RUNS};

use crate::{
    args::{GenerateArgs, ScheduleArg},
    generator::Generator,
    output::{Usage, print_json, print_stdout},
};

/// Tokens after the prompt where neither the flag nor the run says.
const MAX_NEW_TOKENS: usize = 300;
/// Samples that are computed side by side. The text does not depend on it.
const ROWS: u64 = 16;

/// What is generated, resolved from flags and the run's defaults.
struct Plan {
    prompt_text: String,
    prompt: Vec<u32>,
    stops: Vec<String>,
    max_new_tokens: usize,
}

pub fn run(args: &GenerateArgs) -> anyhow::Result<()> {
    if args.first_sample.checked_add(args.num_samples - 1).is_none() {
        return Err(Usage(format!("--first-sample {} leaves no numbers for --num-samples", args.first_sample)).into());
    }
    let folder = match &args.checkpoint {
        Some(path) => ModelFolder::new(path),
        None => RunDir::latest(Path::new(RUNS))?.model(),
    };
    let defaults = folder.read_generation_defaults()?;
    // Refused before anything is read, and used once the prompt's length is known.
    let rules = rules(args, &defaults);
    let sampler = args.rules.sampler(rules.clone())?;
    let generator = Generator::open(folder.path(), args.adapter.as_deref())?;
    let tokenizer = generator.tokenizer();
    let plan = plan(args, &defaults, tokenizer)?;
    refuse_unknown_biases(&rules, generator.vocab_size())?;
    let mut sampler = scheduled(sampler, args, &plan)?;
    let rows = ROWS.min(args.num_samples) as usize;
    let mut decoder = generator.decoder(args, rows)?;
    if args.seed.is_none() && (rules.temperature > 0.0 || args.temperature_end.is_some()) {
        notice!("seed {}", rules.seed);
    }
    let decoder = decoder.as_mut();
    if args.json {
        let samples = batches(args, |first, rows| buffered(decoder, &mut sampler, tokenizer, &plan, first, rows))?;
        let seed = sampler.params().seed;
        return print_json(&json!({ "prompt": plan.prompt_text, "seed": seed, "samples": samples }));
    }
    if args.num_samples == 1 {
        return streamed(decoder, &mut sampler, tokenizer, &plan, args.first_sample);
    }
    let mut first = true;
    batches(args, |start, rows| {
        for sample in buffered(decoder, &mut sampler, tokenizer, &plan, start, rows)? {
            let separator =
                if first || args.separator.is_empty() { String::new() } else { format!("{}\n", args.separator) };
            print_stdout(&format!("{separator}{}{}\n", plan.prompt_text, sample.text))?;
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
    let greedy = defaults.do_sample == Some(false);
    args.rules.params(
        args.temperature.or(if greedy { Some(0.0) } else { defaults.temperature }).unwrap_or(1.0),
        args.top_k.or(defaults.top_k).unwrap_or(0),
        args.top_p.or(defaults.top_p).unwrap_or(1.0),
        args.seed.unwrap_or_else(fresh_seed),
    )
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

/// A seed that is easy to type again.
fn fresh_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    (now.as_nanos() % 1_000_000_000) as u64
}

fn plan(args: &GenerateArgs, defaults: &GenerationDefaults, tokenizer: &Tokenizer) -> anyhow::Result<Plan> {
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
    let max_new_tokens = args.max_new_tokens.or(defaults.max_new_tokens).unwrap_or(MAX_NEW_TOKENS);
    Ok(Plan { prompt_text, prompt, stops, max_new_tokens })
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

/// One sample's text as it grows.
struct Text<'t> {
    stream: Option<TextStream<'t>>,
    stops: StopStrings,
    end_of_text: Option<u32>,
}

impl<'t> Text<'t> {
    fn new(tokenizer: &'t Tokenizer, plan: &Plan) -> anyhow::Result<Self> {
        let stops = StopStrings::new(plan.stops.clone())?;
        Ok(Self { stream: Some(tokenizer.text_stream()), stops, end_of_text: tokenizer.end_of_text() })
    }

    /// The text that a token settles, and whether the sample is over.
    fn push(&mut self, token: u32) -> anyhow::Result<(String, bool)> {
        if Some(token) == self.end_of_text {
            return Ok((String::new(), true));
        }
        match &mut self.stream {
            Some(stream) => Ok(self.stops.push(&stream.push(token)?)),
            None => Ok((String::new(), true)),
        }
    }

    /// The rest: what was held back for a stop string or an unfinished character.
    fn finish(&mut self) -> anyhow::Result<String> {
        let Some(stream) = self.stream.take() else { return Ok(String::new()) };
        let (text, _) = self.stops.push(&stream.finish()?);
        Ok(text + &self.stops.finish())
    }
}

/// A finished sample.
#[derive(Debug, Serialize)]
struct Sample {
    /// The number of the sample: what its draws depend on, beside the seed.
    sample: u64,
    /// The generated text, without the prompt.
    text: String,
    /// The generated tokens, those of the stop included.
    tokens: Vec<u32>,
    /// `stop` or `length`.
    ended_by: &'static str,
}

/// One sample, printed token by token.
fn streamed(
    decoder: &mut dyn Decoder,
    sampler: &mut Sampler,
    tokenizer: &Tokenizer,
    plan: &Plan,
    first: u64,
) -> anyhow::Result<()> {
    print_stdout(&plan.prompt_text)?;
    let mut text = Text::new(tokenizer, plan)?;
    let mut failed = None;
    let request =
        Generation { prompt: &plan.prompt, first_sequence: first, rows: 1, max_new_tokens: plan.max_new_tokens };
    generate(decoder, sampler, request, |_, token| {
        let shown = text.push(token).and_then(|(piece, over)| {
            print_stdout(&piece)?;
            Ok(over)
        });
        match shown {
            Ok(false) => ControlFlow::Continue(()),
            Ok(true) => ControlFlow::Break(()),
            Err(e) => {
                failed = Some(e);
                ControlFlow::Break(())
            }
        }
    })?;
    if let Some(e) = failed {
        return Err(e);
    }
    Ok(print_stdout(&(text.finish()? + "\n"))?)
}

/// Some samples side by side.
fn buffered(
    decoder: &mut dyn Decoder,
    sampler: &mut Sampler,
    tokenizer: &Tokenizer,
    plan: &Plan,
    first: u64,
    rows: usize,
) -> anyhow::Result<Vec<Sample>> {
    let mut texts = (0..rows).map(|_| Text::new(tokenizer, plan)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut samples: Vec<Sample> = (0..rows as u64)
        .map(|row| Sample { sample: first + row, text: String::new(), tokens: Vec::new(), ended_by: "length" })
        .collect();
    let mut failed = None;
    let request = Generation { prompt: &plan.prompt, first_sequence: first, rows, max_new_tokens: plan.max_new_tokens };
    generate(decoder, sampler, request, |row, token| {
        let sample = &mut samples[row];
        sample.tokens.push(token);
        match texts[row].push(token) {
            Ok((piece, over)) => {
                sample.text += &piece;
                if over {
                    sample.ended_by = "stop";
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            }
            Err(e) => {
                failed = Some(e);
                ControlFlow::Break(())
            }
        }
    })?;
    if let Some(e) = failed {
        return Err(e);
    }
    for (sample, text) in samples.iter_mut().zip(&mut texts) {
        sample.text += &text.finish()?;
    }
    Ok(samples)
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
