//! Products shared among threads by the columns of their output.

#![allow(unsafe_code)]

use std::{marker::PhantomData, ops::Range};

use tinygpt_sampler::simd::LANES;

use super::super::spin_pool::{MAX_TASKS, Workers};

/// The most outputs of a range, in all rows together: they stay in the first-level cache.
const MAX_RANGE_OUTPUTS: usize = 4096;
/// A product that reads no more bytes of weights than these is not worth a second thread.
pub(crate) const MIN_PARALLEL_BYTES: usize = 1 << 17;

/// Calls `f` with ranges that make up `0..n`, the columns of a product with `m` rows that reads `bytes` of weights: on
/// all threads if these exceed [`MIN_PARALLEL_BYTES`]. Ranges are whole vectors but for the last.
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

/// A matrix of outputs whose columns several threads write. Its rows do not overlap.
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
    /// Wraps `y`, rows of `cols` elements of which each begins `ld` elements behind the one before.
    pub(crate) fn new(y: &'a mut [f32], cols: usize, ld: usize) -> Self {
        assert!(cols <= ld);
        Self { data: y.as_mut_ptr(), len: y.len(), ld, cols, output: PhantomData }
    }

    /// Returns a range of the columns of a row.
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
