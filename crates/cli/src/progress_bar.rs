//! Progress of work of known length: nothing for two seconds, then a bar on a terminal and plain lines elsewhere. Always on
//! standard error.

use std::{
    borrow::Cow,
    io::{IsTerminal, stderr},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use crate::progress::human_time;

/// What is over before this says nothing.
const SHORT: Duration = Duration::from_secs(2);
/// Plain lines come no more often than this.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);

/// How far some work is.
pub struct WorkProgress {
    what: Cow<'static, str>,
    started: Instant,
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
}

impl WorkProgress {
    /// Work that starts now; `what` names it, as in `evaluating`.
    pub fn new(what: impl Into<Cow<'static, str>>) -> Self {
        Self { what: what.into(), started: Instant::now(), bar: None, last_line: None }
    }

    /// Shows that `done` of `all` are done.
    pub fn at(&mut self, done: usize, all: usize) {
        let elapsed = self.started.elapsed();
        if elapsed < SHORT {
            return;
        }
        let left = elapsed.as_secs_f64() * (all - done.min(all)) as f64 / done.max(1) as f64;
        if stderr().is_terminal() {
            let style = || ProgressStyle::with_template("{msg} {wide_bar:.blue} {percent}%");
            let bar = self.bar.get_or_insert_with(|| {
                let bar = ProgressBar::new(all as u64);
                style().map_or(bar.clone(), |style| bar.with_style(style))
            });
            bar.set_message(format!("{}, {} left", self.what, human_time(left)));
            bar.set_position(done as u64);
        } else if self.last_line.is_none_or(|line| line.elapsed() >= PLAIN_INTERVAL) {
            self.last_line = Some(Instant::now());
            notice!("{}: {}%, {} left", self.what, 100 * done / all.max(1), human_time(left));
        }
    }

    /// The function that a library calls with `(done, all)` of its work, which an error of it would end: it has none.
    pub fn callback<E>(&mut self) -> impl FnMut(usize, usize) -> Result<(), E> + '_ {
        |done, all| {
            self.at(done, all);
            Ok(())
        }
    }
}

impl Drop for WorkProgress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
