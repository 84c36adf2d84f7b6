//! Reading weights ahead of their use: they are too many, in too short streams, for the processor to foresee which will be
//! read.

#![allow(unsafe_code)]

use tinygpt_sampler::simd::{LANES, Simd};

use super::format::WeightElement;

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

/// Asks for a line of the cache, which will be read soon. It may lie behind the last weight.
#[inline(always)]
fn prefetch_line<E: WeightElement>(line: *const E) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: prefetching reads nothing and may name any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// Asks for the lines of N vectors, `ahead` elements behind those that begin here.
#[inline(always)]
pub(crate) fn prefetch<E: WeightElement, const N: usize>(weights: &[E], ahead: usize) {
    for line in 0..(N * LANES * size_of::<E>()).div_ceil(LINE_BYTES) {
        prefetch_line(weights.as_ptr().wrapping_add(ahead + line * LINE_BYTES / size_of::<E>()));
    }
}

/// Vector `v` of a row of weights; asks for the line `ahead` elements further on.
///
/// # Safety
/// The row must have the vector.
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
