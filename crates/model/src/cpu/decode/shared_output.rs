//! Products whose output columns are divided among the threads of a spin pool.

#![allow(unsafe_code)]

use std::{marker::PhantomData, ops::Range};

use rayon::prelude::*;
use tinygpt_sampler::simd::LANES;

use super::super::{
    matmul::MIN_PARALLEL_MULTIPLY_ADDS,
    spin_pool::{MAX_TASKS, Workers},
};

/// The most outputs of a range, all rows together: 16 KiB, which stay in the first-level cache.
const MAX_RANGE_OUTPUTS: usize = 4096;
/// Products that read at most this many bytes of weights run on one thread.
pub(crate) const MIN_PARALLEL_BYTES: usize = 1 << 17;

/// Calls `f` with ranges that partition `0..n`, the columns of a product with `m` rows that reads `bytes` of weights. The
/// calls run on all threads if `bytes` exceeds [`MIN_PARALLEL_BYTES`]. Every range but the last is a whole number of
/// vectors.
pub(crate) fn parallel_for_columns(
    workers: &mut Workers<'_>,
    n: usize,
    m: usize,
    bytes: usize,
    f: impl Fn(Range<usize>) + Sync,
) {
    let threads = if bytes > MIN_PARALLEL_BYTES { workers.num_threads().min(MAX_TASKS) } else { 1 };
    let rounds = n.div_ceil(threads * (MAX_RANGE_OUTPUTS / m.max(1)).max(LANES));
    let size = n.div_ceil(threads * rounds).next_multiple_of(LANES);
    let count = n.div_ceil(size);
    let range = |i: usize| i * size..n.min((i + 1) * size);
    if threads == 1 {
        (0..count).map(range).for_each(f);
        return;
    }
    let per_task = count.div_ceil(MAX_TASKS);
    workers.parallel_for(count.div_ceil(per_task), |task| {
        (task * per_task..count.min((task + 1) * per_task)).map(range).for_each(&f);
    });
}

/// The bytes of weights from which on a task is worth its hand-over.
const TASK_BYTES: usize = 1 << 16;

/// Calls `f` with ranges that partition `0..panels`, the panels of columns of a product of `multiply_adds` that reads `bytes` of
/// weights. The calls run on all threads where there is enough to do: on those of the pool, or, where there is none, on rayon's
/// for a long prompt of a small model.
pub(crate) fn parallel_for_panels(
    workers: &mut Workers<'_>,
    panels: usize,
    bytes: usize,
    multiply_adds: usize,
    f: impl Fn(Range<usize>) + Sync,
) {
    let is_long = multiply_adds >= MIN_PARALLEL_MULTIPLY_ADDS;
    if bytes <= MIN_PARALLEL_BYTES && !is_long {
        f(0..panels);
        return;
    }
    let pool = workers.num_threads() > 1;
    let threads = if pool { workers.num_threads() } else { rayon::current_num_threads() };
    let tasks = (bytes / TASK_BYTES).max(threads).clamp(1, MAX_TASKS.min(panels));
    let per_task = panels.div_ceil(tasks);
    let count = panels.div_ceil(per_task);
    let task = |task: usize| f(task * per_task..panels.min((task + 1) * per_task));
    if pool {
        workers.parallel_for(count, task);
    } else if is_long {
        (0..count).into_par_iter().for_each(task);
    } else {
        (0..count).for_each(task);
    }
}

/// An output matrix whose columns are written by several threads at the same time; its rows do not overlap.
#[derive(Clone, Copy)]
pub(crate) struct SharedOutput<'a> {
    data: *mut f32,
    /// The number of elements from `data` on.
    len: usize,
    /// The number of elements from the beginning of a row to that of the next.
    ld: usize,
    cols: usize,
    output: PhantomData<&'a mut [f32]>,
}

// SAFETY: it is only written through `SharedOutput::part`, whose callers ask for disjoint ranges.
unsafe impl Send for SharedOutput<'_> {}
// SAFETY: as above.
unsafe impl Sync for SharedOutput<'_> {}

impl<'a> SharedOutput<'a> {
    /// Wraps `y`, rows of `cols` elements with a leading dimension of `ld`.
    pub(crate) fn new(y: &'a mut [f32], cols: usize, ld: usize) -> Self {
        assert!(cols <= ld);
        Self { data: y.as_mut_ptr(), len: y.len(), ld, cols, output: PhantomData }
    }

    /// Returns the elements of a row in a range of columns.
    ///
    /// # Safety
    /// No two slices of one row that are alive at the same time may overlap.
    pub(crate) unsafe fn part(self, row: usize, range: &Range<usize>) -> &'a mut [f32] {
        let start = row * self.ld + range.start;
        assert!(range.start <= range.end && range.end <= self.cols && start + range.len() <= self.len);
        // SAFETY: the range lies in the row, the row in the output; the rest is the caller's.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), range.len()) }
    }
}
