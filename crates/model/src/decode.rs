//! Logits for the next token: the seam between generation and whatever computes the model.

use std::borrow::Cow;

use candle_core::{DType, Device, Tensor};

use crate::{Gpt, GptConfig, KvCache, ModelError, Result, param_specs, params};

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
pub(crate) fn context<'p>(config: &GptConfig, prompt: &'p [u32], rows: usize) -> Result<&'p [u32]> {
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
pub(crate) fn append(config: &GptConfig, rows: &mut [Vec<u32>], tokens: &[u32]) -> Result<()> {
    if tokens.is_empty() || tokens.len() != rows.len() {
        return Err(ModelError::RowCount { expected: rows.len(), got: tokens.len() });
    }
    config.check_tokens(tokens)?;
    for (row, &token) in rows.iter_mut().zip(tokens) {
        row.push(token);
    }
    Ok(())
}

/// The [`Decoder`] over the composed model: candle tensors on any device.
///
/// A step uploads one token a row and reads nothing back. Positions are a view of their embeddings, and a single new
/// position needs no mask.
#[derive(Debug)]
pub struct TensorDecoder {
    gpt: Gpt,
    window: ContextPolicy,
    cache: KvCache,
    /// The tokens of each row since the last start, for the windows.
    rows: Vec<Vec<u32>>,
    /// `(rows, V)`
    logits: Tensor,
}

impl TensorDecoder {
    /// A decoder of the model with these parameter values (in parameter order). Matrices are kept in the type `weights`,
    /// f32, bf16 or f16, and so are both sides of their products; position embeddings, biases, norms, attention with its
    /// cache, the residual stream and the logits are f32.
    ///
    /// # Errors
    /// When the values do not match the configuration or the device is out of memory.
    pub fn new(
        config: &GptConfig,
        values: &[Vec<f32>],
        window: ContextPolicy,
        weights: DType,
        device: &Device,
    ) -> Result<Self> {
        let mut tensors = params::to_tensors(config, values, DType::F32, device)?;
        for (spec, tensor) in param_specs(config).iter().zip(&mut tensors) {
            if spec.shape.len() == 2 && !spec.name.contains("wpe") {
                *tensor = tensor.to_dtype(weights)?;
            }
        }
        let gpt = Gpt::new(config, &tensors)?;
        let cache = gpt.new_cache(1)?;
        let logits = Tensor::zeros((0, config.vocab_size), DType::F32, device)?;
        Ok(Self { gpt, window, cache, rows: Vec::new(), logits })
    }

    /// Runs `(B, T)` new tokens through the model behind the cache: logits `(B, V)`.
    fn forward(&mut self, ids: &[u32], rows: usize) -> Result<Tensor> {
        let ids = Tensor::from_slice(ids, (rows, ids.len() / rows), self.gpt.device())?;
        self.gpt.forward_last(&ids, &mut self.cache)
    }
}

impl Decoder for TensorDecoder {
    fn config(&self) -> &GptConfig {
        self.gpt.config()
    }

    fn start(&mut self, prompt: &[u32], rows: usize) -> Result<Logits<'_>> {
        let context = context(self.gpt.config(), prompt, rows)?;
        // The rows share their prompt: it is computed once.
        self.cache = self.gpt.new_cache(1)?;
        let logits = self.forward(context, 1)?; // (1, V)
        self.cache = self.cache.repeat(rows)?;
        self.rows = vec![context.to_vec(); rows];
        self.logits = logits.broadcast_as((rows, logits.dim(1)?))?.contiguous()?; // (rows, V)
        Ok(Logits::Device(&self.logits))
    }

    fn step(&mut self, tokens: &[u32]) -> Result<Logits<'_>> {
        append(self.gpt.config(), &mut self.rows, tokens)?;
        let rows = tokens.len();
        if self.cache.len() < self.gpt.config().block_size {
            self.logits = self.forward(tokens, rows)?;
            return Ok(Logits::Device(&self.logits));
        }
        let kept = self.window.kept(self.gpt.config().block_size);
        for row in &mut self.rows {
            row.drain(..row.len() - kept);
        }
        self.cache.clear();
        let windows = self.rows.concat(); // rows * kept
        self.logits = self.forward(&windows, rows)?;
        Ok(Logits::Device(&self.logits))
    }
}
