//! What can go wrong with an n-gram model.

use super::MAX_ORDER;

/// An error of the n-gram models. A file that does not hold a model is a [`FileError`](crate::files::FileError) instead.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum NgramError {
    /// An order that no model has.
    #[error("there is no n-gram model of order {order}: give an order from 1 (unigrams) to {MAX_ORDER}")]
    Order {
        /// The order asked for.
        order: usize,
    },
    /// A vocabulary that no model can have.
    #[error("an n-gram model needs a vocabulary of 1 to {} tokens, not of {vocab_size}", u32::MAX)]
    VocabSize {
        /// The size asked for.
        vocab_size: usize,
    },
    /// A parameter of the smoothing out of its range.
    #[error("{parameter} = {value}: {allowed}")]
    Smoothing {
        /// `k`, `D2` of some order, ...
        parameter: String,
        /// Its value.
        value: f64,
        /// What is allowed.
        allowed: &'static str,
    },
    /// More tokens than a count of 32 bits can tell.
    #[error("n-gram models count at most {} tokens; use a smaller corpus", u32::MAX - 1)]
    TooManyTokens,
    /// N-grams that were not given in ascending order, are empty, longer than the order, or never occur.
    #[error("n-gram {ngram:?} is not one that can follow {previous:?} in ascending order")]
    NotAscending {
        /// The n-gram.
        ngram: Vec<u32>,
        /// The one before it.
        previous: Vec<u32>,
    },
    /// Counts that no text has.
    #[error("the counts contradict each other: {0}")]
    Contradiction(String),
    /// A text without a token to predict.
    #[error("a loss needs at least two tokens, the first to predict from, and there are {tokens}")]
    NothingToPredict {
        /// How many tokens there are.
        tokens: usize,
    },
    /// A row of another length than the vocabulary.
    #[error("a row of {got} probabilities for a vocabulary of {vocab_size}")]
    RowLength {
        /// The length of the row.
        got: usize,
        /// The vocabulary's size.
        vocab_size: usize,
    },
}
