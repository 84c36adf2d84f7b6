//! The requests that wait for a slot, between the threads of the server and the one of the engine.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::{request::Refused, row::Job};

/// A bounded queue.
#[derive(Debug)]
pub struct Queue {
    /// The most jobs that wait while no slot is free.
    limit: usize,
    /// The slots of the engine.
    slots: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    jobs: VecDeque<Job>,
    /// The slots that nobody has.
    free: usize,
    closing: Option<Closing>,
}

/// No job is taken any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closing {
    /// What waits and what runs comes to its end.
    WhenDone,
    /// So it does until this moment, at which the rest is given up.
    At(Instant),
    /// The thread that computed them has panicked: nothing comes to an end any more.
    Failed,
}

impl Queue {
    /// An empty queue of an engine with this many slots.
    pub fn new(limit: usize, slots: usize) -> Self {
        let state = State { jobs: VecDeque::new(), free: slots, closing: None };
        Self { limit, slots, state: Mutex::new(state), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is whole between any two statements that can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts jobs behind those that wait: all of them, or none.
    pub fn submit(&self, jobs: Vec<Job>) -> Result<(), Refused> {
        let mut state = self.state();
        match state.closing {
            Some(Closing::Failed) => return Err(Refused::EngineFailed),
            Some(_) => return Err(Refused::ShuttingDown),
            None => {}
        }
        let room = self.limit + state.free;
        if state.jobs.len() + jobs.len() > room {
            state.jobs.retain(|job| !job.is_cancelled());
        }
        if state.jobs.len() + jobs.len() > room {
            return Err(Refused::QueueFull);
        }
        state.jobs.extend(jobs);
        self.changed.notify_one();
        Ok(())
    }

    /// Takes the next job, and a slot with it.
    pub fn take(&self) -> Option<Job> {
        let mut state = self.state();
        let job = if state.free > 0 { state.jobs.pop_front() } else { None }?;
        state.free -= 1;
        Some(job)
    }

    /// Gives a slot back.
    pub fn give_back(&self) {
        self.state().free += 1;
    }

    /// Takes all jobs out that are over, as `is_over` says.
    pub fn take_over(&self, is_over: impl Fn(&Job) -> bool) -> VecDeque<Job> {
        let mut state = self.state();
        if !state.jobs.iter().any(&is_over) {
            return VecDeque::new();
        }
        let (over, waiting) = std::mem::take(&mut state.jobs).into_iter().partition(is_over);
        state.jobs = waiting;
        over
    }

    /// Waits until there is a job or the queue closes.
    pub fn wait(&self) {
        let idle = |state: &mut State| state.jobs.is_empty() && state.closing.is_none();
        drop(self.changed.wait_while(self.state(), idle));
    }

    /// Takes no more jobs. A moment of closing that was set before stays if it comes first.
    pub fn close(&self, closing: Closing) {
        let mut state = self.state();
        state.closing = Some(match (state.closing, closing) {
            (Some(Closing::At(a)), Closing::At(b)) => Closing::At(a.min(b)),
            (Some(Closing::At(a)), Closing::WhenDone) => Closing::At(a),
            (Some(Closing::Failed), _) => Closing::Failed,
            (_, closing) => closing,
        });
        self.changed.notify_one();
    }

    /// Whether and how it closes.
    pub fn closing(&self) -> Option<Closing> {
        self.state().closing
    }

    /// The number of jobs that wait, and of slots in use: none where the thread that had them has panicked.
    pub fn counts(&self) -> (usize, usize) {
        let state = self.state();
        let has_failed = state.closing == Some(Closing::Failed);
        (state.jobs.len(), if has_failed { 0 } else { self.slots - state.free })
    }
}
