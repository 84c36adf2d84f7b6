//! Generation on the CPU. A prompt is computed with the attention of training and, where weights are f32 or bf16, with its matrix
//! products; then every step computes one position of each sequence and reads every weight once. Weights of 8 and 4 bits have
//! products of their own (`quantized/`), for prompts and steps.
//!
//! `forward.rs` is the network. [`CpuDecoder`] continues one prompt in rows that have the same length;
//! [`CpuBatchDecoder`] continues texts that begin and end at any time.

mod batch;
mod dot_products;
mod format;
mod forward;
mod gemv;
mod matrix;
mod op;
mod panels;
mod prefetch;
mod quantized;
pub(crate) mod shared_output;
mod small_batch;
mod tiled;
mod values;

use self::forward::Forward;
use crate::{
    ContextPolicy, Decoder, GptConfig, Logits, Network, Result,
    checkpoint::ParamValues,
    decode::{append_tokens, crop_prompt},
    network,
};

pub use batch::CpuBatchDecoder;
pub use format::{DecodeFormats, KvCacheFormat, WeightFormat};
pub(crate) use format::{WeightElement, load_rest};
pub(crate) use matrix::{OutputDim, ProductContext, WeightMatrix};
pub(crate) use op::{DecodeOp, DecodeScratch, DecodeSetup, DecodeStep, Place, Positions};

/// The [`Decoder`] on the CPU. In [`WeightFormat::F32`] it borrows the weights instead of copying them.
#[derive(Debug)]
pub struct CpuDecoder<'a> {
    forward: Forward<'a>,
    policy: ContextPolicy,
    /// The number of positions in the key-value caches.
    len: usize,
    /// The tokens in the context of each sequence, from which the caches are computed anew when the context is full.
    rows: Vec<Vec<u32>>,
    /// The place of each row in the next step.
    places: Vec<Place>,
    /// `(rows, V)`.
    logits: Vec<f32>,
}

impl<'a> CpuDecoder<'a> {
    /// Creates a decoder of the model with these parameter values (in parameter order).
    ///
    /// # Errors
    /// When the configuration is invalid or the values do not match it.
    pub fn new(
        config: &GptConfig,
        params: &[&'a [f32]],
        policy: ContextPolicy,
        formats: impl Into<DecodeFormats>,
    ) -> Result<Self> {
        config.validate()?;
        Self::over(network(config), params, policy, formats)
    }

    /// [`CpuDecoder::new`] of values that may lie in a file in another way.
    ///
    /// # Errors
    /// As [`CpuDecoder::new`].
    pub(crate) fn of_values(
        config: &GptConfig,
        params: Vec<ParamValues<'a>>,
        policy: ContextPolicy,
        formats: DecodeFormats,
    ) -> Result<Self> {
        config.validate()?;
        Self::over_values(network(config), params, policy, formats)
    }

    /// [`CpuDecoder::new`] of any network.
    ///
    /// # Errors
    /// When the values do not match it.
    #[doc(hidden)]
    pub fn over(
        net: Network,
        params: &[&'a [f32]],
        policy: ContextPolicy,
        formats: impl Into<DecodeFormats>,
    ) -> Result<Self> {
        Self::over_values(net, params.iter().map(|&values| values.into()).collect(), policy, formats.into())
    }

    fn over_values(
        net: Network,
        params: Vec<ParamValues<'a>>,
        policy: ContextPolicy,
        formats: DecodeFormats,
    ) -> Result<Self> {
        let forward = Forward::new(net, &params, formats)?;
        Ok(Self { forward, policy, len: 0, rows: Vec::new(), places: Vec::new(), logits: Vec::new() })
    }

    /// Computes the context of a sequence from its first position on.
    fn prefill(&mut self, row: usize) {
        let v = self.forward.config().vocab_size;
        self.forward.prompt(row, &self.rows[row], &mut self.logits[row * v..][..v]);
    }
}

impl Decoder for CpuDecoder<'_> {
    fn vocab_size(&self) -> usize {
        self.forward.config().vocab_size
    }

    fn start(&mut self, prompt: &[u32], rows: usize) -> Result<Logits<'_>> {
        let config = self.forward.config();
        let context = crop_prompt(config, prompt, rows)?;
        let v = config.vocab_size;
        let mut tokens = Vec::with_capacity(config.block_size + 1);
        tokens.extend(context);
        if self.rows.len() != rows {
            self.forward.set_slots(rows);
            self.logits = vec![0.0; rows * v];
        }
        self.len = tokens.len();
        self.rows = vec![tokens; rows];
        // All sequences have the same prompt, which is computed once.
        self.prefill(0);
        for row in 1..rows {
            self.forward.copy_slot(0, row, self.len);
            self.logits.copy_within(..v, row * v);
        }
        Ok(Logits::Host(&self.logits))
    }

    fn step(&mut self, tokens: &[u32]) -> Result<Logits<'_>> {
        append_tokens(self.forward.config(), &mut self.rows, tokens)?;
        let block_size = self.forward.config().block_size;
        if self.len < block_size {
            self.places.clear();
            self.places.extend((0..tokens.len()).map(|slot| Place { slot, at: self.len }));
            self.forward.step(tokens, &self.places, &mut self.logits);
            self.len += 1;
        } else {
            let kept = self.policy.kept(block_size);
            for row in 0..tokens.len() {
                let tokens = &mut self.rows[row];
                tokens.drain(..tokens.len() - kept);
                self.prefill(row);
            }
            self.len = kept;
        }
        Ok(Logits::Host(&self.logits))
    }
}
