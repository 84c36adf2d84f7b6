//! Selection and draw in f64, for temperatures and top-p with which f32 weights would not be exact enough.

use crate::SamplingParams;

/// A token that may be drawn.
#[derive(Debug, Clone, Copy)]
pub(super) struct WeightedToken {
    pub(super) logit: f32,
    pub(super) token: u32,
    pub(super) weight: f64,
}

/// Fills `kept` with the tokens that the rules keep, in vocabulary order; the token of the largest logit weighs 1.
///
/// `row` has no NaN and no +inf, its largest logit `max` is finite, and the rules are not greedy. Penalties are applied
/// already, and `temperature` replaces that of `params`.
pub(super) fn select(row: &[f32], max: f32, params: &SamplingParams, temperature: f64, kept: &mut Vec<WeightedToken>) {
    kept.clear();
    kept.extend(row.iter().enumerate().filter(|(_, logit)| logit.is_finite()).map(|(token, &logit)| WeightedToken {
        logit,
        token: token as u32,
        weight: 0.0,
    }));
    if params.top_k > 0 && params.top_k < kept.len() {
        kept.select_nth_unstable_by(params.top_k - 1, descending_logit);
        kept.truncate(params.top_k);
    }
    let max = f64::from(max);
    for entry in kept.iter_mut() {
        entry.weight = ((f64::from(entry.logit) - max) / temperature).exp();
    }
    if params.top_p < 1.0 {
        kept.sort_unstable_by(descending_logit);
        let target = params.top_p * kept.iter().map(|c| c.weight).sum::<f64>();
        let mut mass = 0.0;
        let reached = kept.iter().position(|entry| {
            mass += entry.weight;
            mass >= target
        });
        kept.truncate(reached.map_or(kept.len(), |n| n + 1));
    }
    if params.min_p > 0.0 {
        kept.retain(|entry| entry.weight >= params.min_p);
    }
    kept.sort_unstable_by_key(|entry| entry.token);
}

/// The token that `u` draws: the inverse CDF in vocabulary order.
pub(super) fn draw(kept: &[WeightedToken], u: f64) -> u32 {
    let target = u * kept.iter().map(|c| c.weight).sum::<f64>();
    let mut cumulative = 0.0;
    let mut last = 0;
    for entry in kept.iter().filter(|entry| entry.weight > 0.0) {
        cumulative += entry.weight;
        last = entry.token;
        if cumulative > target {
            break;
        }
    }
    last
}

/// Orders by falling logit, of equal ones (0 and -0 are equal) by token.
fn descending_logit(a: &WeightedToken, b: &WeightedToken) -> std::cmp::Ordering {
    b.logit.partial_cmp(&a.logit).unwrap_or(std::cmp::Ordering::Equal).then(a.token.cmp(&b.token))
}
