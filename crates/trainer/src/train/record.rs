//! What the training loop writes down as it goes: the figures of updates, read from the device as late as may be, and the time.

use std::time::Instant;

use crate::{
    Result, TrainError,
    engine::DeferredScalar,
    json_lines::JsonLines,
    metrics::{Metrics, MetricsFile, RowKind},
    samples::Sample,
};

/// An update whose figures may still be on the device.
pub(super) struct Update {
    pub(super) step: u64,
    /// The loss of each of its batches, in nats a token.
    pub(super) losses: Vec<DeferredScalar>,
    pub(super) lr: f64,
    pub(super) grad_norm: DeferredScalar,
}

/// What is known of a run beside its weights.
pub(super) struct Record {
    pub(super) metrics: MetricsFile,
    /// None where the run takes none.
    pub(super) samples: Option<JsonLines<Sample>>,
    pub(super) clock: Clock,
    /// The updates since the last look at the device.
    pub(super) unread: Vec<Update>,
}

impl Record {
    /// The figures of the last update. Where they are on a device that would have to be waited for, only if it is logged:
    /// in between, the device works on while the host prepares what comes next.
    pub(super) fn row(&mut self, step: u64, logged: bool, tokens_per_step: usize) -> Result<Metrics> {
        let mut row = Metrics::new(RowKind::Train, step);
        row.lr = self.unread.last().map(|update| update.lr);
        let known = |update: &Update| update.losses.iter().chain([&update.grad_norm]).all(DeferredScalar::is_known);
        if logged || self.unread.iter().all(known) {
            let updates = self.unread.len();
            (row.loss, row.grad_norm) = self.read()?.unzip();
            row.tokens_per_s = Some(self.clock.tokens_per_s(updates * tokens_per_step));
        }
        row.seconds = self.clock.seconds();
        Ok(row)
    }

    /// Waits for the device, at most once, and checks all that has not been read yet. Gives loss and norm of the last
    /// update.
    pub(super) fn read(&mut self) -> Result<Option<(f64, f64)>> {
        let unread = std::mem::take(&mut self.unread);
        let figures = DeferredScalar::read_all(unread.iter().flat_map(|u| u.losses.iter().chain([&u.grad_norm])))?;
        let mut figures = figures.into_iter();
        let mut last = None;
        for Update { step, losses, .. } in unread {
            let batches = losses.len();
            let loss = figures.by_ref().take(batches).fold(0.0, |sum, loss| sum + loss / batches as f64);
            let grad_norm = figures.next().unwrap_or(f64::NAN);
            for (what, value) in [("loss", loss), ("gradient norm", grad_norm)] {
                if !value.is_finite() {
                    return Err(TrainError::NonFiniteLoss { step, what, value });
                }
            }
            last = Some((loss, grad_norm));
        }
        Ok(last)
    }
}

/// Seconds of a run over all its parts, and the rate since the last look.
pub(super) struct Clock {
    earlier: f64,
    start: Instant,
    last: Instant,
}

impl Clock {
    pub(super) fn new(earlier: f64) -> Self {
        let now = Instant::now();
        Self { earlier, start: now, last: now }
    }

    pub(super) fn seconds(&self) -> f64 {
        self.earlier + self.start.elapsed().as_secs_f64()
    }

    /// Tokens a second since the last look or restart.
    pub(super) fn tokens_per_s(&mut self, tokens: usize) -> f64 {
        let elapsed = self.last.elapsed().as_secs_f64();
        self.restart();
        tokens as f64 / elapsed.max(1e-9)
    }

    pub(super) fn restart(&mut self) {
        self.last = Instant::now();
    }
}
