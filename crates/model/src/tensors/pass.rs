//! What an operation is computed with on candle tensors.

use candle_core::{DType, Tensor};

use super::KvCache;
use crate::{
    Dropout, Precision, Result,
    ops::Tokens,
    plan::{ParamId, Value},
};

/// What one forward pass is for.
pub(crate) enum Mode<'a> {
    /// Every position of a batch at once, with dropout when training.
    FullSequence {
        /// The masks.
        dropout: Option<&'a Dropout>,
        /// [`ops::causal_mask`] of all positions, `(T, T)`.
        mask: Tensor,
        /// What the operands of products are rounded to.
        precision: Precision,
    },
    /// New positions behind those in the cache; each row's result is independent of the other rows.
    Cached {
        /// Keys and values of the positions so far.
        cache: &'a mut KvCache,
        /// [`ops::causal_mask`] of the new positions; none where there is only one.
        mask: Option<Tensor>,
    },
}

/// What an operation is computed with.
pub(crate) struct Pass<'a> {
    pub(crate) mode: Mode<'a>,
    /// `(B, T)`.
    pub(crate) tokens: &'a Tokens,
    pub(super) params: &'a [Tensor],
    pub(super) dtype: DType,
    pub(super) values: Vec<Option<Tensor>>,
}

impl<'a> Pass<'a> {
    /// A value that an earlier operation made.
    pub(crate) fn value(&self, value: Value) -> Result<Tensor> {
        // A network that reads a value before it is made, or after it was read last, is no network of ours.
        let missing = || candle_core::Error::Msg(format!("{value:?} is not there")).into();
        self.values[value.0].clone().ok_or_else(missing)
    }

    pub(crate) fn param(&self, param: ParamId) -> &'a Tensor {
        &self.params[param.0]
    }

    /// The type of activations.
    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    /// What the operands of linear layers are rounded to, or `None` where each row is a product of its own.
    pub(crate) fn precision(&self) -> Option<Precision> {
        match self.mode {
            Mode::FullSequence { precision, .. } => Some(precision),
            Mode::Cached { .. } => None,
        }
    }

    pub(crate) fn dropout(&self) -> Option<&'a Dropout> {
        match self.mode {
            Mode::FullSequence { dropout, .. } => dropout,
            Mode::Cached { .. } => None,
        }
    }

    /// Positions before the first of this pass.
    pub(crate) fn past(&self) -> usize {
        match &self.mode {
            Mode::FullSequence { .. } => 0,
            Mode::Cached { cache, .. } => cache.len(),
        }
    }
}
