//! Generation on candle tensors.

use candle_core::{DType, Device, Tensor};

use crate::{
    ContextPolicy, Decoder, Gpt, GptConfig, KvCache, Logits, Result,
    decode::{append_tokens, crop_prompt},
    network, params,
    plan::Role,
};

/// The [`Decoder`] on candle tensors, on any device.
///
/// A step uploads one token a row and reads nothing back. Positions are a view of their embeddings, and a single new
/// position needs no mask.
#[derive(Debug)]
pub struct TensorDecoder {
    gpt: Gpt,
    policy: ContextPolicy,
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
        policy: ContextPolicy,
        weights: DType,
        device: &Device,
    ) -> Result<Self> {
        let mut tensors = params::to_tensors(config, values, DType::F32, device)?;
        let net = network(config);
        for (spec, tensor) in net.params().iter().zip(&mut tensors) {
            if matches!(spec.role, Role::Embedding | Role::Matrix) {
                *tensor = tensor.to_dtype(weights)?;
            }
        }
        let gpt = Gpt::over(net, &tensors)?;
        let cache = gpt.new_cache(1)?;
        let logits = Tensor::zeros((0, config.vocab_size), DType::F32, device)?;
        Ok(Self { gpt, policy, cache, rows: Vec::new(), logits })
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
        let context = crop_prompt(self.gpt.config(), prompt, rows)?;
        // The rows share their prompt: it is computed once.
        self.cache = self.gpt.new_cache(1)?;
        let logits = self.forward(context, 1)?; // (1, V)
        self.cache = self.cache.repeat(rows)?;
        self.rows = vec![context.to_vec(); rows];
        self.logits = logits.broadcast_as((rows, logits.dim(1)?))?.contiguous()?; // (rows, V)
        Ok(Logits::Device(&self.logits))
    }

    fn step(&mut self, tokens: &[u32]) -> Result<Logits<'_>> {
        append_tokens(self.gpt.config(), &mut self.rows, tokens)?;
        let rows = tokens.len();
        if self.cache.len() < self.gpt.config().block_size {
            self.logits = self.forward(tokens, rows)?;
            return Ok(Logits::Device(&self.logits));
        }
        let kept = self.policy.kept(self.gpt.config().block_size);
        for row in &mut self.rows {
            row.drain(..row.len() - kept);
        }
        self.cache.clear();
        let windows = self.rows.concat(); // rows * kept
        self.logits = self.forward(&windows, rows)?;
        Ok(Logits::Device(&self.logits))
    }
}
