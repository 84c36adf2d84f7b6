//! `tinygpt train`.

mod inspect;
mod own_text;

use std::{
    borrow::Cow,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

use candle_core::Device;
use serde_json::json;
use tinygpt_model::{
    Checkpoint, ContextPolicy, Generation, GptConfig, cpu::WeightFormat, generate, param_specs,
    tokenizer::TokenizerFamily,
};
use tinygpt_sampler::{Sampler, SamplingParams};
use tinygpt_trainer::{
    RunConfig, RunDir,
    config::{Change, LoraConfig, OptimizerKind},
    data::{BUILTIN_CORPUS, Source},
    engine::ParameterGroup,
    preparation::Preparation,
    run::{IfExists, InitialModel, LoopState, RUNS, ResumeOptions, Run, StartOptions},
    train::{Outcome, StopReason},
};

use self::own_text::Chosen;
use super::{bench::without_a_text, eval::describe, info::where_it_opens, log};
use crate::{
    args::TrainArgs,
    config_file,
    device::Work,
    hub,
    output::{Interrupted, Usage, print_json, print_stdout},
    preparing::until_stopped,
    progress::{Progress, human_time, in_thousands},
};

/// How many samples a finished run shows.
const SAMPLES: usize = 3;

pub fn run(args: &TrainArgs) -> anyhow::Result<()> {
    if args.inspect {
        // It writes nothing, and Ctrl-C may end it anywhere: the signals are left alone.
        let new = new_run(args, None)?;
        let device = args.device.open_for(|| work(args, Some(&new)))?;
        return inspect::run(args, new.config, &device);
    }
    let stop = stop_on_signals()?;
    let left = if args.resume { "the run is as it was" } else { "no run was started" };
    let (run, device) = until_stopped(&stop, left, |preparation| prepare(args, &stop, preparation))?;
    let (path, config) = (run.path().to_owned(), run.config().clone());
    let val_tokens = run.data().val.len() as u64 - 1;
    notice!(
        "{}: {} parameters, {} training tokens, {} validation tokens, vocabulary {}{}",
        path.display(),
        run.gpt().n_params(),
        run.data().train.len(),
        run.data().val.len(),
        run.gpt().vocab_size,
        if args.resume { resumed(run.state(), &config) } else { String::new() },
    );
    let asked = config.data.vocab_size;
    if run.data().tokenizer.kind() == TokenizerFamily::Bpe
        && config.data.tokenizer_path.is_empty()
        && run.gpt().vocab_size < asked
    {
        notice!("the text has no more pairs that occur twice: of data.vocab_size = {asked}, {}", run.gpt().vocab_size);
    }
    // A GPT-2 is what nobody has to be told of.
    if !run.gpt().is_gpt2() {
        notice!("{}", where_it_opens(run.gpt()));
    }
    if let Some(groups) = parameter_groups(run.gpt(), &config) {
        notice!("{groups}");
    }
    if let Some(adapter) = config.lora.shape(run.gpt())? {
        let (layers, parameters) = (adapter.layers.len(), adapter.n_params());
        notice!("lora: {parameters} parameters of an adapter of {layers} linear layers are trained, and no others");
    }
    let unused = LoraConfig { rank: 0, ..config.lora.clone() };
    if config.lora.rank == 0 && unused != LoraConfig::default() {
        notice!("lora.rank is 0: no adapter is trained, but all weights; the other keys of [lora] change nothing");
    }
    if !config.train.reference.is_empty() && config.train.kl_weight == 0.0 {
        notice!("train.reference changes nothing: train.kl_weight is 0");
    }
    for notice in run.notices() {
        notice!("{notice}");
    }
    let mut progress = Progress::new(&config, run.state().step)?;
    let mut logs = log::open_for(&run, &args.log);
    let outcome = run.train(&stop, &mut |event| {
        progress.on(event);
        logs.on(event);
        Ok(())
    });
    progress.finish();
    logs.catch_up();
    let outcome = outcome?;
    if outcome.ending == StopReason::Interrupted {
        let (step, run) = (outcome.state.step, path.display());
        let message = format!("interrupted after step {step}; saved. Go on with: tinygpt train --resume --out {run}");
        return Err(Interrupted(message).into());
    }
    show_result(args, &path, &config, (&outcome, val_tokens), &device)
}

/// The run that is to be trained, and its device. All that may take long is read here: a text from standard input has no end before
/// its writer gives it one.
fn prepare(args: &TrainArgs, stop: &AtomicBool, preparation: Preparation) -> anyhow::Result<(Run, Device)> {
    if args.resume {
        let device = args.device.open_for(|| work(args, None))?;
        return Ok((resume(args, &device, preparation)?, device));
    }
    let init_from = args.init_from.as_deref().map(initial_model).transpose()?;
    let new = new_run(args, init_from.as_ref())?;
    let device = args.device.open_for(|| work(args, Some(&new)))?;
    let run = start(args, new, init_from, (&device, stop), preparation)?;
    Ok((run, device))
}

/// Which parameters go where, unless all have AdamW and the same learning rate.
pub fn parameter_groups(gpt: &GptConfig, config: &RunConfig) -> Option<String> {
    let groups = ParameterGroup::of(&param_specs(gpt), &config.train);
    if groups.iter().all(|group| group.optimizer == OptimizerKind::Adamw && group.lr == config.train.lr) {
        return None;
    }
    let mut text = String::new();
    let mut last = None;
    for ParameterGroup { optimizer, name, tensors, parameters, lr } in groups {
        if last == Some(optimizer) {
            text += ", and ";
        } else {
            text += &format!("{}{}: ", if last.is_some() { "; " } else { "" }, optimizer.name());
        }
        text += &format!("{tensors} {name}, {} parameters, lr {lr}", in_thousands(parameters));
        last = Some(optimizer);
    }
    Some(text)
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

/// The model that `--init-from` names. One of the hub keeps its name in the run, since the place in the cache says little.
fn initial_model(path: &Path) -> anyhow::Result<InitialModel> {
    match hub::folder(path)? {
        Cow::Borrowed(folder) => Ok(InitialModel::open(folder)?),
        Cow::Owned(folder) => Ok(InitialModel::open_as(&path.to_string_lossy(), &folder)?),
    }
}

/// The updates of the run that is to be started or resumed.
fn work(args: &TrainArgs, new: Option<&NewRun>) -> anyhow::Result<Work> {
    let (config, gpt) = match new {
        Some(new) => {
            let config = new.config.clone().resolved()?;
            let gpt = without_a_text(&config);
            (config, gpt)
        }
        None => {
            let run = RunDir::open(&run_to_resume(args)?)?;
            (run.read_config(&args.overrides)?, run.model().read_config()?)
        }
    };
    gpt.validate()?;
    Ok(Work::training(&config, &gpt))
}

/// What is trained in a new run.
struct NewRun {
    config: RunConfig,
    /// Why it is this one, where nobody said which.
    why: Option<String>,
    /// What was read to choose it; see [`own_text::Chosen`].
    text: Option<Source>,
}

fn start(
    args: &TrainArgs,
    new: NewRun,
    init_from: Option<InitialModel>,
    (device, stop): (&Device, &AtomicBool),
    preparation: Preparation,
) -> anyhow::Result<Run> {
    let if_exists = if args.overwrite { IfExists::Overwrite } else { IfExists::Refuse };
    let NewRun { config, why, text } = new;
    refuse_to_replace_the_reference(args, &config)?;
    if let Some(why) = why {
        notice!("{why}");
        if let Some(out) = &args.out {
            RunDir::check_new(out, if_exists)?;
        }
        notice!("{}", own_text::expected_time(&config, device, stop)?);
    }
    let (out, device) = (args.out.clone(), device.clone());
    let options = StartOptions { out, if_exists, device, init_from, preparation, ..StartOptions::default() };
    let run = Run::start(config, options)?;
    drop(text);
    Ok(run)
}

/// What is trained in a new run: by the configuration of `--config`, or by the one that suits the text of `--data` and the model of
/// `--init-from`.
fn new_run(args: &TrainArgs, init_from: Option<&InitialModel>) -> anyhow::Result<NewRun> {
    check_data_flags(args)?;
    let overrides = || args.overrides.clone();
    let config = match (&args.config, init_from) {
        // What a configuration leaves out is as in the model that the run starts from.
        (Some(path), Some(model)) => config_file::read_over(&model.defaults(), path, overrides())?,
        (Some(path), None) => config_file::read(path, overrides())?,
        (None, _) => {
            let Chosen { config, why, text } = own_text::choose(args, init_from)?;
            return Ok(NewRun { config: with_flags(config, args), why: Some(why), text });
        }
    };
    Ok(NewRun { config: with_flags(config, args), why: None, text: None })
}

/// A run that replaced its own reference could never be resumed.
fn refuse_to_replace_the_reference(args: &TrainArgs, config: &RunConfig) -> anyhow::Result<()> {
    let real = |path: &Path| path.canonicalize().ok();
    match &args.out {
        Some(out) if real(out).is_some() && real(out) == real(Path::new(&config.train.reference)) => {
            Err(Usage("--out is train.reference, which the run would replace: give another --out".into()).into())
        }
        _ => Ok(()),
    }
}

fn resume(args: &TrainArgs, device: &Device, preparation: Preparation) -> anyhow::Result<Run> {
    if let (Some(config), Some(out)) = (&args.config, &args.out) {
        let (config, out) = (config.display(), out.display());
        return Err(Usage(format!(
            "--config {config} would change nothing: {out} goes on with its own configuration; leave it out, and change keys by \
             --set"
        ))
        .into());
    }
    let path = run_to_resume(args)?;
    let corpus = (!args.data.is_empty()).then(|| args.data.join("\n"));
    let (overrides, device) = (args.overrides.clone(), device.clone());
    let options = ResumeOptions { overrides, corpus, device, preparation, ..ResumeOptions::default() };
    let run = Run::resume(path, options)?;
    if let Some(config) = &args.config {
        tell_what_is_not_taken(config, args, &run)?;
    }
    Ok(run)
}

/// The run that was named, or the newest of a name, or of all.
fn run_to_resume(args: &TrainArgs) -> anyhow::Result<PathBuf> {
    let runs = Path::new(RUNS);
    let newest = match (&args.out, &args.config) {
        (Some(out), _) => return Ok(out.clone()),
        (None, Some(path)) => RunDir::open_numbered(runs, &config_file::read(path, Vec::new())?.name)?,
        (None, None) => RunDir::latest(runs)?,
    };
    Ok(newest.path().to_owned())
}

/// Says which keys of the configuration that named a run have other values than the run, which goes on with its own.
fn tell_what_is_not_taken(path: &Path, args: &TrainArgs, run: &Run) -> anyhow::Result<()> {
    // Paths of a run are absolute.
    const PATHS: [&str; 4] = ["data.corpus", "data.val", "data.tokenizer_path", "train.reference"];
    let is_set =
        |key: &str| args.overrides.iter().any(|item| item.split_once('=').is_some_and(|(set, _)| set.trim() == key));
    // What the configuration leaves out, it says nothing of.
    let is_told = |key: &str| -> anyhow::Result<bool> {
        Ok(!PATHS.contains(&key) && !is_set(key) && config_file::sets(path, key)?)
    };
    let changes = config_file::read(path, Vec::new())?.changes_since(run.config())?;
    let mut keys = Vec::new();
    for Change { key, from, to } in changes {
        if is_told(&key)? {
            keys.push(format!("{key} = {from}, not {to}"));
        }
    }
    if !keys.is_empty() {
        let (path, run) = (path.display(), run.path().display());
        notice!("{path} only says which run goes on; {run} keeps its own {}", keys.join(", "));
    }
    Ok(())
}

/// Refuses flags that contradict each other about what is read.
fn check_data_flags(args: &TrainArgs) -> anyhow::Result<()> {
    if args.data == ["-"] && args.text_key.is_some() {
        return Err(Usage(
            "standard input is plain text, which has no --text-key: save records to a .jsonl file".into(),
        )
        .into());
    }
    if args.data.len() > 1 && args.data.iter().any(|path| path == "-") {
        return Err(Usage("`-`, standard input, stands alone: save it to a file to train on others too".into()).into());
    }
    Ok(())
}

/// A configuration with the flags that override it.
fn with_flags(mut config: RunConfig, args: &TrainArgs) -> RunConfig {
    // Flags win over --set.
    if !args.data.is_empty() {
        // Some paths are a line each.
        config.data.corpus = args.data.join("\n");
    }
    if let Some(key) = &args.text_key {
        config.data.text_key.clone_from(key);
    }
    if let Some(path) = &args.tokenizer {
        config.data.tokenizer_path.clone_from(path);
    }
    config.seed = args.seed.unwrap_or(config.seed);
    config
}

/// Ctrl-C (and SIGTERM) asks the loop to save and stop; a second one ends the program at once. A hang-up is left alone,
/// so that `nohup` works.
pub fn stop_on_signals() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // In this order: the first signal finds the flag unset, and sets it.
        signal_hook::flag::register_conditional_shutdown(signal, i32::from(crate::INTERRUPTED), Arc::clone(&stop))?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}

fn show_result(
    args: &TrainArgs,
    run: &Path,
    config: &RunConfig,
    (outcome, val_tokens): (&Outcome, u64),
    device: &Device,
) -> anyhow::Result<()> {
    let samples = samples(run, config, device)?;
    let state = &outcome.state;
    if args.json {
        return print_json(&json!({
            "run": run,
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
    text += &outcome.report.as_ref().map(|report| describe(report, Some(val_tokens))).unwrap_or_default();
    let why = match outcome.ending {
        StopReason::Patience => {
            format!(" (no better validation loss in {} evaluations)", config.train.patience)
        }
        StopReason::MaxMinutes => format!(" (train.max_minutes = {})", config.train.max_minutes),
        StopReason::MaxSteps | StopReason::Interrupted => String::new(),
    };
    let best = state.best.map(|best| format!(", best at step {}", best.step)).unwrap_or_default();
    text += &format!("{} steps in {}{best}{why}\n", state.step, human_time(state.seconds));
    text += &format!("{}\n", run.display());
    Ok(print_stdout(&text)?)
}

/// A few samples of the best model at temperature 1: whole stories for the built-in corpus.
fn samples(run: &Path, config: &RunConfig, device: &Device) -> anyhow::Result<Vec<String>> {
    /// For corpora without known ends.
    const MAX_TOKENS: usize = 200;
    let checkpoint = Checkpoint::open(run)?;
    let tokenizer = checkpoint.tokenizer();
    let stories = config.data.corpus == BUILTIN_CORPUS;
    let prompt = [tokenizer.start_token()];
    let mut decoder = checkpoint.decoder(ContextPolicy::Half, WeightFormat::F32, device)?;
    let mut sampler = Sampler::new(SamplingParams { seed: config.seed, ..SamplingParams::default() })?;
    let mut tokens = vec![Vec::new(); SAMPLES];
    let max_new_tokens = if stories { checkpoint.config().block_size } else { MAX_TOKENS };
    let request = Generation { prompt: &prompt, first_sequence: 0, rows: SAMPLES, max_new_tokens };
    let ends = |token| if stories { tokenizer.id_of("\n") == Some(token) } else { tokenizer.ends_text(token) };
    generate(decoder.as_mut(), &mut sampler, request, |row, token| {
        if ends(token) {
            return ControlFlow::Break(());
        }
        tokens[row].push(token);
        ControlFlow::Continue(())
    })?;
    Ok(tokens.iter().map(|ids| tokenizer.decode(ids)).collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_groups_of_parameters_are_told_where_they_differ() {
        let gpt = GptConfig { vocab_size: 65, n_layer: 4, n_embd: 128, ..GptConfig::default() };
        let told = |set: &[&str]| {
            let set: Vec<_> = set.iter().map(|item| item.to_string()).collect();
            parameter_groups(&gpt, &tinygpt_trainer::config::load("", &set, false).unwrap())
        };
        assert_eq!(told(&[]), None);
        assert_eq!(told(&["train.lr_matrices=0.001"]), None);
        let muon = told(&["train.optimizer=muon", "train.lr_matrices=0.02"]).unwrap();
        assert!(muon.starts_with("muon: 24 matrices, 786,432 parameters, lr 0.02; adamw: 2 embeddings, "), "{muon}");
        let rates = told(&["train.lr_embeddings=0.01"]).unwrap();
        assert!(rates.starts_with("adamw: 24 matrices, 786,432 parameters, lr 0.001, and 2 embeddings, "), "{rates}");
        assert!(rates.contains(" parameters, lr 0.01, and 9 norms and biases, 1,152 parameters, lr 0.001"), "{rates}");
    }
}
