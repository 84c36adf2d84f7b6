//! An interruption at any moment, resumed, leaves what an uninterrupted run leaves.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use crate::common::{Prepared, assert_same_weights, prepare};
use tinygpt_model::cpu::CpuPrecision;
use tinygpt_trainer::{
    Result, RunDir,
    engine::{AdamW, CpuEngine},
    train::{Event, Outcome, StopReason, Trainer},
};

const ONE_ESTIMATE: &[&str] = &["train.eval_batches=4"];
/// At a rate of almost zero later evaluations are no better than the first, and patience counts them.
const NO_BETTER: &[&str] = &["train.eval_batches=4", "train.lr=1e-30", "train.min_lr=0"];

/// Trains, or goes on, until the end or until `interrupt` says so; after an event, so that what comes next is cut short.
fn train(folder: &Path, resume: bool, interrupt: fn(&Event<'_>) -> bool) -> Outcome {
    let Prepared { config, data, gpt, run, state, weights } = prepare(ONE_ESTIMATE, folder, resume);
    let mut engine = CpuEngine::new(&gpt, CpuPrecision::F32, AdamW::from(&config.train), 1, &weights).unwrap();
    let stop = AtomicBool::new(false);
    let trainer = Trainer { config: &config, data: &data, engine: &mut engine, run: &run, state };
    let mut on_event = |event: Event<'_>| {
        stop.store(interrupt(&event), Ordering::Relaxed);
        Ok(())
    };
    trainer.train(&stop, &mut on_event).unwrap()
}

fn same_after(interrupt: fn(&Event<'_>) -> bool) {
    let dir = tempfile::tempdir().unwrap();
    let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
    assert_eq!(train(&whole, false, |_| false).ending, StopReason::MaxSteps);
    assert_eq!(train(&parts, false, interrupt).ending, StopReason::Interrupted);
    let resumed = train(&parts, true, |_| false);
    assert_eq!(resumed.ending, StopReason::MaxSteps);
    assert_same_weights(&whole, &parts);
    assert_eq!(evaluations(&whole), evaluations(&parts));
}

/// The lines of the evaluations, without their times.
fn evaluations(run: &Path) -> Vec<String> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let rows = text.lines().filter(|line| line.contains("\"eval\""));
    rows.map(|line| line.split("\"seconds\"").next().unwrap().to_owned()).collect()
}

#[test]
fn an_evaluation_that_was_cut_short_is_made_up_on_resume() {
    same_after(|event| matches!(event, Event::Step { metrics, .. } if metrics.step == 6));
}

#[test]
fn the_last_evaluation_that_was_cut_short_is_made_up_on_resume() {
    same_after(|event| matches!(event, Event::Step { metrics, .. } if metrics.step == 9));
}

#[test]
fn a_report_that_was_cut_short_leaves_the_last_weights_as_they_are() {
    same_after(|event| matches!(event, Event::Eval { metrics, .. } if metrics.step == 9));
}

/// Where the evaluation of step 6 is broken off.
#[derive(Debug, Clone, Copy)]
enum Break {
    /// Ctrl-C before its line is written.
    Interruption,
    /// A crash before this file of the run is renamed into place.
    Before(&'static str),
}

/// In the order in which they are written: the line of the metrics is there already when the first one is.
const BREAKS: [Break; 5] = [
    Break::Interruption,
    Break::Before("last/weights-6.safetensors"),
    Break::Before("last/state.json"),
    Break::Before("model.safetensors"),
    Break::Before("loss.svg"),
];

/// A folder that lies where a file is to be renamed to, so that this fails; the file comes back at the end.
struct Obstacle {
    path: PathBuf,
    content: Option<Vec<u8>>,
}

impl Obstacle {
    fn new(path: PathBuf) -> Self {
        let content = fs::read(&path).ok();
        if content.is_some() {
            fs::remove_file(&path).unwrap();
        }
        fs::create_dir(&path).unwrap();
        Self { path, content }
    }
}

impl Drop for Obstacle {
    fn drop(&mut self) {
        fs::remove_dir(&self.path).unwrap();
        if let Some(content) = &self.content {
            fs::write(&self.path, content).unwrap();
        }
    }
}

/// Trains, or goes on, until the end or until the evaluation of step 6 is broken off.
fn train_until(settings: &[&str], folder: &Path, resume: bool, at: Option<Break>) -> Result<Outcome> {
    let Prepared { config, data, gpt, run, state, weights } = prepare(settings, folder, resume);
    let mut engine = CpuEngine::new(&gpt, CpuPrecision::F32, AdamW::from(&config.train), 1, &weights).unwrap();
    let stop = AtomicBool::new(false);
    let mut obstacle = None;
    let mut break_off = || match at {
        None => {}
        Some(Break::Interruption) => stop.store(true, Ordering::Relaxed),
        Some(Break::Before(file)) => obstacle = Some(Obstacle::new(folder.join(file))),
    };
    if state.step == 6 {
        break_off();
    }
    let trainer = Trainer { config: &config, data: &data, engine: &mut engine, run: &run, state };
    let outcome = trainer.train(&stop, &mut |event| {
        if matches!(event, Event::Step { metrics, .. } if metrics.step == 6) {
            break_off();
        }
        Ok(())
    });
    drop(obstacle);
    outcome
}

/// Everything that a finished run leaves but its times: state, lines of evaluations, plot.
fn left(folder: &Path) -> (String, Vec<String>, String) {
    let mut state = RunDir::open(folder).unwrap().last().read_state().unwrap();
    (state.seconds, state.parts) = (0.0, Vec::new());
    (format!("{state:?}"), evaluations(folder), fs::read_to_string(folder.join("loss.svg")).unwrap())
}

#[test]
fn an_evaluation_that_was_broken_off_twice_anywhere_is_neither_lost_nor_counted_twice() {
    for settings in [ONE_ESTIMATE, NO_BETTER] {
        let dir = tempfile::tempdir().unwrap();
        let whole = dir.path().join("whole");
        train_until(settings, &whole, false, None).unwrap();
        let expected = left(&whole);
        assert!(expected.0.contains("last_evaluation: Some(9)") && expected.1.len() == 4, "{expected:?}");
        for (n, first) in BREAKS.into_iter().enumerate() {
            for (m, second) in BREAKS.into_iter().enumerate() {
                let parts = dir.path().join(format!("parts-{n}-{m}"));
                for (resume, at) in [(false, first), (true, second)] {
                    if let Ok(outcome) = train_until(settings, &parts, resume, Some(at)) {
                        assert!(matches!(at, Break::Interruption) || resume, "{at:?} did not break off: {outcome:?}");
                    }
                }
                train_until(settings, &parts, true, None).unwrap();
                assert_eq!(left(&parts), expected, "{first:?}, then {second:?}");
                assert_same_weights(&whole, &parts);
            }
        }
    }
}

#[test]
fn a_state_of_an_earlier_version_does_not_count_the_line_of_an_evaluation_that_it_has_not_seen() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
    train_until(NO_BETTER, &whole, false, None).unwrap();
    // Interrupted in the evaluation, which is made up for on resuming; then killed between its line and its save.
    train_until(NO_BETTER, &parts, false, Some(Break::Interruption)).unwrap();
    train_until(NO_BETTER, &parts, true, Some(Break::Before("last/state.json"))).unwrap_err();
    assert_eq!(evaluations(&parts).len(), 3);
    let path = parts.join("last/state.json");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("\"last_evaluation\": 3"), "{text}");
    fs::write(&path, text.replace("  \"last_evaluation\": 3,\n", "")).unwrap();
    train_until(NO_BETTER, &parts, true, None).unwrap();
    assert_eq!(left(&parts), left(&whole));
}
