//! Along a text: what each token's probability is, and that of every other in its place.

use super::{MAX_ORDER, NgramError, NgramModel, Smoothing, discount_of};
use crate::{ModelError, Result};

/// A place in a text: the contexts that end there, of every length below the order. A step of one token searches one table
/// for each length.
#[derive(Debug, Clone)]
pub struct Scorer<'a> {
    model: &'a NgramModel,
    /// The nodes of the last 0, 1, ... tokens, as far as they occur.
    nodes: [u32; MAX_ORDER],
    /// The length of the longest context that occurs.
    known: usize,
    /// The length of the context: that of the text so far, at most the order less one.
    len: usize,
}

/// The nodes of a token behind the contexts that it occurs behind, from the shortest on.
struct Found {
    nodes: [u32; MAX_ORDER],
    contexts: usize,
}

impl<'a> Scorer<'a> {
    pub(super) fn new(model: &'a NgramModel) -> Self {
        Self { model, nodes: [0; MAX_ORDER], known: 0, len: 0 }
    }

    /// The natural logarithm of the probability of `token` here; then goes on behind it.
    ///
    /// # Errors
    /// When the token is outside the vocabulary.
    #[inline]
    pub fn advance(&mut self, token: u32) -> Result<f64> {
        let vocab_size = self.model.vocab_size();
        if token as usize >= vocab_size {
            return Err(ModelError::TokenOutOfRange { id: token, vocab_size });
        }
        let found = self.find(token);
        let log_prob = self.prob(&found).ln();
        let longest = self.model.order() - 1;
        self.known = found.contexts.min(longest);
        self.nodes[1..=self.known].copy_from_slice(&found.nodes[..self.known]);
        self.len = longest.min(self.len + 1);
        Ok(log_prob)
    }

    /// The natural logarithm of the probability of `token` here; of one outside the vocabulary, that of a token that never occurs.
    pub fn log_prob(&self, token: u32) -> f64 {
        self.prob(&self.find(token)).ln()
    }

    /// The counts that models of every order have of `token` here: `(c(hw), c(h))` for the orders from 1 on, where `h` are the
    /// last `order - 1` tokens, or all there are.
    pub fn counts(&self, token: u32) -> Vec<(u32, u32)> {
        let found = self.find(token);
        (0..self.model.order()).map(|n| self.counts_behind(n.min(self.len), &found)).collect()
    }

    /// The natural logarithms of the probabilities of every token here, `out (V)`.
    ///
    /// # Errors
    /// When `out` is not as long as the vocabulary.
    pub fn log_probs_into(&self, out: &mut [f32]) -> Result<()> {
        let mut probs = vec![0.0; self.model.vocab_size()];
        if out.len() != probs.len() {
            return Err(NgramError::RowLength { got: out.len(), vocab_size: probs.len() }.into());
        }
        self.logits_into(&mut probs, out);
        Ok(())
    }

    /// [`Scorer::log_probs_into`] with probabilities in a buffer of the caller's; both `(V)`.
    pub(super) fn logits_into(&self, probs: &mut [f64], logits: &mut [f32]) {
        self.probs_into(probs);
        logits.iter_mut().zip(probs).for_each(|(logit, prob)| *logit = prob.ln() as f32);
    }

    fn probs_into(&self, probs: &mut [f64]) {
        let NgramModel { counts, smoothing, contexts } = self.model;
        let uniform = 1.0 / probs.len() as f64;
        let followers = |n: usize| {
            let range = counts.followers(n, self.nodes[n]);
            counts.level(n + 1).tokens[range.clone()].iter().zip(&counts.counts(n + 1)[range])
        };
        match smoothing {
            Smoothing::AddK { .. } if self.len > self.known => probs.fill(uniform),
            Smoothing::AddK { k } => {
                let total = f64::from(contexts[self.len].totals[self.nodes[self.len] as usize]);
                let sum = total + k * probs.len() as f64;
                probs.fill(k / sum);
                for (&token, &count) in followers(self.len) {
                    probs[token as usize] = (f64::from(count) + k) / sum;
                }
            }
            Smoothing::KneserNey { discounts } => {
                probs.fill(uniform);
                for n in 0..=self.known {
                    let node = self.nodes[n] as usize;
                    let (total, weight) = (f64::from(contexts[n].totals[node]), contexts[n].lower_weights[node]);
                    probs.iter_mut().for_each(|prob| *prob *= weight);
                    for (&token, &count) in followers(n) {
                        probs[token as usize] += (f64::from(count) - discounts[n][discount_of(count)]) / total;
                    }
                }
            }
        }
    }

    /// Every context of a token that occurs behind a longer one is found too, so the search ends at the first that is not.
    #[inline]
    fn find(&self, token: u32) -> Found {
        let mut found = Found { nodes: [0; MAX_ORDER], contexts: 0 };
        for n in 0..=self.known {
            let Some(node) = self.model.counts.find(n, self.nodes[n], token) else { break };
            found.nodes[n] = node;
            found.contexts = n + 1;
        }
        found
    }

    /// `(c(hw), c(h))` for the context of length `n`.
    #[inline]
    fn counts_behind(&self, n: usize, found: &Found) -> (u32, u32) {
        if n > self.known {
            return (0, 0);
        }
        let count = if n < found.contexts { self.model.counts.counts(n + 1)[found.nodes[n] as usize] } else { 0 };
        (count, self.model.contexts[n].totals[self.nodes[n] as usize])
    }

    #[inline]
    fn prob(&self, found: &Found) -> f64 {
        let vocab_size = self.model.vocab_size() as f64;
        match &self.model.smoothing {
            Smoothing::AddK { k } => {
                let (count, total) = self.counts_behind(self.len, found);
                (f64::from(count) + k) / (f64::from(total) + k * vocab_size)
            }
            Smoothing::KneserNey { discounts } => (0..=self.known).fold(1.0 / vocab_size, |lower, n| {
                let lower = lower * self.model.contexts[n].lower_weights[self.nodes[n] as usize];
                match self.counts_behind(n, found) {
                    (0, _) => lower,
                    (count, total) => (f64::from(count) - discounts[n][discount_of(count)]) / f64::from(total) + lower,
                }
            }),
        }
    }
}
