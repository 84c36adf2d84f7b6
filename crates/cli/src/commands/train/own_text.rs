//! A run on a text without a configuration: the recipe is chosen by the size of the text.

use std::{path::Path, time::Duration};

use candle_core::Device;
use tinygpt_trainer::{
    Run, RunConfig,
    config::{TextSize, TokenizerKind, recipe},
    corpus::STANDARD_INPUT,
    data::{BUILTIN_CORPUS, Source},
};

use crate::{
    args::TrainArgs,
    commands::bench::{median, train::Training},
    config_file::{load, run_name},
    output::Usage,
    progress::{human_time, in_thousands},
};

/// How long updates are made before the first that is timed, how long they are timed, and how many at least.
const WARM_UP: Duration = Duration::from_millis(200);
const TIMED_FOR: Duration = Duration::from_millis(600);
const TIMED_LEAST: usize = 2;
/// What evaluations, saves and samples add to the time of the updates, about.
const BESIDE_UPDATES: f64 = 1.1;

/// The configuration for the text of `--data` or of `data.corpus`, with the keys of `--set`, and why it is this one.
pub fn choose(args: &TrainArgs) -> anyhow::Result<(RunConfig, String)> {
    if args.init_from.is_some() {
        return Err(Usage("--init-from needs a --config: finetune-gpt2 is a recipe for it".into()).into());
    }
    // Those that say what is read, and how; others may have a meaning only in the recipe.
    let of_data: Vec<String> = args.overrides.iter().filter(|item| key(item).starts_with("data.")).cloned().collect();
    let names_corpus = of_data.iter().any(|item| key(item) == "data.corpus");
    let given = load(&RunConfig::default(), "", of_data)?.data;
    // Flags win over --set.
    let data = if args.data.is_empty() && names_corpus { given.corpus.clone() } else { args.data.join("\n") };
    if data.is_empty() {
        return Err(Usage(
            "say what to train on: --data FILE with a text of yours, or --config tiny, which has one built in".into(),
        )
        .into());
    }
    if data == STANDARD_INPUT {
        return Err(Usage(
            "the size of standard input is not known, so it needs a --config: or save it to a file".into(),
        )
        .into());
    }
    if data == BUILTIN_CORPUS {
        let config = load(&RunConfig::default(), recipe("tiny").unwrap_or_default(), args.overrides.clone())?;
        return Ok((config, "no --config: the built-in corpus has a recipe of its own, tiny".into()));
    }
    let mut options = given.corpus_options();
    if let Some(key) = &args.text_key {
        options.text_key.clone_from(key);
    }
    let size = TextSize::of(&Source::open(&data, &options)?)?;
    let name = Path::new(data.lines().next().unwrap_or_default()).file_stem().map_or_else(|| "run".into(), run_name);
    let base = RunConfig { name, ..size.recipe()? };
    let config = load(&base, "", args.overrides.clone())?;
    let why = reason(size, &config, args.tokenizer.is_some());
    Ok((config, why))
}

/// The key of `KEY=VALUE`.
fn key(item: &str) -> &str {
    item.split_once('=').map_or(item, |(key, _)| key.trim())
}

fn reason(size: TextSize, config: &RunConfig, has_tokenizer: bool) -> String {
    let RunConfig { model, train, data, .. } = config;
    let length = match size.tokens {
        Some(tokens) => format!("{} tokens", in_thousands(tokens)),
        None => format!("{} bytes", in_thousands(size.bytes as usize)),
    };
    let characters = size.characters.map_or(String::new(), |n| format!(" and {n} different characters"));
    let tokens = match data.tokenizer {
        _ if has_tokenizer || !data.tokenizer_path.is_empty() => "the tokenizer that was given".into(),
        TokenizerKind::Char => "characters as tokens".into(),
        TokenizerKind::Bpe => format!("up to {} pieces of words as tokens (bpe)", data.vocab_size),
    };
    format!(
        "no --config: for a text of {length}{characters}, {} layers of {} channels, a context of {} tokens, {tokens}, {} \
         updates; --set changes a key, and --config takes a recipe or a file",
        model.n_layer, model.n_embd, model.block_size, train.max_steps
    )
}

/// What a run will take on this machine, measured on some updates on random tokens.
pub fn expected_time(run: &Run, device: &Device) -> anyhow::Result<String> {
    let config = run.config();
    let mut training = Training::new(config, run.gpt(), device)?;
    let seconds = median(training.time_for(WARM_UP, TIMED_FOR, TIMED_LEAST)?.0);
    let updates = config.train.max_steps;
    let total = human_time(seconds * updates as f64 * BESIDE_UPDATES);
    Ok(format!("an update takes {:.1} ms here: about {total} for {updates}", 1e3 * seconds))
}
