//! The interface between generation and the backends that compute the model: logits of the next token.

use std::borrow::Cow;

use candle_core::{DType, Tensor};

use crate::{GptConfig, ModelError, Result};

/// What a decoder does when a sequence exceeds `block_size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ContextPolicy {
    /// The context is the last `block_size` tokens, as in nanoGPT. Every kept token moves to another position, so all keys
    /// and values are computed anew: each further token costs a forward pass over `block_size` positions instead of one.
    #[default]
    Slide,
    /// When the context is full, its last half is kept and computed anew, and the cache fills up again. This is cheap on
    /// average, but the context varies between half and all of `block_size`. A prompt is cropped to its last `block_size`
    /// tokens.
    Half,
}

impl ContextPolicy {
    /// The number of tokens kept when a context of `block_size` is full.
    pub(crate) fn kept(self, block_size: usize) -> usize {
        match self {
            Self::Slide => block_size,
            Self::Half => (block_size / 2).max(1),
        }
    }
}

/// Next-token logits, on the host or on a device.
#[derive(Debug, Clone, Copy)]
pub enum Logits<'a> {
    /// Logits on the host, `(rows, V)` in row-major order.
    Host(&'a [f32]),
    /// Logits on a device, `(rows, V)`. Copying them to the host waits for the device, so tokens are drawn there instead.
    Device(&'a Tensor),
}

impl<'a> Logits<'a> {
    /// The logits on the host, `(rows, V)` in row-major order, copied only from a device.
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

/// Computes next-token logits for a batch of sequences that start from one prompt.
///
/// A row's logits depend only on its own tokens, not on the number or the contents of other rows.
pub trait Decoder {
    /// The number of tokens `V`.
    fn vocab_size(&self) -> usize;

    /// Starts `rows` sequences from `prompt` and returns the logits of their next tokens, `(rows, V)`.
    ///
    /// # Errors
    /// When the prompt is empty or has a token outside the vocabulary, or `rows` is 0.
    fn start(&mut self, prompt: &[u32], rows: usize) -> Result<Logits<'_>>;

    /// Appends one token to each row, `tokens (rows)`, and returns the logits of their next tokens, `(rows, V)`.
    ///
    /// # Errors
    /// When the number of tokens is not that of the rows, or a token is outside the vocabulary.
    fn step(&mut self, tokens: &[u32]) -> Result<Logits<'_>>;
}

/// Checks the arguments of [`Decoder::start`] and crops the prompt to its last `block_size` tokens.
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

/// Appends a token to each row. On an error, no row is changed.
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
