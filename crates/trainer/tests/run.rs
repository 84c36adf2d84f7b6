//! Starting, ending and resuming through the library alone.

use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use tinygpt_trainer::{
    GptConfig, Result, Run, RunConfig, RunDir, TrainError,
    config::{Change, DataConfig, TrainConfig},
    preparation::{Preparation, Stage},
    run::{IfExists, Notice, ResumeOptions, StartOptions},
    train::{Event, METRICS_FILE, Outcome, StopReason},
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
    let cache_dir = run.with_extension("cache");
    Run::resume(run, ResumeOptions { overrides, cache_dir, ..ResumeOptions::default() })
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
            if ![METRICS_FILE, "last/state.json", "loss.svg", "loss.png"].iter().any(|timed| name == Path::new(timed)) {
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
    type Fails<'a> = &'a dyn Fn(&Event<'_>) -> bool;
    let cases: [(&str, u64, Fails<'_>); 3] =
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
fn a_run_that_is_stopped_when_all_is_ready_has_written_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    train(start(small(), &out).unwrap()).unwrap();
    let names = || {
        let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let (files, entries) = (timeless(&out), names());
    let at_the_end = || {
        Preparation::new(|progress| match progress.stage {
            Stage::Ready => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        })
    };
    let cache_dir = out.with_extension("cache");
    let options = StartOptions {
        out: Some(out.clone()),
        if_exists: IfExists::Overwrite,
        cache_dir: cache_dir.clone(),
        preparation: at_the_end(),
        ..StartOptions::default()
    };
    let error = Run::start(small(), options).err().unwrap();
    assert!(matches!(error, TrainError::Interrupted), "{error}");
    let overrides = vec!["train.max_steps=12".into()];
    let options = ResumeOptions { overrides, cache_dir, preparation: at_the_end(), ..ResumeOptions::default() };
    let error = Run::resume(&out, options).err().unwrap();
    assert!(matches!(error, TrainError::Interrupted), "{error}");
    assert!(timeless(&out) == files && names() == entries, "{:?}", names());
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
    let run = resume(&out, &["train.max_steps=12", "train.decay_steps=9"]).unwrap();
    let min_lr = small().train.min_lr;
    let change = |key: &str, from: &str, to: &str| Change { key: key.into(), from: from.into(), to: to.into() };
    let changes = [change("train.max_steps", "9", "12"), change("train.decay_steps", "0", "9")];
    assert_eq!(
        run.notices(),
        [
            Notice::Changed(changes[0].clone()),
            Notice::Changed(changes[1].clone()),
            Notice::MetricsGone { run: out.clone(), step: 9 },
            Notice::DecayEnded { decay_end: 9, min_lr }
        ]
    );
    // The history has them before the first update.
    assert_eq!(RunDir::open(&out).unwrap().last().read_state().unwrap().parts[1].changes, changes);
    assert_eq!(train(run).unwrap().state.step, 12);
}

#[test]
fn the_final_evaluation_tells_how_far_it_is_and_is_made_once() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    // Stops when so many tokens are evaluated; gives what was told, and how it ended.
    let run_until = |run: Run, stop_at: u64| {
        let (stop, mut told) = (AtomicBool::new(false), Vec::new());
        let outcome = run.train(&stop, &mut |event| {
            if let Event::FinalEvaluation { done, tokens } = event {
                told.push((done, tokens));
                stop.fetch_or(done >= stop_at, std::sync::atomic::Ordering::Relaxed);
            }
            Ok(())
        });
        (told, outcome.unwrap())
    };
    let run = start(small(), &out).unwrap();
    let all = run.data().val.len() as u64 - 1;
    let (told, outcome) = run_until(run, u64::MAX);
    assert_eq!((told.first(), told.last()), (Some(&(0, all)), Some(&(all, all))));
    let report = outcome.report;
    let (told, again) = run_until(resume(&out, &[]).unwrap(), u64::MAX);
    assert_eq!((told, again.report, report.unwrap().tokens), (Vec::new(), report, all));

    let mut config = small();
    config.data.stories_bytes = 80_000;
    let longer = dir.path().join("longer");
    let run = start(config, &longer).unwrap();
    let all_of_longer = run.data().val.len() as u64 - 1;
    let (told, outcome) = run_until(run, 2048);
    assert_eq!(
        (told.as_slice(), outcome.ending),
        (&[(0, all_of_longer), (2048, all_of_longer)][..], StopReason::Interrupted)
    );
    let (told, outcome) = run_until(resume(&longer, &[]).unwrap(), u64::MAX);
    assert!(told.windows(2).all(|pair| pair[0].0 <= pair[1].0), "{told:?}");
    assert_eq!(told.last(), Some(&(all_of_longer, all_of_longer)));
    assert_eq!(outcome.report.unwrap().tokens, all_of_longer);
}

/// A run on a text whose held-out part contradicts it.
fn contradicted(folder: &Path, lr: f64) -> RunConfig {
    let [corpus, val] = [("text.txt", "abcd"), ("val.txt", "dcba")].map(|(name, text)| {
        let path = folder.join(name);
        fs::write(&path, text.repeat(100)).unwrap();
        path.to_string_lossy().into_owned()
    });
    let train = TrainConfig { lr, min_lr: 0.0, max_steps: 150, eval_every: 5, clip: 0.0, ..small().train };
    RunConfig { data: DataConfig { corpus, val, ..DataConfig::default() }, train, ..small() }
}

#[test]
fn a_text_that_is_learned_by_heart_has_not_diverged_and_one_that_is_lost_has() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("by_heart");
    let outcome = train(start(contradicted(dir.path(), 0.02), &out).unwrap()).unwrap();
    assert_eq!((outcome.ending, outcome.state.step), (StopReason::MaxSteps, 150));
    let rows = tinygpt_trainer::metrics::read(&out.join(METRICS_FILE)).unwrap();
    let worst = rows.iter().filter_map(|row| row.val_loss).fold(0.0, f64::max);
    assert!(worst > 2.0 * rows[0].val_loss.unwrap().max(4f64.ln()), "nothing was contradicted: {worst}");

    let error = train(start(contradicted(dir.path(), 30.0), &dir.path().join("lost")).unwrap()).unwrap_err();
    assert!(matches!(error, TrainError::Diverged { .. }), "{error}");
}

/// A run of other weights that a run can stay near.
fn reference(folder: &Path) -> PathBuf {
    let path = folder.join("reference");
    train(start(RunConfig { train: TrainConfig { lr: 0.02, ..small().train }, ..small() }, &path).unwrap()).unwrap();
    path
}

fn near(reference: &Path, kl_weight: f64) -> RunConfig {
    let train = TrainConfig { reference: reference.to_str().unwrap().into(), kl_weight, ..small().train };
    RunConfig { train, ..small() }
}

#[test]
fn a_run_near_another_ends_with_the_same_bytes_when_resumed_and_other_ones_than_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let [whole, parts, weightless, alone] = ["whole", "parts", "weightless", "alone"].map(|name| dir.path().join(name));
    let reference = reference(dir.path());
    train(start(near(&reference, 2.0), &whole).unwrap()).unwrap();
    let stop = AtomicBool::new(false);
    let run = start(near(&reference, 2.0), &parts).unwrap();
    run.train(&stop, &mut |event| {
        let at_5 = matches!(event, Event::Step { metrics, .. } if metrics.step == 5);
        stop.fetch_or(at_5, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    })
    .unwrap();
    train(resume(&parts, &[]).unwrap()).unwrap();
    assert!(timeless(&parts) == timeless(&whole));
    let weights = |run: &Path| fs::read(run.join("model.safetensors")).unwrap();
    train(start(near(&reference, 0.0), &weightless).unwrap()).unwrap();
    train(start(small(), &alone).unwrap()).unwrap();
    assert!(weights(&weightless) == weights(&alone) && weights(&whole) != weights(&alone));
}

#[test]
fn a_reference_that_does_not_match_or_has_changed_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let reference = reference(dir.path());
    let refused = |config: RunConfig| {
        let error = start(config, &run).err().unwrap().to_string();
        assert!(!run.exists());
        error
    };
    assert!(refused(near(&dir.path().join("none"), 1.0)).contains("there is no such folder"));
    let mut longer = near(&reference, 1.0);
    longer.model.block_size = 32;
    assert!(refused(longer).ends_with("its context is 16 tokens; lower model.block_size = 32 to that"));
    let mut other = near(&reference, 1.0);
    let text = dir.path().join("other.txt");
    fs::write(&text, "abc def. ".repeat(200)).unwrap();
    other.data.corpus = text.to_str().unwrap().into();
    let message = refused(other);
    assert!(message.contains("its vocabulary is another (") && message.contains("and 8 of this text)"), "{message}");

    train(start(near(&reference, 1.0), &run).unwrap()).unwrap();
    fs::copy(run.join("model.safetensors"), reference.join("model.safetensors")).unwrap();
    let error = resume(&run, &["train.max_steps=12"]).err().unwrap().to_string();
    assert!(error.contains("its weights have changed since this run was started"), "{error}");
}

#[test]
fn the_update_before_an_evaluation_is_measured_by_the_weights_before_and_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = small();
    config.train.eval_every = 1;
    let out = dir.path().join("run");
    let run = start(config, &out).unwrap();
    let mut weights: Vec<Vec<f64>> = Vec::new();
    let mut measured = Vec::new();
    let mut on_event = |event: Event<'_>| {
        if let Event::Eval { metrics, .. } = event {
            let last = RunDir::open(&out)?.last();
            let state = last.read_engine(&RunDir::open(&out)?.model().read_config()?, &last.read_state()?, None)?;
            weights.push(state.params.concat().into_iter().map(f64::from).collect());
            measured.push(metrics.update_ratio);
        }
        Ok(())
    };
    run.train(&AtomicBool::new(false), &mut on_event).unwrap();
    assert_eq!((measured.len(), measured[0]), (10, None), "no update came before the first evaluation");
    let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
    for (step, pair) in weights.windows(2).enumerate() {
        let update: Vec<f64> = pair[1].iter().zip(&pair[0]).map(|(after, before)| after - before).collect();
        let (ratio, expected) = (measured[step + 1].unwrap(), norm(&update) / norm(&pair[0]));
        assert!((ratio - expected).abs() < 1e-12 && ratio > 0.0, "step {}: {ratio}, not {expected}", step + 1);
    }
}
