//! A model of the spin pool for loom, which runs it in every interleaving of its threads and with every value that the
//! memory model lets a load return. `scripts/check-loom.sh` runs it.

use loom::cell::UnsafeCell;

use super::*;

/// A number that loom watches: an access that another one may race with fails the model.
#[derive(Default)]
struct Watched(UnsafeCell<usize>);

// SAFETY: loom fails the model before two threads access the number at the same time.
unsafe impl Sync for Watched {}

impl Watched {
    fn get(&self) -> usize {
        // SAFETY: as above.
        self.0.with(|x| unsafe { *x })
    }

    fn set(&self, value: usize) {
        // SAFETY: as above.
        self.0.with_mut(|x| unsafe { *x = value });
    }
}

/// A job whose tasks read what the caller wrote before, and write what it reads after.
#[derive(Default)]
struct TestJob {
    input: Watched,
    outputs: [Watched; 2],
}

impl TestJob {
    fn run(&self, workers: &mut Workers<'_>) {
        self.input.set(5);
        workers.parallel_for(2, |task| {
            let output = &self.outputs[task];
            output.set(output.get() + self.input.get() + task);
        });
        self.check();
        // A task that were still running would race with this.
        self.input.set(100);
    }

    /// Fails unless each task has run once.
    fn check(&self) {
        assert_eq!([self.outputs[0].get(), self.outputs[1].get()], [5, 6]);
    }
}

/// After the last worker has left, nothing says that one is there: the next run would call.
fn check_quiescence(pool: &SpinPool) {
    sys::join_spawned();
    assert_eq!(pool.0.workers.load(SeqCst), 0);
    assert!(!pool.0.called.load(SeqCst), "workers would not be called again");
    assert!(!pool.0.running.load(SeqCst));
}

#[test]
fn tasks_of_jobs_in_a_row_run_once_and_have_ended_when_parallel_for_returns() {
    loom::model(|| {
        let mut pool = SpinPool::default();
        let jobs = [TestJob::default(), TestJob::default()];
        pool.run(|workers| jobs.iter().for_each(|job| job.run(workers)));
        check_quiescence(&pool);
        jobs.iter().for_each(TestJob::check);
    });
}

#[test]
fn workers_that_leave_between_runs_are_called_again() {
    loom::model(|| {
        let mut pool = SpinPool::default();
        let jobs = [TestJob::default(), TestJob::default()];
        for job in &jobs {
            pool.run(|workers| job.run(workers));
        }
        check_quiescence(&pool);
        jobs.iter().for_each(TestJob::check);
    });
}

#[test]
fn a_panic_of_a_task_reaches_the_caller_after_the_end_of_the_others_and_the_next_job_is_unharmed() {
    loom::model(|| {
        let mut pool = SpinPool::default();
        let (input, job) = (Watched::default(), TestJob::default());
        pool.run(|workers| {
            let tasks = AssertUnwindSafe(|| {
                workers.parallel_for(2, |task| {
                    if task == 1 {
                        // Without the message of `panic!`, once an interleaving.
                        resume_unwind(Box::new("as it should"));
                    }
                    input.get();
                });
            });
            assert_eq!(catch_unwind(tasks).unwrap_err().downcast_ref(), Some(&"as it should"));
            input.set(1);
            job.run(workers);
        });
        check_quiescence(&pool);
        job.check();
    });
}
