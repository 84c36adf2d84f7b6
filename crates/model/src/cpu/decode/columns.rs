//! Products shared among threads by the columns of their output.

#![allow(unsafe_code)]

use std::marker::PhantomData;

use tinygpt_sampler::simd::LANES;

use super::super::team::{MOST_PIECES, Work};

/// Outputs of a task at most, in all rows together: they stay in the first-level cache.
const MOST_OUTPUTS: usize = 4096;
/// Up to so many bytes of weights a product is not worth two threads.
pub(crate) const LEAST_BYTES: usize = 1 << 17;

/// Calls `piece` with ranges of `0..n`, whole vectors but for the last, for `m` rows; on all threads if there are bytes
/// enough to read.
pub(crate) fn for_each_range(
    work: &mut Work<'_>,
    n: usize,
    m: usize,
    bytes: usize,
    piece: impl Fn(std::ops::Range<usize>) + Sync,
) {
    let threads = if bytes > LEAST_BYTES { work.threads().min(MOST_PIECES) } else { 1 };
    let rounds = n.div_ceil(threads * (MOST_OUTPUTS / m.max(1)).max(LANES));
    let size = n.div_ceil(threads * rounds).next_multiple_of(LANES);
    let count = n.div_ceil(size);
    let range = |i: usize| i * size..n.min((i + 1) * size);
    if threads == 1 {
        (0..count).map(range).for_each(piece);
        return;
    }
    // Ranges of a piece.
    let some = count.div_ceil(MOST_PIECES);
    work.share(count.div_ceil(some), |i| (i * some..count.min((i + 1) * some)).map(range).for_each(&piece));
}

/// An output whose columns several threads write. Its rows do not overlap.
#[derive(Clone, Copy)]
pub(crate) struct Columns<'a> {
    data: *mut f32,
    len: usize,
    ld: usize,
    cols: usize,
    output: PhantomData<&'a mut [f32]>,
}

// SAFETY: it is only written through `Columns::part`, whose callers ask for disjoint ranges.
unsafe impl Send for Columns<'_> {}
// SAFETY: as above.
unsafe impl Sync for Columns<'_> {}

impl<'a> Columns<'a> {
    pub(crate) fn new(y: &'a mut [f32], cols: usize, ld: usize) -> Self {
        assert!(cols <= ld);
        Self { data: y.as_mut_ptr(), len: y.len(), ld, cols, output: PhantomData }
    }

    /// Some columns of a row.
    ///
    /// # Safety
    /// No two slices of one row that are alive at the same time may overlap.
    pub(crate) unsafe fn part(self, row: usize, range: &std::ops::Range<usize>) -> &'a mut [f32] {
        let start = row * self.ld + range.start;
        assert!(range.start <= range.end && range.end <= self.cols && start + range.len() <= self.len);
        // SAFETY: the range lies in the row, the row in the output; the rest is the caller's.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), range.len()) }
    }
}
