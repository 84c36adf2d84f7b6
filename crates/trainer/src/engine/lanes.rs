//! Elementwise passes over several slices side by side.

use tinygpt_sampler::simd::{LANES, Lanes, Simd};

/// What is done to the same sixteen elements of N slices.
///
/// It is a trait and not a closure, since it is called in two places of [`by_lanes`]: a closure would be a function of its
/// own there, compiled without the kernel's vector instructions.
pub(super) trait LaneOp<const N: usize> {
    /// Overwrites the elements. Implementations are `#[inline(always)]`.
    fn lanes<S: Simd>(&self, s: S, lanes: [&mut Lanes; N]);
}

/// Runs an operation on vector after vector of slices that have the same length. The elements after the last whole vector
/// come in vectors padded with zeros, of which only as many are stored.
#[inline(always)]
pub(super) fn by_lanes<S: Simd, const N: usize>(s: S, op: &impl LaneOp<N>, slices: [&mut [f32]; N]) {
    let mut slices = slices.map(|slice| slice.as_chunks_mut::<LANES>());
    let vectors = slices.iter().map(|(vectors, _)| vectors.len()).min().unwrap_or(0);
    for i in 0..vectors {
        op.lanes(s, slices.each_mut().map(|(vectors, _)| &mut vectors[i]));
    }
    let rest = slices.iter().map(|(_, rest)| rest.len()).min().unwrap_or(0);
    if rest > 0 {
        let mut padded = [[0.0; LANES]; N];
        for (lanes, (_, slice)) in padded.iter_mut().zip(&slices) {
            lanes[..rest].copy_from_slice(&slice[..rest]);
        }
        op.lanes(s, padded.each_mut());
        for (lanes, (_, slice)) in padded.iter().zip(&mut slices) {
            slice[..rest].copy_from_slice(&lanes[..rest]);
        }
    }
}
