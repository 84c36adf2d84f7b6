//! Software prefetching of what the hardware does not see coming.

#![allow(unsafe_code)]

/// Prefetches the cache line at `line`, which may lie beyond any allocation. Elsewhere than on x86-64 it does nothing.
#[inline(always)]
pub(crate) fn prefetch_line<T>(line: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: prefetching reads nothing and may name any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}
