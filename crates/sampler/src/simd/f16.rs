//! f16, IEEE's half precision: widening for levels without an instruction for it.

/// The bits of the sign.
const SIGN: u16 = 0x8000;
/// The bits of infinity. What is above, without its sign, is a NaN.
const INFINITY: u16 = 0x7c00;

/// The value of an f16, given as its bits; a NaN stays a NaN.
#[inline(always)]
pub(super) fn to_f32(bits: u16) -> f32 {
    let magnitude = u32::from(bits & !SIGN) << 13;
    // The exponent of an f32 counts from 112 less. A multiplication moves it, and normalises what is subnormal.
    let finite = (f32::from_bits(magnitude) * 2f32.powi(112)).to_bits();
    let is_finite = bits & !SIGN < INFINITY;
    let widened = if is_finite { finite } else { magnitude | f32::INFINITY.to_bits() };
    f32::from_bits(widened | u32::from(bits & SIGN) << 16)
}
