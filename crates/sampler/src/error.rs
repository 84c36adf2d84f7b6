//! What can be wrong with parameters and rows.

/// An error of the sampler. Errors about a row name it, and leave the other rows of its batch unharmed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplingError {
    /// A parameter is outside its range.
    #[error("{field} is {value}, but must be {allowed}")]
    Parameter {
        /// The field of [`SamplingParams`](crate::SamplingParams), or the argument.
        field: &'static str,
        /// Its value, as text.
        value: String,
        /// The allowed range, in words.
        allowed: &'static str,
    },
    /// A logit is NaN.
    #[error("row {row}: the logit of token {index} is NaN")]
    NotANumber {
        /// The row's place in its batch.
        row: usize,
        /// The first such token.
        index: usize,
    },
    /// A logit is +infinity, before or after the penalties.
    #[error("row {row}: the logit of token {index} is +infinity")]
    PositiveInfinity {
        /// The row's place in its batch.
        row: usize,
        /// The first such token.
        index: usize,
    },
    /// No token can be drawn: every logit is -infinity, or there are none.
    #[error("row {row}: none of the {vocab} logits is finite, so no token can be drawn")]
    NothingFinite {
        /// The row's place in its batch.
        row: usize,
        /// The number of logits.
        vocab: usize,
    },
    /// A token of the history or of the logit bias is not in the vocabulary.
    #[error("row {row}: token {token} of the {place} is not below the vocabulary size {vocab}")]
    UnknownToken {
        /// The row's place in its batch.
        row: usize,
        /// The offending token.
        token: u32,
        /// Where it stood: `history` or `logit_bias`.
        place: &'static str,
        /// The number of logits.
        vocab: usize,
    },
}

impl SamplingError {
    /// The same error, about another row.
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

/// An error of what works on tensors.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TensorSamplingError {
    /// The parameters or a row.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// The tensor library.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}
