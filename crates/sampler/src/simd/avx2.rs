//! AVX2 with FMA: two registers hold the sixteen lanes.

#![allow(unsafe_code)]

use super::{EXP2_EIGHTHS, Kernel, LANES, Lanes, Sealed, Simd, VECTOR_BYTES};
use std::arch::x86_64::*;

/// The proof that AVX2, FMA, F16C and POPCNT may run. Only [`run`] makes one.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

/// Lanes 0 to 7 and lanes 8 to 15.
#[derive(Clone, Copy)]
pub(super) struct TwoRegisters(__m256, __m256);

/// [`TwoRegisters`] of integers.
#[derive(Clone, Copy)]
pub(super) struct TwoIntegers(__m256i, __m256i);

/// Whether the processor has all features that [`run`] needs.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
        && is_x86_feature_detected!("popcnt")
}

/// Runs a kernel compiled for AVX2.
///
/// # Safety
/// The processor must have AVX2, FMA, F16C and POPCNT: see [`is_available`].
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2(()))
}

/// For each mask of eight lanes, the permutation that moves its lanes to the front.
static COMPRESS_ORDER: [[i32; 8]; 256] = compress_orders();

const fn compress_orders() -> [[i32; 8]; 256] {
    let mut table = [[0; 8]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut lane, mut place) = (0, 0);
        while lane < 8 {
            if mask >> lane & 1 == 1 {
                table[mask][place] = lane;
                place += 1;
            }
            lane += 1;
        }
        mask += 1;
    }
    table
}

/// The sum of the eight lanes of a register: lane i + 4 is added to lane i, then lane i + 2 and i + 1.
///
/// # Safety
/// The processor must have AVX.
#[inline(always)]
pub(super) unsafe fn sum_register(v: __m256) -> f32 {
    // SAFETY: these are AVX and SSE3 instructions, and the caller vouches for AVX, which includes SSE3.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }
}

/// [`Simd::dot_u8_i8`] of a register. Bytes are widened to 16 bits, in which the products of a pair and their sum are exact: the
/// instruction for bytes (`vpmaddubsw`) saturates.
///
/// # Safety
/// The processor must have AVX2.
#[inline(always)]
pub(super) unsafe fn dot_register(a: __m256i, b: __m256i, c: __m256i) -> __m256i {
    // SAFETY: these are AVX2 instructions, which the caller vouches for.
    unsafe {
        let [a_even, a_odd] = [_mm256_and_si256(a, _mm256_set1_epi16(0xff)), _mm256_srli_epi16::<8>(a)];
        let [b_even, b_odd] = [_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(b)), _mm256_srai_epi16::<8>(b)];
        let sums = _mm256_add_epi32(_mm256_madd_epi16(a_even, b_even), _mm256_madd_epi16(a_odd, b_odd));
        _mm256_add_epi32(c, sums)
    }
}

/// The largest of the eight lanes of a register.
///
/// # Safety
/// The processor must have AVX.
#[inline(always)]
pub(super) unsafe fn largest_of_register(v: __m256) -> f32 {
    // SAFETY: as in `sum_register`.
    unsafe {
        let four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
    }
}

impl Avx2 {
    /// Applies an operation to both registers.
    #[inline(always)]
    fn map(self, a: TwoRegisters, b: TwoRegisters, f: impl Fn(__m256, __m256) -> __m256) -> TwoRegisters {
        TwoRegisters(f(a.0, b.0), f(a.1, b.1))
    }

    /// The mask of the lanes in which a comparison holds.
    #[inline(always)]
    fn masks(self, a: TwoRegisters, b: TwoRegisters, f: impl Fn(__m256, __m256) -> __m256) -> u16 {
        // SAFETY: `self` proves the features.
        let bits = |m| unsafe { _mm256_movemask_ps(m) } as u16;
        bits(f(a.0, b.0)) | bits(f(a.1, b.1)) << 8
    }

    /// See [`Simd::compress_integers`]; the sixteen integers are in two registers.
    #[inline(always)]
    fn compress_registers(self, mask: u16, low: __m256i, high: __m256i, to: &mut [u32; LANES]) {
        let (low_mask, high_mask) = (usize::from(mask & 0xff), usize::from(mask >> 8));
        let count = low_mask.count_ones() as usize;
        // SAFETY: `self` proves the features. The tables have rows of eight integers. `count` is at most 8, so the
        // second store of eight integers ends within the sixteen of `to`.
        unsafe {
            let low_order = _mm256_loadu_si256(COMPRESS_ORDER[low_mask].as_ptr().cast());
            let high_order = _mm256_loadu_si256(COMPRESS_ORDER[high_mask].as_ptr().cast());
            let to = to.as_mut_ptr();
            _mm256_storeu_si256(to.cast(), _mm256_permutevar8x32_epi32(low, low_order));
            _mm256_storeu_si256(to.add(count).cast(), _mm256_permutevar8x32_epi32(high, high_order));
        }
    }
}

impl Sealed for Avx2 {}

// SAFETY, for every block below: an `Avx2` exists only inside `run`, whose caller vouches for the features. The
// pointers come from references to vectors, of which halves are accessed, without alignment.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx2 {
    type V = TwoRegisters;
    type I = TwoIntegers;
    const VECTORS: usize = 8;

    #[inline(always)]
    fn splat(self, x: f32) -> TwoRegisters {
        let v = unsafe { _mm256_set1_ps(x) };
        TwoRegisters(v, v)
    }
    #[inline(always)]
    fn load(self, from: &Lanes) -> TwoRegisters {
        unsafe { TwoRegisters(_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))) }
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> TwoRegisters {
        let half = |at: usize| unsafe {
            let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.as_ptr().add(at).cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
        };
        TwoRegisters(half(0), half(8))
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> TwoRegisters {
        let half = |at: usize| unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().add(at).cast())) };
        TwoRegisters(half(0), half(8))
    }
    #[inline(always)]
    fn load_bytes(self, from: &[u8; VECTOR_BYTES]) -> TwoIntegers {
        let half = |at: usize| unsafe { _mm256_loadu_si256(from.as_ptr().add(at).cast()) };
        TwoIntegers(half(0), half(VECTOR_BYTES / 2))
    }
    #[inline(always)]
    fn splat_i32(self, x: i32) -> TwoIntegers {
        let v = unsafe { _mm256_set1_epi32(x) };
        TwoIntegers(v, v)
    }
    #[inline(always)]
    fn to_f32(self, v: TwoIntegers) -> TwoRegisters {
        unsafe { TwoRegisters(_mm256_cvtepi32_ps(v.0), _mm256_cvtepi32_ps(v.1)) }
    }
    #[inline(always)]
    fn nibbles(self, v: TwoIntegers) -> [TwoIntegers; 2] {
        let lower = |v| unsafe { _mm256_and_si256(v, _mm256_set1_epi8(0xf)) };
        let upper = |v| lower(unsafe { _mm256_srli_epi32::<4>(v) });
        [TwoIntegers(lower(v.0), lower(v.1)), TwoIntegers(upper(v.0), upper(v.1))]
    }
    #[inline(always)]
    fn dot_u8_i8(self, a: TwoIntegers, b: TwoIntegers, c: TwoIntegers) -> TwoIntegers {
        unsafe { TwoIntegers(dot_register(a.0, b.0, c.0), dot_register(a.1, b.1, c.1)) }
    }
    #[inline(always)]
    fn store(self, v: TwoRegisters, to: &mut Lanes) {
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), v.0);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), v.1);
        }
    }
    #[inline(always)]
    fn add(self, a: TwoRegisters, b: TwoRegisters) -> TwoRegisters {
        self.map(a, b, |a, b| unsafe { _mm256_add_ps(a, b) })
    }
    #[inline(always)]
    fn sub(self, a: TwoRegisters, b: TwoRegisters) -> TwoRegisters {
        self.map(a, b, |a, b| unsafe { _mm256_sub_ps(a, b) })
    }
    #[inline(always)]
    fn mul(self, a: TwoRegisters, b: TwoRegisters) -> TwoRegisters {
        self.map(a, b, |a, b| unsafe { _mm256_mul_ps(a, b) })
    }
    #[inline(always)]
    fn div(self, a: TwoRegisters, b: TwoRegisters) -> TwoRegisters {
        self.map(a, b, |a, b| unsafe { _mm256_div_ps(a, b) })
    }
    #[inline(always)]
    fn sqrt(self, v: TwoRegisters) -> TwoRegisters {
        unsafe { TwoRegisters(_mm256_sqrt_ps(v.0), _mm256_sqrt_ps(v.1)) }
    }
    #[inline(always)]
    fn mul_add(self, a: TwoRegisters, b: TwoRegisters, c: TwoRegisters) -> TwoRegisters {
        unsafe { TwoRegisters(_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1)) }
    }
    #[inline(always)]
    fn max(self, a: TwoRegisters, b: TwoRegisters) -> TwoRegisters {
        self.map(a, b, |a, b| unsafe { _mm256_max_ps(a, b) })
    }
    #[inline(always)]
    fn ge(self, a: TwoRegisters, b: TwoRegisters) -> u16 {
        self.masks(a, b, |a, b| unsafe { _mm256_cmp_ps::<_CMP_GE_OQ>(a, b) })
    }
    #[inline(always)]
    fn gt(self, a: TwoRegisters, b: TwoRegisters) -> u16 {
        self.masks(a, b, |a, b| unsafe { _mm256_cmp_ps::<_CMP_GT_OQ>(a, b) })
    }
    #[inline(always)]
    fn not_lt(self, a: TwoRegisters, b: TwoRegisters) -> u16 {
        self.masks(a, b, |a, b| unsafe { _mm256_cmp_ps::<_CMP_NLT_UQ>(a, b) })
    }
    #[inline(always)]
    fn unordered(self, a: TwoRegisters, b: TwoRegisters) -> u16 {
        self.masks(a, b, |a, b| unsafe { _mm256_cmp_ps::<_CMP_UNORD_Q>(a, b) })
    }
    #[inline(always)]
    fn keep(self, mask: u16, v: TwoRegisters) -> TwoRegisters {
        unsafe {
            let lanes = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
            let half = |bits: u16, v| {
                let set = _mm256_and_si256(_mm256_set1_epi32(i32::from(bits)), lanes);
                let whole = _mm256_cmpeq_epi32(set, lanes);
                _mm256_and_ps(v, _mm256_castsi256_ps(whole))
            };
            TwoRegisters(half(mask & 0xff, v.0), half(mask >> 8, v.1))
        }
    }
    #[inline(always)]
    fn exp2_eighths(self, n: TwoRegisters) -> TwoRegisters {
        let half = |n| unsafe {
            // The permutation uses the low three bits of each index.
            let table = _mm256_loadu_ps(EXP2_EIGHTHS.as_ptr());
            let bits = _mm256_castps_si256(n);
            let eighth = _mm256_castps_si256(_mm256_permutevar8x32_ps(table, bits));
            let whole = _mm256_slli_epi32::<20>(_mm256_and_si256(bits, _mm256_set1_epi32(!7)));
            _mm256_castsi256_ps(_mm256_add_epi32(eighth, whole))
        };
        TwoRegisters(half(n.0), half(n.1))
    }
    #[inline(always)]
    fn sum(self, v: TwoRegisters) -> f32 {
        unsafe { sum_register(_mm256_add_ps(v.0, v.1)) }
    }
    #[inline(always)]
    fn largest(self, v: TwoRegisters) -> f32 {
        unsafe { largest_of_register(_mm256_max_ps(v.0, v.1)) }
    }
    #[inline(always)]
    fn store_bytes(self, v: TwoRegisters, to: &mut [u8; LANES]) {
        unsafe {
            let lowest = _mm256_set1_epi32(0xff);
            let [low, high] = [v.0, v.1].map(|v| _mm256_and_si256(_mm256_castps_si256(v), lowest));
            // 16 bits of lanes 0 to 3, 8 to 11, 4 to 7 and 12 to 15.
            let words = _mm256_packus_epi32(low, high);
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            let bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(to.as_mut_ptr().cast(), bytes);
        }
    }
    #[inline(always)]
    fn compress(self, mask: u16, v: TwoRegisters, to: &mut Lanes) {
        let mut bits = [0; LANES];
        unsafe {
            self.compress_registers(mask, _mm256_castps_si256(v.0), _mm256_castps_si256(v.1), &mut bits);
        }
        *to = bits.map(f32::from_bits);
    }
    #[inline(always)]
    fn compress_range(self, mask: u16, first: u32, to: &mut [u32; LANES]) {
        unsafe {
            let low = _mm256_add_epi32(_mm256_set1_epi32(first as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
            let high = _mm256_add_epi32(low, _mm256_set1_epi32(8));
            self.compress_registers(mask, low, high, to);
        }
    }
    #[inline(always)]
    fn compress_integers(self, mask: u16, from: &[u32; LANES], to: &mut [u32; LANES]) {
        unsafe {
            let low = _mm256_loadu_si256(from.as_ptr().cast());
            let high = _mm256_loadu_si256(from.as_ptr().add(8).cast());
            self.compress_registers(mask, low, high, to);
        }
    }
}
