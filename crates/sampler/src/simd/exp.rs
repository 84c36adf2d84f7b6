//! The exponential function of a vector.

use super::Simd;

/// The coefficients of r^3, r^2 and r of a polynomial that is `2^(r/8) - 1` on [-1/2, 1/2] to 1e-8, interpolated at the
/// Chebyshev points; its constant term is 0.
const CUBE: f32 = 1.084_140_9e-4;
const SQUARE: f32 = 3.753_979_5e-3;
const LINEAR: f32 = 0.086_643_4;

/// `8 log2(e)`, the number of eighths of a power of 2 in e, held in two floats.
const LOG2_E_EIGHTHS: f64 = 8.0 * std::f64::consts::LOG2_E;
const LOG2_E_EIGHTHS_HIGH: f32 = LOG2_E_EIGHTHS as f32;
const LOG2_E_EIGHTHS_LOW: f32 = (LOG2_E_EIGHTHS - LOG2_E_EIGHTHS_HIGH as f64) as f32;
/// Below this the result would be less than `2^-125`.
const MIN_EXPONENT: f32 = -86.6;

/// `e^x` of each lane, for x of at most 0, with a relative error of 2e-7; 0 for x below -86.6 and for NaN.
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    let power = exp2_scaled(s, x, s.splat(LOG2_E_EIGHTHS_HIGH), s.splat(LOG2_E_EIGHTHS_LOW));
    s.keep(s.ge(x, s.splat(MIN_EXPONENT)), power)
}

/// `2^(x * (high + low) / 8)` of each lane, where that exponent is between -125 and 125; any number elsewhere.
///
/// `x * (high + low)` is an integer n plus a rest r. `2^(n/8)` comes from a table of eight and the exponent bits of the
/// float, `2^(r/8)` is a cubic.
#[inline(always)]
pub(crate) fn exp2_scaled<S: Simd>(s: S, x: S::V, high: S::V, low: S::V) -> S::V {
    let [power] = exp2_scaled_of(s, [x], high, low);
    power
}

/// [`exp2_scaled`] of several vectors, step by step: a processor then waits for none of them, though it sees only the next hundred or
/// so of instructions.
#[inline(always)]
pub(crate) fn exp2_scaled_of<S: Simd, const N: usize>(s: S, x: [S::V; N], high: S::V, low: S::V) -> [S::V; N] {
    // 1.5 * 2^23: adding it rounds to an integer, which is then in the low bits.
    let magic = s.splat(12_582_912.0);
    let shifted: [S::V; N] = std::array::from_fn(|n| s.mul_add(x[n], high, magic));
    let minus_whole: [S::V; N] = std::array::from_fn(|n| s.sub(magic, shifted[n]));
    let rest: [S::V; N] = std::array::from_fn(|n| s.mul_add(x[n], high, minus_whole[n]));
    let rest: [S::V; N] = std::array::from_fn(|n| s.mul_add(x[n], low, rest[n]));
    let slope: [S::V; N] = std::array::from_fn(|n| s.mul_add(s.splat(CUBE), rest[n], s.splat(SQUARE)));
    let slope: [S::V; N] = std::array::from_fn(|n| s.mul_add(slope[n], rest[n], s.splat(LINEAR)));
    let whole: [S::V; N] = std::array::from_fn(|n| s.exp2_eighths(shifted[n]));
    let slope: [S::V; N] = std::array::from_fn(|n| s.mul(slope[n], rest[n]));
    std::array::from_fn(|n| s.mul_add(whole[n], slope[n], whole[n]))
}
