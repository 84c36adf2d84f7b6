//! A run without a configuration: the recipe is chosen by the size of the text, and of the model that it starts from.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use candle_core::Device;
use tinygpt_trainer::{
    RunConfig, TrainError,
    config::{TextSize, TokenizerKind, recipe},
    corpus::STANDARD_INPUT,
    data::{BUILTIN_CORPUS, Source, read_tokenizer},
    run::{InitialModel, check_memory},
};

use crate::{
    args::TrainArgs,
    commands::bench::{median, train::Training, without_a_text},
    config_file::{load, run_name},
    output::Usage,
    progress::{human_time, in_thousands},
};

/// How long updates are made before the first that is timed, how long they are timed, and how many at least.
const WARM_UP: Duration = Duration::from_millis(200);
const TIMED_FOR: Duration = Duration::from_millis(600);
const TIMED_LEAST: usize = 1;
/// What evaluations, saves and samples add to the time of the updates, about.
const BESIDE_UPDATES: f64 = 1.1;

/// The key of the updates, whose number others of the recipe follow.
const MAX_STEPS: &str = "train.max_steps";

/// A configuration that was chosen.
pub struct Chosen {
    pub config: RunConfig,
    /// Why it is this one.
    pub why: String,
    /// The text, which is that of standard input for as long as this is there.
    pub text: Option<Source>,
}

/// The configuration for the text of `--data` or of `data.corpus`, and for the model of `--init-from`, with the keys of `--set`.
pub fn choose(args: &TrainArgs, init_from: Option<&InitialModel>) -> anyhow::Result<Chosen> {
    let base = init_from.map(InitialModel::defaults);
    // Those that say what is read, and how, and for how long is trained; others may have a meaning only in the recipe.
    let is_early = |item: &&String| key(item).starts_with("data.") || key(item) == MAX_STEPS;
    let early: Vec<String> = args.overrides.iter().filter(is_early).cloned().collect();
    let is_set = |name: &str| early.iter().any(|item| key(item) == name);
    let (names_corpus, sets_updates) = (is_set("data.corpus"), is_set(MAX_STEPS));
    let RunConfig { data: given, train, .. } = load(base.as_ref().unwrap_or(&RunConfig::default()), "", early)?;
    let max_steps = sets_updates.then_some(train.max_steps);
    // Flags win over --set.
    let data = if args.data.is_empty() && names_corpus { given.corpus.clone() } else { args.data.join("\n") };
    if data.is_empty() {
        let other = if init_from.is_some() { "" } else { ", or --config tiny, which has one built in" };
        return Err(Usage(format!("say what to train on: --data FILE with a text of yours{other}")).into());
    }
    if data == BUILTIN_CORPUS && init_from.is_none() {
        let config = load(&RunConfig::default(), recipe("tiny").unwrap_or_default(), args.overrides.clone())?;
        let why = "no --config: the built-in corpus has a recipe of its own, tiny".into();
        return Ok(Chosen { config, why, text: None });
    }
    let mut options = given.corpus_options();
    if let Some(key) = &args.text_key {
        options.text_key.clone_from(key);
    }
    let (size, text) = if data == BUILTIN_CORPUS {
        (TextSize { bytes: given.stories_bytes as u64, characters: None, tokens: None }, None)
    } else {
        let text = Source::open(&data, &options)?;
        (TextSize::of(&text)?, Some(text))
    };
    let recipe = base.as_ref().map_or_else(|| size.recipe(), |base| size.fine_tuning_recipe(base, max_steps))?;
    let config = load(&RunConfig { name: name_of(&data), ..recipe }, "", args.overrides.clone())?;
    let has_tokenizer = args.tokenizer.is_some() || !config.data.tokenizer_path.is_empty();
    let why = match init_from {
        Some(model) => reason_of_fine_tuning(size, model, &config),
        None => reason(size, &config, has_tokenizer),
    };
    Ok(Chosen { config, why, text })
}

/// The name of the runs on a text: that of its first file or folder.
fn name_of(data: &str) -> String {
    match data.lines().next().unwrap_or_default() {
        STANDARD_INPUT => "stdin".into(),
        path => Path::new(path).file_stem().map_or_else(|| "run".into(), run_name),
    }
}

/// The key of `KEY=VALUE`.
fn key(item: &str) -> &str {
    item.split_once('=').map_or(item, |(key, _)| key.trim())
}

fn reason(size: TextSize, config: &RunConfig, has_tokenizer: bool) -> String {
    let RunConfig { model, train, data, .. } = config;
    let characters = size.characters.map_or(String::new(), |n| format!(" and {n} different characters"));
    let tokens = match data.tokenizer {
        _ if has_tokenizer => "the tokenizer that was given".into(),
        TokenizerKind::Char => "characters as tokens".into(),
        TokenizerKind::Bpe => format!("up to {} pieces of words as tokens (bpe)", data.vocab_size),
    };
    format!(
        "no --config: for a text of {}{characters}, {} layers of {} channels, a context of {} tokens, {tokens}, {} \
         updates; {CHANGED_BY}",
        length(size),
        model.n_layer,
        model.n_embd,
        model.block_size,
        train.max_steps
    )
}

fn reason_of_fine_tuning(size: TextSize, model: &InitialModel, config: &RunConfig) -> String {
    let train = &config.train;
    format!(
        "no --config: for a model of {} parameters, {} channels wide, and a text of {}, finetune-gpt2 in its size: {} updates of \
         {} tokens, a context of {}, train.lr = {:.1e} (wider models take lower rates, larger ones fewer passes, which they learn by \
         heart); {CHANGED_BY}",
        in_thousands(model.gpt().n_params()),
        model.gpt().n_embd,
        length(size),
        train.max_steps,
        config.tokens_per_step(),
        config.model.block_size,
        train.lr,
    )
}

/// What somebody does who wants another configuration.
const CHANGED_BY: &str = "--set changes a key, and --config takes a recipe or a file";

fn length(size: TextSize) -> String {
    match size.tokens {
        Some(tokens) => format!("{} tokens", in_thousands(tokens)),
        None => format!("{} bytes", in_thousands(size.bytes as usize)),
    }
}

/// What a run will take on this machine, measured on some updates on random tokens, by an engine that is gone before the run opens
/// its own. Of a vocabulary that is still to be made, only the size that was asked for is known.
///
/// # Errors
/// When the tokenizer cannot be read, there is no memory for the run, the device fails, or `stop` is set.
pub fn expected_time(config: &RunConfig, device: &Device, stop: &AtomicBool) -> anyhow::Result<String> {
    let gpt = match &*config.data.tokenizer_path {
        "" => without_a_text(config),
        path => config.gpt(read_tokenizer(Path::new(path))?.vocab_size()),
    };
    check_memory(config, gpt.vocab_size, None, device)?;
    let go_on = || match stop.load(Ordering::Relaxed) {
        true => Err(TrainError::Interrupted.into()),
        false => Ok(()),
    };
    let (seconds, _) = Training::new(config, &gpt, device)?.time_for(WARM_UP, TIMED_FOR, TIMED_LEAST, go_on)?;
    Ok(in_words(config, median(seconds)))
}

/// What a run takes whose updates take so many seconds each.
fn in_words(config: &RunConfig, seconds: f64) -> String {
    let (updates, minutes) = (config.train.max_steps, config.train.max_minutes);
    let told = format!("an update takes {:.1} ms here", 1e3 * seconds);
    let total = seconds * updates as f64 * BESIDE_UPDATES;
    if minutes > 0.0 && total > 60.0 * minutes {
        let limit = human_time(60.0 * minutes);
        return format!("{told}: {limit} (train.max_minutes) are not enough for {updates}");
    }
    format!("{told}: about {} for {updates}", human_time(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_in_minutes_is_the_time_that_is_expected_where_the_updates_take_longer() {
        let told = |max_minutes: f64| {
            let mut config = RunConfig::default();
            (config.train.max_steps, config.train.max_minutes) = (1000, max_minutes);
            in_words(&config, 1.0)
        };
        assert_eq!(told(0.0), "an update takes 1000.0 ms here: about 18m20s for 1000");
        assert_eq!(told(20.0), told(0.0));
        assert_eq!(told(1.0), "an update takes 1000.0 ms here: 1m00s (train.max_minutes) are not enough for 1000");
    }

    #[test]
    fn whoever_stops_does_not_wait_for_the_measurement() {
        let error = expected_time(&RunConfig::default(), &Device::Cpu, &AtomicBool::new(true)).unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(TrainError::Interrupted)), "{error}");
    }
}
