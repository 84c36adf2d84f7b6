//! The definition of a draw, written as the rules read: f64, a full sort and an inverse CDF. It is slow.
//!
//! Both fast paths are tested against it: they keep the same tokens, and draw the same token for the same uniform
//! number.

mod explain;
mod kept;

pub use self::explain::{CutRule, ExplainedToken, Explanation, explain};

use self::kept::Kept;
use crate::penalties::apply_penalties;
use crate::{SamplingError, SamplingParams, uniform, xtc_coin};

/// The numbers that decide a draw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DrawNumbers {
    /// In `[0, 1)`: chooses the token among those that the rules keep; see [`uniform`].
    pub u: f64,
    /// In `[0, 1)`: XTC acts where it is below `xtc_probability`; see [`xtc_coin`].
    pub xtc_coin: f64,
    /// The largest surprise that mirostat keeps, in bits.
    pub mu: f64,
}

impl DrawNumbers {
    /// Those of the first draw of a text at this place.
    #[must_use]
    pub fn at(params: &SamplingParams, sequence: u64, position: u64) -> Self {
        Self {
            u: uniform(params.seed, sequence, position),
            xtc_coin: xtc_coin(params.seed, sequence, position),
            mu: 2.0 * params.mirostat_tau,
        }
    }
}

/// The answer of the definition for one row and one uniform number.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The tokens that may be drawn, by falling probability, of equal ones the lowest first.
    pub kept: Vec<u32>,
    /// The probability of each kept token after all rules; they sum to 1.
    pub probs: Vec<f64>,
    /// The drawn token.
    pub token: u32,
    /// The distance to the nearest boundary: the least distance of `u` from a step of the CDF, of `top_p` or `typical_p`
    /// from a cumulative probability, or of a token from the threshold of another rule. Only where it is tiny may sums in another order give another answer.
    pub margin: f64,
}

/// Draws from one row of logits, `[V]`, by the uniform number `u` in `[0, 1)`. The penalties read `history`, the tokens
/// so far. XTC does not act, and mirostat is at the start of a text: [`sample_with`] is told more.
///
/// # Errors
/// Parameters outside their range; a NaN, a +infinity or no finite logit; a token of the history or bias that is not
/// below V. The row is called row 0.
pub fn sample(logits: &[f32], params: &SamplingParams, history: &[u32], u: f64) -> Result<Outcome, SamplingError> {
    sample_with(logits, params, history, DrawNumbers { u, xtc_coin: 1.0, mu: 2.0 * params.mirostat_tau })
}

/// [`sample`] by all numbers of a draw.
///
/// # Errors
/// As for [`sample`].
pub fn sample_with(
    logits: &[f32],
    params: &SamplingParams,
    history: &[u32],
    numbers: DrawNumbers,
) -> Result<Outcome, SamplingError> {
    let row = changed_row(logits, params, history)?;
    let (kept, _) = keep(&row, params, numbers, |_, _| {});
    kept.draw(numbers.u)
}

/// The row after penalties, biases and bans: what the other rules and the draw read. Refuses what nothing can be drawn from.
fn changed_row(logits: &[f32], params: &SamplingParams, history: &[u32]) -> Result<Vec<f32>, SamplingError> {
    params.validate()?;
    let mut row = logits.to_vec();
    if params.changes_logits(history) {
        apply_penalties(&mut row, params, history, &mut Vec::new())?;
    }
    check_row(&row)?;
    Ok(row)
}

/// Applies the rules that keep tokens to a checked row: what is left, and the temperature. `after` is told what each rule has
/// left, rule by rule.
fn keep<'a>(
    row: &'a [f32],
    params: &SamplingParams,
    numbers: DrawNumbers,
    mut after: impl FnMut(CutRule, &[usize]),
) -> (Kept<'a>, f64) {
    let mut kept = Kept::all(row);
    if params.is_greedy() {
        kept.keep_largest();
        after(if params.temperature == 0.0 { CutRule::Temperature } else { CutRule::TopK }, &kept.order);
        return (kept, params.temperature);
    }
    if params.top_n_sigma > 0.0 {
        kept.keep_top_n_sigma(params.top_n_sigma);
        after(CutRule::TopNSigma, &kept.order);
    }
    let temperature = kept.temperature(params);
    if temperature == 0.0 {
        kept.keep_largest();
        after(CutRule::Temperature, &kept.order);
        return (kept, temperature);
    }
    if params.top_k > 0 {
        kept.order.truncate(params.top_k);
        after(CutRule::TopK, &kept.order);
    }
    kept.weigh(temperature);
    if params.mirostat_tau > 0.0 {
        kept.keep_unsurprising(numbers.mu);
        after(CutRule::Mirostat, &kept.order);
    }
    if params.typical_p < 1.0 {
        kept.keep_typical(params.typical_p);
        after(CutRule::TypicalP, &kept.order);
    }
    if params.top_p < 1.0 {
        kept.keep_top_p(params.top_p);
        after(CutRule::TopP, &kept.order);
    }
    kept.keep_min_p(params.min_p);
    after(CutRule::MinP, &kept.order);
    if numbers.xtc_coin < params.xtc_probability {
        kept.exclude_top_choices(params.xtc_threshold);
        after(CutRule::Xtc, &kept.order);
    }
    (kept, temperature)
}

/// Refuses a row with a NaN, a +infinity or no finite logit, calling it row 0.
pub(crate) fn check_row(row: &[f32]) -> Result<(), SamplingError> {
    if let Some(index) = row.iter().position(|x| x.is_nan()) {
        return Err(SamplingError::NotANumber { row: 0, index });
    }
    if let Some(index) = row.iter().position(|&x| x == f32::INFINITY) {
        return Err(SamplingError::PositiveInfinity { row: 0, index });
    }
    if row.iter().all(|&x| x == f32::NEG_INFINITY) {
        return Err(SamplingError::NothingFinite { row: 0, vocab: row.len() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const INF: f32 = f32::INFINITY;

    fn rules(change: impl FnOnce(&mut SamplingParams)) -> SamplingParams {
        let mut params = SamplingParams::default();
        change(&mut params);
        params
    }

    fn kept(logits: &[f32], params: &SamplingParams) -> Vec<u32> {
        sample(logits, params, &[], 0.5).unwrap().kept
    }

    /// Logits whose softmax at temperature 1 is proportional to `weights`.
    fn logits_of(weights: &[f64]) -> Vec<f32> {
        weights.iter().map(|w| w.ln() as f32).collect()
    }

    #[test]
    fn greedy_is_the_lowest_index_among_the_maxima_with_probability_one() {
        let row = [0.0, 3.0, -INF, 3.0];
        for params in [rules(|p| p.temperature = 0.0), rules(|p| p.top_k = 1)] {
            for u in [0.0, 0.999] {
                let outcome = sample(&row, &params, &[], u).unwrap();
                assert_eq!((outcome.token, outcome.kept), (1, vec![1]));
                assert_eq!(outcome.probs, [1.0]);
            }
        }
        assert_eq!(kept(&[-0.0, 0.0], &rules(|p| p.temperature = 0.0)), [0]);
    }

    #[test]
    fn top_k_keeps_exactly_k_finite_logits_and_the_lowest_indices_of_a_tie() {
        let row = [1.0, 2.0, 2.0, 2.0, -INF, -INF];
        assert_eq!(kept(&row, &rules(|p| p.top_k = 2)), [1, 2]);
        assert_eq!(kept(&row, &rules(|p| p.top_k = 5)), [1, 2, 3, 0]);
        assert_eq!(kept(&row, &rules(|p| p.top_k = 0)), [1, 2, 3, 0]);
    }

    #[test]
    fn top_p_keeps_the_smallest_set_that_reaches_p_of_what_top_k_left() {
        let row = logits_of(&[1.0, 4.0, 3.0, 2.0]);
        assert_eq!(kept(&row, &rules(|p| p.top_p = 0.0)), [1]);
        assert_eq!(kept(&row, &rules(|p| p.top_p = 0.5)), [1, 2]);
        assert_eq!(kept(&row, &rules(|p| p.top_p = 1.0)), [1, 2, 3, 0]);
        // 4 + 3 is 0.7 of everything but 0.78 of the three that top-k leaves.
        assert_eq!(kept(&row, &rules(|p| p.top_p = 0.75)), [1, 2, 3]);
        let both = rules(|p| (p.top_p, p.top_k) = (0.75, 3));
        assert_eq!(kept(&row, &both), [1, 2]);
    }

    #[test]
    fn a_mass_of_exactly_p_is_enough() {
        assert_eq!(kept(&[0.0; 4], &rules(|p| p.top_p = 0.5)), [0, 1]);
    }

    #[test]
    fn min_p_compares_with_the_largest_probability() {
        let row = logits_of(&[8.0, 4.1, 3.9]);
        assert_eq!(kept(&row, &rules(|p| p.min_p = 0.5)), [0, 1]);
        assert_eq!(kept(&row, &rules(|p| p.min_p = 1.0)), [0]);
    }

    #[test]
    fn top_n_sigma_keeps_what_is_within_n_deviations_of_the_largest_logit() {
        // The mean is 1 and the deviation 1, of the finite logits.
        let row = [0.0, 2.0, 0.0, 2.0, -INF];
        assert_eq!(kept(&row, &rules(|p| p.top_n_sigma = 1.9)), [1, 3]);
        assert_eq!(kept(&row, &rules(|p| p.top_n_sigma = 2.0)), [1, 3, 0, 2]);
        // The temperature moves no token across the threshold.
        assert_eq!(kept(&row, &rules(|p| (p.top_n_sigma, p.temperature) = (1.9, 9.0))), [1, 3]);
        assert_eq!(kept(&[1.5; 3], &rules(|p| p.top_n_sigma = 0.1)), [0, 1, 2]);
    }

    #[test]
    fn typical_p_keeps_first_what_is_as_surprising_as_expected() {
        // The entropy is that of a probability of 0.36: nearest is 0.3, then 0.6, then 0.1.
        let row = logits_of(&[1.0, 6.0, 3.0]);
        assert_eq!(kept(&row, &rules(|p| p.typical_p = 0.3)), [2]);
        assert_eq!(kept(&row, &rules(|p| p.typical_p = 0.5)), [1, 2]);
        assert_eq!(kept(&row, &rules(|p| p.typical_p = 0.95)), [1, 2, 0]);
        assert_eq!(kept(&[0.0; 4], &rules(|p| p.typical_p = 0.5)), [0, 1]);
        // Min-p is relative to the largest probability that is left.
        let both = rules(|p| (p.typical_p, p.min_p) = (0.3, 0.9));
        assert_eq!(kept(&row, &both), [2]);
    }

    #[test]
    fn xtc_leaves_the_least_probable_of_the_top_choices() {
        let row = logits_of(&[1.0, 4.0, 3.0, 2.0]);
        let xtc = |threshold, coin| {
            let params = rules(|p| (p.xtc_probability, p.xtc_threshold) = (0.5, threshold));
            let numbers = DrawNumbers { u: 0.5, xtc_coin: coin, mu: 0.0 };
            sample_with(&row, &params, &[], numbers).unwrap().kept
        };
        assert_eq!(xtc(0.15, 0.4), [3, 0]);
        assert_eq!(xtc(0.35, 0.4), [1, 2, 3, 0]);
        assert_eq!(xtc(0.15, 0.5), [1, 2, 3, 0]);
        assert_eq!(xtc(0.0, 0.0), [0]);
    }

    #[test]
    fn mirostat_keeps_what_surprises_by_at_most_mu_bits_and_at_least_one_token() {
        let row = logits_of(&[1.0, 4.0, 2.0, 1.0]);
        let mirostat = |mu| {
            let params = rules(|p| p.mirostat_tau = 1.0);
            sample_with(&row, &params, &[], DrawNumbers { u: 0.5, xtc_coin: 0.0, mu }).unwrap().kept
        };
        assert_eq!(mirostat(2.5), [1, 2]);
        assert_eq!(mirostat(3.5), [1, 2, 0, 3]);
        assert_eq!(mirostat(-1.0), [1]);
        // A text starts with twice the target.
        assert_eq!(kept(&row, &rules(|p| p.mirostat_tau = 1.25)), [1, 2]);
    }

    #[test]
    fn a_dynamic_temperature_follows_the_entropy() {
        let probs = |row: &[f32], params: &SamplingParams| sample(row, params, &[], 0.5).unwrap().probs;
        let dynamic = |range, exponent| {
            rules(|p| (p.temperature, p.dynatemp_range, p.dynatemp_exponent) = (1.0, range, exponent))
        };
        // All tokens are equally probable: the temperature is the highest, and changes nothing.
        assert_eq!(probs(&[0.0; 4], &dynamic(0.5, 1.0)), [0.25; 4]);
        // One is all but certain: the temperature is the lowest.
        let peaked = [0.0, 50.0];
        assert!(probs(&peaked, &dynamic(0.5, 1.0))[1] < probs(&peaked, &rules(|p| p.temperature = 0.51))[1]);
        // Entropy 0.811 bits of 1: 0.5 + 0.811^2.
        let row = logits_of(&[3.0, 1.0]);
        let temperature = 0.5 + 0.811_278_124_459_132_9f64.powi(2);
        let expected = probs(&row, &rules(|p| p.temperature = temperature));
        assert!((probs(&row, &dynamic(0.5, 2.0))[0] - expected[0]).abs() < 1e-7);
    }

    #[test]
    fn the_draw_walks_the_vocabulary_in_order() {
        let row = logits_of(&[1.0, 4.0, 3.0, 2.0]);
        let draw = |u| sample(&row, &SamplingParams::default(), &[], u).unwrap().token;
        assert_eq!([0.0, 0.05, 0.15, 0.45, 0.55, 0.75, 0.85, 0.999].map(draw), [0, 0, 1, 1, 2, 2, 3, 3]);
    }

    #[test]
    fn a_token_of_weight_zero_is_never_drawn() {
        let row = [-INF, 0.0, -INF, -1e30];
        for u in [0.0, 0.5, 1.0 - f64::EPSILON / 2.0] {
            let outcome = sample(&row, &SamplingParams::default(), &[], u).unwrap();
            assert_eq!(outcome.token, 1);
        }
    }

    #[test]
    fn a_row_without_a_draw_is_an_error() {
        let error = |row: &[f32]| sample(row, &SamplingParams::default(), &[], 0.0).unwrap_err();
        assert!(matches!(error(&[0.0, f32::NAN]), SamplingError::NotANumber { index: 1, .. }));
        assert!(matches!(error(&[INF, 0.0]), SamplingError::PositiveInfinity { index: 0, .. }));
        assert!(matches!(error(&[-INF]), SamplingError::NothingFinite { vocab: 1, .. }));
        assert!(matches!(error(&[]), SamplingError::NothingFinite { vocab: 0, .. }));
    }
}
