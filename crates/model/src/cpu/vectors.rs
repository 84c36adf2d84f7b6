//! Loads and stores of a row of floats as vectors of sixteen, the last of which may be partial.

use tinygpt_sampler::simd::{LANES, Lanes, Simd};

/// The number of vectors of a row, the partial one included.
#[inline(always)]
pub(crate) fn count(row: &[f32]) -> usize {
    row.len().div_ceil(LANES)
}

/// Loads vector `i` of a row, padded with zeros.
#[inline(always)]
pub(crate) fn get<S: Simd>(s: S, row: &[f32], i: usize) -> S::V {
    match row[i * LANES..].first_chunk::<LANES>() {
        Some(lanes) => s.load(lanes),
        None => {
            let mut lanes: Lanes = [0.0; LANES];
            let rest = &row[i * LANES..];
            lanes[..rest.len()].copy_from_slice(rest);
            s.load(&lanes)
        }
    }
}

/// Stores vector `i` of a row, up to the row's end.
#[inline(always)]
pub(crate) fn set<S: Simd>(s: S, row: &mut [f32], i: usize, v: S::V) {
    match row[i * LANES..].first_chunk_mut::<LANES>() {
        Some(lanes) => s.store(v, lanes),
        None => {
            let mut lanes: Lanes = [0.0; LANES];
            s.store(v, &mut lanes);
            let rest = &mut row[i * LANES..];
            let n = rest.len();
            rest.copy_from_slice(&lanes[..n]);
        }
    }
}

/// The mask of the lanes of vector `i` that lie within a row of `len` floats.
#[inline(always)]
pub(crate) fn lane_mask(len: usize, i: usize) -> u16 {
    match len.saturating_sub(i * LANES) {
        0 => 0,
        n if n < LANES => (1 << n) - 1,
        _ => u16::MAX,
    }
}
