//! A spin pool: threads of a rayon pool that poll for the tasks of short parallel loops instead of sleeping between them.
//!
//! A matrix product of a decoder takes a few microseconds. Waking a sleeping thread may take a hundred, and even between
//! two awake threads a task of a general pool costs about one; here it costs a few transfers of a cache line.
//!
//! The thread inside [`SpinPool::run`] is the caller, the other threads of the rayon pool are its workers. The caller
//! publishes one job at a time, a closure with up to [`MAX_TASKS`] tasks, as a bit mask of unclaimed tasks. Caller and
//! workers claim tasks by clearing bits; the caller returns when the count of completed tasks reaches that of the job.
//! Workers that find no task for a while leave, and the next run calls them again.
//!
//! Why `unsafe` here: the workers get a closure that lives on the caller's stack. That no worker touches it after
//! [`Workers::parallel_for`] has returned is checked on every interleaving by a loom model (`spin_pool/loom_tests.rs`).

#![allow(unsafe_code)]

#[cfg(test)]
#[cfg(loom)]
mod loom_tests;
mod sys;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;
use std::sync::PoisonError;
use std::time::Duration;

use sys::{
    Arc, Instant, Mutex, POLLS_PER_YIELD,
    atomic::{
        AtomicBool, AtomicPtr, AtomicU64, AtomicUsize,
        Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst},
    },
};

/// A worker leaves after it has found no task for this long.
const LINGER: Duration = Duration::from_millis(1);
/// A worker that has stayed for this long leaves as soon as no run is in progress: its thread may have been waiting for
/// something else when it was called, and goes on with that when it leaves.
const LONGEST_STAY: Duration = Duration::from_millis(20);
/// The most tasks of one job: each has a bit in a word.
pub(crate) const MAX_TASKS: usize = u64::BITS as usize;

sys::thread_locals! {
    /// Whether this thread is inside [`SpinPool::run`]: it has tasks of its own to wait for, and must not become a worker.
    static IN_RUN: Cell<bool> = Cell::new(false);
    /// The pools (by address) in whose [`State::worker_loop`] this thread is, and whether it has called workers from
    /// there: a worker may happen to execute the very run that it is to help with.
    static WORKER_LOOPS: RefCell<Vec<(usize, bool)>> = RefCell::new(Vec::new());
}

/// A spin pool over the threads of the rayon pool in which it runs.
#[derive(Debug, Default)]
pub(crate) struct SpinPool(Arc<State>);

/// The workers of a run. They are borrowed exclusively, so one job is published at a time.
#[derive(Debug)]
pub(crate) struct Workers<'a> {
    /// None where tasks run on the calling thread alone.
    pool: Option<&'a State>,
}

impl SpinPool {
    /// Runs `f` in the rayon pool, with workers for its parallel loops. Workers that are still polling since an earlier run
    /// are used again; otherwise they are called.
    pub(crate) fn run<T: Send>(&mut self, f: impl FnOnce(&mut Workers<'_>) -> T + Send) -> T {
        if !sys::in_rayon_pool() {
            return rayon::scope(|_| self.run(f));
        }
        if sys::num_threads() == 1 || IN_RUN.with(Cell::get) {
            return f(&mut Workers::none());
        }
        let state = &self.0;
        IN_RUN.with(|in_run| in_run.set(true));
        state.running.store(true, SeqCst);
        let _end = EndOfRun(state);
        let run = state.runs.fetch_add(1, SeqCst) + 1;
        let from_worker = state.first_run_inside_worker_loop();
        if !state.called.swap(true, SeqCst) || from_worker {
            let state = Arc::clone(state);
            sys::spawn_on_each_thread(move || state.worker_loop(run));
        }
        f(&mut Workers { pool: Some(state) })
    }
}

impl Workers<'_> {
    /// Returns a handle without workers, whose tasks run on the calling thread.
    pub(crate) fn none() -> Self {
        Self { pool: None }
    }

    /// Returns the most threads that may share a loop, the caller included.
    pub(crate) fn num_threads(&self) -> usize {
        self.pool.map_or(1, |_| sys::num_threads())
    }

    /// Calls `task` with each of `0..count`, at most [`MAX_TASKS`], on the caller and the workers that are there, and
    /// returns when all calls have returned. Each thread begins with the same part of the tasks every time, so that what
    /// it reads stays in its caches.
    ///
    /// # Panics
    /// With the payload of the first task that panicked, once the others have completed.
    pub(crate) fn parallel_for(&mut self, count: usize, task: impl Fn(usize) + Sync) {
        match self.pool {
            Some(pool) if count > 1 => pool.parallel_for(count, &task),
            _ => (0..count).for_each(task),
        }
    }
}

/// The closure of a job, called with the number of a task.
type Task<'a> = &'a (dyn Fn(usize) + Sync);

/// What caller and workers share.
#[derive(Debug, Default)]
struct State {
    job: Job,
    completed: Completed,
    /// The payload of the first task of the job that panicked.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Whether a run is in progress.
    running: AtomicBool,
    /// The number of runs so far.
    runs: AtomicUsize,
    /// Whether workers have been called since one last left.
    called: AtomicBool,
    /// The number of threads in [`State::worker_loop`].
    workers: AtomicUsize,
}

/// The published job. Every worker polls it; it is aligned to 128 bytes against false sharing, since some processors fetch
/// cache lines in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Job {
    /// A bit for each task that no thread has claimed.
    unclaimed: AtomicU64,
    /// The number of tasks.
    count: AtomicUsize,
    /// The job's [`Task`], which is alive until all tasks have completed.
    task: AtomicPtr<Task<'static>>,
}

/// The number of tasks of the job that have completed, on cache lines of its own as [`Job`] is.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Completed(AtomicUsize);

impl State {
    /// Publishes a job, takes part in it and waits for its end. Only [`Workers::parallel_for`] calls this, whose exclusive
    /// borrow keeps jobs apart.
    fn parallel_for(&self, count: usize, task: Task<'_>) {
        assert!(count <= MAX_TASKS);
        self.completed.0.store(0, Relaxed);
        self.job.count.store(count, Relaxed);
        self.job.task.store(ptr::from_ref(&task).cast_mut().cast(), Relaxed);
        // This store publishes the job: a thread that claims one of its bits sees the stores above.
        self.job.unclaimed.store(u64::MAX >> (MAX_TASKS - count), Release);
        let thread = sys::thread_index();
        while self.run_one(thread) {}
        let mut polls = 0;
        while self.completed.0.load(Acquire) < count {
            polls += 1;
            if polls % POLLS_PER_YIELD == 0 {
                sys::yield_now();
            }
            sys::spin_loop();
        }
        // All tasks have completed, so from here on no thread uses the closure.
        let panic = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Claims a task and runs it: the first unclaimed one from the thread's own part on, cyclically. Returns false where
    /// none is unclaimed, and true also where another thread claimed the task first.
    fn run_one(&self, thread: usize) -> bool {
        let unclaimed = self.job.unclaimed.load(Relaxed);
        if unclaimed == 0 {
            return false;
        }
        // The count may be that of an earlier job, which only changes where the thread begins.
        let (count, threads) = (self.job.count.load(Relaxed), sys::num_threads());
        let own = (thread * count / threads) as u32 % u64::BITS;
        let i = (unclaimed.rotate_right(own).trailing_zeros() + own) % u64::BITS;
        let bit = 1 << i;
        if self.job.unclaimed.fetch_and(!bit, AcqRel) & bit == 0 {
            return true;
        }
        let result = catch_unwind(AssertUnwindSafe(|| {
            // SAFETY: this thread has claimed a bit of `unclaimed`, and by that sees what `parallel_for` stored before it
            // set the bit: the `task` of that job, even if the bits above were those of an earlier one. `parallel_for`
            // neither returns nor stores another before it has counted this very task, so the reference is alive.
            let task = unsafe { *self.job.task.load(Relaxed) };
            task(i as usize);
        }));
        if let Err(panic) = result {
            let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
            match &mut *first {
                // Dropping a second payload might panic before this task is counted.
                Some(_) => std::mem::forget(panic),
                none => *none = Some(panic),
            }
        }
        self.completed.0.fetch_add(1, Release);
        true
    }

    /// Returns whether this run is the first inside this thread's own [`State::worker_loop`], and remembers it.
    fn first_run_inside_worker_loop(&self) -> bool {
        let address = ptr::from_ref(self).addr();
        WORKER_LOOPS.with(|loops| {
            loops.borrow_mut().iter_mut().any(|(pool, called)| *pool == address && !std::mem::replace(called, true))
        })
    }

    /// Runs tasks, called by run number `run`, until there have been none for a while. It never waits for the end of a run:
    /// this thread may be in the middle of something for which that end waits.
    fn worker_loop(&self, run: usize) {
        let late = !self.running.load(SeqCst) && self.runs.load(SeqCst) != run;
        let address = ptr::from_ref(self).addr();
        let nested = WORKER_LOOPS.with(|loops| loops.borrow().iter().any(|(pool, _)| *pool == address));
        if IN_RUN.with(Cell::get) || nested || late {
            // The next run calls again: this thread has come too late, or perhaps no other is free.
            if late || self.workers.load(SeqCst) == 0 {
                self.called.store(false, SeqCst);
            }
            return;
        }
        self.workers.fetch_add(1, SeqCst);
        WORKER_LOOPS.with(|loops| loops.borrow_mut().push((address, false)));
        let thread = sys::thread_index();
        let start = Instant::now();
        let (mut polls, mut idle_since) = (0, None);
        loop {
            if self.run_one(thread) {
                (polls, idle_since) = (0, None);
                continue;
            }
            polls += 1;
            sys::spin_loop();
            if polls < POLLS_PER_YIELD {
                continue;
            }
            polls = 0;
            if sys::run_other_work() {
                idle_since = None;
            }
            let over = start.elapsed() > LONGEST_STAY && !self.running.load(SeqCst);
            if over || idle_since.get_or_insert_with(Instant::now).elapsed() > LINGER {
                break;
            }
            sys::yield_now();
        }
        WORKER_LOOPS.with(|loops| loops.borrow_mut().pop());
        self.workers.fetch_sub(1, SeqCst);
        self.called.store(false, SeqCst);
    }
}

/// Marks the end of a run when it is dropped, also where the run panics.
struct EndOfRun<'a>(&'a State);

impl Drop for EndOfRun<'_> {
    fn drop(&mut self) {
        IN_RUN.with(|in_run| in_run.set(false));
        self.0.running.store(false, SeqCst);
    }
}
