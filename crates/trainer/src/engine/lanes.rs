//! Elementwise passes over several slices side by side.

use tinygpt_sampler::simd::{LANES, Lanes};

/// Calls `f` with vector after vector of slices that have the same length. The elements after the last whole vector come
/// in vectors padded with zeros, of which only as many are stored.
#[inline(always)]
pub(super) fn by_lanes<const N: usize>(slices: [&mut [f32]; N], mut f: impl FnMut([&mut Lanes; N])) {
    let mut slices = slices.map(|slice| slice.as_chunks_mut::<LANES>());
    let vectors = slices.iter().map(|(vectors, _)| vectors.len()).min().unwrap_or(0);
    for i in 0..vectors {
        f(slices.each_mut().map(|(vectors, _)| &mut vectors[i]));
    }
    let rest = slices.iter().map(|(_, rest)| rest.len()).min().unwrap_or(0);
    if rest > 0 {
        let mut padded = [[0.0; LANES]; N];
        for (lanes, (_, slice)) in padded.iter_mut().zip(&slices) {
            lanes[..rest].copy_from_slice(&slice[..rest]);
        }
        f(padded.each_mut());
        for (lanes, (_, slice)) in padded.iter().zip(&mut slices) {
            slice[..rest].copy_from_slice(&lanes[..rest]);
        }
    }
}
