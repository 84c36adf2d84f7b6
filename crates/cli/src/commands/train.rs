//! `tinygpt train`.

use std::{
    ops::ControlFlow,
    path::Path,
    sync::{Arc, atomic::AtomicBool},
};

use candle_core::Device;
use serde_json::json;
use tinygpt_model::{ContextPolicy, Generation, cpu::WeightFormat, generate, init_params};
use tinygpt_sampler::{Sampler, SamplingParams};
use tinygpt_trainer::{
    Dataset, RunConfig, RunDir,
    data::BUILTIN_CORPUS,
    engine::{self, AdamW, Engine, EngineState},
    memory,
    run::{IfExists, LoopState},
    token_cache::default_cache_dir,
    train::{METRICS_FILE, Outcome, StopReason, Trainer, check_data},
};

use super::{RUNS, eval::describe, generate::default_start};
use crate::{
    args::TrainArgs,
    config_file, decoder,
    output::{Interrupted, Usage, print_json, print_stdout},
    progress::{Progress, human_time},
};

/// How many samples a finished run shows.
const SAMPLES: usize = 3;

/// A run that is about to start or to go on.
struct Prepared {
    run: RunDir,
    config: RunConfig,
    data: Dataset,
    engine: Box<dyn Engine>,
    state: LoopState,
}

pub fn run(args: &TrainArgs) -> anyhow::Result<()> {
    let device = args.device.open()?;
    let mut prepared = if args.resume { resume(args, &device)? } else { start(args, &device)? };
    let stop = stop_on_signals()?;

    let run = prepared.run.path().display().to_string();
    let gpt = prepared.engine.config().clone();
    notice!(
        "{run}: {} parameters, {} training tokens, {} validation tokens, vocabulary {}{}",
        gpt.n_params(),
        prepared.data.train.len(),
        prepared.data.val.len(),
        gpt.vocab_size,
        if args.resume { resumed(&prepared.state, &prepared.config) } else { String::new() },
    );
    let mut progress = Progress::new(&prepared.config, prepared.state.step)?;
    let trainer = Trainer {
        config: &prepared.config,
        data: &prepared.data,
        engine: prepared.engine.as_mut(),
        run: &prepared.run,
        state: prepared.state.clone(),
    };
    let outcome = trainer.train(&stop, &mut |event| progress.on(event));
    progress.finish();
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(error) if !args.resume && !prepared.run.is_saved() => {
            // Not saved even once: of no use to anybody, and a run that was to be overwritten comes back.
            prepared.run.discard()?;
            return Err(error.into());
        }
        Err(error) => return Err(error.into()),
    };
    if outcome.ending == StopReason::Interrupted {
        let step = outcome.state.step;
        let message = format!("interrupted after step {step}; saved. Go on with: tinygpt train --resume --out {run}");
        return Err(Interrupted(message).into());
    }
    show_result(args, &prepared, &outcome, &device)
}

fn resumed(state: &LoopState, config: &RunConfig) -> String {
    let step = state.step;
    let finished = |key| format!(", already finished at step {step} (a larger train.{key} goes on)");
    match state.ending(&config.train) {
        None | Some(StopReason::Interrupted) => format!(", resumed after step {step}"),
        Some(StopReason::MaxSteps) => finished("max_steps"),
        Some(StopReason::MaxMinutes) => finished("max_minutes"),
        Some(StopReason::Patience) => finished("patience"),
    }
}

/// Reads everything and checks everything before the first file of the run is written.
fn start(args: &TrainArgs, device: &Device) -> anyhow::Result<Prepared> {
    let path = args.config.as_deref().ok_or_else(|| Usage("--config FILE is needed to start a run".into()))?;
    let mut config = read_config(path, args)?;
    let if_exists = if args.overwrite { IfExists::Overwrite } else { IfExists::Refuse };
    if let Some(out) = &args.out {
        RunDir::check_new(out, if_exists)?;
    }
    engine::check_precision(config.train.precision, device)?;
    // Before the corpus is read, which may take minutes; and once more when the vocabulary is known.
    check_memory(&config, 1, device)?;
    let data = Dataset::load(&config.data, config.seed, None, &default_cache_dir())?;
    check_data(&config, &data)?;
    let gpt = config.gpt(data.tokenizer.vocab_size());
    check_memory(&config, gpt.vocab_size, device)?;
    let engine = engine::open(
        &gpt,
        config.train.precision,
        AdamW::from(&config.train),
        config.seed,
        &EngineState::fresh(init_params(&gpt, config.seed)),
        device,
    )?;
    let run = match &args.out {
        Some(out) => RunDir::create(out, if_exists)?,
        None => RunDir::create_numbered(Path::new(RUNS), &config.name)?,
    };
    make_absolute(&mut config)?;
    let described = run.write_config(&config);
    let described = described.and_then(|()| run.model().write_description(&gpt, &data.tokenizer, &config.generate));
    if let Err(error) = described {
        // A folder with half a description is of no use to anybody.
        run.discard()?;
        return Err(error.into());
    }
    let state = LoopState::fresh(data.source_hash.clone());
    Ok(Prepared { run, config, data, engine, state })
}

fn resume(args: &TrainArgs, device: &Device) -> anyhow::Result<Prepared> {
    let run = match (&args.out, &args.config) {
        (Some(out), _) => RunDir::open_for_writing(out)?,
        (None, Some(path)) => {
            let newest = RunDir::open_numbered(Path::new(RUNS), &read_config(path, args)?.name)?;
            RunDir::open_for_writing(newest.path())?
        }
        (None, None) => RunDir::open_for_writing(RunDir::latest(Path::new(RUNS))?.path())?,
    };
    let mut config = run.read_config(&args.overrides)?;
    engine::check_precision(config.train.precision, device)?;
    if let Some(corpus) = &args.data {
        config.data.corpus.clone_from(corpus);
        make_absolute(&mut config)?;
    }
    let state = run.last().read_state()?;
    let max_steps = config.train.max_steps;
    if max_steps < state.step {
        let step = state.step;
        let message =
            format!("train.max_steps = {max_steps}, but the run has made {step} steps already; give a larger one");
        return Err(Usage(message).into());
    }
    let gpt = run.model().read_config()?;
    check_memory(&config, gpt.vocab_size, device)?;
    // The best weights are needed at the end: better to know now that they are damaged. Those of the last step are
    // written again where they are.
    if state.best.is_some() && !state.is_best() {
        run.model().read_weights(&gpt)?;
    }
    let tokenizer = run.model().read_tokenizer()?;
    let data =
        Dataset::load_same(&config.data, config.seed, Some(tokenizer), &default_cache_dir(), Some(&state.source_hash))?;
    let engine_state = run.last().read_engine(&gpt, &state)?;
    let precision = config.train.precision;
    let engine = engine::open(&gpt, precision, AdamW::from(&config.train), config.seed, &engine_state, device)?;
    if state.step > 0 && !run.path().join(METRICS_FILE).exists() {
        notice!("{} has no {METRICS_FILE} any more: it begins anew at step {}", run.path().display(), state.step);
    }
    if max_steps > config.train.decay_steps && state.ending(&config.train).is_none() {
        notice!(
            "the learning rate has ended its decay at step {}: further steps run at train.min_lr = {}",
            config.train.decay_steps,
            config.train.min_lr
        );
    }
    if config != run.read_config(&[])? {
        run.write_config(&config)?;
        run.model().write_description(&gpt, &data.tokenizer, &config.generate)?;
    }
    Ok(Prepared { run, config, data, engine, state })
}

/// The corpus is to be found again from any folder.
fn make_absolute(config: &mut RunConfig) -> anyhow::Result<()> {
    if config.data.corpus != BUILTIN_CORPUS && Path::new(&config.data.corpus).exists() {
        config.data.corpus = std::path::absolute(&config.data.corpus)?.to_string_lossy().into_owned();
    }
    Ok(())
}

/// The memory of a GPU is its own, and its driver's errors are no aborts.
pub(super) fn check_memory(config: &RunConfig, vocab_size: usize, device: &Device) -> anyhow::Result<()> {
    if device.is_cpu() {
        memory::check(config, vocab_size)?;
    }
    Ok(())
}

/// The configuration of a file or a recipe, with the flags that override it.
fn read_config(path: &Path, args: &TrainArgs) -> anyhow::Result<RunConfig> {
    let overrides = if args.resume { Vec::new() } else { args.overrides.clone() };
    let mut config = config_file::read(path, overrides)?;
    // Flags win over --set.
    if let Some(corpus) = &args.data {
        config.data.corpus.clone_from(corpus);
    }
    config.seed = args.seed.unwrap_or(config.seed);
    Ok(config)
}

/// Ctrl-C (and SIGTERM) asks the loop to save and stop; a second one ends the program at once. A hang-up is left alone,
/// so that `nohup` works.
fn stop_on_signals() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // In this order: the first signal finds the flag unset, and sets it.
        signal_hook::flag::register_conditional_shutdown(signal, i32::from(crate::INTERRUPTED), Arc::clone(&stop))?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}

fn show_result(args: &TrainArgs, prepared: &Prepared, outcome: &Outcome, device: &Device) -> anyhow::Result<()> {
    let samples = samples(prepared, device)?;
    let state = &outcome.state;
    if args.json {
        return print_json(&json!({
            "run": prepared.run.path(),
            "ending": outcome.ending,
            "step": state.step,
            "best_step": state.best.map(|best| best.step),
            "seconds": state.seconds,
            "report": outcome.report,
            "samples": samples,
        }));
    }
    let mut text = String::new();
    for sample in &samples {
        text += &format!("  {}\n", sample.trim_end().replace('\n', "\n  "));
        text += "\n";
    }
    text += &outcome.report.as_ref().map(|report| describe(report, true)).unwrap_or_default();
    let why = match outcome.ending {
        StopReason::Patience => {
            format!(" (no better validation loss in {} evaluations)", prepared.config.train.patience)
        }
        StopReason::MaxMinutes => format!(" (train.max_minutes = {})", prepared.config.train.max_minutes),
        StopReason::MaxSteps | StopReason::Interrupted => String::new(),
    };
    let best = state.best.map(|best| format!(", best at step {}", best.step)).unwrap_or_default();
    text += &format!("{} steps in {}{best}{why}\n", state.step, human_time(state.seconds));
    text += &format!("{}\n", prepared.run.path().display());
    Ok(print_stdout(&text)?)
}

/// A few samples of the best model at temperature 1: whole stories for the built-in corpus.
fn samples(prepared: &Prepared, device: &Device) -> anyhow::Result<Vec<String>> {
    /// For corpora without known ends.
    const MAX_TOKENS: usize = 200;
    let Prepared { run, config, data, .. } = prepared;
    let (gpt, weights) = run.model().map()?;
    let stories = config.data.corpus == BUILTIN_CORPUS;
    let prompt = default_start(&data.tokenizer);
    let mut decoder = decoder::open(&gpt, &weights.slices(), ContextPolicy::Half, WeightFormat::F32, device)?;
    let mut sampler = Sampler::new(SamplingParams { seed: config.seed, ..SamplingParams::default() })?;
    let mut tokens = vec![Vec::new(); SAMPLES];
    let max_new_tokens = if stories { gpt.block_size } else { MAX_TOKENS };
    let request = Generation { prompt: &prompt, first_sequence: 0, rows: SAMPLES, max_new_tokens };
    let end = if stories { data.tokenizer.id_of("\n") } else { None };
    generate(decoder.as_mut(), &mut sampler, request, |row, token| {
        if Some(token) == end {
            return ControlFlow::Break(());
        }
        tokens[row].push(token);
        ControlFlow::Continue(())
    })?;
    Ok(tokens.iter().map(|ids| data.tokenizer.decode(ids)).collect::<Result<_, _>>()?)
}
