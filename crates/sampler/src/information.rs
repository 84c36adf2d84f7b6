//! What distributions know of each other (Shannon, 1948, "A Mathematical Theory of Communication"; Kullback and Leibler, 1951,
//! "On Information and Sufficiency"). All in nats, of probabilities that sum to 1.

/// The entropy of probabilities, `-sum p ln p`, in nats.
#[must_use]
pub fn entropy(p: &[f64]) -> f64 {
    // The sum starts at 0, and -0 of a single token is turned into 0.
    0.0 - p.iter().filter(|&&p| p > 0.0).map(|p| p * p.ln()).sum::<f64>()
}

/// The cross-entropy of a model `q` where the truth is `p`, `-sum p ln q`, in nats: infinite where `q` rules out what `p` does
/// not. `cross_entropy(p, q) = entropy(p) + kl_divergence(p, q)`.
///
/// # Panics
/// When the distributions are not over the same number of tokens.
#[must_use]
pub fn cross_entropy(p: &[f64], q: &[f64]) -> f64 {
    0.0 - pairs(p, q).map(|(p, q)| p * q.ln()).sum::<f64>()
}

/// The Kullback-Leibler divergence of `q` from `p`, `sum p ln (p / q)`, in nats: what a code for `q` wastes on `p`. Never below
/// 0, and 0 for equal distributions alone.
///
/// # Panics
/// When the distributions are not over the same number of tokens.
#[must_use]
pub fn kl_divergence(p: &[f64], q: &[f64]) -> f64 {
    // Rounding may leave a sum of nearly equal distributions a little below 0.
    pairs(p, q).map(|(p, q)| p * (p / q).ln()).sum::<f64>().max(0.0)
}

/// The Jensen-Shannon divergence, the mean divergence of both from their mean, in nats: symmetric, and at most `ln 2`.
///
/// # Panics
/// When the distributions are not over the same number of tokens.
#[must_use]
pub fn jensen_shannon(p: &[f64], q: &[f64]) -> f64 {
    let mean: Vec<f64> = p.iter().zip(q).map(|(p, q)| 0.5 * (p + q)).collect();
    0.5 * (kl_divergence(p, &mean) + kl_divergence(q, &mean))
}

/// The probabilities of the tokens that `p` does not rule out.
fn pairs<'a>(p: &'a [f64], q: &'a [f64]) -> impl Iterator<Item = (f64, f64)> + 'a {
    assert_eq!(p.len(), q.len(), "distributions over different tokens");
    p.iter().copied().zip(q.iter().copied()).filter(|&(p, _)| p > 0.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Two distributions over the same tokens, some of which `p` rules out.
    fn two() -> impl Strategy<Value = (Vec<f64>, Vec<f64>)> {
        let weight = || prop_oneof![1 => Just(0.0), 4 => 1e-6..1.0f64];
        prop::collection::vec((weight(), 1e-6..1.0f64), 1..40).prop_filter_map("no weight at all", |weights| {
            let (mut p, mut q): (Vec<f64>, Vec<f64>) = weights.into_iter().unzip();
            for p in [&mut p, &mut q] {
                let total: f64 = p.iter().sum();
                p.iter_mut().for_each(|x| *x /= total);
            }
            p.iter().all(|x| x.is_finite()).then_some((p, q))
        })
    }

    proptest! {
        #[test]
        fn the_cross_entropy_is_the_entropy_and_the_divergence((p, q) in two()) {
            let sum = entropy(&p) + kl_divergence(&p, &q);
            prop_assert!((cross_entropy(&p, &q) - sum).abs() < 1e-12 * sum.max(1.0));
        }

        #[test]
        fn no_divergence_is_negative_and_that_of_equals_is_0((p, q) in two()) {
            prop_assert!(kl_divergence(&p, &q) >= 0.0);
            prop_assert!(kl_divergence(&p, &p) == 0.0 && jensen_shannon(&p, &p) == 0.0);
        }

        #[test]
        fn jensen_shannon_is_symmetric_and_at_most_ln_2((p, q) in two()) {
            let divergence = jensen_shannon(&p, &q);
            prop_assert!((divergence - jensen_shannon(&q, &p)).abs() < 1e-15);
            prop_assert!((0.0..=std::f64::consts::LN_2 + 1e-15).contains(&divergence));
        }

        #[test]
        fn no_distribution_has_more_entropy_than_the_uniform_one((p, _) in two()) {
            prop_assert!(entropy(&p) <= (p.len() as f64).ln() + 1e-12);
        }
    }

    #[test]
    fn a_coin_has_a_bit_and_a_certainty_has_none() {
        assert!((entropy(&[0.5, 0.5]) - std::f64::consts::LN_2).abs() < 1e-15);
        assert_eq!(entropy(&[1.0]).to_bits(), 0.0f64.to_bits());
        assert_eq!(cross_entropy(&[1.0, 0.0], &[1.0, 0.0]).to_bits(), 0.0f64.to_bits());
    }

    #[test]
    fn a_model_that_rules_out_what_happens_has_an_infinite_loss() {
        assert_eq!(cross_entropy(&[0.5, 0.5], &[1.0, 0.0]), f64::INFINITY);
        assert_eq!(kl_divergence(&[0.5, 0.5], &[1.0, 0.0]), f64::INFINITY);
        assert!((jensen_shannon(&[1.0, 0.0], &[0.0, 1.0]) - std::f64::consts::LN_2).abs() < 1e-15);
    }
}
