//! The network on candle tensors: the reference implementation, which also runs on a GPU.

mod attention_maps;
mod decoder;
mod fused;
mod fused_ops;
mod inspect;
mod kv_cache;
mod pass;

use candle_core::{DType, Device, Tensor};

use crate::{
    Dropout, GptConfig, ModelError, Network, ParamSpec, Precision, Result, network,
    ops::{self, Tokens},
    plan::Role,
};

pub use decoder::TensorDecoder;
pub(crate) use decoder::decoding_weights;
pub(crate) use fused::{Fusion, InputNorm};
pub use inspect::{Inspection, ParamSpread, Spread, ValueSpread};
pub use kv_cache::KvCache;
pub(crate) use pass::{CausalMask, Mode, Pass};

/// A GPT over tensors on one device.
#[derive(Debug, Clone)]
pub struct Gpt {
    net: Network,
    /// All parameters, in parameter order.
    params: Vec<Tensor>,
    /// The index of the operation that reads each value last.
    last_readers: Vec<usize>,
    /// The type of activations, that of the first vector parameter (norms and biases). Matrices may have a narrower one.
    dtype: DType,
    precision: Precision,
}

impl Gpt {
    /// Creates a model over the given parameters, in the order of [`crate::param_specs`].
    ///
    /// # Errors
    /// When the configuration is invalid or the tensors do not match it.
    pub fn new(config: &GptConfig, params: &[Tensor]) -> Result<Self> {
        config.validate()?;
        Self::over(network(config), params)
    }

    /// [`Gpt::new`] of any network.
    ///
    /// # Errors
    /// When the tensors do not match it.
    #[doc(hidden)]
    pub fn over(net: Network, params: &[Tensor]) -> Result<Self> {
        if net.params().len() != params.len() {
            return Err(ModelError::ParamCount { expected: net.params().len(), got: params.len() });
        }
        for (ParamSpec { name, shape, .. }, tensor) in net.params().iter().zip(params) {
            if shape != tensor.dims() {
                let (name, expected, got) = (name.clone(), shape.clone(), tensor.dims().to_vec());
                return Err(ModelError::ParamShape { name, expected, got });
            }
        }
        let vector = params.iter().find(|param| param.rank() == 1).or(params.first());
        let dtype = vector.map_or(DType::F32, Tensor::dtype);
        let last_readers = net.last_readers();
        Ok(Self { net, params: params.to_vec(), last_readers, dtype, precision: Precision::F32 })
    }

    /// The same model, except that [`Gpt::forward`] and [`Gpt::losses`] round the operands of products (linear layers, head
    /// and attention) to `precision`. Parameters, norms, softmax, the residual stream and the loss keep their type.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// The shape of the model.
    pub fn config(&self) -> &GptConfig {
        self.net.config()
    }

    /// All parameters, in parameter order.
    pub fn params(&self) -> &[Tensor] {
        &self.params
    }

    /// The device of its parameters.
    pub fn device(&self) -> &Device {
        self.params[0].device()
    }

    /// The matrix of the head, `(V, C)`.
    fn head(&self) -> &Tensor {
        &self.params[self.net.head.weight.0]
    }

    /// Caps logits of any shape, if the network does.
    fn capped(&self, logits: Tensor) -> Result<Tensor> {
        Ok(ops::LogitCap::apply_to(self.net.head.cap, logits)?)
    }

    /// An empty cache of this model for `rows` sequences.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn new_cache(&self, rows: usize) -> Result<KvCache> {
        KvCache::new(self.config(), rows, self.dtype, self.device())
    }

    /// Logits `(B, T, V)` of the next token at every position of `ids (B, T)`, with dropout when given.
    ///
    /// # Errors
    /// When `T` is 0 or larger than `block_size`.
    pub fn forward(&self, ids: &Tensor, dropout: Option<&Dropout>) -> Result<Tensor> {
        let x = self.hidden_full(&Tokens::on_device(ids), dropout, &[])?;
        self.capped(ops::linear(&x, &ops::transpose(self.head())?, None, self.precision)?)
    }

    /// The cross-entropies `(B * T)`, in nats, of `tokens (B, T)` and the `targets (B * T)` that follow them, with dropout
    /// when given. Equals [`ops::cross_entropy`] of [`Gpt::forward`], in less memory.
    ///
    /// # Errors
    /// As [`Gpt::forward`]; when a target is outside the vocabulary (unnoticed on a GPU: check before).
    pub fn losses(&self, tokens: &Tokens, targets: &Tensor, dropout: Option<&Dropout>) -> Result<Tensor> {
        Ok(self.losses_near(tokens, targets, dropout, None)?.0)
    }

    /// [`Gpt::losses`], and what training minimises: with a `reference` of the same vocabulary and a weight, each loss plus the
    /// weight times `KL(reference || self)` of the distributions at that position, `(B * T)`; else the losses themselves. The
    /// reference has no dropout and gets no gradient.
    ///
    /// # Errors
    /// As [`Gpt::losses`]; when the reference has another vocabulary or a shorter context.
    pub fn losses_near(
        &self,
        tokens: &Tokens,
        targets: &Tensor,
        dropout: Option<&Dropout>,
        reference: Option<(&Gpt, f64)>,
    ) -> Result<(Tensor, Tensor)> {
        let operands = self.rounded_matrices()?;
        let x = self.hidden_full(tokens, dropout, &operands)?;
        let x = ops::reshape(&x, (x.elem_count() / x.dim(2)?, x.dim(2)?))?; // (B, T, C) to (B * T, C)
        let rounded = operands.get(self.net.head.weight.0).and_then(Option::as_ref);
        let head = (&x, (self.head(), rounded), self.net.head.cap);
        let losses = ops::capped_head_loss(head, targets, self.precision, ops::LOGIT_BYTES)?;
        let Some((reference, weight)) = reference else { return Ok((losses.clone(), losses)) };
        let y = reference.hidden_full(tokens, None, &[])?;
        let y = y.flatten_to(1)?; // (B, T, C') to (B * T, C')
        let input = |x, gpt: &Self| ops::HeadInput { x, w: gpt.head().clone(), cap: gpt.net.head.cap };
        let divergences =
            ops::head_divergence(&input(x, self), &input(y, reference), self.precision, ops::LOGIT_BYTES)?;
        let objective = ops::tape::add_scaled(&losses, &divergences, weight)?;
        Ok((losses, objective))
    }

    /// The matrices of products rounded to 16 bits, by parameter, in one launch; empty where operands are not rounded or there are
    /// no kernels for such values.
    fn rounded_matrices(&self) -> Result<Vec<Option<Tensor>>> {
        let Some(dtype) = self.precision.dtype().filter(|_| self.dtype == DType::F32) else { return Ok(Vec::new()) };
        let head = self.net.head.weight.0;
        let is_operand = |i: usize| self.net.params()[i].role == Role::Matrix || i == head;
        let (places, matrices): (Vec<usize>, Vec<&Tensor>) =
            self.params.iter().enumerate().filter(|(i, _)| is_operand(*i)).unzip();
        Ok(ops::round_matrices(&matrices, dtype)?.map_or_else(Vec::new, |rounded| {
            let mut operands = vec![None; self.params.len()];
            for (place, matrix) in places.into_iter().zip(rounded) {
                operands[place] = Some(matrix);
            }
            operands
        }))
    }

    /// The hidden states `(B, T, C)` of every position of a batch, without a cache.
    fn hidden_full(&self, tokens: &Tokens, dropout: Option<&Dropout>, operands: &[Option<Tensor>]) -> Result<Tensor> {
        let t = tokens.ids.dim(1)?;
        self.check_positions(t)?;
        let mask = CausalMask::default();
        self.hidden(tokens, Mode::FullSequence { dropout, mask, precision: self.precision }, operands)
    }

    /// Logits `(B, T, V)` for `T` new positions of every row, `ids (B, T)`, after those in the cache, which it extends.
    ///
    /// # Errors
    /// When the new positions do not fit the cache, or the cache has another number of rows than `ids`.
    pub fn forward_cached(&self, ids: &Tensor, cache: &mut KvCache) -> Result<Tensor> {
        let x = self.hidden_cached(ids, cache)?;
        self.capped(ops::logits_by_row(&x, self.head())?)
    }

    /// [`Gpt::forward_cached`] with the logits of the last position only, `(B, V)`, which is all that generation needs.
    ///
    /// # Errors
    /// As [`Gpt::forward_cached`].
    pub fn forward_last(&self, ids: &Tensor, cache: &mut KvCache) -> Result<Tensor> {
        let x = self.hidden_cached(ids, cache)?; // (B, T, C)
        let last = x.narrow(1, x.dim(1)? - 1, 1)?; // (B, 1, C)
        Ok(self.capped(ops::logits_by_row(&last, self.head())?)?.squeeze(1)?)
    }

    fn check_positions(&self, positions: usize) -> Result<()> {
        let block_size = self.config().block_size;
        if positions == 0 {
            return Err(ModelError::NoPositions);
        }
        if positions > block_size {
            return Err(ModelError::ContextFull { positions, block_size });
        }
        Ok(())
    }

    /// The hidden states `(B, T, C)` of new positions after those in the cache.
    fn hidden_cached(&self, ids: &Tensor, cache: &mut KvCache) -> Result<Tensor> {
        let t = ids.dim(1)?;
        self.check_positions(t)?;
        cache.check_room(t)?;
        let mask = cache.mask(t, self.dtype, self.device())?;
        let x = self.hidden(&Tokens::on_device(ids), Mode::Cached { cache: &mut *cache, mask }, &[])?;
        cache.advance(t);
        Ok(x)
    }

    /// Runs all operations up to the head: tokens `(B, T)` to hidden states `(B, T, C)`. Values are freed after their last
    /// reader.
    fn hidden(&self, tokens: &Tokens, mode: Mode<'_>, operands: &[Option<Tensor>]) -> Result<Tensor> {
        let values = vec![None; self.net.cols.len()];
        let mut pass = Pass { mode, tokens, params: &self.params, dtype: self.dtype, operands, values };
        let ops = &self.net.ops;
        let mut at = 0;
        while at < ops.len() {
            let end = at + fused_ops::step(self, at, &mut pass)?;
            for (at, op) in (at..end).zip(&ops[at..end]) {
                for input in op.get().inputs() {
                    if self.last_readers[input.0] == at {
                        pass.values[input.0] = None;
                    }
                }
            }
            at = end;
        }
        pass.value(self.net.head.x)
    }
}
