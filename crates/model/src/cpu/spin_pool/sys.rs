//! What the spin pool uses of the standard library and of rayon, and what stands in for it in the loom model: loom's
//! atomics and threads, whose every interleaving is run, and a clock by which each wait is long enough.

#[cfg(all(test, loom))]
pub(super) use under_loom::*;
#[cfg(not(all(test, loom)))]
pub(super) use with_rayon::*;

#[cfg(not(all(test, loom)))]
mod with_rayon {
    pub(in super::super) use std::{
        hint::spin_loop,
        sync::{Arc, Mutex, atomic},
        thread::yield_now,
        time::Instant,
    };

    pub(in super::super) use rayon::current_num_threads as num_threads;

    /// `thread_local!` with initial values that are constants, for which loom's has no form.
    macro_rules! thread_locals {
        ($($(#[$doc:meta])* static $name:ident: $type:ty = $init:expr;)*) => {
            std::thread_local! { $($(#[$doc])* static $name: $type = const { $init };)* }
        };
    }
    pub(in super::super) use thread_locals;

    /// Polls between two clock reads and yields.
    pub(in super::super) const POLLS_PER_YIELD: usize = 1 << 8;

    /// Returns whether this thread belongs to a rayon pool.
    pub(in super::super) fn in_rayon_pool() -> bool {
        rayon::current_thread_index().is_some()
    }

    /// Returns the number of this thread in its rayon pool.
    pub(in super::super) fn thread_index() -> usize {
        rayon::current_thread_index().unwrap_or_default()
    }

    /// Has each thread of the rayon pool call `f` once, as soon as it is idle.
    pub(in super::super) fn spawn_on_each_thread(f: impl Fn() + Send + Sync + 'static) {
        rayon::spawn_broadcast(move |_| f());
    }

    /// Executes one pending piece of work of the rayon pool, and returns whether there was any.
    pub(in super::super) fn run_other_work() -> bool {
        rayon::yield_now() == Some(rayon::Yield::Executed)
    }
}

#[cfg(all(test, loom))]
mod under_loom {
    use std::cell::{Cell, RefCell};
    use std::time::Duration;

    use loom::thread::{JoinHandle, spawn};
    pub(in super::super) use loom::{
        hint::spin_loop,
        sync::{Arc, Mutex},
        thread::yield_now,
        thread_local as thread_locals,
    };

    /// Loom's atomics, whose stores are swaps here. Loom does not know that nothing comes between the load and the store of
    /// a read-modify-write operation where it races with a plain store: it lets a claim that has seen the end of one job
    /// take effect after the next was published, which no processor does.
    pub(in super::super) mod atomic {
        use std::ops::Deref;

        pub(in super::super::super) use loom::sync::atomic::{AtomicPtr, Ordering};

        macro_rules! atomics {
            ($($name:ident: $value:ty),*) => {$(
                #[derive(Debug, Default)]
                pub(in super::super::super) struct $name(loom::sync::atomic::$name);

                impl $name {
                    pub(in super::super::super) fn store(&self, value: $value, order: Ordering) {
                        self.0.swap(value, order);
                    }
                }

                impl Deref for $name {
                    type Target = loom::sync::atomic::$name;

                    fn deref(&self) -> &Self::Target {
                        &self.0
                    }
                }
            )*};
        }
        atomics!(AtomicBool: bool, AtomicU64: u64, AtomicUsize: usize);
    }

    /// The threads of the modelled rayon pool, the caller's and one more: each doubles the interleavings many times over.
    const THREADS: usize = 2;

    /// Polls between two clock reads and yields.
    pub(in super::super) const POLLS_PER_YIELD: usize = 1;

    thread_locals! {
        static THREAD_INDEX: Cell<usize> = Cell::new(0);
        /// The threads that this one has spawned.
        static SPAWNED: RefCell<Vec<JoinHandle<()>>> = RefCell::new(Vec::new());
    }

    pub(in super::super) fn num_threads() -> usize {
        THREADS
    }

    pub(in super::super) fn in_rayon_pool() -> bool {
        true
    }

    pub(in super::super) fn thread_index() -> usize {
        THREAD_INDEX.with(Cell::get)
    }

    /// Spawns a thread for each but the caller's. That of an earlier call may still be there: then more workers leave and
    /// come at the same time than in a rayon pool.
    pub(in super::super) fn spawn_on_each_thread(f: impl Fn() + Send + Sync + 'static) {
        let f = Arc::new(f);
        for index in 1..THREADS {
            let f = Arc::clone(&f);
            let thread = spawn(move || {
                THREAD_INDEX.with(|of_thread| of_thread.set(index));
                f();
            });
            SPAWNED.with(|spawned| spawned.borrow_mut().push(thread));
        }
    }

    /// Waits for the end of all threads that this one has spawned.
    pub(in super::super) fn join_spawned() {
        for thread in SPAWNED.with(RefCell::take) {
            thread.join().expect("a worker catches the panics of tasks");
        }
    }

    pub(in super::super) fn run_other_work() -> bool {
        false
    }

    /// A clock by which any time is longer than any wait: a worker leaves when it first finds no task, which may happen at
    /// any moment.
    pub(in super::super) struct Instant;

    impl Instant {
        pub(in super::super) fn now() -> Self {
            Self
        }

        pub(in super::super) fn elapsed(&self) -> Duration {
            Duration::MAX
        }
    }
}
