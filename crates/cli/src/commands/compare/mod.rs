//! `tinygpt compare`: how far two distributions of the next token are from each other, and from what happens.

mod octaves;
mod plot;
mod table;

use std::path::Path;

use anyhow::anyhow;
use serde::Serialize;
use tinygpt_model::{LanguageModel, Tokenizer, ngram::is_ngram_folder};
use tinygpt_trainer::{
    chart,
    compare::{Comparison, Source, compare},
    data::Split,
    stories::StoryTruth,
};

use crate::{
    args::CompareArgs,
    device::DeviceChoice,
    measured::Measured,
    output::{Usage, print_json, print_stdout},
    progress_bar::WorkProgress,
};

/// What stands for the grammar in place of a run.
const TRUTH: &str = "truth";

/// What `--json` prints. Numbers that are infinite are null.
#[derive(Serialize)]
struct CompareReport<'a> {
    a: String,
    b: String,
    data: Option<&'a str>,
    context: usize,
    #[serde(flatten)]
    comparison: Comparison,
}

pub fn run(args: &CompareArgs) -> anyhow::Result<()> {
    let mut sides = [open(&args.a, args.device)?, open(&args.b, args.device)?];
    let Some(first) = sides.iter().flatten().next() else {
        return Err(Usage("one of the two must be a run: the truth has no tokenizer of its own".into()).into());
    };
    let (tokenizer, vocab_size) = (first.tokenizer.clone(), first.model.vocab_size());
    if let [Some(a), Some(b)] = &sides {
        check_tokenizers(a, b)?;
    }
    // N-gram models have no corpus of their own.
    let with_corpus = sides.iter().flatten().find(|side| !is_ngram_folder(&side.path)).unwrap_or(first);
    let split = match &args.data {
        Some(path) => first.text(path, args.text_key.as_deref())?,
        None => with_corpus.dataset().map_err(|error| anyhow!("{error}; give a text by --data"))?.val,
    };
    let block_size = sides.iter().flatten().map(|side| side.model.block_size()).min().unwrap_or_default();
    let context = args.context.unwrap_or(block_size);
    if !(1..=block_size).contains(&context) {
        return Err(Usage(format!("--context must be from 1 to {block_size}, the smaller block_size")).into());
    }

    let names = [&args.a, &args.b].map(|path| path.display().to_string());
    let [a, b] = &mut sides;
    let (mut a, mut b) = (source(a.as_mut(), &tokenizer, &split)?, source(b.as_mut(), &tokenizer, &split)?);
    let mut progress = WorkProgress::new("comparing");
    let windows = args.windows.map(usize::from);
    let comparison = compare(&mut a, &mut b, &split, vocab_size, context, windows, &mut progress.callback())?;
    drop(progress);
    let [a, b] = names;
    let report = CompareReport { a, b, data: args.data.as_deref(), context, comparison };
    if let Some(path) = &args.plot {
        chart::write(path, &plot::figure(&report))?;
    }
    if args.json {
        return print_json(&report);
    }
    Ok(print_stdout(&table::text(&report))?)
}

/// The model of a folder; none for the truth.
fn open(path: &Path, device: DeviceChoice) -> anyhow::Result<Option<Measured>> {
    match path == Path::new(TRUTH) {
        true => Ok(None),
        false => Measured::open(Some(path), device).map(Some),
    }
}

fn source<'a>(side: Option<&'a mut Measured>, tokenizer: &'a Tokenizer, split: &Split) -> anyhow::Result<Source<'a>> {
    let Some(side) = side else {
        return Ok(Source::Truth(Box::new(StoryTruth::new(tokenizer, split.tokens()?)?)));
    };
    let model: &mut dyn LanguageModel = side.model.as_mut();
    Ok(Source::Model(model))
}

/// Refuses two models whose tokens are not the same: their distributions are over different things.
fn check_tokenizers(a: &Measured, b: &Measured) -> anyhow::Result<()> {
    let sizes = [a, b].map(|side| side.model.vocab_size());
    if a.tokenizer.is_same(&b.tokenizer) && sizes[0] == sizes[1] {
        return Ok(());
    }
    anyhow::bail!(
        "{} ({} tokens) and {} ({} tokens) have different tokenizers, so their distributions are over different things; compare runs \
         of one corpus and tokenizer, or their bits a byte by `tinygpt eval`",
        a.path.display(),
        sizes[0],
        b.path.display(),
        sizes[1]
    )
}
