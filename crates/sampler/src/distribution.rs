//! The distribution of a row after all rules.

/// The distribution that a token is drawn from, after all rules.
#[derive(Debug, Clone, PartialEq)]
pub struct Distribution {
    kept: Vec<u32>,
    probs: Vec<f64>,
}

impl Distribution {
    /// Normalises weights, which have a positive sum; `kept` is by falling weight.
    pub(crate) fn from_weights(kept: Vec<u32>, mut weights: Vec<f64>) -> Self {
        let total: f64 = weights.iter().sum();
        for weight in &mut weights {
            *weight /= total;
        }
        Self { kept, probs: weights }
    }

    /// The tokens that may be drawn, by falling probability, of equal ones the lowest first.
    #[must_use]
    pub fn kept(&self) -> &[u32] {
        &self.kept
    }

    /// The probability of each token of [`Distribution::kept`]; they sum to 1.
    #[must_use]
    pub fn probs(&self) -> &[f64] {
        &self.probs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy;

    #[test]
    fn probabilities_and_entropy_are_those_of_the_weights() {
        let half = Distribution::from_weights(vec![4, 1, 2], vec![4.0, 2.0, 2.0]);
        assert_eq!(half.kept(), [4, 1, 2]);
        assert_eq!(half.probs(), [0.5, 0.25, 0.25]);
        assert!((entropy(half.probs()) - 1.5 * 2f64.ln()).abs() < 1e-15);
    }
}
