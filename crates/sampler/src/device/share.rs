//! `floor(total * share)` in integers, for shares of 48 bits and totals of 58: the product does not fit 64.

use super::ops::{Binary, Ops};
use candle_core::{DType, Result, Tensor};

/// Shares are multiples of 2^-48, in two limbs of 24 bits.
const LIMB: i64 = 1 << 24;
/// Totals are split here.
const SPLIT: i64 = 1 << 29;

/// `floor(total * share)` for each row: totals `(B, 1)` i64, one share in `[0, 1]` for each row.
pub(super) fn of_total(ops: &Ops, total: &Tensor, shares: &[f64]) -> Result<Tensor> {
    let bits = |share: f64| (share * (LIMB as f64) * (LIMB as f64)) as i64;
    let high = ops.upload(shares.iter().map(|&s| bits(s) / LIMB).collect(), 2, DType::I64)?;
    let low = ops.upload(shares.iter().map(|&s| bits(s) % LIMB).collect(), 2, DType::I64)?;
    let mul = |a: &Tensor, b: &Tensor| ops.binary(Binary::Mul, a, b);
    let add = |a: &Tensor, b: &Tensor| ops.binary(Binary::Add, a, b);
    let total_high = ops.with(Binary::Div, total, SPLIT)?;
    let total_low = ops.binary(Binary::Sub, total, &ops.with(Binary::Mul, &total_high, SPLIT)?)?;
    // SPLIT * LIMB is 2^53, 32 times the 2^48 that divides; nested floors are the floor of the whole.
    let whole = ops.with(Binary::Mul, &mul(&total_high, &high)?, 32)?;
    let middle = add(&ops.with(Binary::Mul, &mul(&total_high, &low)?, 32)?, &mul(&total_low, &high)?)?;
    let least = ops.with(Binary::Div, &mul(&total_low, &low)?, LIMB)?;
    add(&whole, &ops.with(Binary::Div, &add(&middle, &least)?, LIMB)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn the_product_is_that_of_128_bits() {
        let ops = Ops::new(&Device::Cpu);
        let totals = [0i64, 1, (1 << 40) + 12345, (1 << 58) - 1, 123_456_789_012_345_678];
        for share in [0.0, 1.0 / (1u64 << 48) as f64, 0.3, 0.9, 0.5, 1.0 - 1.0 / (1u64 << 48) as f64, 1.0] {
            let total = ops.upload(totals.to_vec(), 2, DType::I64).unwrap();
            let answer: Vec<Vec<i64>> = of_total(&ops, &total, &[share; 5]).unwrap().to_vec2().unwrap();
            let bits = (share * (1u64 << 48) as f64) as i128;
            for (total, answer) in totals.iter().zip(answer) {
                assert_eq!(i128::from(answer[0]), (i128::from(*total) * bits) >> 48, "{total} * {share}");
            }
        }
    }
}
