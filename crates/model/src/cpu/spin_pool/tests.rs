//! The spin pool on real threads and with a real clock; `loom_tests.rs` goes through the interleavings of its protocol.

use super::*;
use rayon::prelude::*;

/// Runs jobs of each number of tasks from none to [`MAX_TASKS`], and returns the sum of what the tasks add.
fn sum(pool: &mut SpinPool) -> usize {
    pool.run(|workers| {
        let job = |n| {
            let sum = AtomicUsize::new(0);
            workers.parallel_for(n, |i| {
                sum.fetch_add((i + 1) * (i + 1), Relaxed);
            });
            sum.into_inner()
        };
        (0..=MAX_TASKS).map(job).sum()
    })
}

/// What [`sum`] returns: the sum of `n (n + 1) (2 n + 1) / 6` for n from 0 to 64.
const SUM: usize = 64 * 65 * 65 * 66 / 12;

fn rayon_pool(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
}

#[test]
fn each_task_runs_once_on_any_number_of_threads_also_when_several_pools_run_at_the_same_time() {
    let (mut one, mut other) = (SpinPool::default(), SpinPool::default());
    assert_eq!(sum(&mut one), SUM, "outside of a pool");
    for threads in [1, 2, 5] {
        let pool = rayon_pool(threads);
        for _ in 0..50 {
            assert_eq!(pool.install(|| sum(&mut one)), SUM, "{threads}");
            let both = pool.install(|| rayon::join(|| one.run(|_| sum(&mut other)), || sum(&mut SpinPool::default())));
            assert_eq!(both, (SUM, SUM), "{threads}");
        }
    }
}

/// Polls `done` until it returns something.
fn wait_for<T>(done: impl FnMut() -> Option<T>) -> T {
    wait_at_most(Duration::from_secs(60), done).expect("waited in vain")
}

/// Polls `done` until it returns something, or for this long.
fn wait_at_most<T>(time: Duration, mut done: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        let value = done();
        if value.is_some() || start.elapsed() > time {
            return value;
        }
        std::thread::yield_now();
    }
}

/// Runs jobs of two tasks until the two threads of the rayon pool have run one each, and returns that of the caller.
fn task_of_the_caller(spin_pool: &mut SpinPool) -> usize {
    wait_for(|| {
        spin_pool.run(|workers| {
            let threads = [const { AtomicUsize::new(usize::MAX) }; 2];
            let me = rayon::current_thread_index()?;
            workers.parallel_for(2, |i| {
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
fn each_of_two_threads_runs_the_task_that_is_its_own() {
    rayon_pool(2).install(|| {
        let me = rayon::current_thread_index().unwrap();
        let mut spin_pool = SpinPool::default();
        for _ in 0..20 {
            assert_eq!(task_of_the_caller(&mut spin_pool), me);
        }
    });
}

#[test]
fn workers_come_when_there_is_a_run_and_leave_after_it_even_if_it_panicked() {
    let pool = rayon_pool(2);
    let mut spin_pool = SpinPool::default();
    for _ in 0..3 {
        pool.install(|| task_of_the_caller(&mut spin_pool));
        let panicked = catch_unwind(AssertUnwindSafe(|| pool.install(|| spin_pool.run(|_| panic!("as it should")))));
        assert_eq!(panicked.unwrap_err().downcast_ref(), Some(&"as it should"));
        wait_for(|| (spin_pool.0.workers.load(SeqCst) == 0).then_some(()));
        assert_eq!(pool.install(|| sum(&mut spin_pool)), SUM);
    }
}

#[test]
fn workers_leave_after_the_run_also_where_the_rayon_pool_is_never_idle() {
    let pool = rayon_pool(2);
    let (end, latest) = (AtomicBool::new(false), Instant::now() + Duration::from_secs(30));
    std::thread::scope(|threads| {
        // More work than the rayon pool gets done.
        threads.spawn(|| {
            while !end.load(SeqCst) && Instant::now() < latest {
                (0..4).for_each(|_| pool.spawn(|| std::thread::sleep(LINGER / 10)));
                std::thread::sleep(LINGER / 10);
            }
        });
        let mut spin_pool = SpinPool::default();
        let state = Arc::clone(&spin_pool.0);
        let workers = |n| (state.workers.load(SeqCst) == n).then_some(());
        // A worker that finds no work, since the thread above waits for a processor, may have left before this one looks.
        wait_for(|| pool.install(|| spin_pool.run(|_| wait_at_most(LINGER, || workers(1)))));
        wait_for(|| workers(0));
        assert!(Instant::now() < latest);
        end.store(true, SeqCst);
    });
}

#[test]
fn a_task_that_panics_does_so_for_the_caller_once_the_others_have_completed() {
    for threads in [1, 2, 5] {
        let mut spin_pool = SpinPool::default();
        for panicking in 0..9 {
            let completed = AtomicUsize::new(0);
            let job = |i| {
                assert_ne!(i, panicking, "as it should");
                completed.fetch_add(1, SeqCst);
            };
            let panicked = catch_unwind(AssertUnwindSafe(|| {
                rayon_pool(threads).install(|| spin_pool.run(|workers| workers.parallel_for(9, job)))
            }));
            assert!(panicked.is_err());
            // Alone, a thread stops there.
            assert_eq!(completed.into_inner(), if threads == 1 { panicking } else { 8 });
        }
        assert_eq!(sum(&mut spin_pool), SUM);
    }
}

#[test]
fn more_pools_than_threads_with_parallel_work_of_their_own_all_come_to_an_end() {
    let (send, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let work = |n: usize| (0..n).into_par_iter().map(|n| (0..n).into_par_iter().sum::<usize>()).sum::<usize>();
        let mut spin_pools: Vec<SpinPool> = (0..7).map(|_| SpinPool::default()).collect();
        let all = rayon_pool(2).install(|| {
            let both = |spin_pool: &mut SpinPool| (0..50).map(|_| work(30) + sum(spin_pool)).sum::<usize>();
            spin_pools.par_iter_mut().map(both).sum::<usize>()
        });
        send.send(all).unwrap();
    });
    let one = (0..30).map(|n| (0..n).sum::<usize>()).sum::<usize>() + SUM;
    assert_eq!(ended.recv_timeout(Duration::from_secs(60)), Ok(7 * 50 * one));
}
