//! Selection and draw in f64: for temperatures and top-p with which f32 weights would not be exact enough, and for the rules
//! that are about the whole distribution (top-n-sigma, dynamic temperature, typical-p, XTC, mirostat).

use crate::SamplingParams;
use std::cmp::Ordering;

/// A token that may be drawn.
#[derive(Debug, Clone, Copy)]
pub(super) struct WeightedToken {
    pub(super) logit: f32,
    pub(super) token: u32,
    pub(super) weight: f64,
}

/// What the rules depend on beside the row.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowNumbers {
    /// Whether XTC's coin fell on its side.
    pub(super) xtc_acts: bool,
    /// The largest surprise that mirostat keeps, in bits.
    pub(super) mu: f64,
}

/// Fills `kept` with the tokens that the rules keep, in vocabulary order, with their weights relative to the token of the
/// largest logit, whether it is kept or not.
///
/// `row` has no NaN and no +inf, its largest logit `max` is finite, and the rules are not greedy. Penalties are applied
/// already, and `temperature` replaces that of `params`.
pub(super) fn select(
    row: &[f32],
    max: f32,
    params: &SamplingParams,
    temperature: f64,
    numbers: RowNumbers,
    kept: &mut Vec<WeightedToken>,
) {
    kept.clear();
    kept.extend(row.iter().enumerate().filter(|(_, logit)| logit.is_finite()).map(|(token, &logit)| WeightedToken {
        logit,
        token: token as u32,
        weight: 0.0,
    }));
    let max = f64::from(max);
    if params.top_n_sigma > 0.0 {
        keep_top_n_sigma(kept, max, params.top_n_sigma);
    }
    let temperature = dynamic_temperature(kept, max, params, temperature);
    if temperature == 0.0 {
        keep_largest(kept);
        return;
    }
    if params.top_k > 0 && params.top_k < kept.len() {
        kept.select_nth_unstable_by(params.top_k - 1, descending_logit);
        kept.truncate(params.top_k);
    }
    for entry in kept.iter_mut() {
        entry.weight = ((f64::from(entry.logit) - max) / temperature).exp();
    }
    if params.mirostat_tau > 0.0 {
        keep_unsurprising(kept, numbers.mu);
    }
    if params.typical_p < 1.0 {
        keep_typical(kept, max, params.typical_p, temperature);
    }
    if params.top_p < 1.0 {
        kept.sort_unstable_by(descending_logit);
        keep_mass(kept, params.top_p);
    }
    if params.min_p > 0.0 {
        let largest = kept.iter().map(|entry| entry.weight).fold(0.0, f64::max);
        kept.retain(|entry| entry.weight >= params.min_p * largest);
    }
    if numbers.xtc_acts {
        exclude_top_choices(kept, params.xtc_threshold);
    }
    kept.sort_unstable_by_key(|entry| entry.token);
}

/// The token that `u` draws: the inverse CDF in vocabulary order.
pub(super) fn draw(kept: &[WeightedToken], u: f64) -> u32 {
    let target = u * total_weight(kept);
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

/// The sum of the weights.
pub(super) fn total_weight(kept: &[WeightedToken]) -> f64 {
    kept.iter().map(|entry| entry.weight).sum()
}

/// Keeps the most probable token alone, of equal ones the lowest, with weight 1.
pub(super) fn keep_largest(kept: &mut Vec<WeightedToken>) {
    if let Some(&largest) = kept.iter().min_by(|a, b| descending_logit(a, b)) {
        kept.clear();
        kept.push(WeightedToken { weight: 1.0, ..largest });
    }
}

/// Keeps the first of the tokens, in their order, whose weights sum to `share` of the total.
fn keep_mass(kept: &mut Vec<WeightedToken>, share: f64) {
    let target = share * total_weight(kept);
    let mut mass = 0.0;
    let reached = kept.iter().position(|entry| {
        mass += entry.weight;
        mass >= target
    });
    kept.truncate(reached.map_or(kept.len(), |n| n + 1));
}

fn keep_top_n_sigma(kept: &mut Vec<WeightedToken>, max: f64, n: f64) {
    let count = kept.len() as f64;
    // Distances from the largest logit have no large offset to round off.
    let mean = kept.iter().map(|entry| f64::from(entry.logit) - max).sum::<f64>() / count;
    let variance = kept.iter().map(|entry| (f64::from(entry.logit) - max - mean).powi(2)).sum::<f64>() / count;
    let threshold = max - n * variance.sqrt();
    kept.retain(|entry| f64::from(entry.logit) >= threshold);
}

/// The temperature, which the entropy of the tokens moves where it is dynamic.
fn dynamic_temperature(kept: &[WeightedToken], max: f64, params: &SamplingParams, middle: f64) -> f64 {
    let range = params.dynatemp_range;
    if range == 0.0 || kept.len() < 2 {
        return middle;
    }
    // Of weights e^x with the sum W, -sum p ln p is ln W - sum(e^x x) / W.
    let (total, weighted) = kept.iter().fold((0.0, 0.0), |(total, weighted), entry| {
        let x = f64::from(entry.logit) - max;
        (total + x.exp(), weighted + x.exp() * x)
    });
    let entropy: f64 = total.ln() - weighted / total;
    // Rounding may leave the entropy of a certain token a little below 0.
    let relative = (entropy / (kept.len() as f64).ln()).clamp(0.0, 1.0);
    let lowest = (middle - range).max(0.0);
    lowest + ((middle + range).min(f64::MAX) - lowest) * relative.powf(params.dynatemp_exponent)
}

fn keep_unsurprising(kept: &mut Vec<WeightedToken>, mu: f64) {
    let total = total_weight(kept);
    if kept.iter().any(|entry| -(entry.weight / total).log2() <= mu) {
        kept.retain(|entry| -(entry.weight / total).log2() <= mu);
    } else {
        keep_largest(kept);
    }
}

fn keep_typical(kept: &mut Vec<WeightedToken>, max: f64, typical_p: f64, temperature: f64) {
    let total = total_weight(kept);
    let ln_total = total.ln();
    // -ln p; it is known where p is too small for f64.
    let surprise = |entry: &WeightedToken| ln_total - (f64::from(entry.logit) - max) / temperature;
    let probable = kept.iter().filter(|entry| entry.weight > 0.0);
    let entropy: f64 = probable.map(|entry| entry.weight / total * surprise(entry)).sum();
    let distance = |entry: &WeightedToken| (surprise(entry) - entropy).abs();
    kept.sort_unstable_by(|a, b| distance(a).total_cmp(&distance(b)).then_with(|| descending_logit(a, b)));
    keep_mass(kept, typical_p);
}

fn exclude_top_choices(kept: &mut Vec<WeightedToken>, threshold: f64) {
    let total = total_weight(kept);
    // A token of probability 0 is no choice.
    let reaches = |entry: &WeightedToken| entry.weight / total > 0.0 && entry.weight / total >= threshold;
    let top = || kept.iter().filter(|entry| reaches(entry));
    let Some(last) = top().max_by(|a, b| descending_logit(a, b)).map(|entry| entry.token) else { return };
    if top().nth(1).is_some() {
        kept.retain(|entry| entry.token == last || !reaches(entry));
    }
}

/// Orders by falling logit, of equal ones (0 and -0 are equal) by token.
fn descending_logit(a: &WeightedToken, b: &WeightedToken) -> Ordering {
    b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.token.cmp(&b.token))
}
