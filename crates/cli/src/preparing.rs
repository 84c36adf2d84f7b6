//! Preparing a corpus: what is shown of it, and what Ctrl-C does meanwhile.

use std::{
    mem,
    ops::ControlFlow,
    process,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tinygpt_trainer::preparation::{Preparation, Stage, StageProgress};

use crate::{
    INTERRUPTED,
    output::Interrupted,
    progress_bar::{ElapsedTime, WorkProgress},
};

/// A stage is named when it begins if so much time has passed until then.
const SHORT: Duration = Duration::from_secs(2);
/// How often is looked whether Ctrl-C was pressed, and how long the preparation has then to end by itself: merging pairs for a
/// tokenizer does not look.
const LOOK: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(1);

struct Shown {
    started: Instant,
    stage: Option<(Stage, StageShown)>,
}

enum StageShown {
    Share(WorkProgress),
    /// Until it is dropped.
    Time {
        _shown: ElapsedTime,
    },
}

impl StageShown {
    fn new(stage: Stage) -> Self {
        match stage {
            Stage::Merging => Self::Time { _shown: ElapsedTime::new(stage.to_string()) },
            _ => Self::Share(WorkProgress::new(stage.to_string())),
        }
    }
}

/// Shows how far the preparation is, on standard error, where it takes more than moments.
pub fn preparation() -> Preparation {
    shown(|_| ControlFlow::Continue(()))
}

/// As [`preparation`], and it ends where `goes_on` breaks.
fn shown(goes_on: impl Fn(Stage) -> ControlFlow<()> + Send + Sync + 'static) -> Preparation {
    let shown = Mutex::new(Shown { started: Instant::now(), stage: None });
    Preparation::new(move |StageProgress { stage, done, all }| {
        let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.stage.as_ref().is_none_or(|(last, _)| *last != stage) {
            // First the bar of the last stage goes.
            shown.stage = None;
            if stage != Stage::Ready {
                if shown.started.elapsed() >= SHORT {
                    notice!("{stage}");
                }
                shown.stage = Some((stage, StageShown::new(stage)));
            }
        }
        if let Some((_, StageShown::Share(progress))) = &mut shown.stage
            && all > 0
        {
            progress.at(done as usize, all as usize);
        }
        goes_on(stage)
    })
}

/// What Ctrl-C does: it ends the program until the run's files are written, which it must not cut short.
struct Watch {
    stop: Arc<AtomicBool>,
    /// Locked while the program is ended: who is about to write waits then, for good.
    is_over: Mutex<bool>,
}

impl Watch {
    fn new(stop: &Arc<AtomicBool>) -> Self {
        Self { stop: Arc::clone(stop), is_over: Mutex::new(false) }
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn is_over(&self) -> MutexGuard<'_, bool> {
        self.is_over.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the preparation goes on with this stage. When it is ready the watch is over.
    fn goes_on(&self, stage: Stage) -> ControlFlow<()> {
        let mut is_over = self.is_over();
        if self.is_stopped() {
            return ControlFlow::Break(());
        }
        *is_over |= stage == Stage::Ready;
        ControlFlow::Continue(())
    }

    /// Ends the watch with what came of it: where Ctrl-C ended the preparation, that it did.
    fn end<T>(&self, result: anyhow::Result<T>, message: String) -> anyhow::Result<T> {
        let was_over = mem::replace(&mut *self.is_over(), true);
        match result {
            Err(_) if !was_over && self.is_stopped() => Err(Interrupted(message).into()),
            result => result,
        }
    }

    /// Ends the program with this error some time after Ctrl-C, unless the watch is over.
    fn run(&self, error: &str) {
        let mut since = None;
        while !*self.is_over() {
            thread::sleep(LOOK);
            if self.is_stopped() && since.get_or_insert_with(Instant::now).elapsed() >= PATIENCE {
                let is_over = self.is_over();
                if !*is_over {
                    // What the preparation writes has a temporary name.
                    notice!("error: {error}");
                    process::exit(INTERRUPTED.into());
                }
            }
        }
    }
}

/// Prepares and starts what a run needs. Once `stop` is set the preparation ends, and says so, soon: by itself, or with the
/// program. `left` says what is left then. What is written behind [`Stage::Ready`] is written to its end.
///
/// # Errors
/// [`Interrupted`], and those of `start`.
pub fn until_stopped<T>(
    stop: &Arc<AtomicBool>,
    left: &'static str,
    start: impl FnOnce(Preparation) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let message = format!("interrupted before the first update: {left}");
    let watch = Arc::new(Watch::new(stop));
    let (watching, error) = (Arc::clone(&watch), message.clone());
    thread::spawn(move || watching.run(&error));
    let following = Arc::clone(&watch);
    let result = start(shown(move |stage| following.goes_on(stage)));
    watch.end(result, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctrl_c_ends_the_preparation_until_the_run_is_written() {
        let stop = Arc::new(AtomicBool::new(false));
        let (early, late) = (Watch::new(&stop), Watch::new(&stop));
        for stage in [Stage::Reading, Stage::Tokens] {
            assert!(early.goes_on(stage).is_continue() && late.goes_on(stage).is_continue());
        }
        assert!(late.goes_on(Stage::Ready).is_continue());
        stop.store(true, Ordering::Relaxed);
        assert!(early.goes_on(Stage::Ready).is_break());
        assert!(!*early.is_over(), "nothing is written, so the program may end");
        assert!(*late.is_over());
        late.run("this ends the program of the tests, and they fail");
    }

    #[test]
    fn an_error_is_an_interruption_only_where_ctrl_c_ended_the_preparation() {
        let message = |is_stopped: bool, is_over: bool| {
            let watch = Watch::new(&Arc::new(AtomicBool::new(is_stopped)));
            *watch.is_over() = is_over;
            let result: anyhow::Result<()> = watch.end(Err(anyhow::anyhow!("full disk")), "interrupted".into());
            result.unwrap_err().to_string()
        };
        assert_eq!(message(true, false), "interrupted");
        assert_eq!(message(false, false), "full disk");
        assert_eq!(message(true, true), "full disk", "of a file of the run");
    }
}
