//! The law of the loss: what parameters, tokens and their repetition are worth.

use serde::Serialize;

/// `L(N, D) = E + (A / N^alpha + B / D^beta)^power`, the validation loss in nats a token of a model with `N` parameters, those
/// of the embeddings left out, after training on `D` tokens. With `power` 1 it is the law of Hoffmann et al. (2022, "Training
/// compute-optimal large language models"), with `beta` 1 that of Kaplan et al. (2020, "Scaling laws for neural language
/// models") above an entropy `E`. Where a text of `U` tokens is read more than once, `C (N / U)^gamma (D / U - 1)^delta` is
/// added: a model begins to learn the text by heart, and its validation loss rises. This term is our own; the effective tokens
/// of Muennighoff et al. (2023, "Scaling data-constrained language models") level off, but never make a loss rise.
///
/// The constants are those of runs that `scripts/scaling.sh` makes: the modern recipe with characters as tokens, a context
/// of 128, updates of 1,024 tokens, four blocks, and a schedule that ends with the run. `scripts/fit_scaling.py` fits them,
/// and `docs/scaling.md` says how well. They hold for that recipe and that kind of text, in the ranges of [`Measured`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ScalingLaw {
    /// `E`, the loss that neither parameters nor tokens reduce, in nats a token.
    pub e: f64,
    /// `A`, in nats a token to the power of `1 / power`.
    pub a: f64,
    /// The exponent of the parameters.
    pub alpha: f64,
    /// `B`, in the same unit.
    pub b: f64,
    /// The exponent of the tokens.
    pub beta: f64,
    /// What the sum of both is raised to.
    pub power: f64,
    /// `C`, what repetition costs, in nats a token.
    pub c: f64,
    /// The exponent of the parameters for each token of the text.
    pub gamma: f64,
    /// The exponent of the repetitions.
    pub delta: f64,
    /// What was measured.
    pub measured: Measured,
}

/// The runs that a law was fitted to: the ranges in which it interpolates.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Measured {
    /// The least and the most parameters, those of the embeddings left out.
    pub parameters: [f64; 2],
    /// The least and the most tokens.
    pub tokens: [f64; 2],
    /// The most often that a text was read.
    pub epochs: f64,
}

impl ScalingLaw {
    /// The law of tinyshakespeare by characters.
    pub const SHAKESPEARE: Self = Self {
        e: 1.3067,
        a: 26.077,
        alpha: 0.41476,
        b: 3_205.3,
        beta: 0.70421,
        power: 1.0,
        c: 0.00030418,
        gamma: 1.3345,
        delta: 2.1697,
        measured: Measured { parameters: [53_792.0, 3_213_824.0], tokens: [249_856.0, 8_000_512.0], epochs: 16.0 },
    };

    /// The law of the built-in stories by characters. Nothing was repeated: `C` is 0.
    pub const STORIES: Self = Self {
        e: 0.49549,
        a: 13.263,
        alpha: 0.30697,
        b: 107_880.0,
        beta: 1.0,
        power: 3.6444,
        c: 0.0,
        gamma: 1.0,
        delta: 1.0,
        measured: Measured { parameters: [53_792.0, 1_771_456.0], tokens: [249_856.0, 1_999_872.0], epochs: 1.0 },
    };

    /// The expected validation loss, in nats a token, of a model with `parameters` parameters, those of the embeddings left
    /// out, that was trained on `tokens` tokens of a text of `unique` tokens.
    pub fn loss(&self, parameters: f64, tokens: f64, unique: f64) -> f64 {
        let repetitions = (tokens / unique - 1.0).max(0.0);
        let by_heart = self.c * (parameters / unique).powf(self.gamma) * repetitions.powf(self.delta);
        let gap = self.a * parameters.powf(-self.alpha) + self.b * tokens.powf(-self.beta);
        self.e + gap.powf(self.power) + by_heart
    }

    /// The number of tokens, at most `most`, after which the expected loss is least, to a hundredth: less than `most` where a
    /// text would be read too often.
    pub fn best_tokens(&self, parameters: f64, unique: f64, most: f64) -> f64 {
        if most <= unique {
            return most;
        }
        let loss = |tokens: &f64| self.loss(parameters, *tokens, unique);
        let fewer = std::iter::successors(Some(most), |tokens| Some(tokens / 1.01));
        fewer.take_while(|tokens| *tokens >= unique).min_by(|a, b| loss(a).total_cmp(&loss(b))).unwrap_or(most)
    }

    /// Whether such a run lies between those that the law was fitted to, so that its loss is not extrapolated.
    pub fn interpolates(&self, parameters: f64, tokens: f64, unique: f64) -> bool {
        let between = |x: f64, [least, most]: [f64; 2]| (least..=most).contains(&x);
        let Measured { parameters: sizes, tokens: lengths, epochs } = self.measured;
        between(parameters, sizes) && between(tokens, lengths) && tokens <= unique * epochs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAWS: [ScalingLaw; 2] = [ScalingLaw::SHAKESPEARE, ScalingLaw::STORIES];
    /// A text that no run of these tests reads twice.
    const ENDLESS: f64 = 1e15;

    #[test]
    fn the_loss_falls_with_parameters_with_tokens_and_with_new_text() {
        for law in LAWS {
            let steps = [1e4, 1e5, 1e6, 1e7, 1e8];
            for pair in steps.windows(2) {
                assert!(law.loss(pair[1], 1e6, ENDLESS) < law.loss(pair[0], 1e6, ENDLESS));
                assert!(law.loss(1e6, pair[1], ENDLESS) < law.loss(1e6, pair[0], ENDLESS));
                assert!(law.loss(1e6, 1e9, pair[1]) <= law.loss(1e6, 1e9, pair[0]));
            }
        }
    }

    #[test]
    fn the_loss_is_never_below_that_which_nothing_reduces() {
        for law in LAWS {
            assert!(law.loss(1e6, 1e6, ENDLESS) > law.e);
            assert!(law.loss(1e30, 1e30, f64::INFINITY) - law.e < 1e-3);
        }
    }

    #[test]
    fn reading_again_is_worth_less_than_new_text_and_the_less_the_larger_the_model() {
        let law = ScalingLaw::SHAKESPEARE;
        let cost = |n: f64, epochs: f64| law.loss(n, 1e6 * epochs, 1e6) - law.loss(n, 1e6 * epochs, ENDLESS);
        assert_eq!(cost(5e5, 1.0), 0.0);
        assert!(cost(5e5, 2.0) > 0.0 && cost(5e5, 8.0) > cost(5e5, 2.0));
        assert!(cost(2e6, 4.0) > cost(5e5, 4.0));
    }

    #[test]
    fn training_ends_before_a_model_learns_its_text_by_heart() {
        let law = ScalingLaw::SHAKESPEARE;
        assert_eq!(law.best_tokens(5e5, 1e6, 7e5), 7e5, "no repetition");
        assert_eq!(law.best_tokens(5e5, ENDLESS, 1e9), 1e9, "endless text");
        let best = law.best_tokens(5e5, 1e6, 1e9);
        assert!((1e6..1e8).contains(&best), "{best}");
        let loss = |tokens| law.loss(5e5, tokens, 1e6);
        assert!(loss(best) <= loss(best * 1.1) && loss(best) <= loss(best / 1.1));
        assert!(law.best_tokens(4e6, 1e6, 1e9) < best, "sooner for a larger one");
    }

    #[test]
    fn the_best_size_of_a_budget_of_arithmetic_is_neither_the_smallest_nor_the_largest() {
        for law in LAWS {
            // 6 N D FLOPs: those of a 0.8 M model on a million tokens.
            let loss = |n: f64| law.loss(n, 5e12 / (6.0 * n), ENDLESS);
            let sizes: Vec<f64> = (0..40).map(|i| 1e4 * 1.5f64.powi(i)).collect();
            let best = sizes.iter().enumerate().min_by(|a, b| loss(*a.1).total_cmp(&loss(*b.1))).unwrap().0;
            assert!((1..39).contains(&best), "{best}");
            // Downhill to it, and uphill from it.
            assert!(sizes[..=best].windows(2).all(|pair| loss(pair[1]) < loss(pair[0])));
            assert!(sizes[best..].windows(2).all(|pair| loss(pair[1]) > loss(pair[0])));
        }
    }

    #[test]
    fn a_run_outside_of_what_was_measured_is_extrapolated() {
        let law = ScalingLaw::SHAKESPEARE;
        assert!(law.interpolates(5e5, 1e6, 1e6));
        for (n, d, unique) in [(1e3, 1e6, 1e6), (1e8, 1e6, 1e6), (5e5, 1e4, 1e6), (5e5, 1e9, 1e9), (5e5, 3e6, 1e5)] {
            assert!(!law.interpolates(n, d, unique), "{n} {d} {unique}");
        }
    }
}
