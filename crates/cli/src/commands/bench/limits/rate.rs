//! How fast threads can do something, all together.

use std::time::{Duration, Instant};

/// How long a thread repeats its work in a round: short enough to fall between what else runs.
const ROUND: Duration = Duration::from_millis(10);
/// The rounds of a look, of which the best counts: a limit is what the machine can do, and whatever else runs only lowers it.
const ROUNDS: usize = 20;

/// Which threads work at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// The calling one alone.
    One,
    /// All threads of the program, as many as `--threads` says.
    All,
}

impl Threads {
    /// How many they are.
    pub fn count(self) -> usize {
        match self {
            Self::One => 1,
            Self::All => rayon::current_num_threads(),
        }
    }
}

/// What the threads get done in a second, all together. `make(thread)` makes the work of a thread, which does a little
/// (microseconds) and says how much that was.
pub fn rate<W: FnMut() -> f64>(threads: Threads, make: impl Fn(usize) -> W + Sync) -> f64 {
    let of_thread = |thread| {
        let mut work = make(thread);
        let (start, mut done) = (Instant::now(), 0.0);
        loop {
            done += work();
            let elapsed = start.elapsed();
            if elapsed >= ROUND {
                return done / elapsed.as_secs_f64();
            }
        }
    };
    let round = |_| match threads {
        Threads::One => of_thread(0),
        Threads::All => rayon::broadcast(|context| of_thread(context.index())).iter().sum(),
    };
    (0..ROUNDS).map(round).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_sleeps_is_as_fast_as_it_sleeps() {
        let nap = Duration::from_millis(10);
        let one = rate(Threads::One, |_| {
            || {
                std::thread::sleep(nap);
                1.0
            }
        });
        assert!(one <= 100.0 && one > 10.0, "{one} naps of 10 ms in a second");
    }
}
