//! Starting, ending and resuming through the library alone.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use tinygpt_trainer::{
    GptConfig, Result, Run, RunConfig, RunDir, TrainError,
    config::{DataConfig, TrainConfig},
    run::{Notice, ResumeOptions, StartOptions},
    train::{Event, METRICS_FILE, Outcome},
};

fn small() -> RunConfig {
    RunConfig {
        data: DataConfig { stories_bytes: 8000, ..DataConfig::default() },
        model: GptConfig { n_layer: 1, n_head: 1, n_embd: 8, block_size: 16, ..GptConfig::default() },
        train: TrainConfig {
            batch_size: 2,
            max_steps: 9,
            warmup_steps: 1,
            eval_every: 3,
            eval_batches: 4,
            ..TrainConfig::default()
        },
        ..RunConfig::default()
    }
}

fn start(config: RunConfig, out: &Path) -> Result<Run> {
    let cache_dir = out.with_extension("cache");
    Run::start(config, StartOptions { out: Some(out.to_owned()), cache_dir, ..StartOptions::default() })
}

fn resume(run: &Path, set: &[&str]) -> Result<Run> {
    let overrides = set.iter().map(ToString::to_string).collect();
    Run::resume(run, ResumeOptions { overrides, ..ResumeOptions::default() })
}

fn train(run: Run) -> Result<Outcome> {
    run.train(&AtomicBool::new(false), &mut |_| Ok(()))
}

/// The bytes of all files but those that hold times.
fn timeless(run: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for folder in [run.to_owned(), run.join("last")] {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
            let name = path.strip_prefix(run).unwrap().to_owned();
            if ![METRICS_FILE, "last/state.json", "loss.svg"].iter().any(|timed| name == Path::new(timed)) {
                files.push((name, fs::read(path).unwrap()));
            }
        }
    }
    files.sort();
    files
}

/// The updates and evaluations in the metrics, in order.
fn steps(run: &Path) -> Vec<String> {
    let text = fs::read_to_string(run.join(METRICS_FILE)).unwrap();
    text.lines()
        .map(|line| line.split(",\"loss\"").next().unwrap().split(",\"val_loss\"").next().unwrap().into())
        .collect()
}

#[test]
fn a_callback_that_fails_ends_training_with_its_error_and_the_run_goes_on_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    train(start(small(), &whole).unwrap()).unwrap();
    let at_step = |event: &Event<'_>| matches!(event, Event::Step { metrics, .. } if metrics.step == 5);
    let at_eval = |event: &Event<'_>| matches!(event, Event::Eval { metrics, .. } if metrics.step == 6);
    let at_the_last_eval = |event: &Event<'_>| matches!(event, Event::Eval { metrics, .. } if metrics.step == 9);
    type Matches<'a> = &'a dyn Fn(&Event<'_>) -> bool;
    let cases: [(&str, u64, Matches<'_>); 3] =
        [("step", 5, &at_step), ("eval", 6, &at_eval), ("last", 9, &at_the_last_eval)];
    for (name, step, fails) in cases {
        let parts = dir.path().join(name);
        let run = start(small(), &parts).unwrap();
        let mut on_event = |event: Event<'_>| if fails(&event) { Err("no more".into()) } else { Ok(()) };
        let error = run.train(&AtomicBool::new(false), &mut on_event).unwrap_err();
        assert!(matches!(&error, TrainError::Callback(e) if e.to_string() == "no more"), "{error}");
        let run = resume(&parts, &[]).unwrap();
        assert_eq!((run.state().step, run.notices()), (step, &[][..]));
        train(run).unwrap();
        assert!(timeless(&parts) == timeless(&whole), "{name}");
        assert_eq!(steps(&parts), steps(&whole));
    }
}

#[test]
fn a_run_that_cannot_start_leaves_no_folder() {
    let dir = tempfile::tempdir().unwrap();
    let short = dir.path().join("short.txt");
    fs::write(&short, "too short").unwrap();
    let out = dir.path().join("run");
    let data = DataConfig { corpus: short.to_string_lossy().into_owned(), ..DataConfig::default() };
    let error = start(RunConfig { data, ..small() }, &out).err().unwrap();
    assert!(matches!(error, TrainError::SplitTooShort { split: "training", .. }), "{error}");
    // A configuration that was made by hand is checked as one from a file is.
    let model = GptConfig { n_head: 3, ..small().model };
    let error = start(RunConfig { model, ..small() }, &out).err().unwrap();
    assert!(matches!(error, TrainError::Config(_)), "{error}");
    assert!(!out.exists());
}

#[test]
fn what_the_user_of_a_resumed_run_should_know_is_told_and_what_makes_no_sense_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    train(start(small(), &out).unwrap()).unwrap();
    let error = resume(&out, &["train.max_steps=8"]).err().unwrap();
    assert!(matches!(error, TrainError::StepsAlreadyMade { max_steps: 8, step: 9 }), "{error}");
    assert_eq!(RunDir::open(&out).unwrap().read_config(&[]).unwrap().train.max_steps, 9, "it is as it was");

    fs::remove_file(out.join(METRICS_FILE)).unwrap();
    let run = resume(&out, &["train.max_steps=12"]).unwrap();
    let min_lr = small().train.min_lr;
    assert_eq!(
        run.notices(),
        [Notice::MetricsGone { run: out.clone(), step: 9 }, Notice::DecayEnded { decay_steps: 9, min_lr }]
    );
    assert_eq!(train(run).unwrap().state.step, 12);
}
