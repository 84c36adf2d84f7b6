//! Same seed, same bytes: whatever the number of threads, and wherever a run was interrupted and resumed.

use crate::common::{Place, SMALL, assert_same, failure, json, stderr};

/// Dropout, accumulation and a fixed end of the decay: everything that a resumed run could get wrong.
const HARD: [&str; 10] = [
    "--set",
    "model.dropout=0.2",
    "--set",
    "train.grad_accum=2",
    "--set",
    "train.decay_steps=400",
    "--set",
    "train.eval_every=20",
    "--set",
    "train.log_every=5",
];

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
    let place = Place::new();
    for (out, seed) in [("one", "5"), ("two", "5"), ("three", "6")] {
        place.train().args(["--out", out, "--seed", seed]).args(HARD).assert().success();
    }
    assert_eq!(place.timeless("one").keys().filter(|name| name.ends_with(".safetensors")).count(), 3);
    let one = place.timeless("one");
    assert_same(&one, &place.timeless("two"));
    assert_ne!(one["model.safetensors"], place.timeless("three")["model.safetensors"]);
}

#[test]
fn the_number_of_threads_does_not_change_a_byte() {
    let place = Place::new();
    for (out, threads) in [("one", "1"), ("two", "2"), ("five", "5")] {
        place
            .train()
            .args(["--out", out, "--threads", threads, "--set", "train.batch_size=5"])
            .args(HARD)
            .assert()
            .success();
    }
    assert_same(&place.timeless("one"), &place.timeless("two"));
    assert_same(&place.timeless("one"), &place.timeless("five"));
}

#[test]
fn a_finished_run_goes_on_to_a_larger_number_of_steps_with_the_same_bytes() {
    let place = Place::new();
    place.train().args(["--out", "whole", "--set", "train.max_steps=80"]).args(HARD).assert().success();
    place.train().args(["--out", "parts", "--set", "train.max_steps=40"]).args(HARD).assert().success();
    let notice = stderr(place.tinygpt().args(["train", "--resume", "--out", "parts", "--set", "train.max_steps=80"]));
    assert!(notice.contains("resumed after step 40"), "{notice}");
    assert_same(&place.timeless("parts"), &place.timeless("whole"));
    // The metrics hold each update once.
    assert_eq!(steps(&place, "parts"), steps(&place, "whole"));
}

#[test]
fn a_finished_run_says_that_it_is_finished_shows_its_result_again_and_stays_as_it_is() {
    let place = Place::new().with_run("run");
    let resume = |more: &[&str]| {
        let mut command = place.tinygpt();
        command.args(["train", "--resume", "--out", "run"]).args(more);
        command
    };
    let before = place.timeless("run");
    let written = || std::fs::metadata(place.join("run/train.toml")).unwrap().modified().unwrap();
    let then = written();
    let notice = stderr(&mut resume(&[]));
    assert!(notice.contains("already finished at step 60 (a larger train.max_steps goes on)"), "{notice}");
    assert_eq!(json(&mut resume(&["--json"]))["step"], 60);
    let message = failure(&mut resume(&["--set", "train.max_steps=50"]), 2);
    assert!(message.contains("train.max_steps = 50, but the run has made 60 steps already"), "{message}");
    assert_same(&place.timeless("run"), &before);
    assert_eq!(written(), then);
}

#[test]
fn best_weights_that_were_not_written_any_more_are_made_up_on_resume() {
    let place = Place::new().with_run("run");
    let state = place.json("run/last/state.json");
    assert_eq!(state["best"]["step"], state["step"], "the last evaluation was the best");
    let best = place.read("run/model.safetensors");
    // As a full disk or a crash leaves it behind the state that names it: the best of an earlier evaluation, or none.
    place.train().args(["--out", "earlier", "--set", "train.max_steps=30"]).assert().success();
    let earlier = place.read("earlier/model.safetensors");
    assert!(earlier != best);
    for left in [Some(earlier), None] {
        match left {
            Some(bytes) => drop(place.write("run/model.safetensors", bytes)),
            None => std::fs::remove_file(place.join("run/model.safetensors")).unwrap(),
        }
        place.tinygpt().args(["train", "--resume", "--out", "run"]).assert().success();
        assert!(place.read("run/model.safetensors") == best);
    }
}

#[test]
fn metrics_that_are_gone_are_noticed_and_begin_anew() {
    let place = Place::new().with_run("run");
    std::fs::remove_file(place.join("run/metrics.jsonl")).unwrap();
    let resume = ["train", "--resume", "--out", "run", "--set", "train.max_steps=62"];
    let notice = stderr(place.tinygpt().args(resume));
    assert!(notice.contains("run has no metrics.jsonl any more: it begins anew at step 60"), "{notice}");
    assert!(steps(&place, "run").contains(&("\"train\"".into(), 62)));
}

fn steps(place: &Place, run: &str) -> Vec<(String, u64)> {
    let text = place.text(&format!("{run}/metrics.jsonl"));
    let rows = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    rows.map(|row| (row["kind"].to_string(), row["step"].as_u64().unwrap())).collect()
}

#[test]
fn resume_finds_the_newest_run_of_a_name_or_of_all() {
    let place = Place::new();
    for name in ["a", "a", "b"] {
        place.train().args(["--set", &format!("name={name}")]).assert().success();
    }
    place.write("a.toml", SMALL);
    let longer = ["--set", "train.max_steps=9"];
    let by_name = json(place.tinygpt().args(["train", "--resume", "--config", "a", "--json"]).args(longer));
    assert_eq!((&by_name["run"], &by_name["step"]), (&"runs/a-2".into(), &9.into()));
    place.train().args(["--set", "name=c"]).assert().success();
    assert_eq!(json(place.tinygpt().args(["train", "--resume", "--json"]).args(longer))["run"], "runs/c-1");
}

#[test]
fn resume_refuses_what_would_change_the_updates() {
    let place = Place::new().with_run("run");
    let before = place.timeless("run");
    let message = failure(place.tinygpt().args(["train", "--resume", "--out", "run", "--set", "train.lr=0.1"]), 2);
    assert!(message.contains("`train.lr` cannot change when a run is resumed"), "{message}");
    let message = failure(place.tinygpt().args(["train", "--resume", "--out", "run", "--seed", "4"]), 2);
    assert!(message.contains("--seed"), "{message}");
    assert_same(&place.timeless("run"), &before);
}

#[test]
fn resume_refuses_a_corpus_that_has_changed() {
    let place = Place::new();
    place.write("a.txt", "the cat sat on the mat. ".repeat(20));
    place.train().args(["--data", "a.txt", "--out", "run"]).assert().success();
    let before = place.timeless("run");
    place.write("a.txt", "the mat sat on the cat. ".repeat(20));
    let resume = || {
        let mut resume = place.tinygpt();
        resume.args(["train", "--resume", "--out", "run", "--set", "train.max_steps=9"]);
        resume
    };
    let message = failure(&mut resume(), 1);
    assert!(message.contains("has changed since this run was started") && message.contains("--data"), "{message}");
    assert_same(&place.timeless("run"), &before);
    // The old text under another name will do, and is found again from any folder.
    place.write("old.txt", "the cat sat on the mat. ".repeat(20));
    resume().args(["--data", "old.txt"]).assert().success();
    assert!(place.text("run/train.toml").contains("/old.txt\""));
}

#[cfg(unix)]
mod signals {
    use std::{
        io::{BufRead, BufReader, Read},
        process::{Child, ChildStderr, Command, Stdio},
    };

    use super::*;

    /// Starts a run of endless length; gives its process when a line of its progress starts like this.
    fn started(place: &Place, out: &str, until: &str) -> (Child, BufReader<ChildStderr>) {
        let args = ["train", "--config", "small.toml", "--out", out, "--set", "train.max_steps=100000000"];
        let mut command = place.process(&args);
        let mut child = command.args(HARD).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.starts_with(until) {
            line.clear();
            assert!(lines.read_line(&mut line).unwrap() > 0, "it ended before `{until}`");
        }
        (child, lines)
    }

    fn kill(signal: &str, child: &Child) {
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
    }

    /// Resumes a run that was stopped after `step`, to a few evaluations later; trains the same without a break.
    fn resume_and_compare(place: &Place, step: u64) {
        let max_steps = format!("train.max_steps={}", (step / 20 + 3) * 20);
        let resume = ["train", "--resume", "--out", "parts", "--set", max_steps.as_str()];
        let notice = stderr(place.tinygpt().args(resume));
        assert!(notice.contains(&format!("resumed after step {step}")), "{notice}");
        place.train().args(["--out", "whole", "--set", &max_steps]).args(HARD).assert().success();
        let (mut parts, mut whole) = (place.timeless("parts"), place.timeless("whole"));
        assert!(parts.contains_key(&format!("last/weights-{}.safetensors", (step / 20 + 3) * 20)));
        assert!(parts.remove("train.toml") == whole.remove("train.toml"), "{}", place.text("parts/train.toml"));
        assert_same(&parts, &whole);
        assert_eq!(steps(place, "parts"), steps(place, "whole"));
    }

    #[test]
    fn an_interrupted_run_says_how_to_go_on_and_then_equals_an_uninterrupted_one() {
        for signal in ["-INT", "-TERM"] {
            let place = Place::new();
            let (mut child, mut lines) = started(&place, "parts", "eval 20/");
            kill(signal, &child);
            let mut message = String::new();
            lines.read_to_string(&mut message).unwrap();
            let mut out = String::new();
            child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
            assert_eq!(child.wait().unwrap().code(), Some(130), "{message}");
            assert_eq!(out, "", "there is no result yet");
            let how = "saved. Go on with: tinygpt train --resume --out parts\n";
            assert!(message.ends_with(how), "{message}");
            let step = place.json("parts/last/state.json")["step"].as_u64().unwrap();
            assert!(step >= 20 && message.contains(&format!("interrupted after step {step};")), "{message}");
            resume_and_compare(&place, step);
        }
    }

    #[test]
    fn a_killed_run_goes_on_from_its_last_save_and_equals_an_uninterrupted_one() {
        for evaluation in ["eval 20/", "eval 60/"] {
            let place = Place::new();
            let (mut child, _lines) = started(&place, "parts", evaluation);
            kill("-KILL", &child);
            child.wait().unwrap();
            let step = place.json("parts/last/state.json")["step"].as_u64().unwrap();
            resume_and_compare(&place, step);
        }
    }
}
