//! `tinygpt data`.

mod info;
mod tokens;

use std::io::IsTerminal;

use indicatif::ProgressBar;
use serde_json::json;
use tinygpt_model::files::atomic;
use tinygpt_trainer::{
    fetch,
    stories::{Grammar, StoryCorpus},
};

use crate::{
    args::{AcceptArgs, FetchArgs, SynthArgs},
    output::{Usage, new_or_replaced, print_json, print_stdout},
    text_input::read_text,
};

pub use self::{info::info, tokens::tokens};

/// How many rejected stories are shown.
const SHOWN: usize = 3;

pub fn synth(args: &SynthArgs) -> anyhow::Result<()> {
    if args.bytes == 0 || args.bytes > 1 << 32 {
        return Err(Usage("--bytes must be at least 1, and at most 4 GiB".into()).into());
    }
    let out = new_or_replaced(&args.out, args.overwrite, "--out")?;
    let corpus = StoryCorpus::synth(Grammar::builtin(), args.bytes, args.seed);
    atomic::write(&out, corpus.text.as_bytes())?;
    let (nats, per_char) = (corpus.surprisal(), corpus.nats_per_char());
    let bits_per_char = per_char / std::f64::consts::LN_2;
    let (stories, bytes) = (corpus.stories.len(), corpus.text.len());
    if args.json {
        return print_json(&json!({
            "out": args.out, "bytes": bytes, "stories": stories, "seed": args.seed, "nats": nats,
            "nats_per_char": per_char, "bits_per_char": bits_per_char,
        }));
    }
    Ok(print_stdout(&format!(
        "{}: {stories} stories, {bytes} bytes\nentropy {nats:.1} nats: {per_char:.5} nats/char, {bits_per_char:.5} bits/char\n",
        args.out.display()
    ))?)
}

pub fn accept(args: &AcceptArgs) -> anyhow::Result<()> {
    let text = read_text(&args.file)?;
    let grammar = Grammar::builtin();
    let (mut stories, mut accepted, mut nats, mut rejected) = (0, 0, 0.0, Vec::new());
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        stories += 1;
        match grammar.accept(line) {
            Ok(story_nats) => {
                accepted += 1;
                nats += story_nats;
            }
            Err(e) => rejected.push((number + 1, e.position, line)),
        }
    }
    if stories == 0 {
        anyhow::bail!("{} has no stories: it needs one a line", args.file.display());
    }
    let share = f64::from(accepted) / f64::from(stories);
    if args.json {
        let rejected: Vec<_> =
            rejected.iter().map(|(line, at, story)| json!({ "line": line, "position": at, "story": story })).collect();
        return print_json(&json!({
            "stories": stories, "accepted": accepted, "share": share, "nats": nats, "rejected": rejected,
        }));
    }
    let mut report = format!("{accepted} of {stories} stories accepted ({:.1}%)\n", 100.0 * share);
    for (line, position, story) in rejected.iter().take(SHOWN) {
        let good: String = story.chars().take(*position).collect();
        let bad: String = story.chars().skip(*position).collect();
        report += &format!("line {line}: no story goes on after the bar: {good}|{bad}\n");
    }
    if rejected.len() > SHOWN {
        report += &format!("... and {} more; --json lists all\n", rejected.len() - SHOWN);
    }
    Ok(print_stdout(&report)?)
}

pub fn fetch(args: &FetchArgs) -> anyhow::Result<()> {
    let dataset = fetch::dataset(&args.name).map_err(|e| Usage(e.to_string()))?;
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
    let fetched = fetch::fetch(dataset, &args.dir, &args.base_urls, |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let fetched = fetched?;
    let how = if fetched.downloaded { "downloaded" } else { "already there" };
    notice!("{how}, SHA-256 verified");
    Ok(print_stdout(&format!("{}\n", fetched.path.display()))?)
}
