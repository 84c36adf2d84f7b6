//! The law of the loss: what parameters, tokens and their repetition are worth.

use serde::Serialize;

/// `L(N, D) = E + A / N^alpha + B / D^beta`, the validation loss in nats a token of a model with `N` parameters, those of
/// the embeddings left out, after training on `D` tokens (Hoffmann et al., 2022, "Training compute-optimal large language
/// models"). A text of `U` tokens that is read more than once counts as `D' = U + U R (1 - exp(-(D / U - 1) / R))` tokens
/// (Muennighoff et al., 2023, "Scaling data-constrained language models").
///
/// The constants are those of runs that `scripts/scaling.sh` makes: the modern recipe with characters as tokens, a context
/// of 128, updates of 1,024 tokens, four blocks, and a schedule that ends with the run. `scripts/fit_scaling.py` fits them,
/// and `docs/scaling.md` says how well. They hold for that recipe and that kind of text, in the ranges of [`Measured`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ScalingLaw {
    /// `E`, the loss that neither parameters nor tokens reduce, in nats a token.
    pub e: f64,
    /// `A`, in nats a token.
    pub a: f64,
    /// The exponent of the parameters.
    pub alpha: f64,
    /// `B`, in nats a token.
    pub b: f64,
    /// The exponent of the tokens.
    pub beta: f64,
    /// `R`, the number of repetitions after which further ones are worth less than `1 / e` of new text.
    pub repetition: f64,
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
        e: 1.0,
        a: 1.0,
        alpha: 0.5,
        b: 1.0,
        beta: 0.5,
        repetition: 15.0,
        measured: Measured { parameters: [5e4, 3e6], tokens: [2.5e5, 4e6], epochs: 16.0 },
    };

    /// The law of the built-in stories by characters, whose `E` is their entropy: it was given, not fitted.
    pub const STORIES: Self = Self {
        e: 0.58,
        a: 1.0,
        alpha: 0.5,
        b: 1.0,
        beta: 0.5,
        repetition: 15.0,
        measured: Measured { parameters: [5e4, 3e6], tokens: [2.5e5, 4e6], epochs: 1.0 },
    };

    /// `D'`: the tokens of new text that are worth as much as `tokens` of a text of `unique` tokens.
    pub fn effective_tokens(&self, tokens: f64, unique: f64) -> f64 {
        if tokens <= unique {
            return tokens;
        }
        let repetitions = tokens / unique - 1.0;
        unique + unique * self.repetition * (1.0 - (-repetitions / self.repetition).exp())
    }

    /// The expected validation loss, in nats a token, of a model with `parameters` parameters, those of the embeddings left
    /// out, that was trained on `tokens` tokens of a text of `unique` tokens.
    pub fn loss(&self, parameters: f64, tokens: f64, unique: f64) -> f64 {
        let tokens = self.effective_tokens(tokens, unique);
        self.e + self.a * parameters.powf(-self.alpha) + self.b * tokens.powf(-self.beta)
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
                assert!(law.loss(1e6, 1e9, pair[1]) < law.loss(1e6, 1e9, pair[0]));
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
    fn reading_again_is_worth_a_little_less_than_new_text_and_in_the_end_nothing() {
        let law = ScalingLaw { repetition: 10.0, ..ScalingLaw::SHAKESPEARE };
        assert_eq!(law.effective_tokens(5e5, 1e6), 5e5);
        assert_eq!(law.effective_tokens(1e6, 1e6), 1e6);
        let twice = law.effective_tokens(2e6, 1e6);
        assert!((1.9e6..2e6).contains(&twice), "{twice}");
        assert!((law.effective_tokens(1e12, 1e6) - 11e6).abs() < 1.0, "1 + R times the text");
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
