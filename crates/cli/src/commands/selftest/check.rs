//! The result of a comparison.

use serde::Serialize;

/// A smaller expected value counts as this much: nothing could be compared with 0 otherwise.
const SMALLEST: f64 = 1e-6;

/// Something that a device must compute as the CPU does.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What is compared.
    pub check: &'static str,
    /// The shape or the rules for which it is compared.
    pub of: String,
    /// The largest difference found, in the unit of the tolerance; infinite (null in JSON) for what is not a number.
    pub worst: f64,
    /// Where it is, if it is anywhere.
    pub at: Option<String>,
    /// The largest difference that passes.
    pub tolerance: f64,
    /// Whether the largest difference is within the tolerance.
    pub passed: bool,
}

impl Check {
    /// A check that found these differences, each with its place.
    pub fn new(
        check: &'static str,
        of: &str,
        tolerance: f64,
        differences: impl IntoIterator<Item = (String, f64)>,
    ) -> Self {
        let worst = differences.into_iter().max_by(|(_, a), (_, b)| a.total_cmp(b));
        // Nothing compared is nothing found to be the same.
        let (at, worst) = worst.unwrap_or_else(|| ("nothing was compared".into(), f64::INFINITY));
        let at = (worst > 0.0).then_some(at);
        Self { check, of: of.into(), worst, at, tolerance, passed: worst <= tolerance }
    }
}

/// The largest difference of two tensors, relative to the largest element of the expected one.
pub fn of_tensors(found: &[f32], expected: &[f32]) -> f64 {
    let largest = expected.iter().fold(0.0, |max: f64, &x| max.max(f64::from(x).abs()));
    largest_difference(found, expected) / largest.max(SMALLEST)
}

/// The largest difference of two tensors; infinite where they have not the same shape or are not all finite.
pub fn largest_difference(found: &[f32], expected: &[f32]) -> f64 {
    if found.len() != expected.len() || !found.iter().chain(expected).all(|x| x.is_finite()) {
        return f64::INFINITY;
    }
    found.iter().zip(expected).fold(0.0, |max, (&a, &b)| (f64::from(a) - f64::from(b)).abs().max(max))
}

/// The relative difference of two numbers.
pub fn of_numbers(found: f64, expected: f64) -> f64 {
    let difference = (found - expected).abs() / expected.abs().max(SMALLEST);
    if difference.is_finite() { difference } else { f64::INFINITY }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_above_the_tolerance_fails_and_its_place_is_named() {
        let check = |worst| Check::new("sums", "a", 0.1, [("first".into(), 0.05), ("second".into(), worst)]);
        assert!(check(0.1).passed);
        for worst in [0.11, f64::INFINITY] {
            let failed = check(worst);
            assert!(!failed.passed && failed.at.as_deref() == Some("second"), "{failed:?}");
        }
        assert!(!Check::new("sums", "nothing", 0.1, []).passed, "nothing was compared");
    }

    #[test]
    fn differences_are_relative_to_the_largest_element() {
        assert!((of_tensors(&[1.0, 10.1, 0.0], &[1.0, 10.0, 0.0]) - 0.01).abs() < 1e-6);
        assert_eq!(of_tensors(&[0.0], &[0.0]), 0.0);
        assert!((of_numbers(2.2, 2.0) - 0.1).abs() < 1e-12);
        // Neither NaN nor a tensor of another size may pass for equal.
        for found in [&[f32::NAN, 1.0][..], &[f32::INFINITY, 1.0], &[1.0]] {
            assert_eq!(of_tensors(found, &[1.0, 1.0]), f64::INFINITY, "{found:?}");
        }
        assert_eq!(of_numbers(f64::NAN, 1.0), f64::INFINITY);
    }
}
