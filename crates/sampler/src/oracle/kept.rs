//! The tokens that are left of a row, from rule to rule of the definition.

use std::cmp::Ordering;

use super::Outcome;
use crate::{SamplingError, SamplingParams};

/// The tokens that are left, by falling logit, of equal ones the lowest first.
pub(super) struct Kept<'a> {
    pub(super) row: &'a [f32],
    pub(super) order: Vec<usize>,
    /// Of each token of `order`, relative to the token that weighed most when they were weighed.
    pub(super) weights: Vec<f64>,
    /// See [`Outcome::margin`].
    pub(super) margin: f64,
}

impl<'a> Kept<'a> {
    /// All tokens with a finite logit, not weighed yet.
    pub(super) fn all(row: &'a [f32]) -> Self {
        // Most probable first; the sort is stable, so equal logits stay in vocabulary order. The raw logits are compared,
        // since dividing by the temperature could make neighbours equal.
        let mut order: Vec<usize> = (0..row.len()).filter(|&i| row[i].is_finite()).collect();
        order.sort_by(|&a, &b| row[b].partial_cmp(&row[a]).unwrap_or(Ordering::Equal));
        Self { row, order, weights: Vec::new(), margin: 1.0 }
    }

    fn logit(&self, token: usize) -> f64 {
        f64::from(self.row[token])
    }

    pub(super) fn truncate(&mut self, keep: usize) {
        self.order.truncate(keep);
        self.weights.truncate(keep);
    }

    pub(super) fn probs(&self) -> Vec<f64> {
        let total: f64 = self.weights.iter().sum();
        self.weights.iter().map(|weight| weight / total).collect()
    }

    /// The surprise `-ln p` of each token, in nats, and their entropy. The logarithm of a probability that is too small
    /// for f64 is known from the logit.
    fn surprises(&self, temperature: f64) -> (Vec<f64>, f64) {
        let max = self.logit(self.order[0]);
        let scores: Vec<f64> = self.order.iter().map(|&i| (self.logit(i) - max) / temperature).collect();
        let ln_total = scores.iter().map(|score| score.exp()).sum::<f64>().ln();
        let surprises: Vec<f64> = scores.iter().map(|score| ln_total - score).collect();
        let entropy = surprises.iter().map(|&s| if s.is_finite() { (-s).exp() * s } else { 0.0 }).sum();
        (surprises, entropy)
    }

    pub(super) fn keep_top_n_sigma(&mut self, n: f64) {
        let count = self.order.len() as f64;
        let mean = self.order.iter().map(|&i| self.logit(i)).sum::<f64>() / count;
        let variance = self.order.iter().map(|&i| (self.logit(i) - mean).powi(2)).sum::<f64>() / count;
        let sigma = variance.sqrt();
        let threshold = self.logit(self.order[0]) - n * sigma;
        if sigma > 0.0 {
            let distance = |&i: &usize| (self.logit(i) - threshold).abs() / sigma;
            self.margin = self.order.iter().map(distance).fold(self.margin, f64::min);
        }
        let keep = self.order.partition_point(|&i| self.logit(i) >= threshold);
        self.order.truncate(keep);
    }

    /// The temperature, which the entropy moves where it is dynamic. A single token has no entropy to go by.
    pub(super) fn temperature(&self, params: &SamplingParams) -> f64 {
        let (middle, range) = (params.temperature, params.dynatemp_range);
        if range == 0.0 || self.order.len() < 2 {
            return middle;
        }
        let (_, entropy) = self.surprises(1.0);
        // Rounding may leave the entropy of a certain token a little below 0.
        let relative = (entropy / (self.order.len() as f64).ln()).clamp(0.0, 1.0);
        let lowest = (middle - range).max(0.0);
        lowest + ((middle + range).min(f64::MAX) - lowest) * relative.powf(params.dynatemp_exponent)
    }

    pub(super) fn weigh(&mut self, temperature: f64) {
        let max = self.logit(self.order[0]);
        self.weights = self.order.iter().map(|&i| ((self.logit(i) - max) / temperature).exp()).collect();
    }

    pub(super) fn keep_unsurprising(&mut self, mu: f64) {
        let bits: Vec<f64> = self.probs().iter().map(|p| -p.log2()).collect();
        self.margin = bits.iter().map(|bits| (bits - mu).abs()).fold(self.margin, f64::min);
        self.truncate(bits.partition_point(|&bits| bits <= mu).max(1));
    }

    pub(super) fn keep_typical(&mut self, typical_p: f64) {
        let probs = self.probs();
        // A token of probability 0 is infinitely surprising.
        let surprise = |p: &f64| -p.ln();
        let entropy: f64 = probs.iter().filter(|&&p| p > 0.0).map(|p| p * surprise(p)).sum();
        let distances: Vec<f64> = probs.iter().map(|p| (surprise(p) - entropy).abs()).collect();
        let mut by_distance: Vec<usize> = (0..probs.len()).collect();
        // Stable: of equal distances the more probable, then the lower token.
        by_distance.sort_by(|&a, &b| distances[a].total_cmp(&distances[b]));
        let mut mass = 0.0;
        let mut keep = by_distance.len();
        for (n, &place) in by_distance.iter().enumerate() {
            mass += probs[place];
            self.margin = self.margin.min((mass - typical_p).abs());
            if keep == by_distance.len() && mass >= typical_p {
                keep = n + 1;
            }
        }
        // Of tokens of different logits that are nearly as far from the entropy, rounding may choose another.
        if let (Some(&last), Some(&next)) = (by_distance.get(keep - 1), by_distance.get(keep))
            && self.row[self.order[last]] != self.row[self.order[next]]
        {
            self.margin = self.margin.min(distances[next] - distances[last]);
        }
        let mut places = by_distance[..keep].to_vec();
        places.sort_unstable();
        self.order = places.iter().map(|&place| self.order[place]).collect();
        self.weights = places.iter().map(|&place| self.weights[place]).collect();
    }

    pub(super) fn keep_top_p(&mut self, top_p: f64) {
        let total: f64 = self.weights.iter().sum();
        let mut mass = 0.0;
        let mut keep = self.weights.len();
        for (n, weight) in self.weights.iter().enumerate() {
            mass += weight;
            self.margin = self.margin.min((mass / total - top_p).abs());
            if keep == self.weights.len() && mass >= top_p * total {
                keep = n + 1;
            }
        }
        self.truncate(keep);
    }

    pub(super) fn keep_min_p(&mut self, min_p: f64) {
        let largest = self.weights[0];
        self.truncate(self.weights.partition_point(|&weight| weight >= min_p * largest));
    }

    /// Keeps the token of the largest logit, of equal ones the lowest: no boundary is near then.
    pub(super) fn keep_largest(&mut self) {
        self.order.truncate(1);
        self.weights = vec![1.0];
        self.margin = 1.0;
    }

    pub(super) fn exclude_top_choices(&mut self, threshold: f64) {
        let probs = self.probs();
        self.margin = probs.iter().map(|p| (p - threshold).abs()).fold(self.margin, f64::min);
        // A token of probability 0 is no choice.
        let reach = probs.partition_point(|&p| p > 0.0 && p >= threshold);
        if reach >= 2 {
            self.order.drain(..reach - 1);
            self.weights.drain(..reach - 1);
        }
    }

    pub(super) fn draw(mut self, u: f64) -> Result<Outcome, SamplingError> {
        let total: f64 = self.weights.iter().sum();
        let mut by_token: Vec<(usize, f64)> = self.order.iter().copied().zip(self.weights.iter().copied()).collect();
        by_token.sort_by_key(|&(token, _)| token);
        by_token.retain(|&(_, weight)| weight > 0.0);
        let nothing = SamplingError::NothingFinite { row: 0, vocab: self.row.len() };
        let (last, inner) = by_token.split_last().ok_or(nothing)?;
        let mut token = None;
        let mut cumulative = 0.0;
        for &(candidate, weight) in inner {
            cumulative += weight;
            self.margin = self.margin.min((cumulative / total - u).abs());
            if token.is_none() && cumulative > u * total {
                token = Some(candidate);
            }
        }
        Ok(Outcome {
            probs: self.probs(),
            kept: self.order.iter().map(|&i| i as u32).collect(),
            token: token.unwrap_or(last.0) as u32,
            margin: self.margin,
        })
    }
}
