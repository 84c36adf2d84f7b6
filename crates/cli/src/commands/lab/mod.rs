//! `tinygpt lab`.

mod chart;
mod table;

use std::path::Path;

use anyhow::Context;
use serde::Serialize;
use tinygpt_model::{Checkpoint, ContextPolicy, cpu::WeightFormat, open_language_model};
use tinygpt_trainer::{
    RunDir,
    data::BUILTIN_CORPUS,
    lab::{
        DEFAULT_STRATEGIES, Lab, Prompt, Strategy, StrategyReport, TemperatureSchedule, parse_strategies, rows_at_once,
    },
    run::TRAIN_TOML,
    stories::Grammar,
};

use crate::{
    args::LabArgs,
    device::Work,
    hub,
    measured::newest_run,
    output::{Usage, print_json, print_stdout},
    progress_bar::WorkProgress,
};

/// What `--json` prints.
#[derive(Serialize)]
struct LabReport<'a> {
    run: String,
    seed: u64,
    samples: u32,
    max_new_tokens: u32,
    prompts: Vec<&'a str>,
    strategies: Vec<Named<'a>>,
}

/// A strategy with the flags that give the same texts.
#[derive(Serialize)]
struct Named<'a> {
    #[serde(flatten)]
    report: &'a StrategyReport,
    /// Flags of `tinygpt generate`; null for beam search, which it does not have.
    generate: Option<Vec<String>>,
}

pub fn run(args: &LabArgs) -> anyhow::Result<()> {
    if args.print_config {
        return Ok(print_stdout(DEFAULT_STRATEGIES)?);
    }
    let strategies = strategies(args.config.as_deref())?;
    let path = match &args.run {
        Some(path) => hub::folder(path)?.into_owned(),
        None => newest_run()?,
    };
    let checkpoint = Checkpoint::open(&path)?;
    let tokenizer = checkpoint.tokenizer();
    strategies.iter().try_for_each(|strategy| {
        strategy.check_tokens(checkpoint.config().vocab_size).map_err(|e| Usage(e.to_string()))
    })?;
    let texts = if args.prompts.is_empty() { vec![String::new()] } else { args.prompts.clone() };
    let prompts = texts.into_iter().map(|text| Prompt::new(text, tokenizer)).collect::<Result<Vec<_>, _>>();
    let prompts = prompts.context("the prompt")?;

    let rows = strategies.len() * args.samples as usize;
    let work = || Ok(Work::generation(checkpoint.config(), WeightFormat::F32, rows));
    let device = args.device.open_for(work)?;
    let mut decoder = checkpoint.decoder(ContextPolicy::Slide, WeightFormat::F32, &device)?;
    let params: Vec<Vec<f32>> = checkpoint.weights().slices().iter().map(|values| values.to_vec()).collect();
    let mut model = open_language_model(checkpoint.config(), &params, &device)?;
    let lab = Lab {
        strategies: &strategies,
        prompts: &prompts,
        samples: args.samples as usize,
        max_new_tokens: args.max_new_tokens as usize,
        seed: args.seed,
        rows_at_once: rows_at_once(checkpoint.config()),
        tokenizer,
        grammar: grammar(&path)?,
    };
    let mut progress = WorkProgress::new("completing");
    let reports = lab.run(decoder.as_mut(), model.as_mut(), &mut progress.callback())?;
    drop(progress);
    if let Some(path) = &args.plot {
        tinygpt_trainer::chart::write(path, &chart::figure(&reports))?;
    }
    if args.json {
        return print_json(&LabReport {
            run: path.display().to_string(),
            seed: args.seed,
            samples: args.samples,
            max_new_tokens: args.max_new_tokens,
            prompts: prompts.iter().map(|prompt| prompt.text.as_str()).collect(),
            strategies: strategies.iter().zip(&reports).map(named).collect(),
        });
    }
    Ok(print_stdout(&table::text(args, &prompts, &reports))?)
}

/// The strategies of a file, or those that are compared by default.
fn strategies(file: Option<&Path>) -> anyhow::Result<Vec<Strategy>> {
    let Some(file) = file else { return Ok(parse_strategies(DEFAULT_STRATEGIES)?) };
    let text = std::fs::read_to_string(file).map_err(|e| {
        Usage(format!("cannot read {}: {e}; `tinygpt lab --print-config` prints a file to start from", file.display()))
    })?;
    parse_strategies(&text).map_err(|e| Usage(format!("{}: {e}", file.display())).into())
}

/// The grammar that a run learned from, if it is the built-in one.
fn grammar(path: &Path) -> anyhow::Result<Option<&'static Grammar>> {
    if !path.join(TRAIN_TOML).is_file() {
        return Ok(None); // a model of others
    }
    let config = RunDir::open(path)?.read_config(&[])?;
    Ok((config.data.corpus == BUILTIN_CORPUS).then(Grammar::builtin))
}

fn named<'a>((strategy, report): (&Strategy, &'a StrategyReport)) -> Named<'a> {
    Named { report, generate: strategy.beam.is_none().then(|| generate_flags(strategy)) }
}

/// The flags with which `tinygpt generate` draws as a strategy. Temperature, top-k and top-p are named always, since a run has
/// defaults for them.
fn generate_flags(strategy: &Strategy) -> Vec<String> {
    let off = Strategy::default();
    let mut flags = vec![
        format!("--temperature={}", strategy.temperature),
        format!("--top-k={}", strategy.top_k),
        format!("--top-p={}", strategy.top_p),
    ];
    for (flag, value, off) in [
        ("min-p", strategy.min_p, off.min_p),
        ("repetition-penalty", strategy.repetition_penalty, off.repetition_penalty),
        ("presence-penalty", strategy.presence_penalty, off.presence_penalty),
        ("frequency-penalty", strategy.frequency_penalty, off.frequency_penalty),
    ] {
        if value != off {
            flags.push(format!("--{flag}={value}"));
        }
    }
    flags.extend(strategy.logit_bias.iter().map(|(token, bias)| format!("--logit-bias={token}={bias}")));
    flags.extend(strategy.adaptive.map(|threshold| format!("--adaptive={threshold}")));
    if let Some(end) = strategy.temperature_end {
        flags.push(format!("--temperature-end={end}"));
        if strategy.temperature_schedule == TemperatureSchedule::Exponential {
            flags.push("--temperature-schedule=exponential".into());
        }
    }
    flags
}
