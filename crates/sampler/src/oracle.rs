//! The slow definition of a draw, written as the rules read: f64, a full sort, and an eight-line inverse CDF.
//!
//! Every fast path is tested against this one: the same kept set, and the same token for the same `u`.

use crate::penalties::adjust;
use crate::{SamplingError, SamplingParams};
use std::cmp::Ordering;

/// What the definition says about one row and one `u`.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The tokens that may be drawn, in falling probability, lowest index first among equals.
    pub kept: Vec<u32>,
    /// Their probabilities after all rules; they sum to 1.
    pub probs: Vec<f64>,
    /// The drawn token.
    pub token: u32,
    /// How far the nearest boundary is: the least distance of `u` from a step between two tokens of the CDF, or of
    /// `top_p` from a cumulative mass. Sums in another order may decide otherwise only where this is tiny.
    pub margin: f64,
}

/// The row after the penalties, the kept set and the drawn token for the uniform number `u` in `[0, 1)`.
///
/// # Errors
/// Parameters outside their range; a NaN, a +infinity or no finite logit (as row 0); an unknown token.
pub fn sample(logits: &[f32], params: &SamplingParams, history: &[u32], u: f64) -> Result<Outcome, SamplingError> {
    params.validate()?;
    let mut row = logits.to_vec();
    if params.adjusts(history) {
        adjust(&mut row, params, history, &mut Vec::new())?;
    }
    check_row(&row)?;

    // Most probable first and, the sort being stable, the lowest index first among equals. The raw logits decide:
    // dividing them by the temperature first could merge neighbours.
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

/// Refuses a row from which nothing can be drawn.
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
    fn of_weights(weights: &[f64]) -> Vec<f32> {
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
        let row = of_weights(&[1.0, 4.0, 3.0, 2.0]);
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
        let row = of_weights(&[8.0, 4.1, 3.9]);
        assert_eq!(kept(&row, &rules(|p| p.min_p = 0.5)), [0, 1]);
        assert_eq!(kept(&row, &rules(|p| p.min_p = 1.0)), [0]);
    }

    #[test]
    fn the_draw_walks_the_vocabulary_in_order() {
        let row = of_weights(&[1.0, 4.0, 3.0, 2.0]);
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
