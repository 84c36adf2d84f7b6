//! Threads that stay awake between short pieces of parallel work.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// How long threads look for a piece in vain before they leave.
const LINGER: Duration = Duration::from_millis(1);
/// How long they stay at most while pieces come, but for the work that goes on then: a thread may have been waiting for
/// something else when it was called, and goes on with that when it leaves.
const MOST: Duration = Duration::from_millis(20);
/// How often a thread looks for pieces before it sees how late it is, and lets other processes have the core.
const LOOKS: usize = 1 << 8;

thread_local! {
    /// Whether this thread is in [`Awake::run`]: it has pieces of its own to wait for, and must not watch for others'.
    static WORKING: Cell<bool> = const { Cell::new(false) };
}

/// Keeps the other threads of the pool looking for parallel pieces of some work: to wake a thread may take a hundred
/// microseconds, longer than many a piece. Who computes what does not change, nor does it matter if nobody comes.
#[derive(Debug, Clone, Default)]
pub(super) struct Awake(Arc<State>);

#[derive(Debug, Default)]
struct State {
    /// Whether there is work.
    working: AtomicBool,
    /// Whether the threads have been called and not all left.
    called: AtomicBool,
    watchers: AtomicUsize,
}

impl Awake {
    /// Runs `work`. Calls the other threads unless they are still there from the last time.
    pub(super) fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        if rayon::current_thread_index().is_none() || rayon::current_num_threads() == 1 || WORKING.get() {
            return work();
        }
        let state = &self.0;
        WORKING.set(true);
        state.working.store(true, SeqCst);
        let _end = End(state);
        if !state.called.swap(true, SeqCst) {
            let state = Arc::clone(state);
            rayon::spawn_broadcast(move |_| state.watch());
        }
        work()
    }
}

impl State {
    /// Computes pieces until there has been none for a while. It never waits for the end of the work: this thread may be
    /// in the middle of a piece of it, for which that end waits.
    fn watch(&self) {
        if WORKING.get() {
            // Perhaps no thread is free: the next work calls again.
            if self.watchers.load(SeqCst) == 0 {
                self.called.store(false, SeqCst);
            }
            return;
        }
        self.watchers.fetch_add(1, SeqCst);
        let start = Instant::now();
        let (mut looks, mut idle_since) = (0, None);
        loop {
            if rayon::yield_now() == Some(rayon::Yield::Executed) {
                (looks, idle_since) = (0, None);
                continue;
            }
            looks += 1;
            std::hint::spin_loop();
            if looks < LOOKS {
                continue;
            }
            looks = 0;
            let over = start.elapsed() > MOST && !self.working.load(SeqCst);
            if over || idle_since.get_or_insert_with(Instant::now).elapsed() > LINGER {
                break;
            }
            std::thread::yield_now();
        }
        if self.watchers.fetch_sub(1, SeqCst) == 1 {
            self.called.store(false, SeqCst);
        }
    }
}

/// The end of the work, also where it panics.
struct End<'a>(&'a State);

impl Drop for End<'_> {
    fn drop(&mut self) {
        WORKING.set(false);
        self.0.working.store(false, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayon::prelude::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    /// Work in many pieces.
    fn sum(awake: &Awake) -> u64 {
        (0..200).map(|_| awake.run(|| (0..64u64).into_par_iter().map(|n| n * n).sum::<u64>())).sum()
    }

    const SUM: u64 = 200 * 85_344;

    #[test]
    fn work_ends_with_its_result_on_any_number_of_threads_also_when_several_work_at_the_same_time() {
        let (one, other) = (Awake::default(), Awake::default());
        assert_eq!(sum(&one), SUM, "outside of a pool");
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert_eq!(pool.install(|| sum(&one)), SUM, "{threads}");
            for _ in 0..20 {
                let both = pool.install(|| rayon::join(|| one.run(|| sum(&one)), || other.run(|| sum(&other))));
                assert_eq!(both, (SUM, SUM), "{threads}");
            }
        }
    }

    /// Fails when `done` is not so for twenty seconds.
    fn wait_until(done: impl Fn() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < Duration::from_secs(20), "waited in vain");
            std::thread::sleep(LINGER);
        }
    }

    #[test]
    fn threads_come_when_there_is_work_and_go_to_sleep_after_it_even_if_it_panicked() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let awake = Awake::default();
        let watchers = || awake.0.watchers.load(SeqCst);
        for _ in 0..3 {
            let panicked = catch_unwind(AssertUnwindSafe(|| {
                pool.install(|| {
                    awake.run(|| {
                        wait_until(|| watchers() == 1);
                        panic!("as it should")
                    })
                })
            }));
            assert!(panicked.is_err());
            wait_until(|| watchers() == 0);
            assert_eq!(pool.install(|| sum(&awake)), SUM);
        }
    }

    #[test]
    fn more_workers_than_threads_with_parallel_work_of_their_own_all_come_to_an_end() {
        let (send, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
            let pieces = |n: u64| (0..n).into_par_iter().map(|n| (0..n).into_par_iter().sum::<u64>()).sum::<u64>();
            let workers: Vec<Awake> = (0..7).map(|_| Awake::default()).collect();
            let all = pool.install(|| {
                let both = |awake: &Awake| (0..50).map(|_| pieces(30) + awake.run(|| pieces(30))).sum::<u64>();
                workers.par_iter().map(both).sum::<u64>()
            });
            send.send(all).unwrap();
        });
        let one = (0..30u64).map(|n| (0..n).sum::<u64>()).sum::<u64>();
        assert_eq!(ended.recv_timeout(Duration::from_secs(60)), Ok(7 * 50 * 2 * one));
    }
}
