//! The context of one forward pass on candle tensors, which operations read.

use candle_core::{DType, Device, Tensor};

use super::KvCache;
use crate::{
    Dropout, Precision, Result,
    ops::{Tokens, causal_mask},
    plan::{ParamId, Value},
};

/// The mode of a forward pass.
pub(crate) enum Mode<'a> {
    /// All positions of a batch at once, for training and evaluation.
    FullSequence {
        /// The dropout masks, in training.
        dropout: Option<&'a Dropout>,
        /// The mask of all positions.
        mask: CausalMask,
        /// The precision to which the operands of products are rounded.
        precision: Precision,
    },
    /// New positions after those in a cache, for generation. Each row's result is independent of the other rows.
    Cached {
        /// The keys and values of the positions so far.
        cache: &'a mut KvCache,
        /// The [causal mask](crate::ops::causal_mask) of the new positions, `(T, past + T)`; none where there is only one.
        mask: Option<Tensor>,
    },
}

/// The [causal mask](causal_mask) of all positions, `(T, T)`, which is made when an operation first asks for it.
#[derive(Debug, Default)]
pub(crate) struct CausalMask(Option<Tensor>);

impl CausalMask {
    /// The mask of `t` positions, the same number in every call.
    pub(crate) fn of(&mut self, t: usize, dtype: DType, device: &Device) -> Result<Tensor> {
        let mask = match self.0.take() {
            Some(mask) => mask,
            None => causal_mask(t, 0, dtype, device)?,
        };
        Ok(self.0.insert(mask).clone())
    }
}

/// One forward pass, with the values that later operations read.
pub(crate) struct Pass<'a> {
    pub(crate) mode: Mode<'a>,
    /// The tokens, `(B, T)`.
    pub(crate) tokens: &'a Tokens,
    pub(super) params: &'a [Tensor],
    pub(crate) dtype: DType,
    /// The matrices rounded to 16 bits, by parameter; empty where each product rounds its own operands.
    pub(super) operands: &'a [Option<Tensor>],
    pub(super) values: Vec<Option<Tensor>>,
}

impl<'a> Pass<'a> {
    /// A value that an earlier operation computed, `(B, T, channels)`.
    pub(crate) fn value(&self, value: Value) -> Result<Tensor> {
        // The builder gives no network that reads a value before it is computed or after its last reader.
        let missing = || candle_core::Error::Msg(format!("{value:?} is not there")).into();
        self.values[value.0].clone().ok_or_else(missing)
    }

    /// Keeps a value until its last reader has run.
    pub(super) fn set(&mut self, value: Value, tensor: Tensor) {
        self.values[value.0] = Some(tensor);
    }

    /// A parameter.
    pub(crate) fn param(&self, param: ParamId) -> &'a Tensor {
        &self.params[param.0]
    }

    /// The type of values that products read: that of their operands where there are kernels that read and write it, else that of
    /// activations, which each product rounds.
    pub(crate) fn operand_dtype(&self) -> DType {
        let rounded = self.precision().and_then(Precision::dtype).filter(|_| !self.operands.is_empty());
        rounded.unwrap_or(self.dtype)
    }

    /// A matrix as an operand of products, if the pass has it rounded.
    pub(crate) fn operand(&self, param: ParamId) -> Option<&Tensor> {
        self.operands.get(param.0).and_then(Option::as_ref)
    }

    /// The type of activations.
    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    /// The precision of the operands of linear layers, or `None` in cached passes, where each row is a separate product.
    pub(crate) fn precision(&self) -> Option<Precision> {
        match self.mode {
            Mode::FullSequence { precision, .. } => Some(precision),
            Mode::Cached { .. } => None,
        }
    }

    /// The dropout masks, in training.
    pub(crate) fn dropout(&self) -> Option<&'a Dropout> {
        match self.mode {
            Mode::FullSequence { dropout, .. } => dropout,
            Mode::Cached { .. } => None,
        }
    }

    /// The number of positions before the first of this pass.
    pub(crate) fn past(&self) -> usize {
        match &self.mode {
            Mode::FullSequence { .. } => 0,
            Mode::Cached { cache, .. } => cache.len(),
        }
    }
}
