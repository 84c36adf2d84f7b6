//! AVX-512: one register holds the sixteen lanes.

#![allow(unsafe_code)]

use super::avx2::sum_eight;
use super::{EIGHTHS, Kernel, LANES, Lanes, Simd, bf16};
use std::{arch::x86_64::*, mem::transmute};

/// Proof that AVX-512F may run, and with `BF16` AVX512-BF16 and AVX-512BW too.
#[derive(Clone, Copy)]
pub(super) struct Avx512<const BF16: bool>(());

/// The bits of `2^(i / 8)` less `i << 20`, so that adding `n << 20` adds only what of n lies above its low three bits.
/// Twice, since the permutation reads the low four bits of each index.
const EIGHTHS_LESS: [u32; 16] = {
    let mut table = [0; 16];
    let mut i = 0;
    while i < 16 {
        table[i] = EIGHTHS[i % 8].to_bits() - ((i as u32 % 8) << 20);
        i += 1;
    }
    table
};

pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("popcnt")
        && is_x86_feature_detected!("bmi1")
}

pub(super) fn has_bf16() -> bool {
    is_available() && is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512bf16")
}

/// # Safety
/// The processor must have the features.
#[target_feature(enable = "avx512f,fma,popcnt,bmi1")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512::<false>(()))
}

/// # Safety
/// The processor must have the features.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16,fma,popcnt,bmi1")]
pub(super) unsafe fn run_bf16<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512::<true>(()))
}

// SAFETY, for every block below: an `Avx512` exists only inside `run` or `run_bf16`, whose caller vouches for the features; the
// pointers come from references to sixteen elements.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<const BF16: bool> Simd for Avx512<BF16> {
    type V = __m512;
    const VECTORS: usize = 32;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn load(self, from: &Lanes) -> __m512 {
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> __m512 {
        unsafe {
            let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
        }
    }
    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast()))) }
    }
    #[inline(always)]
    fn store(self, v: __m512, to: &mut Lanes) {
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn sqrt(self, v: __m512) -> __m512 {
        unsafe { _mm512_sqrt_ps(v) }
    }
    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn ge(self, a: __m512, b: __m512) -> u16 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_GE_OQ>(a, b) }
    }
    #[inline(always)]
    fn gt(self, a: __m512, b: __m512) -> u16 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b) }
    }
    #[inline(always)]
    fn unordered(self, a: __m512, b: __m512) -> u16 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, b) }
    }
    #[inline(always)]
    fn keep(self, mask: u16, v: __m512) -> __m512 {
        unsafe { _mm512_maskz_mov_ps(mask, v) }
    }
    #[inline(always)]
    fn power_of_eighths(self, n: __m512) -> __m512 {
        unsafe {
            let table = _mm512_loadu_si512(EIGHTHS_LESS.as_ptr().cast());
            let bits = _mm512_castps_si512(n);
            let eighth = _mm512_permutexvar_epi32(bits, table);
            let whole = _mm512_slli_epi32::<20>(bits);
            _mm512_castsi512_ps(_mm512_add_epi32(eighth, whole))
        }
    }
    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        unsafe {
            let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(v)));
            sum_eight(_mm256_add_ps(_mm512_castps512_ps256(v), high))
        }
    }
    // Compress in the register, then store: the compressing store is microcode on Zen 4, a hundred cycles each.
    #[inline(always)]
    fn compress(self, mask: u16, v: __m512, to: &mut Lanes) {
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), _mm512_maskz_compress_ps(mask, v)) }
    }
    // Half a vector is written more often without touching a second cache line.
    #[inline(always)]
    fn compress_few(self, mask: u16, v: __m512, to: &mut Lanes) {
        unsafe {
            let front = _mm512_maskz_compress_ps(mask, v);
            _mm256_storeu_ps(to.as_mut_ptr(), _mm512_castps512_ps256(front));
            if mask.count_ones() > 8 {
                _mm512_storeu_ps(to.as_mut_ptr(), front);
            }
        }
    }
    #[inline(always)]
    fn compress_range(self, mask: u16, first: u32, to: &mut [u32; LANES]) {
        unsafe {
            let steps = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            let range = _mm512_add_epi32(_mm512_set1_epi32(first as i32), steps);
            let front = _mm512_maskz_compress_epi32(mask, range);
            _mm512_storeu_si512(to.as_mut_ptr().cast(), front);
        }
    }
    #[inline(always)]
    fn compress_integers(self, mask: u16, from: &[u32; LANES], to: &mut [u32; LANES]) {
        unsafe {
            let v = _mm512_loadu_si512(from.as_ptr().cast());
            _mm512_storeu_si512(to.as_mut_ptr().cast(), _mm512_maskz_compress_epi32(mask, v));
        }
    }
    #[inline(always)]
    fn pairs_bf16(self, low: __m512, high: __m512) -> __m512 {
        if !BF16 {
            return bf16::pairs(self, low, high);
        }
        unsafe {
            let low = _mm512_cvtepu16_epi32(bits(_mm512_cvtneps_pbh(low)));
            let high = _mm512_cvtepu16_epi32(bits(_mm512_cvtneps_pbh(high)));
            _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32::<16>(high)))
        }
    }
    #[inline(always)]
    fn neighbours_bf16(self, first: __m512, second: __m512) -> __m512 {
        if !BF16 {
            return bf16::neighbours(self, first, second);
        }
        unsafe { transmute(_mm512_cvtne2ps_pbh(second, first)) }
    }
    #[inline(always)]
    fn dot_bf16(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        if !BF16 {
            return bf16::dot(self, a, b, c);
        }
        unsafe { _mm512_dpbf16_ps(c, transmute::<__m512, __m512bh>(a), transmute::<__m512, __m512bh>(b)) }
    }
}

/// The bits of sixteen bf16.
#[inline(always)]
fn bits(v: __m256bh) -> __m256i {
    // SAFETY: both are any 256 bits.
    unsafe { transmute(v) }
}
