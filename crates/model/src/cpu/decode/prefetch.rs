//! Software prefetching of weights: a product reads many short streams, too many for the hardware prefetcher to follow.

#![allow(unsafe_code)]

use tinygpt_sampler::simd::{LANES, Simd};

use super::format::WeightElement;
use crate::cpu::prefetch::prefetch_line;

/// Bytes of a cache line.
pub(super) const LINE_BYTES: usize = 64;

/// Prefetches the cache lines of N vectors that begin `ahead` elements after the start of `weights`.
#[inline(always)]
pub(crate) fn prefetch<E: WeightElement, const N: usize>(weights: &[E], ahead: usize) {
    for line in 0..(N * LANES * size_of::<E>()).div_ceil(LINE_BYTES) {
        prefetch_line(weights.as_ptr().wrapping_add(ahead + line * LINE_BYTES / size_of::<E>()));
    }
}

/// Loads vector `v` of a row of weights, and at the start of each cache line prefetches the one `ahead` elements later.
///
/// # Safety
/// `row` must have at least `(v + 1) * LANES` elements.
#[inline(always)]
pub(crate) unsafe fn load_and_prefetch<S: Simd, E: WeightElement>(s: S, row: &[E], v: usize, ahead: usize) -> S::V {
    // SAFETY: the caller's.
    let at = unsafe { row.as_ptr().add(v * LANES) };
    if (v * LANES * size_of::<E>()).is_multiple_of(LINE_BYTES) {
        prefetch_line(at.wrapping_add(ahead));
    }
    // SAFETY: the caller's.
    E::load(s, unsafe { &*at.cast::<[E; LANES]>() })
}
