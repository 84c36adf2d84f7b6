//! bf16, the upper half of an f32: rounding, packing and dot products, for levels without instructions for bf16.

use super::{LANES, Lanes, Simd};

/// The bits of the nearest bf16, ties to even; a NaN stays a NaN.
#[inline(always)]
pub fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    let odd = bits >> 16 & 1;
    ((bits + 0x7fff + odd) >> 16) as u16
}

/// Widens the two bf16 of a lane, that of the lower half first.
#[inline(always)]
fn split(pair: f32) -> [f32; 2] {
    [f32::from_bits(pair.to_bits() << 16), f32::from_bits(pair.to_bits() & 0xffff_0000)]
}

/// The lanes of a vector, stored.
#[inline(always)]
fn lanes<S: Simd>(s: S, v: S::V) -> Lanes {
    let mut lanes = [0.0; LANES];
    s.store(v, &mut lanes);
    lanes
}

/// Rounds two numbers to bf16 and packs them into a lane.
#[inline(always)]
fn pair(low: f32, high: f32) -> f32 {
    f32::from_bits(u32::from(to_bf16(low)) | u32::from(to_bf16(high)) << 16)
}

/// See [`Simd::pairs_bf16`].
#[inline(always)]
pub(super) fn pairs<S: Simd>(s: S, low: S::V, high: S::V) -> S::V {
    let (low, high) = (lanes(s, low), lanes(s, high));
    s.load(&std::array::from_fn(|i| pair(low[i], high[i])))
}

/// See [`Simd::neighbours_bf16`].
#[inline(always)]
pub(super) fn neighbours<S: Simd>(s: S, first: S::V, second: S::V) -> S::V {
    let both = [lanes(s, first), lanes(s, second)];
    let all = both.as_flattened();
    s.load(&std::array::from_fn(|i| pair(all[2 * i], all[2 * i + 1])))
}

/// See [`Simd::dot_bf16`].
#[inline(always)]
pub(super) fn dot<S: Simd>(s: S, a: S::V, b: S::V, c: S::V) -> S::V {
    let (a, b, c) = (lanes(s, a), lanes(s, b), lanes(s, c));
    let dot = |i: usize| {
        let ([a0, a1], [b0, b1]) = (split(a[i]), split(b[i]));
        // Products of bf16 are exact in f32.
        c[i] + a1 * b1 + a0 * b0
    };
    s.load(&std::array::from_fn(dot))
}
