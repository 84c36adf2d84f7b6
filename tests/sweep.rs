//! `tinygpt sweep`: a grid of runs.

use crate::common::{Place, failure, json, stderr, stdout};

/// Two learning rates with two seeds each.
const GRID: [&str; 9] =
    ["sweep", "--config", "small.toml", "--set", "train.lr=1e-3,3e-3", "--seeds", "2", "--out", "grid"];

#[test]
fn every_combination_is_a_run_with_its_losses_and_a_summary_over_seeds() {
    let place = Place::new();
    let value = json(place.tinygpt().args(GRID).arg("--json"));
    let runs = value["runs"].as_array().unwrap();
    let names: Vec<_> = runs.iter().map(|run| run["run"].as_str().unwrap()).collect();
    assert_eq!(names, ["lr=1e-3,seed=1337", "lr=1e-3,seed=1338", "lr=3e-3,seed=1337", "lr=3e-3,seed=1338"]);
    for run in runs {
        // A run of a sweep is the run that `train` makes of these settings.
        let evaluated =
            json(place.tinygpt().args(["eval", &format!("grid/{}", run["run"].as_str().unwrap()), "--json"]));
        let (of_eval, of_sweep) = (evaluated["loss"].as_f64().unwrap(), run["report"]["loss"].as_f64().unwrap());
        assert!((of_eval - of_sweep).abs() < 1e-6);
        assert_eq!((&run["step"], &run["diverged"]), (&6.into(), &serde_json::Value::Null));
    }
    let summaries = value["summaries"].as_array().unwrap();
    assert_eq!(summaries.len(), 2);
    let loss = |n: usize| runs[n]["report"]["loss"].as_f64().unwrap();
    for (n, summary) in summaries.iter().enumerate() {
        let (a, b) = (loss(2 * n), loss(2 * n + 1));
        assert!((summary["val_loss"].as_f64().unwrap() - (a + b) / 2.0).abs() < 1e-12);
        assert!((summary["val_loss_std"].as_f64().unwrap() - (a - b).abs() / 2f64.sqrt()).abs() < 1e-12);
        assert_eq!((&summary["seeds"], &summary["diverged"]), (&2.into(), &0.into()));
    }
    let plot = place.text("grid/sweep.svg");
    assert!(plot.starts_with("<svg") && plot.contains("validation loss by train.lr"), "{plot}");
}

#[test]
fn what_has_ended_is_not_trained_again_and_values_may_be_added() {
    let place = Place::new();
    place.tinygpt().args(GRID).assert().success();
    let first = place.text("grid/results.jsonl");
    let told = stderr(place.tinygpt().args(GRID));
    assert!(told.contains("4 of 4 runs have ended before") && !told.contains("run 1 of 4"), "{told}");
    assert_eq!(place.text("grid/results.jsonl"), first);
    let told = stderr(place.tinygpt().args(GRID).args(["--set", "model.n_layer=1"]));
    assert!(told.contains("4 of 4 runs have ended before"), "the same value, said twice: {told}");
    let mut more = GRID;
    more[4] = "train.lr=1e-3,1e-2,3e-3";
    let told = stderr(place.tinygpt().args(more));
    assert!(told.contains("4 of 6 runs have ended before"), "{told}");
    assert!(told.contains("run 3 of 6: lr=1e-2,seed=1337") && !told.contains("run 1 of 6"), "{told}");
    let results = place.text("grid/results.jsonl");
    assert_eq!(results.lines().count(), 6);
    // A damaged line is no reason to train a run again.
    place.write("grid/results.jsonl", &results[..results.len() - 9]);
    let error = failure(place.tinygpt().args(more), 1);
    assert!(error.contains("results.jsonl") && error.contains("line 6 is not one of its lines"), "{error}");
}

#[test]
fn a_sweep_of_an_earlier_version_goes_on() {
    let place = Place::new();
    let grid = ["sweep", "--config", "small.toml", "--set", "train.lr=1e-3,3e-3", "--out", "grid"];
    place.tinygpt().args(grid).assert().success();
    // It wrote what decay_steps = 0 stood for. One of its runs has ended, and the other is saved.
    let older = place.text("grid/results.jsonl").replace("\"decay_steps\":0", "\"decay_steps\":6");
    let (first, second) = older.trim_end().split_once('\n').unwrap();
    assert!([first, second].iter().all(|line| line.contains("\"decay_steps\":6")), "{older}");
    place.write("grid/results.jsonl", format!("{first}\n"));
    let path = "grid/lr=3e-3,seed=1337/train.toml";
    let config = place.text(path);
    assert!(config.contains("decay_steps = 0"), "{config}");
    place.write(path, config.replace("decay_steps = 0", "decay_steps = 6"));
    let told = stderr(place.tinygpt().args(grid));
    assert!(told.contains("1 of 2 runs have ended before"), "{told}");
    let told = failure(place.tinygpt().args(grid).args(["--set", "train.decay_steps=5"]), 1);
    assert!(told.contains("was trained with another configuration"), "{told}");
}

#[test]
fn runs_side_by_side_have_the_bytes_of_runs_in_turn() {
    let place = Place::new();
    let train = |jobs: &str, out: &str| {
        let mut args = GRID;
        args[8] = out;
        let text = stdout(place.tinygpt().args(args).args(["--jobs", jobs]));
        assert!(text.lines().count() >= 6 && text.contains('*'), "{text}");
    };
    train("1", "one");
    train("100000", "three");
    for run in ["lr=1e-3,seed=1337", "lr=3e-3,seed=1338"] {
        let weights = |out: &str| place.read(&format!("{out}/{run}/model.safetensors"));
        assert!(weights("one") == weights("three"), "{run}");
    }
}

#[test]
fn a_run_that_diverges_is_a_result() {
    let place = Place::new();
    let sweep =
        ["sweep", "--config", "small.toml", "--set", "train.lr=1e-3,1e30", "--set", "train.clip=0", "--out", "s"];
    let value = json(place.tinygpt().args(sweep).arg("--json"));
    assert!(value["runs"][1]["diverged"].as_str().unwrap().contains("training has diverged"));
    assert!(value["runs"][1]["report"].is_null() && value["runs"][0]["report"].is_object());
    assert_eq!(
        (&value["summaries"][1]["val_loss"], &value["summaries"][1]["diverged"]),
        (&serde_json::Value::Null, &1.into())
    );
    let text = stdout(place.tinygpt().args(sweep));
    assert!(text.contains("1 (1 diverged)"), "{text}");
}

#[test]
fn a_figure_that_is_infinite_is_null_and_the_sweep_goes_on_with_it() {
    let place = Place::new();
    // What is predicted of the held-out text is its end alone, which has no byte.
    place.write("a.txt", "the cat sat on the mat. ".repeat(40)).write("val.txt", "a");
    let sweep = |rates: &'static str| {
        let text = ["sweep", "--config", "small.toml", "--data", "a.txt", "--out", "grid", "--set", rates];
        [&text[..], &["--set", "data.documents=file", "--set", "data.val=val.txt"]].concat()
    };
    place.tinygpt().args(sweep("train.lr=1e-3")).assert().success();
    let results = place.text("grid/results.jsonl");
    assert!(results.contains("\"bits_per_byte\":null") && !results.contains("\"loss\":null"), "{results}");
    let more = sweep("train.lr=1e-3,3e-3");
    place.tinygpt().args(&more).assert().success();
    let told = stderr(place.tinygpt().args(&more));
    assert!(told.contains("2 of 2 runs have ended before"), "{told}");
    let value = json(place.tinygpt().args(&more).arg("--json"));
    for run in value["runs"].as_array().unwrap() {
        assert!(run["report"]["bits_per_byte"].is_null() && run["report"]["loss"].is_f64(), "{run}");
    }
    let table = stdout(place.tinygpt().args(&more));
    assert!(table.contains(" inf ") && !table.contains('*'), "{table}");
    // The state of a run has its result as well, which is not computed again.
    let run = place.names("grid").into_iter().find(|name| name.starts_with("lr=1e-3")).unwrap();
    let run = format!("grid/{run}");
    let state = place.json(&format!("{run}/last/state.json"));
    assert!(state["final_evaluation"]["report"]["bits_per_byte"].is_null(), "{state}");
    place.tinygpt().args(["train", "--resume", "--out", &run]).assert().success();
}

#[test]
#[cfg(unix)]
fn an_interrupted_sweep_goes_on_where_it_was() {
    let place = Place::new();
    let long = ["--set", "train.max_steps=100000", "--set", "train.eval_every=100", "--set", "train.log_every=100"];
    let sweep: Vec<&str> = GRID.iter().chain(&long).copied().collect();
    let child =
        place.process(&sweep).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let state = place.join("grid/lr=1e-3,seed=1337/last/state.json");
    while !state.exists() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{message}");
    assert!(message.contains("interrupted after 0 of 4 runs; saved. The same command goes on"), "{message}");
    // The run that was begun is there, and would go on; another configuration is refused.
    let error = failure(place.tinygpt().args(GRID), 1);
    assert!(error.contains("was trained with another configuration"), "{error}");
}

#[test]
fn bad_sweeps_are_refused_before_any_work() {
    let place = Place::new();
    let refused = |flags: &[&str]| {
        let error = failure(place.tinygpt().args(["sweep", "--config", "small.toml", "--out", "s"]).args(flags), 2);
        assert!(!place.join("s").exists(), "{flags:?}");
        error
    };
    for (flags, message) in [
        (&["--set", "train.lrr=1,2"][..], "unknown key `train.lrr`"),
        (&["--set", "train.lr=1e-3,-1"], "--set train.lr=-1: `train.lr` = -1"),
        (&["--set", "model.n_head=2,3"], "n_embd"),
        (&["--set", "train.lr=1,1"], "is there twice"),
        (&["--set", "train.lr=1", "--set", "train.lr=2"], "is there twice"),
        (&["--set", "train.lr=1,"], "is not KEY=VALUE"),
        (&["--set", "seed=1,2"], "--seeds N"),
        (&["--plot", "sweep.pdf"], ".svg or .png"),
        (&["--seeds", "0"], "number would be zero"),
        (&["--seeds", "99999999999"], "a sweep at most 10000"),
        (&["--set", "seed=9223372036854775807", "--seeds", "2"], "--seeds N"),
        (&["--plot", "nowhere/sweep.svg"], "there is no folder nowhere"),
        (&["--seeds", "9999999999999999999"], "a sweep at most 10000"),
    ] {
        let error = refused(flags);
        assert!(error.contains(message), "{flags:?}: {error}");
    }
    place.write("other/file.txt", "not a sweep");
    let error = failure(place.tinygpt().args(["sweep", "--config", "small.toml", "--out", "other"]), 1);
    assert!(error.contains("holds something, and no run of this sweep"), "{error}");
    let error = failure(place.tinygpt().args(["sweep", "--config", "nothing"]), 2);
    assert!(error.contains("there is no configuration nothing"), "{error}");
}
