//! Preparing a corpus: what is shown of it, and what Ctrl-C does meanwhile.

use std::{
    ops::ControlFlow,
    process,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tinygpt_trainer::preparation::{Preparation, Stage, StageProgress};

use crate::{INTERRUPTED, output::Interrupted, progress_bar::WorkProgress};

/// A stage is named when it begins if so much time has passed until then.
const SHORT: Duration = Duration::from_secs(2);
/// How often is looked whether Ctrl-C was pressed, and how long the preparation has then to end by itself: merging pairs for a
/// tokenizer does not look.
const LOOK: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(1);

struct Shown {
    started: Instant,
    stage: Option<(Stage, WorkProgress)>,
}

/// Shows how far the preparation is, on standard error, where it takes more than moments; and ends it once `stop` is set.
pub fn preparation(stop: Option<Arc<AtomicBool>>) -> Preparation {
    let shown = Mutex::new(Shown { started: Instant::now(), stage: None });
    Preparation::new(move |StageProgress { stage, done, all }| {
        let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.stage.as_ref().is_none_or(|(last, _)| *last != stage) {
            // First the bar of the last stage goes.
            shown.stage = None;
            if shown.started.elapsed() >= SHORT {
                notice!("{stage}");
            }
            shown.stage = Some((stage, WorkProgress::new(stage.to_string())));
        }
        if let Some((_, progress)) = &mut shown.stage
            && all > 0
        {
            progress.at(done as usize, all as usize);
        }
        match stop.as_ref().is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    })
}

/// Prepares what a run needs. Once `stop` is set it ends, and says so, soon: by itself, or with the program. `left` says what is
/// left then.
///
/// # Errors
/// [`Interrupted`], and those of `prepare`.
pub fn until_stopped<T>(
    stop: &Arc<AtomicBool>,
    left: &'static str,
    prepare: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let message = format!("interrupted before the first update: {left}");
    let (is_over, stopped) = (Arc::new(AtomicBool::new(false)), Arc::clone(stop));
    let (over, told) = (Arc::clone(&is_over), message.clone());
    thread::spawn(move || {
        let mut since = None;
        while !over.load(Ordering::Relaxed) {
            thread::sleep(LOOK);
            if stopped.load(Ordering::Relaxed) && since.get_or_insert_with(Instant::now).elapsed() >= PATIENCE {
                // What is written meanwhile has a temporary name.
                if !over.load(Ordering::Relaxed) {
                    notice!("error: {told}");
                    process::exit(INTERRUPTED.into());
                }
            }
        }
    });
    let result = prepare();
    is_over.store(true, Ordering::Relaxed);
    match result {
        Err(_) if stop.load(Ordering::Relaxed) => Err(Interrupted(message).into()),
        result => result,
    }
}
