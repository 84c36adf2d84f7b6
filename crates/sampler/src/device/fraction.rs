//! `floor(total * fraction)` in integer tensor operations, for totals below `2^59` whose product does not fit 64 bits.
//!
//! The fraction is cut into limbs of 5 bits, whose products fit; the products are shifted and summed. That takes three
//! launches, where the exact product by two limbs on each side takes ten. Each shift drops less than 1, so the sum is
//! never above the floor and at most [`LIMBS`] - 1 below it, of totals of at least `2^40`.

use super::limbs::{LIMBS, limbs};
use super::ops::{Binary, Constant, Ops, Reduce};
use candle_core::{DType, Result, Tensor};

/// The same fraction in `[0, 1)` of each total, `(B, 1)` i64.
pub(super) fn of_total(ops: &Ops, total: &Tensor, fraction: f64) -> Result<Tensor> {
    sum_of_products(ops, total, &ops.constant(Constant::FractionLimbs(fraction.to_bits()), DType::I64)?)
}

/// Its own fraction in `[0, 1)` of each total, `(B, 1)` i64.
pub(super) fn of_each_total(ops: &Ops, total: &Tensor, fractions: &[f64]) -> Result<Tensor> {
    let rows = fractions.len();
    let limbs_of_rows: Vec<_> = fractions.iter().map(|&fraction| limbs(fraction)).collect();
    let limbs = (0..LIMBS).flat_map(|n| limbs_of_rows.iter().map(move |limbs| limbs[n])).collect();
    sum_of_products(ops, total, &ops.upload(limbs, &[LIMBS, rows, 1], DType::I64)?)
}

/// The shifted and summed products of each total, `(B, 1)` i64, and limbs `(LIMBS, B or 1, 1)`.
fn sum_of_products(ops: &Ops, total: &Tensor, limbs: &Tensor) -> Result<Tensor> {
    // (B, 1) against (limbs, B, 1)
    let products = ops.binary(Binary::Mul, limbs, total)?;
    let parts = ops.binary(Binary::Div, &products, &ops.constant(Constant::LimbDivisors, DType::I64)?)?;
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
        for fraction in [0.0, f64::EPSILON / 2.0, 0.3, 0.9, 0.5, 1.0 - f64::EPSILON / 2.0] {
            let one: Vec<Vec<i64>> = of_total(&ops, &total, fraction).unwrap().to_vec2().unwrap();
            let each: Vec<Vec<i64>> = of_each_total(&ops, &total, &[fraction; 6]).unwrap().to_vec2().unwrap();
            assert_eq!(one, each);
            let bits = (fraction * 55f64.exp2()) as i128;
            for (total, answer) in totals.iter().zip(one) {
                let exact = (i128::from(*total) * bits) >> 55;
                assert!((exact - 10..=exact).contains(&i128::from(answer[0])), "{total} * {fraction}");
            }
        }
    }
}
