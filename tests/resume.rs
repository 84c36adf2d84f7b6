//! Same seed, same bytes: whatever the number of threads, and wherever a run was interrupted and resumed.

use std::collections::BTreeMap;

use crate::common::{Place, SMALL, assert_same, failure, json, stderr, stdout};

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

/// The learning rates of updates by their steps.
fn rates(place: &Place, run: &str) -> BTreeMap<u64, f64> {
    let text = place.text(&format!("{run}/metrics.jsonl"));
    let rows = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    rows.filter_map(|row| Some((row["step"].as_u64()?, row["lr"].as_f64()?))).collect()
}

#[test]
fn a_longer_run_decays_until_its_new_end_and_one_whose_decay_has_ended_says_so() {
    let place = Place::new().with_run("run").with_run("fixed");
    let longer = ["--set", "train.max_steps=90"];
    let notice = stderr(place.tinygpt().args(["train", "--resume", "--out", "run"]).args(longer));
    assert!(notice.contains("train.max_steps = 90 (was 60)") && !notice.contains("ends its decay"), "{notice}");
    let rates = rates(&place, "run");
    // As a run of 90 updates from the start: well above the minimum of 1e-4 after 60, and there at the end.
    assert!(rates[&61] > 2.5e-4 && rates[&90] < 1.1e-4, "{rates:?}");
    let fixed = [&longer[..], &["--set", "train.decay_steps=60"]].concat();
    let notice = stderr(place.tinygpt().args(["train", "--resume", "--out", "fixed"]).args(fixed));
    let told = "the learning rate ends its decay at step 60: further steps run at train.min_lr = 0.0001";
    assert!(notice.contains(told), "{notice}");
}

#[test]
fn what_may_change_on_resume_takes_effect_and_is_kept_in_the_history() {
    let place = Place::new().with_run("run");
    let keys =
        ["train.max_steps=63", "train.lr=0.002", "train.min_lr=0.002", "train.batch_size=3", "model.dropout=0.1"];
    let set = keys.iter().flat_map(|key| ["--set", key]);
    place.tinygpt().args(["train", "--resume", "--out", "run"]).args(set).assert().success();
    assert_eq!(rates(&place, "run")[&61], 0.002);
    let parts = place.json("run/last/state.json")["parts"].clone();
    let change = serde_json::json!({ "key": "train.batch_size", "from": "2", "to": "3" });
    assert!(parts[1]["changes"].as_array().unwrap().contains(&change), "{parts}");
    let info = stdout(place.tinygpt().args(["info", "run"]));
    for line in ["model.dropout = 0.1 (was 0.0)", "train.lr = 0.002 (was 0.001)"] {
        assert!(info.contains(line), "{line}: {info}");
    }
    assert!(place.text("run/train.toml").contains("batch_size = 3"));
    // Once more, nothing has changed.
    let notice = stderr(place.tinygpt().args(["train", "--resume", "--out", "run", "--set", "train.max_steps=64"]));
    assert!(notice.contains("train.max_steps = 64 (was 63)") && !notice.contains("dropout"), "{notice}");
}

#[test]
fn validation_losses_stay_those_of_the_same_windows_when_the_batch_size_changes() {
    let place = Place::new().with_run("run");
    // The floor is the entropy of the very windows that a loss is of.
    let floors = || -> Vec<f64> {
        let text = place.text("run/metrics.jsonl");
        let rows = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        rows.filter_map(|row| row["floor"].as_f64()).collect()
    };
    let resume = |set: &[&str]| {
        let set = set.iter().flat_map(|key| ["--set", key]);
        stderr(place.tinygpt().args(["train", "--resume", "--out", "run"]).args(set))
    };
    let before = floors();
    let told = "validation losses are of other windows from here on";
    let notice = resume(&["train.max_steps=62", "train.batch_size=5"]);
    assert!(notice.contains("train.batch_size = 5 (was 2)") && !notice.contains(told), "{notice}");
    // The history has it, for a run that is resumed once more.
    let notice = resume(&["train.max_steps=63", "train.batch_size=1"]);
    assert!(!notice.contains(told), "{notice}");
    assert!(floors().len() > before.len() + 1 && floors().iter().all(|floor| *floor == before[0]), "{:?}", floors());
    let notice = resume(&["train.max_steps=64", "train.eval_batches=3"]);
    assert!(notice.contains(told) && notice.contains("the best so far, of step 6"), "{notice}");
    assert_ne!(floors().last(), before.last());
}

#[test]
fn warnings_are_told_again_where_they_still_hold_and_more_updates_are_made() {
    let place = Place::new();
    place.write("a.txt", "the cat sat on the mat. ".repeat(200));
    let set = ["train.warmup_steps=6", "data.val_fraction=0.01"].map(|key| ["--set", key]).concat();
    let warm_up = "train.warmup_steps = 6 is not shorter than the run";
    let windows = "validation tokens are less than 4 windows of 16";
    let notice = stderr(place.train().args(["--data", "a.txt", "--out", "run"]).args(set));
    assert!(notice.contains(warm_up) && notice.contains(windows), "{notice}");
    let resume = |set: &[&str]| {
        let set = set.iter().flat_map(|key| ["--set", key]);
        stderr(place.tinygpt().args(["train", "--resume", "--out", "run"]).args(set))
    };
    let notice = resume(&[]);
    assert!(!notice.contains("warning"), "no updates are made: {notice}");
    let notice = resume(&["train.max_steps=12"]);
    assert!(!notice.contains(warm_up) && notice.contains(windows), "{notice}");
    let notice = resume(&["train.max_steps=13", "train.batch_size=2000"]);
    assert!(notice.contains("an update reads 32000 tokens, and the text has "), "{notice}");
}

#[test]
fn a_configuration_beside_resume_says_whose_run_it_means_and_is_never_taken_silently() {
    let place = Place::new();
    place.train().assert().success();
    place.write("small.toml", SMALL.replace("max_steps = 6", "max_steps = 9"));
    let notice = stderr(place.tinygpt().args(["train", "--resume", "--config", "small.toml"]));
    let told = "small.toml only says which run goes on; runs/small-1 keeps its own train.max_steps = 6, not 9";
    assert!(notice.contains(told), "{notice}");
    // Of a key that it leaves out it says nothing, though the run has another value than the default.
    place.write("other.toml", SMALL);
    place.tinygpt().args(["train", "--config", "other.toml", "--set", "train.lr=0.002"]).assert().success();
    let notice = stderr(place.tinygpt().args(["train", "--resume", "--config", "other.toml"]));
    assert!(notice.contains("runs/other-1") && !notice.contains("only says which run goes on"), "{notice}");
    let resume = ["train", "--resume", "--out", "runs/small-1", "--config", "small.toml"];
    let message = failure(place.tinygpt().args(resume), 2);
    assert!(message.contains("--config small.toml would change nothing"), "{message}");
}

#[test]
fn the_final_evaluation_is_not_made_again_and_may_be_of_a_part() {
    let place = Place::new().with_run("run");
    let state = place.json("run/last/state.json");
    let loss = state["final_evaluation"]["report"]["loss"].as_f64().unwrap();
    // A result that nobody computed shows that nothing is computed.
    let mut edited = state.clone();
    edited["final_evaluation"]["report"]["loss"] = serde_json::json!(1.25);
    place.write("run/last/state.json", edited.to_string());
    let resume = |more: &[&str]| json(place.tinygpt().args(["train", "--resume", "--out", "run", "--json"]).args(more));
    assert_eq!(resume(&[])["report"]["loss"], 1.25);
    let part = resume(&["--set", "train.final_eval_batches=3"]);
    assert_eq!(part["report"]["tokens"], 3 * 2 * 16);
    let whole = resume(&["--set", "train.final_eval_batches=0"]);
    assert!((whole["report"]["loss"].as_f64().unwrap() - loss).abs() < 1e-9, "{whole}");
    let text =
        stdout(place.tinygpt().args(["train", "--resume", "--out", "run", "--set", "train.final_eval_batches=3"]));
    assert!(text.contains("96 tokens of "), "{text}");
}

#[test]
fn resume_refuses_what_would_make_it_another_run() {
    let place = Place::new().with_run("run");
    let before = place.timeless("run");
    let message = failure(place.tinygpt().args(["train", "--resume", "--out", "run", "--set", "train.beta1=0.5"]), 2);
    assert!(message.contains("`train.beta1` cannot change when a run is resumed"), "{message}");
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
    fn an_interruption_while_the_corpus_is_prepared_says_that_no_run_was_started() {
        let place = Place::new();
        // More stories than are drawn before the signal comes. Where it comes before the program listens, it is sent later.
        let args = ["train", "--config", "small.toml", "--out", "run", "--set", "data.stories_bytes=100000000"];
        let interrupted_after = |milliseconds| {
            let mut child = place.process(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            std::thread::sleep(std::time::Duration::from_millis(milliseconds));
            kill("-INT", &child);
            let mut message = String::new();
            child.stderr.take().unwrap().read_to_string(&mut message).unwrap();
            (child.wait().unwrap().code() == Some(130)).then_some(message)
        };
        let message = [300, 1000, 3000, 10_000].into_iter().find_map(interrupted_after).unwrap();
        assert!(message.contains("interrupted before the first update: no run was started"), "{message}");
        assert!(!place.join("run").exists());
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
