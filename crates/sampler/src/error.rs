//! The errors of drawing from logits: parameters outside their range, and rows that cannot be drawn from.

/// Why a token could not be drawn.
///
/// An error about a row names the row; the other rows of its batch are drawn from all the same.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplingError {
    /// A parameter is outside its range.
    #[error("{field} is {value}, but must be {allowed}")]
    Parameter {
        /// The field of [`SamplingParams`](crate::SamplingParams), or the argument.
        field: &'static str,
        /// The value, as text.
        value: String,
        /// The allowed range, in words.
        allowed: &'static str,
    },
    /// A logit is NaN.
    #[error("row {row}: the logit of token {index} is NaN")]
    NotANumber {
        /// The row's index in its batch.
        row: usize,
        /// The lowest such token.
        index: usize,
    },
    /// A logit is +infinity, before or after the penalties.
    #[error("row {row}: the logit of token {index} is +infinity")]
    PositiveInfinity {
        /// The row's index in its batch.
        row: usize,
        /// The lowest such token.
        index: usize,
    },
    /// No token can be drawn, because every logit is -infinity or the row is empty.
    #[error("row {row}: none of the {vocab} logits is finite, so no token can be drawn")]
    NothingFinite {
        /// The row's index in its batch.
        row: usize,
        /// The number of logits.
        vocab: usize,
    },
    /// A token of the history or of the logit bias is not in the vocabulary.
    #[error("row {row}: token {token} of the {place} is not below the vocabulary size {vocab}")]
    UnknownToken {
        /// The row's index in its batch.
        row: usize,
        /// The offending token.
        token: u32,
        /// The list that holds the token: `history` or `logit_bias`.
        place: &'static str,
        /// The number of logits.
        vocab: usize,
    },
}

impl SamplingError {
    /// The same error with another row number. Samplers of a single row call it row 0.
    #[must_use]
    pub fn at_row(mut self, to: usize) -> Self {
        match &mut self {
            Self::Parameter { .. } => {}
            Self::NotANumber { row, .. }
            | Self::PositiveInfinity { row, .. }
            | Self::NothingFinite { row, .. }
            | Self::UnknownToken { row, .. } => *row = to,
        }
        self
    }
}

/// Why a function on tensors failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TensorSamplingError {
    /// The parameters, or a row, cannot be sampled with.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}
