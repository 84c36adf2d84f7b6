//! An interruption at any moment, resumed, leaves what an uninterrupted run leaves.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use crate::common::{Prepared, assert_same_weights, prepare};
use tinygpt_model::Precision;
use tinygpt_trainer::{
    engine::{AdamW, CpuEngine},
    train::{Event, Outcome, StopReason, Trainer},
};

/// Trains, or goes on, until the end or until `interrupt` says so; after an event, so that what comes next is cut short.
fn train(folder: &Path, resume: bool, interrupt: fn(&Event<'_>) -> bool) -> Outcome {
    let Prepared { config, data, gpt, run, state, weights } = prepare(&["train.eval_batches=4"], folder, resume);
    let mut engine = CpuEngine::new(&gpt, Precision::F32, AdamW::from(&config.train), 1, &weights).unwrap();
    let stop = AtomicBool::new(false);
    let trainer = Trainer { config: &config, data: &data, engine: &mut engine, run: &run, state };
    trainer.train(&stop, &mut |event| stop.store(interrupt(&event), Ordering::Relaxed)).unwrap()
}

fn same_after(interrupt: fn(&Event<'_>) -> bool) {
    let dir = tempfile::tempdir().unwrap();
    let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
    assert_eq!(train(&whole, false, |_| false).ending, StopReason::MaxSteps);
    assert_eq!(train(&parts, false, interrupt).ending, StopReason::Interrupted);
    let resumed = train(&parts, true, |_| false);
    assert_eq!(resumed.ending, StopReason::MaxSteps);
    assert_same_weights(&whole, &parts);
    let evaluated = |run: &Path| -> Vec<String> {
        let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let rows = text.lines().filter(|line| line.contains("\"eval\""));
        rows.map(|line| line.split("\"seconds\"").next().unwrap().to_owned()).collect()
    };
    assert_eq!(evaluated(&whole), evaluated(&parts));
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
