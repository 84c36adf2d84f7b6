//! Logits for the next token: the seam between generation and whatever computes the model.

use std::borrow::Cow;

use candle_core::{DType, Tensor};

use crate::{GptConfig, ModelError, Result};

/// What happens when a sequence outgrows `block_size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ContextPolicy {
    /// The last `block_size` tokens are the context, as in nanoGPT. Positions are learned, so every kept token moves to
    /// another position and all keys and values are computed anew: each further token costs a whole forward pass over
    /// `block_size` positions instead of one.
    #[default]
    Slide,
    /// A token that does not fit any more leaves the last half of the context, which is computed anew once, then the
    /// cache fills up again: cheap on average, but the context varies between half and all of `block_size`. Of a prompt
    /// the last `block_size` tokens are the context.
    Half,
}

impl ContextPolicy {
    /// How many tokens stay when a window of `block_size` is full.
    pub(crate) fn kept(self, block_size: usize) -> usize {
        match self {
            Self::Slide => block_size,
            Self::Half => (block_size / 2).max(1),
        }
    }
}

/// Next-token logits, where they were computed.
#[derive(Debug, Clone, Copy)]
pub enum Logits<'a> {
    /// `rows * V`, row after row.
    Host(&'a [f32]),
    /// `(rows, V)`. To copy them to the host means to wait for the device: tokens are drawn there instead.
    Device(&'a Tensor),
}

impl<'a> Logits<'a> {
    /// `rows * V` on the host: where they are there, as they lie.
    ///
    /// # Errors
    /// When the copy from a device fails.
    pub fn to_host(self) -> Result<Cow<'a, [f32]>> {
        Ok(match self {
            Self::Host(logits) => Cow::Borrowed(logits),
            Self::Device(logits) => Cow::Owned(logits.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?),
        })
    }
}

/// Computes next-token logits for some sequences that start from one prompt.
///
/// A row's logits depend on nothing but its own tokens: not on the number of rows, nor on their contents.
pub trait Decoder {
    /// The shape of the model.
    fn config(&self) -> &GptConfig;

    /// Starts `rows` sequences from `prompt` and gives the logits of their next tokens.
    ///
    /// # Errors
    /// When the prompt is empty or has a token outside of the vocabulary, or `rows` is 0.
    fn start(&mut self, prompt: &[u32], rows: usize) -> Result<Logits<'_>>;

    /// Appends one token to each row and gives the logits of their next tokens.
    ///
    /// # Errors
    /// When a token is outside of the vocabulary.
    fn step(&mut self, tokens: &[u32]) -> Result<Logits<'_>>;
}

/// What of a prompt is the context that `rows` sequences start from.
///
/// # Errors
/// As [`Decoder::start`].
pub(crate) fn crop_prompt<'p>(config: &GptConfig, prompt: &'p [u32], rows: usize) -> Result<&'p [u32]> {
    if prompt.is_empty() {
        return Err(ModelError::EmptyPrompt);
    }
    if rows == 0 {
        return Err(ModelError::NoRows);
    }
    config.check_tokens(prompt)?;
    Ok(&prompt[prompt.len().saturating_sub(config.block_size)..])
}

/// Appends a token to each row, if all of them can be.
///
/// # Errors
/// As [`Decoder::step`].
pub(crate) fn append_tokens(config: &GptConfig, rows: &mut [Vec<u32>], tokens: &[u32]) -> Result<()> {
    if tokens.is_empty() || tokens.len() != rows.len() {
        return Err(ModelError::RowCount { expected: rows.len(), got: tokens.len() });
    }
    config.check_tokens(tokens)?;
    for (row, &token) in rows.iter_mut().zip(tokens) {
        row.push(token);
    }
    Ok(())
}
