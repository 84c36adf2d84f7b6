//! Where a network looks: the probabilities of its attention.

use candle_core::{DType, Tensor};

use super::Gpt;
use crate::{
    Result,
    ops::{Attention, Op, Tokens},
};

impl Gpt {
    /// The probabilities of attention in a sequence: for each layer `(nh, T, T)` in f32, where row `i` of a head has the weights by
    /// which position `i` takes from positions `0..=i`. A row sums to 1, and what lies ahead has 0. They are what the attention
    /// of [`Gpt::forward`] multiplies values with: behind rotary positions and norms of queries and keys, and one map for each
    /// head of queries where these share keys.
    ///
    /// # Errors
    /// When there is no token, there are more than `block_size`, or one is outside the vocabulary.
    pub fn attention_maps(&self, ids: &[u32]) -> Result<Vec<Tensor>> {
        let values = self.values_of(ids)?;
        self.attentions().map(|attention| self.attention_map_of(attention, &values)).collect()
    }

    /// The map of one layer alone, `(nh, T, T)`, of [`Gpt::attention_maps`]; none of a layer that the network does not have.
    ///
    /// # Errors
    /// As for [`Gpt::attention_maps`].
    pub fn attention_map(&self, ids: &[u32], layer: usize) -> Result<Option<Tensor>> {
        let Some(attention) = self.attentions().nth(layer) else { return Ok(None) };
        self.attention_map_of(attention, &self.values_of(ids)?).map(Some)
    }

    fn attentions(&self) -> impl Iterator<Item = &Attention> {
        self.net.ops.iter().filter_map(|op| match op {
            Op::Attention(attention) => Some(attention),
            _ => None,
        })
    }

    fn values_of(&self, ids: &[u32]) -> Result<Vec<Tensor>> {
        self.check_positions(ids.len())?;
        let tokens = Tokens::new(ids, 1, ids.len(), self.config().vocab_size, self.device())?;
        self.all_values(&tokens)
    }

    fn attention_map_of(&self, attention: &Attention, values: &[Tensor]) -> Result<Tensor> {
        let qkv = values[attention.input().0].to_dtype(self.dtype)?;
        Ok(attention.probabilities(&qkv, self.precision)?.squeeze(0)?.to_dtype(DType::F32)?)
    }
}
