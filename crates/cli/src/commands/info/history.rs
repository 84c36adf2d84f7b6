//! When a run was trained, and what it has come to.

use std::fmt;

use serde::Serialize;
use tinygpt_trainer::{
    RunConfig, RunDir,
    run::{Best, LoopState, Origin, Part},
    train::StopReason,
};

use crate::{progress::human_time, units::utc};

/// The history of a run.
#[derive(Debug, Serialize)]
pub struct History {
    /// The model that it started from; none where it started from random weights.
    init_from: Option<Origin>,
    /// The parts of the run; none of a run of an earlier version.
    parts: Vec<Part>,
    step: u64,
    max_steps: u64,
    seconds: f64,
    best: Option<Best>,
    /// Which limit it has reached.
    ending: Option<StopReason>,
    corpus: String,
    corpus_sha256: String,
    seed: u64,
}

impl History {
    /// The history of a run; none where the run's state is gone or damaged, which is said on standard error: the model is what
    /// it is without it.
    pub fn of(run: &RunDir, config: &RunConfig) -> Option<Self> {
        if !run.last().exists() {
            return None;
        }
        let state = match run.last().read_state() {
            Ok(state) => state,
            Err(error) => {
                notice!("the run has no history: {error}");
                return None;
            }
        };
        let ending = state.ending(&config.train);
        let LoopState { parts, step, seconds, best, source_hash, init_from, .. } = state;
        Some(Self {
            init_from,
            parts,
            step,
            max_steps: config.train.max_steps,
            seconds,
            best,
            ending,
            corpus: config.data.corpus.clone(),
            corpus_sha256: source_hash,
            seed: config.seed,
        })
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Origin { path, weights_sha256 }) = &self.init_from {
            writeln!(f, "  from       {path}, weights of SHA-256 {weights_sha256}")?;
        }
        for part in &self.parts {
            let when = utc(part.began);
            match part.step {
                0 => writeln!(f, "  started    {when} UTC")?,
                _ => writeln!(f, "  resumed    {when} UTC, after step {}", part.step)?,
            }
            for change in &part.changes {
                writeln!(f, "             {change}")?;
            }
        }
        let ending = match self.ending {
            Some(StopReason::MaxSteps) => ", finished: train.max_steps",
            Some(StopReason::MaxMinutes) => ", finished: train.max_minutes",
            Some(StopReason::Patience) => ", finished: train.patience",
            Some(StopReason::Interrupted) | None => "",
        };
        writeln!(f, "  steps      {} of {}, {}{ending}", self.step, self.max_steps, human_time(self.seconds))?;
        if let Some(Best { step, val_loss }) = self.best {
            writeln!(f, "  best       validation loss {val_loss:.4} at step {step}")?;
        }
        writeln!(f, "  corpus     {}, SHA-256 {}", self.corpus, self.corpus_sha256)?;
        writeln!(f, "  seed       {}", self.seed)
    }
}
