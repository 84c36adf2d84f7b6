//! NEON: four registers hold the sixteen lanes.

#![allow(unsafe_code)]

use super::{EXP2_EIGHTHS, Kernel, LANES, Lanes, Sealed, Simd, VECTOR_BYTES};
use std::arch::aarch64::*;
use std::array::from_fn;

/// The proof that NEON may run. Only [`run`] makes one.
#[derive(Clone, Copy)]
pub(super) struct Neon(());

/// Lanes 4i to 4i + 3 in register i.
type FourRegisters = [float32x4_t; 4];

/// Runs a kernel compiled for NEON.
///
/// # Safety
/// The processor must have NEON.
#[target_feature(enable = "neon")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Neon(()))
}

impl Neon {
    /// The mask of the lanes in which a comparison holds, given for each register.
    #[inline(always)]
    fn masks(self, f: impl Fn(usize) -> uint32x4_t) -> u16 {
        // SAFETY: `self` proves NEON; the pointer is to four integers.
        unsafe {
            let lanes = vld1q_u32([1u32, 2, 4, 8].as_ptr());
            let quarter = |i| vaddvq_u32(vandq_u32(f(i), lanes)) as u16;
            quarter(0) | quarter(1) << 4 | quarter(2) << 8 | quarter(3) << 12
        }
    }
}

/// Moves the elements of the mask to the front one by one: NEON has no compressing instruction.
#[inline(always)]
fn compress_lanes<T: Copy>(mask: u16, from: impl Fn(usize) -> T, to: &mut [T; LANES]) {
    let (mut rest, mut place) = (mask, 0);
    while rest != 0 {
        to[place] = from(rest.trailing_zeros() as usize);
        rest &= rest - 1;
        place += 1;
    }
}

impl Sealed for Neon {}

// SAFETY, for every block below: a `Neon` exists only inside `run`, whose caller vouches for NEON. The pointers come
// from references to whole vectors, of which quarters are accessed; to four masks of lanes;
// or to the eight floats of `EXP2_EIGHTHS`.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Neon {
    type V = FourRegisters;
    type I = [int32x4_t; 4];
    const VECTORS: usize = 8;

    #[inline(always)]
    fn splat(self, x: f32) -> FourRegisters {
        [unsafe { vdupq_n_f32(x) }; 4]
    }
    #[inline(always)]
    fn load(self, from: &Lanes) -> FourRegisters {
        from_fn(|i| unsafe { vld1q_f32(from.as_ptr().add(4 * i)) })
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> FourRegisters {
        from_fn(|i| unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(from.as_ptr().add(4 * i)))) })
    }
    #[inline(always)]
    fn load_bytes(self, from: &[u8; VECTOR_BYTES]) -> [int32x4_t; 4] {
        from_fn(|i| unsafe { vreinterpretq_s32_u8(vld1q_u8(from.as_ptr().add(16 * i))) })
    }
    #[inline(always)]
    fn splat_i32(self, x: i32) -> [int32x4_t; 4] {
        [unsafe { vdupq_n_s32(x) }; 4]
    }
    #[inline(always)]
    fn to_f32(self, v: [int32x4_t; 4]) -> FourRegisters {
        v.map(|v| unsafe { vcvtq_f32_s32(v) })
    }
    #[inline(always)]
    fn nibbles(self, v: [int32x4_t; 4]) -> [[int32x4_t; 4]; 2] {
        let lower = v.map(|v| unsafe { vandq_s32(v, vdupq_n_s32(0x0f0f_0f0f)) });
        let upper = v.map(|v| unsafe { vreinterpretq_s32_u8(vshrq_n_u8::<4>(vreinterpretq_u8_s32(v))) });
        [lower, upper]
    }
    // Bytes are widened to 16 bits, since the instructions for bytes of both kinds (i8mm) are not in every processor.
    #[inline(always)]
    fn dot_u8_i8(self, a: [int32x4_t; 4], b: [int32x4_t; 4], c: [int32x4_t; 4]) -> [int32x4_t; 4] {
        from_fn(|i| unsafe {
            let (a, b) = (vreinterpretq_u8_s32(a[i]), vreinterpretq_s8_s32(b[i]));
            let wide_a = [vmovl_u8(vget_low_u8(a)), vmovl_u8(vget_high_u8(a))].map(|a| vreinterpretq_s16_u16(a));
            let wide_b = [vmovl_s8(vget_low_s8(b)), vmovl_s8(vget_high_s8(b))];
            // The products of one lane of four bytes, then those of the next.
            let pairs = |i: usize| {
                let (a, b) = (wide_a[i], wide_b[i]);
                let first = vmull_s16(vget_low_s16(a), vget_low_s16(b));
                let second = vmull_s16(vget_high_s16(a), vget_high_s16(b));
                vpaddq_s32(first, second)
            };
            vaddq_s32(c[i], vpaddq_s32(pairs(0), pairs(1)))
        })
    }
    #[inline(always)]
    fn store(self, v: FourRegisters, to: &mut Lanes) {
        for (i, quarter) in v.into_iter().enumerate() {
            unsafe { vst1q_f32(to.as_mut_ptr().add(4 * i), quarter) }
        }
    }
    #[inline(always)]
    fn add(self, a: FourRegisters, b: FourRegisters) -> FourRegisters {
        from_fn(|i| unsafe { vaddq_f32(a[i], b[i]) })
    }
    #[inline(always)]
    fn sub(self, a: FourRegisters, b: FourRegisters) -> FourRegisters {
        from_fn(|i| unsafe { vsubq_f32(a[i], b[i]) })
    }
    #[inline(always)]
    fn mul(self, a: FourRegisters, b: FourRegisters) -> FourRegisters {
        from_fn(|i| unsafe { vmulq_f32(a[i], b[i]) })
    }
    #[inline(always)]
    fn div(self, a: FourRegisters, b: FourRegisters) -> FourRegisters {
        from_fn(|i| unsafe { vdivq_f32(a[i], b[i]) })
    }
    #[inline(always)]
    fn sqrt(self, v: FourRegisters) -> FourRegisters {
        from_fn(|i| unsafe { vsqrtq_f32(v[i]) })
    }
    #[inline(always)]
    fn mul_add(self, a: FourRegisters, b: FourRegisters, c: FourRegisters) -> FourRegisters {
        from_fn(|i| unsafe { vfmaq_f32(c[i], a[i], b[i]) })
    }
    #[inline(always)]
    fn max(self, a: FourRegisters, b: FourRegisters) -> FourRegisters {
        from_fn(|i| unsafe { vmaxq_f32(a[i], b[i]) })
    }
    #[inline(always)]
    fn ge(self, a: FourRegisters, b: FourRegisters) -> u16 {
        self.masks(|i| unsafe { vcgeq_f32(a[i], b[i]) })
    }
    #[inline(always)]
    fn gt(self, a: FourRegisters, b: FourRegisters) -> u16 {
        self.masks(|i| unsafe { vcgtq_f32(a[i], b[i]) })
    }
    #[inline(always)]
    fn not_lt(self, a: FourRegisters, b: FourRegisters) -> u16 {
        self.masks(|i| unsafe { vmvnq_u32(vcltq_f32(a[i], b[i])) })
    }
    #[inline(always)]
    fn unordered(self, a: FourRegisters, b: FourRegisters) -> u16 {
        self.masks(|i| unsafe { vmvnq_u32(vandq_u32(vceqq_f32(a[i], a[i]), vceqq_f32(b[i], b[i]))) })
    }
    #[inline(always)]
    fn keep(self, mask: u16, v: FourRegisters) -> FourRegisters {
        from_fn(|i| unsafe {
            let lanes = vld1q_u32([1u32, 2, 4, 8].as_ptr());
            let set = vtstq_u32(vdupq_n_u32(u32::from(mask >> (4 * i))), lanes);
            vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v[i]), set))
        })
    }
    #[inline(always)]
    fn exp2_eighths(self, n: FourRegisters) -> FourRegisters {
        from_fn(|i| unsafe {
            let bits = vreinterpretq_u32_f32(n[i]);
            // A table look-up of bytes: 4 * index + 0, 1, 2 and 3 in each lane.
            let index = vandq_u32(bits, vdupq_n_u32(7));
            let bytes = vmlaq_u32(vdupq_n_u32(0x0302_0100), index, vdupq_n_u32(0x0404_0404));
            let table = uint8x16x2_t(
                vreinterpretq_u8_f32(vld1q_f32(EXP2_EIGHTHS.as_ptr())),
                vreinterpretq_u8_f32(vld1q_f32(EXP2_EIGHTHS.as_ptr().add(4))),
            );
            let eighth = vreinterpretq_u32_u8(vqtbl2q_u8(table, vreinterpretq_u8_u32(bytes)));
            let whole = vshlq_n_u32::<20>(vandq_u32(bits, vdupq_n_u32(!7)));
            vreinterpretq_f32_u32(vaddq_u32(eighth, whole))
        })
    }
    #[inline(always)]
    fn sum(self, v: FourRegisters) -> f32 {
        unsafe {
            let eight = [vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3])];
            let four = vaddq_f32(eight[0], eight[1]);
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
        }
    }
    #[inline(always)]
    fn largest(self, v: FourRegisters) -> f32 {
        unsafe { vmaxvq_f32(vmaxq_f32(vmaxq_f32(v[0], v[1]), vmaxq_f32(v[2], v[3]))) }
    }
    #[inline(always)]
    fn store_bytes(self, v: FourRegisters, to: &mut [u8; LANES]) {
        unsafe {
            let words = v.map(|v| vmovn_u32(vreinterpretq_u32_f32(v)));
            let low = vmovn_u16(vcombine_u16(words[0], words[1]));
            let high = vmovn_u16(vcombine_u16(words[2], words[3]));
            vst1q_u8(to.as_mut_ptr(), vcombine_u8(low, high));
        }
    }
    #[inline(always)]
    fn compress(self, mask: u16, v: FourRegisters, to: &mut Lanes) {
        let mut lanes = [0.0; LANES];
        self.store(v, &mut lanes);
        compress_lanes(mask, |i| lanes[i], to);
    }
    #[inline(always)]
    fn compress_range(self, mask: u16, first: u32, to: &mut [u32; LANES]) {
        compress_lanes(mask, |i| first.wrapping_add(i as u32), to);
    }
    #[inline(always)]
    fn compress_integers(self, mask: u16, from: &[u32; LANES], to: &mut [u32; LANES]) {
        compress_lanes(mask, |i| from[i], to);
    }
}
