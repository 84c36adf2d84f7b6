//! The level without vector instructions: sixteen floats, one after the other. It defines what the other levels
//! compute.

use super::{EXP2_EIGHTHS, LANES, Lanes, Sealed, Simd, VECTOR_BYTES};
use std::{array::from_fn, cmp::Ordering};

/// The operations without vector instructions; no proof is needed.
#[derive(Clone, Copy)]
pub(super) struct Scalar;

/// The mask of the lanes for which a condition holds.
fn mask(holds: impl Fn(usize) -> bool) -> u16 {
    (0..LANES).fold(0, |mask, i| mask | u16::from(holds(i)) << i)
}

/// Moves the elements of the mask to the front.
fn compress_lanes<T: Copy>(mask: u16, from: impl Fn(usize) -> T, to: &mut [T; LANES]) {
    let lanes = (0..LANES).filter(|i| mask >> i & 1 == 1);
    for (place, lane) in to.iter_mut().zip(lanes) {
        *place = from(lane);
    }
}

impl Sealed for Scalar {}

impl Simd for Scalar {
    type V = Lanes;
    type I = [i32; LANES];
    const VECTORS: usize = 8;

    fn splat(self, x: f32) -> Lanes {
        [x; LANES]
    }
    fn load(self, from: &Lanes) -> Lanes {
        *from
    }
    fn load_bf16(self, from: &[u16; LANES]) -> Lanes {
        from.map(|x| f32::from_bits(u32::from(x) << 16))
    }
    fn load_bytes(self, from: &[u8; VECTOR_BYTES]) -> [i32; LANES] {
        let (lanes, _) = from.as_chunks();
        from_fn(|i| i32::from_le_bytes(lanes[i]))
    }
    fn splat_i32(self, x: i32) -> [i32; LANES] {
        [x; LANES]
    }
    fn to_f32(self, v: [i32; LANES]) -> Lanes {
        v.map(|x| x as f32)
    }
    fn nibbles(self, v: [i32; LANES]) -> [[i32; LANES]; 2] {
        [v, v.map(|x| x >> 4)].map(|v| v.map(|x| x & 0x0f0f_0f0f))
    }
    fn dot_u8_i8(self, a: [i32; LANES], b: [i32; LANES], c: [i32; LANES]) -> [i32; LANES] {
        from_fn(|i| {
            let pairs = a[i].to_le_bytes().into_iter().zip(b[i].to_le_bytes());
            pairs.fold(c[i], |sum, (a, b)| sum.wrapping_add(i32::from(a) * i32::from(b.cast_signed())))
        })
    }
    fn store(self, v: Lanes, to: &mut Lanes) {
        *to = v;
    }
    fn add(self, a: Lanes, b: Lanes) -> Lanes {
        from_fn(|i| a[i] + b[i])
    }
    fn sub(self, a: Lanes, b: Lanes) -> Lanes {
        from_fn(|i| a[i] - b[i])
    }
    fn mul(self, a: Lanes, b: Lanes) -> Lanes {
        from_fn(|i| a[i] * b[i])
    }
    fn div(self, a: Lanes, b: Lanes) -> Lanes {
        from_fn(|i| a[i] / b[i])
    }
    fn sqrt(self, v: Lanes) -> Lanes {
        v.map(f32::sqrt)
    }
    fn mul_add(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    fn max(self, a: Lanes, b: Lanes) -> Lanes {
        from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    fn ge(self, a: Lanes, b: Lanes) -> u16 {
        mask(|i| a[i] >= b[i])
    }
    fn gt(self, a: Lanes, b: Lanes) -> u16 {
        mask(|i| a[i] > b[i])
    }
    fn not_lt(self, a: Lanes, b: Lanes) -> u16 {
        // Not `a >= b`, which NaN fails.
        mask(|i| !matches!(a[i].partial_cmp(&b[i]), Some(Ordering::Less)))
    }
    fn unordered(self, a: Lanes, b: Lanes) -> u16 {
        mask(|i| a[i].is_nan() || b[i].is_nan())
    }
    fn keep(self, mask: u16, v: Lanes) -> Lanes {
        from_fn(|i| if mask >> i & 1 == 1 { v[i] } else { 0.0 })
    }
    fn exp2_eighths(self, n: Lanes) -> Lanes {
        from_fn(|i| {
            let bits = n[i].to_bits();
            let eighth = EXP2_EIGHTHS[(bits & 7) as usize].to_bits();
            f32::from_bits(eighth.wrapping_add((bits & !7) << 20))
        })
    }
    fn sum(self, mut v: Lanes) -> f32 {
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                v[i] += v[i + width];
            }
        }
        v[0]
    }
    fn largest(self, v: Lanes) -> f32 {
        v.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    fn store_bytes(self, v: Lanes, to: &mut [u8; LANES]) {
        *to = v.map(|x| x.to_bits() as u8);
    }
    fn compress(self, mask: u16, v: Lanes, to: &mut Lanes) {
        compress_lanes(mask, |i| v[i], to);
    }
    fn compress_range(self, mask: u16, first: u32, to: &mut [u32; LANES]) {
        compress_lanes(mask, |i| first.wrapping_add(i as u32), to);
    }
    fn compress_integers(self, mask: u16, from: &[u32; LANES], to: &mut [u32; LANES]) {
        compress_lanes(mask, |i| from[i], to);
    }
}
