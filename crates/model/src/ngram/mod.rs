//! N-gram models over tokens: the next token given the last few, from counts.
//!
//! The baselines that a network has to beat. [`NgramModel`] holds the counts of a training text ([`NgramCounts`]) and how they
//! are smoothed ([`Smoothing`]); [`Scorer`] goes along a text. `tinygpt-trainer` counts.
//!
//! ```
//! use tinygpt_model::ngram::{NgramCountsBuilder, NgramModel, Smoothing};
//!
//! // The bigrams of the tokens 0 1 0: "0 1", "1 0", and "0", which the end of the text cuts off.
//! let mut counts = NgramCountsBuilder::new(2, 2)?;
//! for ngram in [&[0, 1][..], &[0], &[1, 0]] {
//!     counts.push(ngram, 1)?;
//! }
//! let model = NgramModel::new(counts.finish(), Smoothing::AddK { k: 0.5 })?;
//! let mut row = [0.0; 2];
//! model.log_probs_into(&[0], &mut row)?;
//! assert_eq!(row.map(f32::exp), [0.25, 0.75]); // (0 + 0.5) / (1 + 2 * 0.5), (1 + 0.5) / (1 + 2 * 0.5)
//! # Ok::<(), tinygpt_model::ModelError>(())
//! ```

mod counts;
mod error;
mod file;
mod predict;
mod scorer;
#[cfg(test)]
mod tests;

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

pub use counts::{NgramCounts, NgramCountsBuilder};
pub use error::NgramError;
pub use file::{NGRAM_FILE, NGRAM_FORMAT, NGRAM_TABLES, is_ngram_folder, open_with_tokenizer, save_with_tokenizer};
pub use predict::NgramDecoder;
pub use scorer::Scorer;

use crate::Result;

/// The greatest order.
pub const MAX_ORDER: usize = 5;
/// The range of `k` of add-k smoothing; no probability in it rounds to 0.
pub const K_RANGE: RangeInclusive<f64> = 1e-12..=1e12;
/// The least discount of Kneser-Ney smoothing; with it no probability rounds to 0.
pub const MIN_DISCOUNT: f64 = 1e-6;

/// How counts become probabilities. `c(hw)` is the number of times that token `w` follows the context `h`, `c(h)` its sum over
/// all `w`, and `V` the size of the vocabulary.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Smoothing {
    /// `p(w|h) = (c(hw) + k) / (c(h) + k V)`, for the context of `order - 1` tokens, or all tokens there are where they are
    /// fewer. A context that was never seen has the uniform distribution.
    AddK {
        /// What is added to each count; in [`K_RANGE`].
        k: f64,
    },
    /// Interpolated Kneser-Ney with three discounts (Chen and Goodman 1999, "modified"):
    /// `p(w|h) = (c(hw) - D) / c(h) + g(h) p(w|h')`, where `h'` is `h` without its first token, `D` the discount for `c(hw)`
    /// equal to 1, to 2, or above, and `g(h)` what the discounts have taken from the followers of `h`, over `c(h)`. Below the
    /// order, `c` counts the distinct tokens that precede ([`NgramCounts::continuation`]). Below the unigrams lies `1 / V`. A
    /// context that was never seen has the distribution of `h'`.
    KneserNey {
        /// For each length from 1 to the order: the discounts of counts of 1, of 2, and of 3 or more;
        /// `MIN_DISCOUNT <= D_j <= j`, so that every token keeps a probability.
        discounts: Vec<[f64; 3]>,
    },
}

/// An n-gram model: the probability of a token given the `order - 1` tokens before it.
///
/// In memory it takes the tables of [`NgramCounts`], and for each distinct n-gram below the order 4 bytes more with add-k
/// smoothing, and 12 with Kneser-Ney's.
#[derive(Debug, Clone)]
pub struct NgramModel {
    counts: NgramCounts,
    smoothing: Smoothing,
    /// One for each length of a context, from 0 to the order less one.
    contexts: Vec<Contexts>,
}

/// What is known of the contexts of one length, by node.
#[derive(Debug, Clone)]
struct Contexts {
    /// `c(h)`, which is 0 for the last tokens of a text where they occur nowhere else.
    totals: Vec<u32>,
    /// `g(h)` of Kneser-Ney; empty with add-k.
    lower_weights: Vec<f64>,
}

impl Smoothing {
    /// Refuses parameters out of their ranges.
    fn check(&self, order: usize) -> Result<(), NgramError> {
        let refuse = |parameter: String, value, allowed| Err(NgramError::Smoothing { parameter, value, allowed });
        match self {
            Self::AddK { k } if K_RANGE.contains(k) => Ok(()),
            Self::AddK { k } => refuse("k".into(), *k, "it lies between 1e-12 and 1e12"),
            Self::KneserNey { discounts } => {
                if discounts.len() != order {
                    let orders = "there are three for each length from 1 to the order";
                    return refuse("the number of lengths with discounts".into(), discounts.len() as f64, orders);
                }
                for (n, discounts) in (1..).zip(discounts) {
                    for (j, &d) in (1..).zip(discounts) {
                        if !(MIN_DISCOUNT..=f64::from(j)).contains(&d) {
                            let allowed = "it is at least 1e-6, and takes no more than there is";
                            return refuse(
                                format!("the discount of counts of {j} for n-grams of length {n}"),
                                d,
                                allowed,
                            );
                        }
                    }
                }
                Ok(())
            }
        }
    }
}

impl NgramModel {
    /// The model of some counts; with Kneser-Ney, of those that [`NgramCounts::continuation`] gives.
    ///
    /// # Errors
    /// When a parameter of the smoothing is out of its range.
    pub fn new(counts: NgramCounts, smoothing: Smoothing) -> Result<Self> {
        smoothing.check(counts.order())?;
        let contexts = (0..counts.order()).map(|n| Contexts::new(&counts, &smoothing, n)).collect();
        Ok(Self { counts, smoothing, contexts })
    }

    /// The number of tokens in the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.counts.vocab_size()
    }

    /// The length of the longest n-grams; a context has one token less.
    pub fn order(&self) -> usize {
        self.counts.order()
    }

    /// How the counts are smoothed.
    pub fn smoothing(&self) -> &Smoothing {
        &self.smoothing
    }

    /// The counts.
    pub fn counts(&self) -> &NgramCounts {
        &self.counts
    }

    /// The number of free parameters: of the counts that are stored, one for each distinct n-gram of each length from 1 to the
    /// order. The parameters of the smoothing, at most 15, are not among them.
    pub fn parameters(&self) -> u64 {
        (1..=self.order()).map(|n| self.counts.distinct(n) as u64).sum()
    }

    /// The name that people give it: `unigram`, `bigram`, `trigram`, `4-gram`, ..., with `Kneser-Ney` before it.
    pub fn name(&self) -> String {
        let ngram = match self.order() {
            1 => "unigram".to_owned(),
            2 => "bigram".to_owned(),
            3 => "trigram".to_owned(),
            n => format!("{n}-gram"),
        };
        match self.smoothing {
            Smoothing::AddK { .. } => ngram,
            Smoothing::KneserNey { .. } => format!("Kneser-Ney {ngram}"),
        }
    }

    /// What goes along a text, at its start.
    pub fn scorer(&self) -> Scorer<'_> {
        Scorer::new(self)
    }

    /// The natural logarithms of the probabilities of every token behind a context, `out (V)`. Only the last `order - 1` tokens
    /// of the context matter.
    ///
    /// # Errors
    /// When a token is outside the vocabulary, or `out` is not as long as the vocabulary.
    pub fn log_probs_into(&self, context: &[u32], out: &mut [f32]) -> Result<()> {
        self.scorer_behind(context)?.log_probs_into(out)
    }

    /// A scorer behind a context, of which only the last `order - 1` tokens are looked at.
    ///
    /// # Errors
    /// When one of them is outside the vocabulary.
    pub fn scorer_behind(&self, context: &[u32]) -> Result<Scorer<'_>> {
        let mut scorer = self.scorer();
        for &token in &context[context.len().saturating_sub(self.order() - 1)..] {
            scorer.advance(token)?;
        }
        Ok(scorer)
    }

    /// The mean cross-entropy of a text in nats a token: over every token but the first, each from those before it.
    ///
    /// # Errors
    /// When a token is outside the vocabulary, or there are fewer than two.
    pub fn loss(&self, tokens: impl IntoIterator<Item = u32>) -> Result<f64> {
        let mut scorer = self.scorer();
        let (mut sum, mut n) = (0.0, 0_usize);
        for token in tokens {
            let log_prob = scorer.advance(token)?;
            sum -= if n == 0 { 0.0 } else { log_prob };
            n += 1;
        }
        if n < 2 {
            return Err(NgramError::NothingToPredict { tokens: n }.into());
        }
        Ok(sum / (n - 1) as f64)
    }
}

impl Contexts {
    /// The contexts of length `n`.
    fn new(counts: &NgramCounts, smoothing: &Smoothing, n: usize) -> Self {
        let nodes = if n == 0 { 1 } else { counts.distinct(n) };
        let followers = |node| &counts.counts(n + 1)[counts.followers(n, node)];
        let totals: Vec<u32> = (0..nodes as u32).map(|node| followers(node).iter().sum()).collect();
        let lower_weights = match smoothing {
            Smoothing::AddK { .. } => Vec::new(),
            Smoothing::KneserNey { discounts } => {
                let weight = |node: u32| match totals[node as usize] {
                    0 => 1.0,
                    total => {
                        let mut numbers = [0_u32; 3];
                        followers(node).iter().for_each(|&count| numbers[discount_of(count)] += 1);
                        let taken: f64 = numbers.iter().zip(&discounts[n]).map(|(&n, d)| f64::from(n) * d).sum();
                        taken / f64::from(total)
                    }
                };
                (0..nodes as u32).map(weight).collect()
            }
        };
        Self { totals, lower_weights }
    }
}

/// Which of the three discounts a count has; `count` is at least 1.
fn discount_of(count: u32) -> usize {
    count.min(3) as usize - 1
}
