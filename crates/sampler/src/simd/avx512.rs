//! AVX-512: one register holds the sixteen lanes.

#![allow(unsafe_code)]

use super::avx2::{dot_register, largest_of_register, sum_register};
use super::{EXP2_EIGHTHS, Kernel, LANES, Lanes, Sealed, Simd, VECTOR_BYTES, bf16};
use std::{arch::x86_64::*, mem::transmute};

/// The proof that AVX-512F, FMA, POPCNT and BMI1 may run, with `BF16` AVX512-BF16 and AVX-512BW too, and with `VNNI` AVX512-VNNI
/// and AVX-512BW. Only [`run`], [`run_bf16`] and [`run_vnni`] make one.
#[derive(Clone, Copy)]
pub(super) struct Avx512<const BF16: bool, const VNNI: bool>(());

/// The bits of `2^(i / 8)` less `i << 20`, so that adding `n << 20` adds the bits of n above the low three alone. The
/// table of eight is repeated, as the permutation uses the low four bits of each index.
const EXP2_EIGHTHS_BITS: [u32; 16] = {
    let mut table = [0; 16];
    let mut i = 0;
    while i < 16 {
        table[i] = EXP2_EIGHTHS[i % 8].to_bits() - ((i as u32 % 8) << 20);
        i += 1;
    }
    table
};

/// Whether the processor has all features that [`run`] needs.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("popcnt")
        && is_x86_feature_detected!("bmi1")
}

/// Whether the processor has all features that [`run_bf16`] needs.
pub(super) fn has_bf16() -> bool {
    is_available() && is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512bf16")
}

/// Whether the processor has all features that [`run_vnni`] needs.
pub(super) fn has_vnni() -> bool {
    is_available() && is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vnni")
}

/// Runs a kernel compiled for AVX-512.
///
/// # Safety
/// The processor must have AVX-512F, FMA, POPCNT and BMI1: see [`is_available`].
#[target_feature(enable = "avx512f,fma,popcnt,bmi1")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512::<false, false>(()))
}

/// Runs a kernel compiled for AVX-512 with AVX512-BF16.
///
/// # Safety
/// The processor must have AVX512-BF16 and AVX-512BW beside the features of [`run`]: see [`has_bf16`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16,fma,popcnt,bmi1")]
pub(super) unsafe fn run_bf16<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512::<true, false>(()))
}

/// Runs a kernel compiled for AVX-512 with AVX512-VNNI.
///
/// # Safety
/// The processor must have AVX512-VNNI and AVX-512BW beside the features of [`run`]: see [`has_vnni`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,fma,popcnt,bmi1")]
pub(super) unsafe fn run_vnni<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512::<false, true>(()))
}

impl<const BF16: bool, const VNNI: bool> Sealed for Avx512<BF16, VNNI> {}

// SAFETY, for every block below: an `Avx512` exists only inside `run` or, with `BF16`, `run_bf16`, or, with `VNNI`,
// `run_vnni`, whose callers vouch for the features. AVX-512F includes AVX2. The pointers come from references to whole vectors,
// of sixteen elements or of their lowest bytes, and are accessed without alignment. The
// transmuted types are 512 bits each, any of which are valid.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<const BF16: bool, const VNNI: bool> Simd for Avx512<BF16, VNNI> {
    type V = __m512;
    type I = __m512i;
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
    fn load_f16(self, from: &[u16; LANES]) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_bytes(self, from: &[u8; VECTOR_BYTES]) -> __m512i {
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }
    #[inline(always)]
    fn splat_i32(self, x: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    fn to_f32(self, v: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(v) }
    }
    #[inline(always)]
    fn nibbles(self, v: __m512i) -> [__m512i; 2] {
        unsafe {
            let lower = _mm512_set1_epi8(0xf);
            [_mm512_and_si512(v, lower), _mm512_and_si512(_mm512_srli_epi32::<4>(v), lower)]
        }
    }
    #[inline(always)]
    fn dot_u8_i8(self, a: __m512i, b: __m512i, c: __m512i) -> __m512i {
        unsafe {
            if VNNI {
                return _mm512_dpbusd_epi32(c, a, b);
            }
            let halves = |v| (_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64::<1>(v));
            let ((a, a_high), (b, b_high), (c, c_high)) = (halves(a), halves(b), halves(c));
            let low = _mm512_castsi256_si512(dot_register(a, b, c));
            _mm512_inserti64x4::<1>(low, dot_register(a_high, b_high, c_high))
        }
    }
    #[inline(always)]
    fn store(self, v: __m512, to: &mut Lanes) {
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn transpose(self, r: [__m512; LANES]) -> [__m512; LANES] {
        unsafe {
            // Within each quarter of a register: 2 x 2 blocks of lanes, then 4 x 4 blocks.
            let pairs: [__m512; LANES] = std::array::from_fn(|i| {
                let (a, b) = (r[i / 2 * 2], r[i / 2 * 2 + 1]);
                if i % 2 == 0 { _mm512_unpacklo_ps(a, b) } else { _mm512_unpackhi_ps(a, b) }
            });
            let fours: [__m512; LANES] = std::array::from_fn(|i| {
                let at = i / 4 * 4 + i % 4 / 2;
                let (a, b) = (_mm512_castps_pd(pairs[at]), _mm512_castps_pd(pairs[at + 2]));
                _mm512_castpd_ps(if i % 2 == 0 { _mm512_unpacklo_pd(a, b) } else { _mm512_unpackhi_pd(a, b) })
            });
            // `fours[4 q + c]` has, in quarter p, column 4 p + c of rows 4 q to 4 q + 3. The quarters are transposed.
            let halves: [__m512; LANES] = std::array::from_fn(|i| {
                let (a, b) = (fours[i / 8 * 8 + i % 4], fours[i / 8 * 8 + i % 4 + 4]);
                if i % 8 < 4 { _mm512_shuffle_f32x4::<0x88>(a, b) } else { _mm512_shuffle_f32x4::<0xdd>(a, b) }
            });
            // `halves[8 h + c]` has columns c and c + 8 of the rows of half h, `halves[8 h + c + 4]` those 4 further on.
            std::array::from_fn(|j| {
                let (a, b) = (halves[j % 8], halves[j % 8 + 8]);
                if j < 8 { _mm512_shuffle_f32x4::<0x88>(a, b) } else { _mm512_shuffle_f32x4::<0xdd>(a, b) }
            })
        }
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
    fn not_lt(self, a: __m512, b: __m512) -> u16 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(a, b) }
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
    fn exp2_eighths(self, n: __m512) -> __m512 {
        unsafe {
            let table = _mm512_loadu_si512(EXP2_EIGHTHS_BITS.as_ptr().cast());
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
            sum_register(_mm256_add_ps(_mm512_castps512_ps256(v), high))
        }
    }
    // Two vectors become one of half the lanes of each, until one has a lane of each.
    #[inline(always)]
    fn sums(self, v: [__m512; LANES]) -> Lanes {
        // The shuffles end in lane 4 i + j with the sum of the vector that was number 4 j + i.
        let v: [__m512; LANES] = std::array::from_fn(|i| v[i % 4 * 4 + i / 4]);
        unsafe {
            let by_eight: [__m512; 8] = std::array::from_fn(|i| {
                let (a, b) = (v[2 * i], v[2 * i + 1]);
                _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xEE>(a, b))
            });
            let by_four: [__m512; 4] = std::array::from_fn(|i| {
                let (a, b) = (by_eight[2 * i], by_eight[2 * i + 1]);
                _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xDD>(a, b))
            });
            let by_two: [__m512; 2] = std::array::from_fn(|i| {
                let (a, b) = (by_four[2 * i], by_four[2 * i + 1]);
                _mm512_add_ps(_mm512_shuffle_ps::<0x44>(a, b), _mm512_shuffle_ps::<0xEE>(a, b))
            });
            let [a, b] = by_two;
            let sums = _mm512_add_ps(_mm512_shuffle_ps::<0x88>(a, b), _mm512_shuffle_ps::<0xDD>(a, b));
            let mut lanes = [0.0; LANES];
            _mm512_storeu_ps(lanes.as_mut_ptr(), sums);
            lanes
        }
    }
    #[inline(always)]
    fn largest(self, v: __m512) -> f32 {
        unsafe {
            let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(v)));
            largest_of_register(_mm256_max_ps(_mm512_castps512_ps256(v), high))
        }
    }
    #[inline(always)]
    fn store_bytes(self, v: __m512, to: &mut [u8; LANES]) {
        unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(_mm512_castps_si512(v))) }
    }
    // In a register, then stored: on Zen 4 the compressing store is microcode that takes a hundred cycles.
    #[inline(always)]
    fn compress(self, mask: u16, v: __m512, to: &mut Lanes) {
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), _mm512_maskz_compress_ps(mask, v)) }
    }
    // A store of half a vector crosses cache lines less often.
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
        unsafe { transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(second, first)) }
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
    // SAFETY: both types are 256 bits, any of which are valid.
    unsafe { transmute::<__m256bh, __m256i>(v) }
}
