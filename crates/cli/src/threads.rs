//! `--threads`: how the program uses the cores.

use std::num::NonZeroUsize;

/// More would only wait for each other, and starting them would take longer than the work.
const MOST: usize = 256;

/// Makes rayon's global pool of `threads` threads (all cores by default), in which every parallel loop of the program
/// runs. Each of them takes whole sequences or rows, so candle gets one thread inside an operation: its own pool spins
/// while it waits, and small operations would wait most of the time.
///
/// The first thing the program does.
pub fn set_up(threads: Option<NonZeroUsize>) -> anyhow::Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let from_environment = || std::env::var("RAYON_NUM_THREADS").ok()?.parse().ok();
    let asked = threads.or_else(from_environment).map(NonZeroUsize::get);
    let threads = used(asked, cores);
    if let Some(asked) = asked.filter(|&asked| asked > threads) {
        notice!(
            "{asked} threads are more than the {cores} cores here, or than {MOST}, and would wait for each other: {threads} are used"
        );
    }
    set_up_candle();
    Ok(rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?)
}

/// How many threads are used where so many were asked for.
fn used(asked: Option<usize>, cores: usize) -> usize {
    asked.unwrap_or(cores).min(cores).min(MOST)
}

/// One thread inside an operation, and kernels on Metal that take infinities and NaN for what they are: masks are minus
/// infinity. candle reads both from the environment, and from nowhere else.
#[expect(unsafe_code, reason = "changing the environment is unsafe while other threads may read it")]
fn set_up_candle() {
    for (name, value) in
        [("CANDLE_NUM_THREADS", "1"), ("RAYON_NUM_THREADS", "1"), ("CANDLE_METAL_ENABLE_FAST_MATH", "0")]
    {
        // SAFETY: this is the first thing the program does, before it starts any thread, so that nothing reads the
        // environment at the same time.
        unsafe { std::env::set_var(name, value) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_as_many_as_asked_for_but_neither_more_than_cores_nor_than_256() {
        assert_eq!([used(None, 8), used(Some(3), 8), used(Some(9), 8)], [8, 3, 8]);
        assert_eq!([used(None, 512), used(Some(300), 512), used(Some(100), 512)], [MOST, MOST, 100]);
    }
}
