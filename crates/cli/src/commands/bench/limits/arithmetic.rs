//! Peaks of arithmetic: chains of multiply-adds in registers, as many side by side as hide their latency.

use std::hint::black_box;

use tinygpt_sampler::simd::{Kernel, LANES, Simd, SimdLevel};

use super::rate::{Threads, rate};

/// Multiply-adds of each chain in a piece of work: a few microseconds.
const STEPS: usize = 1000;

/// Fused multiply-adds of f32, in operations a second: two for each multiply-add.
pub fn f32_peak(threads: Threads) -> f64 {
    let level = SimdLevel::detect();
    rate(threads, |_| move || level.run(MultiplyAdds))
}

/// The chains of multiply-adds; gives the number of operations it did.
struct MultiplyAdds;

impl Kernel for MultiplyAdds {
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        // As many chains as the registers hold beside the two factors.
        if S::VECTORS >= 32 { chains::<S, 16>(s) } else { chains::<S, 5>(s) }
    }
}

#[inline(always)]
fn chains<S: Simd, const CHAINS: usize>(s: S) -> f64 {
    let (a, b) = (s.splat(black_box(1e-3)), s.splat(black_box(1.0)));
    let mut sums = [s.splat(0.0); CHAINS];
    for _ in 0..STEPS {
        for sum in &mut sums {
            *sum = s.mul_add(a, b, *sum);
        }
    }
    // One number of them all: sums that are looked at one by one do not stay in registers.
    black_box(s.sum(sums.into_iter().fold(s.splat(0.0), |all, sum| s.add(all, sum))));
    (2 * LANES * CHAINS * STEPS) as f64
}

/// Products of bf16 pairs summed into f32 (`vdpbf16ps`), in operations a second.
///
/// # Errors
/// Why there is no such peak.
pub fn bf16_peak(threads: Threads) -> Result<f64, &'static str> {
    #[cfg(target_arch = "x86_64")]
    return x86::bf16_peak(threads).ok_or("this processor has no AVX512-BF16");
    #[cfg(not(target_arch = "x86_64"))]
    return not_here(threads);
}

/// Products of int8 quadruples summed into i32 (`vpdpbusd`), in operations a second.
///
/// # Errors
/// Why there is no such peak.
pub fn int8_peak(threads: Threads) -> Result<f64, &'static str> {
    #[cfg(target_arch = "x86_64")]
    return x86::int8_peak(threads).ok_or("this processor has no AVX512-VNNI");
    #[cfg(not(target_arch = "x86_64"))]
    return not_here(threads);
}

#[cfg(not(target_arch = "x86_64"))]
fn not_here(_: Threads) -> Result<f64, &'static str> {
    Err("measured on x86-64 only")
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    #![expect(unsafe_code, reason = "a function of a processor's instructions may only be called where it has them")]

    use std::{arch::x86_64::*, hint::black_box};

    use super::{STEPS, Threads, rate};

    /// Chains side by side: with both factors they fit the 32 registers.
    const CHAINS: usize = 16;

    pub(super) fn bf16_peak(threads: Threads) -> Option<f64> {
        let available = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16");
        // SAFETY: the processor has the features of the function.
        available.then(|| rate(threads, |_| || unsafe { bf16_chains() }))
    }

    pub(super) fn int8_peak(threads: Threads) -> Option<f64> {
        let available = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni");
        // SAFETY: the processor has the features of the function.
        available.then(|| rate(threads, |_| || unsafe { int8_chains() }))
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn bf16_chains() -> f64 {
        let (a, b) = (_mm512_set1_ps(black_box(1.0)), _mm512_set1_ps(black_box(1.0)));
        let (a, b) = (_mm512_cvtne2ps_pbh(a, a), _mm512_cvtne2ps_pbh(b, b));
        let mut sums = [_mm512_setzero_ps(); CHAINS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, a, b);
            }
        }
        let all = sums.into_iter().fold(_mm512_setzero_ps(), |all, sum| _mm512_add_ps(all, sum));
        black_box(_mm512_reduce_add_ps(all));
        // One instruction adds two products to each of sixteen sums.
        (2 * 2 * 16 * CHAINS * STEPS) as f64
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn int8_chains() -> f64 {
        let (a, b) = (_mm512_set1_epi8(black_box(1)), _mm512_set1_epi8(black_box(1)));
        let mut sums = [_mm512_setzero_si512(); CHAINS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        let all = sums.into_iter().fold(_mm512_setzero_si512(), |all, sum| _mm512_add_epi32(all, sum));
        black_box(_mm512_reduce_add_epi32(all));
        // One instruction adds four products to each of sixteen sums.
        (2 * 4 * 16 * CHAINS * STEPS) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_of_work_counts_two_operations_for_each_multiply_add() {
        let counts: Vec<f64> = SimdLevel::available().into_iter().map(|level| level.run(MultiplyAdds)).collect();
        assert!(counts.iter().all(|&count| count == 5.0 * 32_000.0 || count == 16.0 * 32_000.0), "{counts:?}");
    }
}
