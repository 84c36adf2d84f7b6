//! The definition of a draw, written as the rules read: f64, a full sort and an inverse CDF. It is slow.
//!
//! Both fast paths are tested against it: they keep the same tokens, and draw the same token for the same uniform
//! number.

use crate::penalties::apply_penalties;
use crate::{SamplingError, SamplingParams};
use std::cmp::Ordering;

/// The answer of the definition for one row and one uniform number.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The tokens that may be drawn, by falling probability, of equal ones the lowest first.
    pub kept: Vec<u32>,
    /// The probability of each kept token after all rules; they sum to 1.
    pub probs: Vec<f64>,
    /// The drawn token.
    pub token: u32,
    /// The distance to the nearest boundary: the least distance of `u` from a step of the CDF, or of `top_p` from a
    /// cumulative probability. Only where it is tiny may sums in another order give another answer.
    pub margin: f64,
}

/// Draws from one row of logits, `[V]`, by the uniform number `u` in `[0, 1)`. The penalties read `history`, the tokens
/// so far.
///
/// # Errors
/// Parameters outside their range; a NaN, a +infinity or no finite logit; a token of the history or bias that is not
/// below V. The row is called row 0.
pub fn sample(logits: &[f32], params: &SamplingParams, history: &[u32], u: f64) -> Result<Outcome, SamplingError> {
    params.validate()?;
    let mut row = logits.to_vec();
    if params.changes_logits(history) {
        apply_penalties(&mut row, params, history, &mut Vec::new())?;
    }
    check_row(&row)?;

    // Most probable first; the sort is stable, so equal logits stay in vocabulary order. The raw logits are compared,
    // since dividing by the temperature could make neighbours equal.
    let mut order: Vec<usize> = (0..row.len()).filter(|&i| row[i].is_finite()).collect();
    order.sort_by(|&a, &b| row[b].partial_cmp(&row[a]).unwrap_or(Ordering::Equal));

    if params.is_greedy() {
        return Ok(Outcome { kept: vec![order[0] as u32], probs: vec![1.0], token: order[0] as u32, margin: 1.0 });
    }

    if params.top_k > 0 {
        order.truncate(params.top_k);
    }
    let max = f64::from(row[order[0]]);
    let mut weights: Vec<f64> = order.iter().map(|&i| ((f64::from(row[i]) - max) / params.temperature).exp()).collect();
    let mut margin = 1.0f64;

    if params.top_p < 1.0 {
        let total: f64 = weights.iter().sum();
        let mut mass = 0.0;
        let mut keep = weights.len();
        for (n, weight) in weights.iter().enumerate() {
            mass += weight;
            margin = margin.min((mass / total - params.top_p).abs());
            if keep == weights.len() && mass >= params.top_p * total {
                keep = n + 1;
            }
        }
        order.truncate(keep);
        weights.truncate(keep);
    }
    let keep = weights.partition_point(|&weight| weight >= params.min_p);
    order.truncate(keep);
    weights.truncate(keep);

    let total: f64 = weights.iter().sum();
    let mut by_token: Vec<(usize, f64)> = order.iter().copied().zip(weights.iter().copied()).collect();
    by_token.sort_by_key(|&(token, _)| token);
    by_token.retain(|&(_, weight)| weight > 0.0);
    let (last, inner) = by_token.split_last().ok_or(SamplingError::NothingFinite { row: 0, vocab: row.len() })?;
    let mut token = None;
    let mut cumulative = 0.0;
    for &(candidate, weight) in inner {
        cumulative += weight;
        margin = margin.min((cumulative / total - u).abs());
        if token.is_none() && cumulative > u * total {
            token = Some(candidate);
        }
    }
    Ok(Outcome {
        kept: order.iter().map(|&i| i as u32).collect(),
        probs: weights.iter().map(|w| w / total).collect(),
        token: token.unwrap_or(last.0) as u32,
        margin,
    })
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
