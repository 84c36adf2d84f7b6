//! `floor(total * share)` in integers, for totals of 58 bits: the product does not fit 64.
//!
//! The share is cut into limbs of 5 bits, whose products do fit, and these are shifted and summed: three launches, where
//! two limbs on each side would be exact and take ten. Each shift drops less than 1, so that the sum is at most
//! [`LIMBS`] - 1 below the floor, of a total that is at least `2^40`, and never above it.

use super::ops::{Binary, Constant, Ops, Reduce};
use candle_core::{DType, Result, Tensor};

/// Limbs of a share: 55 bits, of which a uniform number has 53.
pub(super) const LIMBS: usize = 11;
const BITS: usize = 5;

/// The limbs of a share in `[0, 1)`, the highest first.
pub(super) fn limbs(share: f64) -> [f64; LIMBS] {
    let bits = (share * ((LIMBS * BITS) as f64).exp2()) as u64;
    std::array::from_fn(|n| (bits >> (BITS * (LIMBS - 1 - n)) & ((1 << BITS) - 1)) as f64)
}

/// What the products are divided by.
pub(super) fn units() -> [f64; LIMBS] {
    std::array::from_fn(|n| ((BITS * (n + 1)) as f64).exp2())
}

/// Of each total, `(B, 1)` i64, the same share in `[0, 1)`.
pub(super) fn of_total(ops: &Ops, total: &Tensor, share: f64) -> Result<Tensor> {
    sum(ops, total, &ops.constant(Constant::Share(share.to_bits()), DType::I64)?)
}

/// Of each total, `(B, 1)` i64, its own share in `[0, 1)`.
pub(super) fn of_totals(ops: &Ops, total: &Tensor, shares: &[f64]) -> Result<Tensor> {
    let rows = shares.len();
    let each: Vec<_> = shares.iter().map(|&share| limbs(share)).collect();
    let limbs = (0..LIMBS).flat_map(|n| each.iter().map(move |limbs| limbs[n])).collect();
    sum(ops, total, &ops.upload(limbs, &[LIMBS, rows, 1], DType::I64)?)
}

fn sum(ops: &Ops, total: &Tensor, limbs: &Tensor) -> Result<Tensor> {
    // (B, 1) against (limbs, B, 1)
    let products = ops.binary(Binary::Mul, limbs, total)?;
    let parts = ops.binary(Binary::Div, &products, &ops.constant(Constant::LimbUnits, DType::I64)?)?;
    let parts = parts.permute((1, 2, 0))?; // (limbs, B, 1) -> (B, 1, limbs)
    ops.reduce(Reduce::Sum, &parts)?.squeeze(2) // (B, 1, 1) -> (B, 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn the_product_is_that_of_128_bits_less_at_most_ten() {
        let ops = Ops::new(&Device::Cpu);
        let totals = [0i64, 1, (1 << 40) + 12345, (1 << 58) - 1, 1 << 58, 123_456_789_012_345_678];
        let total = Tensor::from_vec(totals.to_vec(), (6, 1), &Device::Cpu).unwrap();
        for share in [0.0, f64::EPSILON / 2.0, 0.3, 0.9, 0.5, 1.0 - f64::EPSILON / 2.0] {
            let one: Vec<Vec<i64>> = of_total(&ops, &total, share).unwrap().to_vec2().unwrap();
            let each: Vec<Vec<i64>> = of_totals(&ops, &total, &[share; 6]).unwrap().to_vec2().unwrap();
            assert_eq!(one, each);
            let bits = (share * 55f64.exp2()) as i128;
            for (total, answer) in totals.iter().zip(one) {
                let exact = (i128::from(*total) * bits) >> 55;
                assert!((exact - 10..=exact).contains(&i128::from(answer[0])), "{total} * {share}");
            }
        }
    }
}
