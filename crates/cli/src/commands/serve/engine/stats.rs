//! What an engine counts.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// What an engine is doing, and has done since it was started.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Stats {
    /// Requests that wait for a slot.
    pub queued: usize,
    /// Requests that have one.
    pub running: usize,
    /// The slots of the model.
    pub slots: usize,
    /// Tokens that were drawn.
    pub tokens: u64,
    /// Tokens of the prompts that were begun.
    pub prompt_tokens: u64,
    /// Steps, each of one token of every text that was in it.
    pub steps: u64,
    /// The texts of all steps.
    pub step_rows: u64,
    /// What the steps took, in seconds.
    pub step_seconds: f64,
    /// What prompts, and contexts that were computed anew, took, in seconds.
    pub prompt_seconds: f64,
    /// How often new weights took the place of others.
    pub reloads: u64,
}

/// The counters, which the threads of an engine share.
#[derive(Debug, Default)]
pub struct Counters {
    tokens: AtomicU64,
    prompt_tokens: AtomicU64,
    steps: AtomicU64,
    step_rows: AtomicU64,
    step_nanos: AtomicU64,
    prompt_nanos: AtomicU64,
    reloads: AtomicU64,
}

impl Counters {
    /// A request got a slot.
    pub fn began(&self, prompt_tokens: usize) {
        self.prompt_tokens.fetch_add(prompt_tokens as u64, Relaxed);
    }

    /// A token was drawn.
    pub fn drew(&self) {
        self.tokens.fetch_add(1, Relaxed);
    }

    /// Some time went into prompts.
    pub fn worked_on_prompts(&self, time: Duration) {
        self.prompt_nanos.fetch_add(time.as_nanos() as u64, Relaxed);
    }

    /// A step of some texts, with its draws.
    pub fn stepped(&self, rows: usize, time: Duration) {
        self.steps.fetch_add(1, Relaxed);
        self.step_rows.fetch_add(rows as u64, Relaxed);
        self.step_nanos.fetch_add(time.as_nanos() as u64, Relaxed);
    }

    /// New weights are served.
    pub fn reloaded(&self) {
        self.reloads.fetch_add(1, Relaxed);
    }

    /// The counts, beside what the queues say.
    pub fn stats(&self, (queued, running, slots): (usize, usize, usize)) -> Stats {
        let seconds = |nanos: &AtomicU64| nanos.load(Relaxed) as f64 * 1e-9;
        Stats {
            queued,
            running,
            slots,
            tokens: self.tokens.load(Relaxed),
            prompt_tokens: self.prompt_tokens.load(Relaxed),
            steps: self.steps.load(Relaxed),
            step_rows: self.step_rows.load(Relaxed),
            step_seconds: seconds(&self.step_nanos),
            prompt_seconds: seconds(&self.prompt_nanos),
            reloads: self.reloads.load(Relaxed),
        }
    }
}
