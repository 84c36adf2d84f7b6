//! Generation on candle tensors.

use candle_core::{DType, Device, Tensor};
use tinygpt_sampler::kernels::Kernels;

use super::fused::FusedDecoder;
use crate::{
    ContextPolicy, Decoder, Gpt, GptConfig, KvCache, Logits, ModelError, Result,
    decode::{append_tokens, crop_prompt},
    param_specs, params,
    plan::Role,
};

/// Uploads the parameters of a model (in parameter order) with matrices in the type `weights`, for decoders that share them.
///
/// # Errors
/// When the values do not match the configuration or the device is out of memory.
pub(crate) fn decoding_weights(
    config: &GptConfig,
    values: &[Vec<f32>],
    weights: DType,
    device: &Device,
) -> Result<Vec<Tensor>> {
    let upload = || {
        let mut tensors = params::to_tensors(config, values, DType::F32, device)?;
        for (spec, tensor) in param_specs(config).iter().zip(&mut tensors) {
            if matches!(spec.role, Role::Embedding | Role::Head | Role::Matrix) {
                *tensor = tensor.to_dtype(weights)?;
            }
        }
        Ok(tensors)
    };
    upload().map_err(|error: ModelError| error.on(device))
}

/// The [`Decoder`] on candle tensors, on any device.
///
/// A step uploads one token for each row and reads nothing back. On CUDA it is five launches a block and two beside them, by
/// kernels; elsewhere it is tensor operations, as prompts and windows that slide are everywhere, of which each layer uploads the
/// angles of rotary positions.
#[derive(Debug)]
pub struct TensorDecoder {
    gpt: Gpt,
    /// Where kernels compute single positions.
    fused: Option<FusedDecoder>,
    policy: ContextPolicy,
    cache: KvCache,
    /// The tokens in the context of each row, from which the cache is computed anew when the context is full.
    rows: Vec<Vec<u32>>,
    /// The logits given last, `(rows, V)`.
    logits: Option<Tensor>,
}

impl TensorDecoder {
    /// Creates a decoder of the model with these parameter values (in parameter order). Matrices are stored in the type
    /// `weights` (f32, bf16 or f16), to which tensor operations round the other operand of their products too; kernels do not.
    /// Position embeddings, biases, norms, attention with its cache, the residual stream and the logits are f32.
    ///
    /// # Errors
    /// When the configuration is invalid, the values do not match it or the device is out of memory.
    pub fn new(
        config: &GptConfig,
        values: &[Vec<f32>],
        policy: ContextPolicy,
        weights: DType,
        device: &Device,
    ) -> Result<Self> {
        let tensors = decoding_weights(config, values, weights, device)?;
        Self::over(config, &tensors, policy).map_err(|error| error.on(device))
    }

    /// Creates a decoder of a model over these tensors (in parameter order), which it shares.
    ///
    /// # Errors
    /// When the configuration is invalid, the tensors do not match it or the device is out of memory.
    pub fn over(config: &GptConfig, params: &[Tensor], policy: ContextPolicy) -> Result<Self> {
        let gpt = Gpt::new(config, params)?;
        let cache = gpt.new_cache(1)?;
        let fused = FusedDecoder::new(&gpt);
        Ok(Self { gpt, fused, policy, cache, rows: Vec::new(), logits: None })
    }

    /// Computes the logits `(rows, V)` after new tokens `(rows, T)`, which it appends to the cache.
    fn forward(&mut self, ids: &[u32], rows: usize) -> Result<Tensor> {
        let ids = Tensor::from_slice(ids, (rows, ids.len() / rows), self.gpt.device())?;
        match (&mut self.fused, Kernels::of(self.gpt.device())) {
            (Some(fused), Some(kernels)) if ids.dim(1)? == 1 => fused.step(&kernels, &self.gpt, &ids, &mut self.cache),
            _ => self.gpt.forward_last(&ids, &mut self.cache),
        }
    }

    /// The logits `(rows, V)` after a prompt, of which every row has a copy.
    fn prompt_logits(&mut self, context: &[u32], rows: usize) -> Result<Tensor> {
        // All rows have the same prompt, which is computed once.
        self.cache = self.gpt.new_cache(1)?;
        let logits = self.forward(context, 1)?; // (1, V)
        self.cache = self.cache.repeat(rows)?;
        Ok(logits.broadcast_as((rows, logits.dim(1)?))?.contiguous()?) // (1, V) to (rows, V)
    }

    /// Keeps logits, and lends them.
    fn lend(&mut self, logits: Result<Tensor>) -> Result<Logits<'_>> {
        let logits = logits.map_err(|error| error.on(self.gpt.device()))?;
        Ok(Logits::Device(self.logits.insert(logits)))
    }
}

impl Decoder for TensorDecoder {
    fn vocab_size(&self) -> usize {
        self.gpt.config().vocab_size
    }

    fn start(&mut self, prompt: &[u32], rows: usize) -> Result<Logits<'_>> {
        let context = crop_prompt(self.gpt.config(), prompt, rows)?;
        self.rows = vec![context.to_vec(); rows];
        let logits = self.prompt_logits(context, rows);
        self.lend(logits)
    }

    fn step(&mut self, tokens: &[u32]) -> Result<Logits<'_>> {
        append_tokens(self.gpt.config(), &mut self.rows, tokens)?;
        let rows = tokens.len();
        if self.cache.len() < self.gpt.config().block_size {
            let logits = self.forward(tokens, rows);
            return self.lend(logits);
        }
        let kept = self.policy.kept(self.gpt.config().block_size);
        for row in &mut self.rows {
            row.drain(..row.len() - kept);
        }
        self.cache.clear();
        let windows = self.rows.concat(); // rows * kept
        let logits = self.forward(&windows, rows);
        self.lend(logits)
    }
}
