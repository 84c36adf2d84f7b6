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

    /// The entropy in nats.
    #[must_use]
    pub fn entropy(&self) -> f64 {
        // Subtracting from 0 gives a certain token the entropy 0 and not -0.
        let sum: f64 = self.probs.iter().filter(|&&p| p > 0.0).map(|p| p * p.ln()).sum();
        0.0 - sum
    }

    /// The `n` most probable tokens with their probabilities.
    pub fn top(&self, n: usize) -> impl Iterator<Item = (u32, f64)> + '_ {
        self.kept.iter().copied().zip(self.probs.iter().copied()).take(n)
    }

    /// The natural logarithm of a token's probability; `-inf` if it cannot be drawn.
    #[must_use]
    pub fn log_prob(&self, token: u32) -> f64 {
        let place = self.kept.iter().position(|&kept| kept == token);
        place.map_or(f64::NEG_INFINITY, |n| self.probs[n].ln())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropy_top_and_log_probability_are_those_of_the_weights() {
        let half = Distribution::from_weights(vec![4, 1, 2], vec![4.0, 2.0, 2.0]);
        assert_eq!(half.kept(), [4, 1, 2]);
        assert_eq!(half.probs(), [0.5, 0.25, 0.25]);
        assert!((half.entropy() - 1.5 * 2f64.ln()).abs() < 1e-15);
        assert_eq!(half.top(2).collect::<Vec<_>>(), [(4, 0.5), (1, 0.25)]);
        assert_eq!(half.log_prob(1), 0.25f64.ln());
        assert_eq!(half.log_prob(0), f64::NEG_INFINITY);
    }

    #[test]
    fn a_certain_token_has_no_entropy() {
        let certain = Distribution::from_weights(vec![3], vec![1.0]);
        assert_eq!(certain.entropy().to_bits(), 0.0f64.to_bits());
    }
}
