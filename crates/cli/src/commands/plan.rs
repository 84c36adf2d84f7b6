//! `tinygpt plan`: which size to train in a time, on this machine and this text.

use std::{fmt::Write as _, path::Path, time::Duration};

use anyhow::{Context, anyhow};
use candle_core::Device;
use serde::Serialize;
use serde_json::json;
use tinygpt_model::{files::atomic, network};
use tinygpt_trainer::{
    Dataset, RunConfig,
    corpus::{Corpus, STANDARD_INPUT},
    data::BUILTIN_CORPUS,
    fetch::DATASETS,
    run::check_memory,
    scaling::{self, Budget, Candidate, LEAST_UPDATES, ScalingLaw, Size, Speed, Timing},
    token_cache::default_cache_dir,
    train::check_data,
};

use super::bench::{median, note_debug_build, train::Training};
use crate::{
    args::PlanArgs,
    config_file::run_name,
    device::{self, DeviceChoice},
    output::{Usage, new_or_replaced, print_json, print_stdout},
};

/// The sizes that are timed: between them the speed is interpolated.
const TIMED: [Size; 3] =
    [Size { n_embd: 32, n_layer: 4 }, Size { n_embd: 96, n_layer: 4 }, Size { n_embd: 256, n_layer: 4 }];
/// For each: how long updates are made before the first that is timed, how long they are timed, and how many at least.
const WARM_UP: Duration = Duration::from_millis(400);
const TIMED_FOR: Duration = Duration::from_millis(1200);
const TIMED_LEAST: usize = 3;
/// English in characters has fewer different ones than this; the law is that of such a text.
const ALPHABET: usize = 200;

/// The stories that can be had: more than a run would read.
const STORIES: usize = 1_000_000_000;
/// The stories that are looked at: they have every character.
const STORIES_READ: usize = 200_000;

/// What is known of a text.
#[derive(Debug, Serialize)]
struct Text {
    path: String,
    /// `None` for the stories, which are made as they are needed.
    bytes: Option<u64>,
    characters: Option<usize>,
    vocab_size: usize,
    /// The name of the text whose law is used.
    law_of: &'static str,
    /// Whether that is this very text.
    law_is_its_own: bool,
    #[serde(skip)]
    law: ScalingLaw,
}

/// How long an update of a size takes here.
#[derive(Debug, Serialize)]
struct Timed {
    size: String,
    ms_per_update: f64,
}

pub fn run(args: &PlanArgs) -> anyhow::Result<()> {
    if !(args.minutes > 0.0 && args.minutes.is_finite()) {
        return Err(Usage(format!("--minutes {} is no time to train in: give a number above 0", args.minutes)).into());
    }
    let file = args.write.as_deref().map(|file| new_or_replaced(file, args.overwrite, "--write")).transpose()?;
    let device = args.device.open()?;
    note_debug_build();

    let text = read_text(&args.data)?;
    let (speed, timed) = measure(args.minutes, text.vocab_size, &device)?;
    let tokens = text.characters.unwrap_or(STORIES);
    let budget = Budget { seconds: 60.0 * args.minutes, tokens, vocab_size: text.vocab_size };
    let mut candidates = scaling::candidates(&text.law, &speed, &budget)?;
    candidates.iter_mut().for_each(|candidate| set_corpus(candidate, &text));
    let mut too_large = None;
    candidates.retain(|candidate| match check_memory(&candidate.config, text.vocab_size, None, &device) {
        Ok(()) => true,
        Err(error) => {
            too_large = Some(error);
            false
        }
    });
    if let (true, Some(error)) = (candidates.is_empty(), too_large) {
        return Err(anyhow::Error::new(error).context("no size of this plan fits the memory: give fewer --minutes"));
    }
    let Some(best) = scaling::best(&candidates) else { return Err(too_short(args.minutes, &budget, &text, &speed)?) };

    let config = RunConfig {
        name: args.write.as_deref().and_then(Path::file_stem).map_or_else(|| "plan".into(), run_name),
        ..best.config.clone()
    };
    let command = args.write.as_deref().map(|file| command(file, args, &device));
    if let Some(file) = &file {
        atomic::write(file, toml(&config, best, &text)?.as_bytes())?;
    }
    if args.json {
        return print_json(&json!({
            "minutes": args.minutes,
            "device": device::name(&device),
            "threads": rayon::current_num_threads(),
            "corpus": text,
            "law": text.law,
            "timings": timed,
            "candidates": candidates,
            "best": best,
            "config": config,
            "written": args.write.as_ref().map(|file| file.display().to_string()),
            "command": command,
        }));
    }
    let machine = format!("{}, {} threads", device::name(&device), rayon::current_num_threads());
    let mut out = describe(&text, &machine, &timed, &candidates, best)?;
    match command {
        Some(command) => writeln!(out, "train it with: {command}")?,
        None => writeln!(out, "give --write FILE to keep this configuration; `tinygpt train --config FILE` trains it")?,
    }
    Ok(print_stdout(&out)?)
}

/// Reads a text as training will: by characters, which are counted, and kept in the cache.
fn read_text(data: &str) -> anyhow::Result<Text> {
    // The name of a text that `data fetch` knows is where it puts it, unless something has that name.
    let fetched = DATASETS.iter().find(|dataset| dataset.name == data && !Path::new(data).exists());
    let path = fetched.map_or_else(|| data.to_owned(), |dataset| format!("data/{}", dataset.file));
    let mut config = TIMED[0].config()?;
    config.data.corpus.clone_from(&path);
    config.data.stories_bytes = STORIES_READ;
    if path == STANDARD_INPUT {
        return Err(Usage(
            "--data - can be read once, and a plan is for a text that is trained on: save it to a file".into(),
        )
        .into());
    }
    notice!("reading {path}");
    let data = Dataset::load(&config.data, config.seed, None, &default_cache_dir())?;
    check_data(&config, &data)?;
    let vocab_size = data.tokenizer.vocab_size();
    if path == BUILTIN_CORPUS {
        let law = ScalingLaw::STORIES;
        return Ok(Text {
            path,
            bytes: None,
            characters: None,
            vocab_size,
            law_of: "stories",
            law_is_its_own: true,
            law,
        });
    }
    Ok(Text {
        bytes: Some(Corpus::open(&path)?.len_bytes()),
        path,
        characters: Some(data.train.len() + data.val.len()),
        vocab_size,
        law_of: "tinyshakespeare",
        law_is_its_own: DATASETS.iter().any(|dataset| dataset.text_sha256() == data.source_hash),
        law: ScalingLaw::SHAKESPEARE,
    })
}

/// Has a candidate train on the text; of stories it gets so many that it reads none twice.
fn set_corpus(candidate: &mut Candidate, text: &Text) {
    let data = &mut candidate.config.data;
    data.corpus.clone_from(&text.path);
    if text.characters.is_none() {
        let held_out = STORIES as f64 * data.val_fraction;
        data.stories_bytes = candidate.tokens as usize + held_out.ceil() as usize;
        data.val_fraction = held_out / data.stories_bytes as f64;
        candidate.epochs = 1.0;
    }
}

/// Times updates of some sizes on random tokens, which takes some seconds in all. A size that the time is far too short for is
/// left out.
fn measure(minutes: f64, vocab_size: usize, device: &Device) -> anyhow::Result<(Speed, Vec<Timed>)> {
    let (mut timings, mut timed): (Vec<Timing>, Vec<Timed>) = Default::default();
    for size in TIMED {
        let config = size.config()?;
        let gpt = config.gpt(vocab_size);
        let flops = network(&gpt).flops_of_update(config.train.batch_size, gpt.block_size);
        // A larger size has up to twice the rate.
        let at_least = timings.last().map_or(0.0, |last| last.seconds * flops / last.flops / 2.0);
        if at_least * LEAST_UPDATES as f64 > 60.0 * minutes || check_memory(&config, vocab_size, None, device).is_err()
        {
            break;
        }
        let (seconds, _) =
            Training::new(&config, &gpt, device)?.time_for(WARM_UP, TIMED_FOR, TIMED_LEAST, || Ok(()))?;
        let seconds = median(seconds);
        notice!("timed {size}: {:.1} ms an update", 1e3 * seconds);
        timings.push(Timing { flops, seconds });
        timed.push(Timed { size: size.to_string(), ms_per_update: 1e3 * seconds });
    }
    Ok((Speed::new(timings).context("no update could be timed: there is too little memory")?, timed))
}

/// The error for a time in which not even the smallest size can be trained, or for a text without enough of it.
fn too_short(minutes: f64, budget: &Budget, text: &Text, speed: &Speed) -> anyhow::Result<anyhow::Error> {
    let longer = std::iter::successors(Some(2.0 * minutes), |minutes| Some(2.0 * minutes)).take(80);
    for enough in longer {
        let budget = Budget { seconds: 60.0 * enough, ..*budget };
        if !scaling::candidates(&text.law, speed, &budget)?.is_empty() {
            return Ok(anyhow!(
                "--minutes {minutes} is too short for any size on this machine: give --minutes {}, or more",
                (100.0 * enough).ceil() / 100.0
            ));
        }
    }
    Ok(anyhow!(
        "{} is too short for a plan: it would have to be read more often than was measured; give more text",
        text.path
    ))
}

/// The file of a configuration: what was expected of it, and every key.
fn toml(config: &RunConfig, best: &Candidate, text: &Text) -> anyhow::Result<String> {
    let Candidate { size, parameters, minutes, loss, .. } = best;
    Ok(format!(
        "# Made by `tinygpt plan`: {size}, {parameters} parameters.\n# Expected: {minutes:.2} minutes, and a validation loss \
         of {loss:.3} nats/token by {}.\n{}",
        law_in_words(text),
        config.to_toml()?
    ))
}

/// The command that trains the file on the device that was timed.
fn command(file: &Path, args: &PlanArgs, device: &Device) -> String {
    let file = file.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "-_./".contains(c);
    let file = if file.chars().all(plain) { file } else { format!("'{}'", file.replace('\'', r"'\''")) };
    let device = match args.device {
        DeviceChoice::Auto => String::new(),
        _ => format!(" --device {}", device::name(device)),
    };
    // With other threads the time would be another.
    let n = rayon::current_num_threads();
    let threads = (std::thread::available_parallelism().ok().map(usize::from) != Some(n)).then_some(n);
    let threads = threads.map(|n| format!(" --threads {n}")).unwrap_or_default();
    format!("tinygpt train --config {file}{device}{threads}")
}

fn law_in_words(text: &Text) -> String {
    let whose = if text.law_is_its_own { "this text" } else { "another text, so it is an estimate" };
    format!("the law of {}, {whose}", text.law_of)
}

fn describe(
    text: &Text,
    machine: &str,
    timed: &[Timed],
    candidates: &[Candidate],
    best: &Candidate,
) -> anyhow::Result<String> {
    let mut out = String::new();
    match (text.characters, text.bytes) {
        (Some(characters), Some(bytes)) => writeln!(
            out,
            "corpus    {}: {bytes} bytes, {characters} characters, {} different: the tokens",
            text.path, text.vocab_size
        )?,
        _ => writeln!(out, "corpus    {}, as many as needed, by characters, {} different", text.path, text.vocab_size)?,
    }
    let times = timed.iter().map(|timed| format!("{} {:.1} ms", timed.size, timed.ms_per_update));
    writeln!(out, "machine   {machine}; an update takes: {}", times.collect::<Vec<_>>().join(", "))?;
    let RunConfig { model, train, .. } = &best.config;
    writeln!(out, "batch     {} windows of {} tokens, whatever the size", train.batch_size, model.block_size)?;
    writeln!(
        out,
        "\n  {:<7}{:>11}{:>9}{:>13}{:>8}{:>9}{:>15}",
        "size", "parameters", "updates", "tokens", "epochs", "minutes", "expected loss"
    )?;
    for candidate in candidates {
        let Candidate { size, parameters, updates, tokens, epochs, minutes, loss, measured, .. } = candidate;
        let mark = if std::ptr::eq(candidate, best) { '*' } else { ' ' };
        let about = if *measured { "" } else { "~" };
        let loss = format!("{about}{loss:.3}");
        writeln!(out, "{mark} {size:<7}{parameters:>11}{updates:>9}{tokens:>13}{epochs:>8.2}{minutes:>9.2}{loss:>15}")?;
    }
    writeln!(out, "\n*  the least validation loss, in nats/token, by {}", law_in_words(text))?;
    if candidates.iter().any(|candidate| !candidate.measured) {
        writeln!(out, "~  outside of what was measured")?;
    }
    if !text.law_is_its_own {
        writeln!(
            out,
            "!  the exponents are borrowed from character-level English of the 16th century: train a minute and compare"
        )?;
    }
    if text.vocab_size > ALPHABET {
        writeln!(out, "!  {} different characters are unlike English: the loss may be far from this", text.vocab_size)?;
    }
    if best.text_is_short {
        writeln!(
            out,
            "!  the run ends after {:.1} minutes: more of this text would help, to read it again would not",
            best.minutes
        )?;
    }
    writeln!(out)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_named_for_its_file() {
        for (file, name) in [("my.toml", "my"), ("a/b c.toml", "b-c")] {
            assert_eq!(run_name(Path::new(file).file_stem().unwrap()), name);
        }
    }

    #[test]
    fn stories_are_made_so_that_none_is_read_twice() {
        let speed = Speed::new(vec![Timing { flops: 1e9, seconds: 0.01 }]).unwrap();
        let budget = Budget { seconds: 60.0, tokens: STORIES, vocab_size: 40 };
        let law = ScalingLaw::STORIES;
        let text = Text {
            path: BUILTIN_CORPUS.into(),
            bytes: None,
            characters: None,
            vocab_size: 40,
            law_of: "stories",
            law_is_its_own: true,
            law,
        };
        for mut candidate in scaling::candidates(&law, &speed, &budget).unwrap() {
            set_corpus(&mut candidate, &text);
            let data = &candidate.config.data;
            let training = data.stories_bytes as f64 * (1.0 - data.val_fraction);
            assert!(training >= candidate.tokens as f64 * 0.999_999, "{candidate:?}");
            candidate.config.resolved().unwrap();
        }
    }
}
