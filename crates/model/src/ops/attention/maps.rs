//! The probabilities of attention, to be looked at.

use candle_core::Tensor;

use super::{Attention, SCORE_BYTES, TensorAttention, causal_mask, tensors};
use crate::{Precision, Result, plan::Value};

impl Attention {
    /// The queries, keys and values that it reads.
    pub(crate) fn input(&self) -> Value {
        self.qkv
    }

    /// The probabilities by which each query weighs the values, `(B, nh, T, T)`, of queries, keys and values of whole sequences,
    /// `(B, T, (nh + 2 nkv) hs)`, without dropout.
    pub(crate) fn probabilities(&self, qkv: &Tensor, precision: Precision) -> Result<Tensor> {
        let attention = TensorAttention {
            n_head: self.heads.n_head,
            mask: causal_mask(qkv.dim(1)?, 0, qkv.dtype(), qkv.device())?,
            dropout: None,
            precision,
            score_bytes: SCORE_BYTES,
        };
        Ok(attention.all_probabilities(&tensors::repeat_kv(qkv, self.heads)?)?)
    }
}
