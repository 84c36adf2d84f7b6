//! What the tests of the trainer share: runs of a tiny model.
#![allow(clippy::unwrap_used, reason = "test code")]

use std::path::Path;

use tinygpt_model::{GptConfig, init_params};
use tinygpt_trainer::{
    Dataset, RunConfig, RunDir,
    config::load,
    engine::EngineState,
    run::{IfExists, LoopState},
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
";

/// What a trainer needs beside an engine, and the engine's state.
pub struct Prepared {
    pub config: RunConfig,
    pub data: Dataset,
    pub gpt: GptConfig,
    pub run: RunDir,
    pub state: LoopState,
    pub weights: EngineState,
}

/// A run of nine steps with these settings: a new one, or one that goes on.
pub fn prepare(settings: &[&str], folder: &Path, resume: bool) -> Prepared {
    let settings: Vec<String> = settings.iter().map(ToString::to_string).collect();
    let config = load(CONFIG, &settings, false).unwrap();
    let cache = tempfile::tempdir().unwrap();
    let data = Dataset::load(&config.data, 1, None, cache.path()).unwrap();
    let gpt = config.gpt(data.tokenizer.vocab_size());
    let (run, state, weights) = if resume {
        let run = RunDir::open_for_writing(folder).unwrap();
        let state = run.last().read_state().unwrap();
        let weights = run.last().read_engine(&gpt, &state, None).unwrap();
        (run, state, weights)
    } else {
        let run = RunDir::create(folder, IfExists::Refuse).unwrap();
        run.write_config(&config).unwrap();
        (run, LoopState::fresh(data.source_hash.clone()), EngineState::fresh(init_params(&gpt, 1)))
    };
    Prepared { config, data, gpt, run, state, weights }
}

/// Fails unless two runs of nine steps have left the same bytes.
pub fn assert_same_weights(one: &Path, other: &Path) {
    for file in ["model.safetensors", "last/weights-9.safetensors", "last/optimizer-9.safetensors"] {
        assert!(std::fs::read(one.join(file)).unwrap() == std::fs::read(other.join(file)).unwrap(), "{file} differs");
    }
}
