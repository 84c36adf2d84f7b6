//! e to the power of a vector.

use super::Simd;

/// `2^(r/8) - 1` on [-1/2, 1/2] to 1e-8, without its constant term 0: the coefficients of r^3, r^2 and r,
/// interpolated at the Chebyshev points.
const CUBE: f32 = 1.084_140_9e-4;
const SQUARE: f32 = 3.753_979_5e-3;
const SLOPE: f32 = 0.086_643_4;

/// `8 log2(e)`, in two floats.
const EIGHTHS: f64 = 8.0 * std::f64::consts::LOG2_E;
const EIGHTHS_HIGH: f32 = EIGHTHS as f32;
const EIGHTHS_LOW: f32 = (EIGHTHS - EIGHTHS_HIGH as f64) as f32;
/// Where the result falls below `2^-125`.
const LEAST: f32 = -86.6;

/// `e^x` for `x` of at most 0, to a relative 2e-7; 0 below -86.6 and for NaN.
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    let power = exp2_of_eighths(s, x, s.splat(EIGHTHS_HIGH), s.splat(EIGHTHS_LOW));
    s.keep(s.ge(x, s.splat(LEAST)), power)
}

/// `2^(x * (high + low) / 8)`, where that exponent is between -125 and 125; arbitrary elsewhere.
///
/// Computed as `2^(n/8)`, from a table of eight and the exponent's bits, times `2^(r/8)`, a cubic, for the integer n and
/// the rest r of `x * (high + low)`.
#[inline(always)]
pub fn exp2_of_eighths<S: Simd>(s: S, x: S::V, high: S::V, low: S::V) -> S::V {
    // Adding this rounds to an integer, here the number of eighths, and leaves it in the low bits.
    let magic = s.splat(12_582_912.0);
    let shifted = s.mul_add(x, high, magic);
    let minus_whole = s.sub(magic, shifted);
    let rest = s.mul_add(x, low, s.mul_add(x, high, minus_whole));
    let slope = s.mul_add(s.mul_add(s.splat(CUBE), rest, s.splat(SQUARE)), rest, s.splat(SLOPE));
    let whole = s.power_of_eighths(shifted);
    s.mul_add(whole, s.mul(slope, rest), whole)
}
