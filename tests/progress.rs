//! What is told of work that takes a while: plain lines where standard error is no terminal, and what Ctrl-C does meanwhile.
//!
//! The work is of minutes in a program that is not optimised, and is ended as soon as the line is there. A machine so fast that it does
//! such work in seconds would tell no share of it, and these tests would say that the line is missing.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use crate::common::{Place, json};

/// What ended the work: its exit code, and what it had told.
struct Ended {
    code: Option<i32>,
    lines: Vec<String>,
}

impl Ended {
    fn last(&self) -> &str {
        self.lines.last().map_or("", String::as_str)
    }
}

/// Runs a command until it has told a line that is wanted, and sends it a signal.
fn ended_at(command: &mut Command, signal: &str, is_wanted: impl Fn(&str) -> bool) -> Ended {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut lines, mut is_told) = (Vec::new(), false);
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        let line = line.unwrap();
        if !is_told && is_wanted(&line) {
            is_told = true;
            let kill = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
            assert!(kill.success());
        }
        lines.push(line);
    }
    assert!(is_told, "it ended without that line: {lines:#?}");
    assert!(lines.iter().all(|line| !line.contains(['\r', '\x1b'])), "no terminal, no control characters: {lines:?}");
    Ended { code: child.wait().unwrap().code(), lines }
}

/// Whether a line is `WHAT: 12%, 3m05s left`.
fn is_share_of(what: &str, line: &str) -> bool {
    let Some((percent, left)) = line.strip_prefix(what).and_then(|rest| rest.strip_prefix(": ")?.split_once("%, "))
    else {
        return false;
    };
    percent.parse::<u32>().is_ok_and(|percent| percent <= 100) && is_time(left, " left")
}

/// Whether a text is a time such as `3m05s` before `behind`.
fn is_time(text: &str, behind: &str) -> bool {
    text.strip_suffix(behind)
        .is_some_and(|time| time.starts_with(|c: char| c.is_ascii_digit()) && time.ends_with(['s', 'm']))
}

/// Words of random letters, which repeat nothing.
fn words(bytes: usize) -> String {
    let (mut text, mut state) = (String::with_capacity(bytes + 16), 1u64);
    while text.len() < bytes {
        for _ in 0..11 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            text.push(char::from(b'a' + ((state >> 33) % 26) as u8));
        }
        text.push(' ');
    }
    text
}

/// A held-out text of a million characters, and a model that needs 10 million operations for each.
const LARGE: [&str; 7] = [
    "model.n_layer=6",
    "model.n_embd=256",
    "model.n_head=4",
    "train.max_steps=1",
    "train.warmup_steps=0",
    "data.val=val.txt",
    "train.eval_batches=1",
];

fn large() -> Place {
    let place = Place::new();
    place.write("a.txt", words(4000)).write("val.txt", words(1_000_000));
    place
}

fn train_large(place: &Place, more: &[&str]) -> Command {
    let mut command = place.process(&["train", "--config", "small.toml", "--data", "a.txt", "--out", "run"]);
    command.args(LARGE.iter().flat_map(|key| ["--set", key])).args(more);
    command
}

#[test]
fn the_final_evaluation_is_announced_with_its_tokens_and_the_time_left_and_can_be_interrupted() {
    let place = large();
    let characters = place.text("val.txt").len();
    let what = format!("evaluating the best weights on {} validation tokens", characters - 1);
    let ended = ended_at(&mut train_large(&place, &[]), "-INT", |line| is_share_of(&what, line));
    assert_eq!(ended.code, Some(130), "{:#?}", ended.lines);
    assert!(ended.last().contains("interrupted after step 1; saved"), "{:#?}", ended.lines);
    let state = place.json("run/last/state.json");
    assert_eq!((&state["step"], state.get("final_evaluation")), (&1.into(), None));
    // Evaluations of a run say how far they are as well.
    let mut eval = place.process(&["eval", "run"]);
    ended_at(&mut eval, "-KILL", |line| is_share_of("evaluating", line));
    // The run goes on where it was: with the evaluation, of which a part will do.
    let part = ["train", "--resume", "--out", "run", "--set", "train.final_eval_batches=1", "--json"];
    let result = json(place.tinygpt().args(part));
    assert_eq!((&result["step"], &result["report"]["tokens"]), (&1.into(), &(2 * 16).into()));
}

#[test]
fn an_interruption_before_the_first_update_says_so() {
    let place = large();
    // The evaluation before the first update is of the whole text.
    let mut train = train_large(&place, &["--set", "train.eval_batches=0"]);
    let ended = ended_at(&mut train, "-INT", |line| line.starts_with("run: ") && line.contains(" parameters, "));
    assert_eq!(ended.code, Some(130), "{:#?}", ended.lines);
    let told = "interrupted after step 0; saved. Go on with: tinygpt train --resume --out run";
    assert!(ended.last().contains(told), "{:#?}", ended.lines);
    assert_eq!(place.json("run/last/state.json")["step"], 0);
}

#[test]
fn the_preparation_of_a_text_tells_how_far_it_is_and_can_be_interrupted() {
    let place = Place::new();
    place.write("texts/000.txt", words(1_000_000));
    // 400 MB, of which the disk holds one.
    for n in 1..400 {
        fs::hard_link(place.join("texts/000.txt"), place.join(&format!("texts/{n:03}.txt"))).unwrap();
    }
    place.write("a.txt", words(4000));
    let bpe = ["--set", "data.tokenizer=bpe", "--set", "data.vocab_size=300"];
    place.train().args(["--data", "a.txt", "--out", "base"]).args(bpe).assert().success();
    let flags = ["train", "--config", "small.toml", "--data", "texts", "--tokenizer", "base", "--out", "run"];
    let is_wanted = |line: &str| is_share_of("reading the text", line) || is_share_of("encoding the text", line);
    let ended = ended_at(&mut place.process(&flags), "-INT", is_wanted);
    assert_eq!(ended.code, Some(130), "{:#?}", ended.lines);
    assert!(ended.last().contains("interrupted before the first update: no run was started"), "{:#?}", ended.lines);
    assert!(!place.join("run").exists());
}

#[test]
fn merging_pairs_for_a_tokenizer_tells_how_long_it_has_taken_and_can_be_interrupted() {
    let place = Place::new();
    place.write("a.txt", words(8_000_000));
    let mut train = place.process(&["train", "--config", "small.toml", "--data", "a.txt", "--out", "run"]);
    train.args(["--set", "data.tokenizer=bpe", "--set", "data.vocab_size=60000"]);
    let is_wanted = |line: &str| {
        line.strip_prefix("merging pairs for the tokenizer: ").is_some_and(|time| is_time(time, " so far"))
    };
    let ended = ended_at(&mut train, "-INT", is_wanted);
    assert_eq!(ended.code, Some(130), "{:#?}", ended.lines);
    assert!(ended.last().contains("interrupted before the first update: no run was started"), "{:#?}", ended.lines);
    assert!(!place.join("run").exists());
}

/// A training that reads its text from standard input, which does not end, once it has begun to: from then on it is known what a signal
/// does. The copy of the text is where the system has temporary files.
fn reading_standard_input(place: &Place, args: &[&str]) -> Child {
    fs::create_dir(place.join("tmp")).unwrap();
    let mut command = place.process(&["train", "--data", "-", "--set", "train.max_steps=1"]);
    command.args(args).env("TMPDIR", place.join("tmp"));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    for _ in 0..1200 {
        if !place.names("tmp").is_empty() {
            return child;
        }
        thread::sleep(Duration::from_millis(50));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    panic!("no text was read within 60 s");
}

/// What a child did at one Ctrl-C while its standard input stayed open.
fn interrupted(mut child: Child) -> (Option<i32>, String) {
    let _open = child.stdin.take();
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_text_that_does_not_end_can_be_interrupted_with_a_configuration_and_without() {
    for more in [&[][..], &["--config", "small.toml"]] {
        let place = Place::new();
        let (code, told) = interrupted(reading_standard_input(&place, more));
        assert_eq!(code, Some(130), "{told}");
        assert!(told.contains("interrupted before the first update: no run was started"), "{told}");
        assert!(!place.join("runs").exists());
    }
}

#[test]
fn an_inspection_ends_at_the_first_interruption() {
    let place = Place::new();
    let (code, told) = interrupted(reading_standard_input(&place, &["--config", "small.toml", "--inspect"]));
    assert_eq!((code, told.as_str()), (None, ""), "by the signal itself");
}
