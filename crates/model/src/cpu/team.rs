//! Threads that stay awake between short pieces of parallel work, and share them.
//!
//! A product of a decoder takes a few microseconds. To wake a thread may take a hundred, and even between two awake threads
//! a general pool's tasks cost about one; here it is a few transfers of a cache line.

#![allow(unsafe_code)]

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;
use std::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU64, AtomicUsize,
    Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst},
};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long threads look for a piece in vain before they leave.
const LINGER: Duration = Duration::from_millis(1);
/// After so long they leave as soon as no work is going on: a thread may have been waiting for something else when it was
/// called, and goes on with that when it leaves.
const LONGEST_STAY: Duration = Duration::from_millis(20);
/// How often a thread looks before it sees how late it is, and lets others have it or the core.
const LOOKS: usize = 1 << 8;
/// Pieces of one job: a bit for each.
pub(crate) const MOST_PIECES: usize = u64::BITS as usize;

thread_local! {
    /// Whether this thread is in [`Team::run`]: it has pieces of its own to wait for, and must not watch for others'.
    static WORKING: Cell<bool> = const { Cell::new(false) };
    /// The teams (by address) for which this thread is watching, and whether it has called others from within: while it
    /// watches it may get to run the very work that it is to help with.
    static WATCHED: RefCell<Vec<(usize, bool)>> = const { RefCell::new(Vec::new()) };
}

/// The threads of a rayon pool as helpers of one of them.
#[derive(Debug, Default)]
pub(crate) struct Team(Arc<State>);

/// A team at work. Nobody else shares pieces with it at the same time.
#[derive(Debug)]
pub(crate) struct Work<'a> {
    /// None where there are no other threads.
    team: Option<&'a State>,
}

impl Team {
    /// Runs `work`, in the pool. Calls the other threads unless they are still there from the last time.
    pub(crate) fn run<T: Send>(&mut self, work: impl FnOnce(&mut Work<'_>) -> T + Send) -> T {
        if rayon::current_thread_index().is_none() {
            return rayon::scope(|_| self.run(work));
        }
        if rayon::current_num_threads() == 1 || WORKING.get() {
            return work(&mut Work::alone());
        }
        let state = &self.0;
        WORKING.set(true);
        state.working.store(true, SeqCst);
        let _end = End(state);
        let run = state.runs.fetch_add(1, SeqCst) + 1;
        let from_within = state.runs_from_within_for_the_first_time();
        if !state.called.swap(true, SeqCst) || from_within {
            let state = Arc::clone(state);
            rayon::spawn_broadcast(move |_| state.watch(run));
        }
        work(&mut Work { team: Some(state) })
    }
}

impl Work<'_> {
    /// Without other threads.
    pub(crate) fn alone() -> Self {
        Self { team: None }
    }

    /// How many threads there may be.
    pub(crate) fn threads(&self) -> usize {
        self.team.map_or(1, |_| rayon::current_num_threads())
    }

    /// Calls `piece` with each of `0..count` (at most [`MOST_PIECES`]) on the threads that are there, and returns when all
    /// have been computed. Each thread begins with pieces of its own, so that what it reads stays in its caches from one
    /// time to the next.
    pub(crate) fn share(&mut self, count: usize, piece: impl Fn(usize) + Sync) {
        match self.team {
            Some(team) if count > 1 => team.share(count, &piece),
            _ => (0..count).for_each(piece),
        }
    }
}

/// What the threads do with each piece.
type Piece<'a> = &'a (dyn Fn(usize) + Sync);

#[derive(Debug, Default)]
struct State {
    job: Job,
    finished: Finished,
    /// Of a piece.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Whether there is work.
    working: AtomicBool,
    /// How often there was.
    runs: AtomicUsize,
    /// Whether the threads have been called since one left.
    called: AtomicBool,
    watchers: AtomicUsize,
}

/// What the threads look at: two cache lines, which some processors fetch together, of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Job {
    /// A bit for each piece that nobody has taken.
    left: AtomicU64,
    count: AtomicUsize,
    /// The job's [`Piece`]. It is alive until all pieces are finished.
    piece: AtomicPtr<Piece<'static>>,
}

/// Pieces of the job that have been computed.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Finished(AtomicUsize);

impl State {
    /// See [`Work::share`], which alone calls this, for one job after the other: its caller has the team to itself.
    fn share(&self, count: usize, piece: Piece<'_>) {
        assert!(count <= MOST_PIECES);
        self.finished.0.store(0, Relaxed);
        self.job.count.store(count, Relaxed);
        self.job.piece.store(ptr::from_ref(&piece).cast_mut().cast(), Relaxed);
        // Who takes a bit of this sees what was stored before.
        self.job.left.store(u64::MAX >> (MOST_PIECES - count), Release);
        let me = rayon::current_thread_index().unwrap_or_default();
        while self.compute_one(me) {}
        let mut looks = 0;
        while self.finished.0.load(Acquire) < count {
            looks += 1;
            if looks % LOOKS == 0 {
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
        // From here on nobody has the piece.
        if let Some(panic) = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take() {
            resume_unwind(panic);
        }
    }

    /// Takes a piece and computes it: the first of the thread's own, or the next behind them. False where none is left;
    /// true also where another thread was faster.
    fn compute_one(&self, thread: usize) -> bool {
        let left = self.job.left.load(Relaxed);
        if left == 0 {
            return false;
        }
        // A count of an earlier job only changes where the thread begins.
        let (count, threads) = (self.job.count.load(Relaxed), rayon::current_num_threads());
        let own = (thread * count / threads) as u32 % u64::BITS;
        let i = (left.rotate_right(own).trailing_zeros() + own) % u64::BITS;
        let bit = 1 << i;
        if self.job.left.fetch_and(!bit, AcqRel) & bit == 0 {
            return true;
        }
        let computed = catch_unwind(AssertUnwindSafe(|| {
            // SAFETY: this thread has taken a bit of `left`, and with it seen what `share` stored before it set the bit: that
            // job's `piece`, whatever job the bits were of that it had looked at first. Before `share` returns or stores
            // another it waits for this very piece to be finished, so the reference is alive.
            let piece = unsafe { *self.job.piece.load(Relaxed) };
            piece(i as usize);
        }));
        if let Err(panic) = computed {
            let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
            match &mut *first {
                // To drop it might panic, before this piece is counted.
                Some(_) => std::mem::forget(panic),
                none => *none = Some(panic),
            }
        }
        self.finished.0.fetch_add(1, Release);
        true
    }

    /// Whether this thread is at work in the middle of watching for it, and has not called others yet.
    fn runs_from_within_for_the_first_time(&self) -> bool {
        let address = ptr::from_ref(self).addr();
        WATCHED.with_borrow_mut(|watched| {
            watched.iter_mut().any(|(team, called)| *team == address && !std::mem::replace(called, true))
        })
    }

    /// Computes pieces, called by some run, until there has been none for a while. It never waits for the end of the work:
    /// this thread may be in the middle of something for which that end waits.
    fn watch(&self, run: usize) {
        let late = !self.working.load(SeqCst) && self.runs.load(SeqCst) != run;
        let address = ptr::from_ref(self).addr();
        let watched = WATCHED.with_borrow(|watched| watched.iter().any(|(team, _)| *team == address));
        if WORKING.get() || watched || late {
            // The next work calls again: this thread has come too late, or perhaps none is free.
            if late || self.watchers.load(SeqCst) == 0 {
                self.called.store(false, SeqCst);
            }
            return;
        }
        self.watchers.fetch_add(1, SeqCst);
        WATCHED.with_borrow_mut(|watched| watched.push((address, false)));
        let me = rayon::current_thread_index().unwrap_or_default();
        let start = Instant::now();
        let (mut looks, mut idle_since) = (0, None);
        loop {
            if self.compute_one(me) {
                (looks, idle_since) = (0, None);
                continue;
            }
            looks += 1;
            std::hint::spin_loop();
            if looks < LOOKS {
                continue;
            }
            looks = 0;
            let executed = rayon::yield_now() == Some(rayon::Yield::Executed);
            if executed {
                idle_since = None;
            }
            let over = start.elapsed() > LONGEST_STAY && !self.working.load(SeqCst);
            if over || idle_since.get_or_insert_with(Instant::now).elapsed() > LINGER {
                break;
            }
            std::thread::yield_now();
        }
        WATCHED.with_borrow_mut(Vec::pop);
        self.watchers.fetch_sub(1, SeqCst);
        self.called.store(false, SeqCst);
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

    /// Work in many jobs, of no to all the pieces that there can be.
    fn sum(team: &mut Team) -> usize {
        team.run(|work| {
            let job = |n| {
                let sum = AtomicUsize::new(0);
                work.share(n, |i| {
                    sum.fetch_add((i + 1) * (i + 1), Relaxed);
                });
                sum.into_inner()
            };
            (0..=MOST_PIECES).map(job).sum()
        })
    }

    /// The sum of `n (n + 1) (2 n + 1) / 6` for n to 64.
    const SUM: usize = 64 * 65 * 65 * 66 / 12;

    fn pool(threads: usize) -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
    }

    #[test]
    fn each_piece_is_computed_once_on_any_number_of_threads_also_when_several_teams_work_at_the_same_time() {
        let (mut one, mut other) = (Team::default(), Team::default());
        assert_eq!(sum(&mut one), SUM, "outside of a pool");
        for threads in [1, 2, 5] {
            let pool = pool(threads);
            for _ in 0..50 {
                assert_eq!(pool.install(|| sum(&mut one)), SUM, "{threads}");
                let both = pool.install(|| rayon::join(|| one.run(|_| sum(&mut other)), || sum(&mut Team::default())));
                assert_eq!(both, (SUM, SUM), "{threads}");
            }
        }
    }

    /// What `done` gives, at last.
    fn wait_for<T>(mut done: impl FnMut() -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            match done() {
                Some(value) => return value,
                None => assert!(start.elapsed() < Duration::from_secs(60), "waited in vain"),
            }
            std::thread::yield_now();
        }
    }

    /// Shares jobs of two pieces until the two threads of the pool have computed one each: the one of the caller.
    fn piece_of_the_caller(team: &mut Team) -> usize {
        wait_for(|| {
            team.run(|work| {
                let threads = [const { AtomicUsize::new(usize::MAX) }; 2];
                let me = rayon::current_thread_index()?;
                work.share(2, |i| {
                    threads[i].store(rayon::current_thread_index().unwrap(), SeqCst);
                    // Long enough for the other thread to come.
                    let start = Instant::now();
                    while start.elapsed() < LINGER {}
                });
                let [first, second] = threads.map(AtomicUsize::into_inner);
                (first != second).then_some(usize::from(second == me))
            })
        })
    }

    #[test]
    fn each_of_two_threads_computes_the_piece_that_is_its_own() {
        pool(2).install(|| {
            let me = rayon::current_thread_index().unwrap();
            let mut team = Team::default();
            for _ in 0..20 {
                assert_eq!(piece_of_the_caller(&mut team), me);
            }
        });
    }

    #[test]
    fn threads_come_when_there_is_work_and_go_to_sleep_after_it_even_if_it_panicked() {
        let pool = pool(2);
        let mut team = Team::default();
        for _ in 0..3 {
            pool.install(|| piece_of_the_caller(&mut team));
            let panicked = catch_unwind(AssertUnwindSafe(|| pool.install(|| team.run(|_| panic!("as it should")))));
            assert_eq!(panicked.unwrap_err().downcast_ref(), Some(&"as it should"));
            wait_for(|| (team.0.watchers.load(SeqCst) == 0).then_some(()));
            assert_eq!(pool.install(|| sum(&mut team)), SUM);
        }
    }

    #[test]
    fn threads_leave_after_the_work_also_where_the_pool_is_never_idle() {
        let pool = pool(2);
        let (end, latest) = (AtomicBool::new(false), Instant::now() + Duration::from_secs(30));
        std::thread::scope(|threads| {
            // More jobs than the pool gets done.
            threads.spawn(|| {
                while !end.load(SeqCst) && Instant::now() < latest {
                    (0..4).for_each(|_| pool.spawn(|| std::thread::sleep(LINGER / 10)));
                    std::thread::sleep(LINGER / 10);
                }
            });
            let mut team = Team::default();
            let state = Arc::clone(&team.0);
            let watchers = |n| wait_for(|| (state.watchers.load(SeqCst) == n).then_some(()));
            pool.install(|| team.run(|_| watchers(1)));
            watchers(0);
            assert!(Instant::now() < latest);
            end.store(true, SeqCst);
        });
    }

    #[test]
    fn a_piece_that_panics_does_so_for_the_caller_once_the_others_are_computed() {
        for threads in [1, 2, 5] {
            let mut team = Team::default();
            for panicking in 0..9 {
                let computed = AtomicUsize::new(0);
                let job = |i| {
                    assert_ne!(i, panicking, "as it should");
                    computed.fetch_add(1, SeqCst);
                };
                let panicked =
                    catch_unwind(AssertUnwindSafe(|| pool(threads).install(|| team.run(|work| work.share(9, job)))));
                assert!(panicked.is_err());
                // Alone, a thread stops there.
                assert_eq!(computed.into_inner(), if threads == 1 { panicking } else { 8 });
            }
            assert_eq!(sum(&mut team), SUM);
        }
    }

    #[test]
    fn more_teams_than_threads_with_parallel_work_of_their_own_all_come_to_an_end() {
        let (send, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let pieces =
                |n: usize| (0..n).into_par_iter().map(|n| (0..n).into_par_iter().sum::<usize>()).sum::<usize>();
            let mut teams: Vec<Team> = (0..7).map(|_| Team::default()).collect();
            let all = pool(2).install(|| {
                let both = |team: &mut Team| (0..50).map(|_| pieces(30) + sum(team)).sum::<usize>();
                teams.par_iter_mut().map(both).sum::<usize>()
            });
            send.send(all).unwrap();
        });
        let one = (0..30).map(|n| (0..n).sum::<usize>()).sum::<usize>() + SUM;
        assert_eq!(ended.recv_timeout(Duration::from_secs(60)), Ok(7 * 50 * one));
    }
}
