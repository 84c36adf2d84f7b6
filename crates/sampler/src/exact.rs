//! The draw in f64 without a full sort: for parameters outside the range in which f32 weights are safe.

use crate::SamplingParams;

/// One token that may still be drawn.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate {
    pub(crate) logit: f32,
    pub(crate) token: u32,
    pub(crate) weight: f64,
}

/// Fills `kept` with the tokens that the rules keep, in vocabulary order, with their weights relative to the largest.
///
/// `row` has no NaN and no +inf, and its largest logit `max` is finite; the rules are not greedy.
pub(crate) fn keep(row: &[f32], max: f32, params: &SamplingParams, temperature: f64, kept: &mut Vec<Candidate>) {
    kept.clear();
    kept.extend(row.iter().enumerate().filter(|(_, logit)| logit.is_finite()).map(|(token, &logit)| Candidate {
        logit,
        token: token as u32,
        weight: 0.0,
    }));
    if params.top_k > 0 && params.top_k < kept.len() {
        kept.select_nth_unstable_by(params.top_k - 1, by_rank);
        kept.truncate(params.top_k);
    }
    let max = f64::from(max);
    for candidate in kept.iter_mut() {
        candidate.weight = ((f64::from(candidate.logit) - max) / temperature).exp();
    }
    if params.top_p < 1.0 {
        kept.sort_unstable_by(by_rank);
        let target = params.top_p * kept.iter().map(|c| c.weight).sum::<f64>();
        let mut mass = 0.0;
        let reached = kept.iter().position(|candidate| {
            mass += candidate.weight;
            mass >= target
        });
        kept.truncate(reached.map_or(kept.len(), |n| n + 1));
    }
    if params.min_p > 0.0 {
        kept.retain(|candidate| candidate.weight >= params.min_p);
    }
    kept.sort_unstable_by_key(|candidate| candidate.token);
}

/// The inverse CDF in vocabulary order.
pub(crate) fn draw(kept: &[Candidate], u: f64) -> u32 {
    let target = u * kept.iter().map(|c| c.weight).sum::<f64>();
    let mut cumulative = 0.0;
    let mut last = 0;
    for candidate in kept.iter().filter(|candidate| candidate.weight > 0.0) {
        cumulative += candidate.weight;
        last = candidate.token;
        if cumulative > target {
            break;
        }
    }
    last
}

/// Most probable first, the lowest index first among equals; 0 and -0 are equal.
fn by_rank(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.logit.partial_cmp(&a.logit).unwrap_or(std::cmp::Ordering::Equal).then(a.token.cmp(&b.token))
}
