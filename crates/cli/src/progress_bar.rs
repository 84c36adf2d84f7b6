//! Progress of work: nothing for two seconds, then a bar on a terminal and plain lines elsewhere. Always on standard error.

use std::{
    borrow::Cow,
    io::{IsTerminal, stderr},
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use crate::progress::human_time;

/// What is over before this says nothing.
const SHORT: Duration = Duration::from_secs(2);
/// Plain lines come no more often than this.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);
/// How often a spinner turns.
const TURN: Duration = Duration::from_millis(100);

/// How far some work of known length is.
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

/// How long some work has taken that does not tell how far it is. A thread shows it until this is dropped.
pub struct ElapsedTime(Option<(Sender<()>, JoinHandle<()>)>);

impl ElapsedTime {
    /// Work that starts now; `what` names it, as in `merging pairs`.
    pub fn new(what: impl Into<Cow<'static, str>>) -> Self {
        let (stop, stopped) = mpsc::channel();
        let what = what.into();
        Self(Some((stop, thread::spawn(move || show_elapsed_time(&what, &stopped)))))
    }
}

impl Drop for ElapsedTime {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.0.take() {
            drop(stop);
            // It has nothing to give, and its panic would have been told.
            let _ = thread.join();
        }
    }
}

/// Shows how much time has passed until the sender is dropped.
fn show_elapsed_time(what: &str, stopped: &Receiver<()>) {
    let started = Instant::now();
    let spinner = stderr().is_terminal().then(ProgressBar::new_spinner);
    let (interval, mut wait) = (if spinner.is_some() { TURN } else { PLAIN_INTERVAL }, SHORT);
    while stopped.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
        let told = format!("{what}: {} so far", human_time(started.elapsed().as_secs_f64()));
        match &spinner {
            Some(spinner) => {
                spinner.set_message(told);
                spinner.tick();
            }
            None => notice!("{told}"),
        }
        wait = interval;
    }
    if let Some(spinner) = spinner {
        spinner.finish_and_clear();
    }
}
