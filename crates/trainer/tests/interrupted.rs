//! An interruption at any moment, resumed, leaves what an uninterrupted run leaves.
#![allow(clippy::unwrap_used, reason = "test code")]

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use tinygpt_model::{Precision, init_params};
use tinygpt_trainer::{
    Dataset, RunConfig, RunDir,
    config::load,
    engine::{AdamW, CpuEngine, EngineState},
    run::{IfExists, LoopState},
    train::{Ending, Event, Outcome, Trainer},
};

const CONFIG: &str = "
[data]
stories_bytes = 8000
[model]
n_layer = 1
n_head = 1
n_embd = 8
block_size = 16
[train]
batch_size = 2
max_steps = 9
warmup_steps = 1
eval_every = 3
eval_batches = 4
";

/// Trains, or goes on, until the end or until `interrupt` says so; after an event, so that what comes next is cut short.
fn train(folder: &Path, resume: bool, interrupt: fn(&Event<'_>) -> bool) -> Outcome {
    let config: RunConfig = load(CONFIG, &[], false).unwrap();
    let data = Dataset::load(&config.data, 1, None, folder).unwrap();
    let gpt = config.gpt(data.tokenizer.vocab_size());
    let (run, state) = if resume {
        let run = RunDir::open_for_writing(folder).unwrap();
        let state = run.last().read_state().unwrap();
        (run, state)
    } else {
        let run = RunDir::create(folder, IfExists::Refuse).unwrap();
        run.write_config(&config).unwrap();
        (run, LoopState::fresh(data.source_hash.clone()))
    };
    let weights = match resume {
        true => run.last().read_engine(&gpt, &state).unwrap(),
        false => EngineState::fresh(init_params(&gpt, 1)),
    };
    let mut engine = CpuEngine::new(&gpt, Precision::F32, AdamW::from(&config.train), 1, &weights).unwrap();
    let stop = AtomicBool::new(false);
    let trainer = Trainer { config: &config, data: &data, engine: &mut engine, run: &run, state };
    trainer.train(&stop, &mut |event| stop.store(interrupt(&event), Ordering::Relaxed)).unwrap()
}

fn same_after(interrupt: fn(&Event<'_>) -> bool) {
    let dir = tempfile::tempdir().unwrap();
    let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
    assert_eq!(train(&whole, false, |_| false).ending, Ending::MaxSteps);
    assert_eq!(train(&parts, false, interrupt).ending, Ending::Interrupted);
    let resumed = train(&parts, true, |_| false);
    assert_eq!(resumed.ending, Ending::MaxSteps);
    for file in ["model.safetensors", "last/weights-9.safetensors", "last/optimizer-9.safetensors"] {
        assert!(std::fs::read(whole.join(file)).unwrap() == std::fs::read(parts.join(file)).unwrap(), "{file} differs");
    }
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
