//! A fraction in limbs of 5 bits, whose products with integers below `2^59` fit 64 bits; see `fraction`.

/// The number of limbs: 55 bits, of which a uniform number has 53.
pub(super) const LIMBS: usize = 11;
/// The bits of a limb.
const LIMB_BITS: usize = 5;

/// A fraction in `[0, 1]` as the integer of all limbs; 1 is `2^55`.
pub(super) fn fraction_bits(fraction: f64) -> u64 {
    (fraction * ((LIMBS * LIMB_BITS) as f64).exp2()) as u64
}

/// The limbs of a fraction in `[0, 1)`, the most significant first.
pub(super) fn limbs(fraction: f64) -> [f64; LIMBS] {
    let bits = fraction_bits(fraction);
    std::array::from_fn(|n| (bits >> (LIMB_BITS * (LIMBS - 1 - n)) & ((1 << LIMB_BITS) - 1)) as f64)
}

/// The divisor of the product of each limb.
pub(super) fn limb_divisors() -> [f64; LIMBS] {
    std::array::from_fn(|n| ((LIMB_BITS * (n + 1)) as f64).exp2())
}
