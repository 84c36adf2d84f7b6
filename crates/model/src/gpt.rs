//! GPT-2: token and position embeddings, pre-norm blocks of causal attention and an MLP, a final norm, a tied head.

use std::collections::HashMap;

use candle_core::{Device, Tensor};

use crate::{
    Dropout, GptConfig, KvCache, ModelError, ParamSpec, Precision, Result,
    ops::{self, Tokens, count_launch},
    param_specs,
};

/// A GPT over tensors on one device.
#[derive(Debug, Clone)]
pub struct Gpt {
    config: GptConfig,
    wte: Tensor,
    wpe: Tensor,
    blocks: Vec<Block>,
    ln_f: Affine,
    precision: Precision,
}

/// A weight with its optional bias.
#[derive(Debug, Clone)]
struct Affine {
    weight: Tensor,
    bias: Option<Tensor>,
}

#[derive(Debug, Clone)]
struct Block {
    ln_1: Affine,
    c_attn: Affine,
    attn_proj: Affine,
    ln_2: Affine,
    c_fc: Affine,
    mlp_proj: Affine,
}

/// What one forward pass is for.
enum Pass<'a> {
    /// Every position of a batch at once, with dropout when training.
    Whole { dropout: Option<&'a Dropout>, mask: Tensor, precision: Precision },
    /// New positions behind those in the cache; each row's result is independent of the other rows.
    Cached { cache: &'a mut KvCache, mask: Option<Tensor> },
}

impl Pass<'_> {
    fn linear(&self, x: &Tensor, p: &Affine) -> Result<Tensor> {
        match self {
            Self::Whole { precision, .. } => ops::linear(x, &p.weight, p.bias.as_ref(), *precision),
            Self::Cached { .. } => ops::linear_by_row(x, &p.weight, p.bias.as_ref()),
        }
    }

    fn dropout(&self, site: u32, x: Tensor) -> Result<Tensor> {
        match self {
            Self::Whole { dropout: Some(dropout), .. } => dropout.apply(site, &x),
            _ => Ok(x),
        }
    }
}

/// Dropout sites: 0 for the embeddings, then three a block.
pub(crate) fn site(layer: usize, place: u32) -> u32 {
    1 + 3 * layer as u32 + place
}

impl Gpt {
    /// A model over the given parameters, in the order of [`param_specs`].
    ///
    /// # Errors
    /// When the configuration is invalid or the tensors do not match it.
    pub fn new(config: &GptConfig, params: &[Tensor]) -> Result<Self> {
        config.validate()?;
        let specs = param_specs(config);
        if specs.len() != params.len() {
            return Err(ModelError::ParamCount { expected: specs.len(), got: params.len() });
        }
        for (ParamSpec { name, shape, .. }, tensor) in specs.iter().zip(params) {
            if shape != tensor.dims() {
                let (name, expected, got) = (name.clone(), shape.clone(), tensor.dims().to_vec());
                return Err(ModelError::ParamShape { name, expected, got });
            }
        }
        let mut by_name: HashMap<&str, Tensor> =
            specs.iter().zip(params).map(|(spec, tensor)| (spec.name.as_str(), tensor.clone())).collect();
        let mut tensor = |name: &str| by_name.remove(name);
        let missing = |name: String| ModelError::ParamShape { name, expected: vec![], got: vec![] };
        let mut affine = |name: String| -> Result<Affine> {
            let weight = tensor(&format!("transformer.{name}.weight")).ok_or_else(|| missing(name.clone()))?;
            Ok(Affine { weight, bias: tensor(&format!("transformer.{name}.bias")) })
        };
        let wte = affine("wte".into())?.weight;
        let wpe = affine("wpe".into())?.weight;
        let blocks = (0..config.n_layer)
            .map(|i| {
                Ok(Block {
                    ln_1: affine(format!("h.{i}.ln_1"))?,
                    c_attn: affine(format!("h.{i}.attn.c_attn"))?,
                    attn_proj: affine(format!("h.{i}.attn.c_proj"))?,
                    ln_2: affine(format!("h.{i}.ln_2"))?,
                    c_fc: affine(format!("h.{i}.mlp.c_fc"))?,
                    mlp_proj: affine(format!("h.{i}.mlp.c_proj"))?,
                })
            })
            .collect::<Result<_>>()?;
        let ln_f = affine("ln_f".into())?;
        Ok(Self { config: config.clone(), wte, wpe, blocks, ln_f, precision: Precision::F32 })
    }

    /// The same model, whose products over whole batches ([`Gpt::forward`], [`Gpt::losses`]) round their operands: those
    /// of linear layers, head and attention. Parameters, norms, softmax, the residual stream and the loss are as before.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// The shape of the model.
    pub fn config(&self) -> &GptConfig {
        &self.config
    }

    /// The device its parameters are on.
    pub fn device(&self) -> &Device {
        self.wte.device()
    }

    /// An empty cache of this model for `rows` sequences.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn new_cache(&self, rows: usize) -> Result<KvCache> {
        KvCache::new(&self.config, rows, self.wpe.dtype(), self.device())
    }

    /// Logits `(B, T, V)` of the next token at every position of `ids (B, T)`, with dropout when given.
    ///
    /// # Errors
    /// When `T` is 0 or larger than `block_size`.
    pub fn forward(&self, ids: &Tensor, dropout: Option<&Dropout>) -> Result<Tensor> {
        let x = self.whole(&Tokens::on_device(ids), dropout)?;
        ops::linear(&x, &self.wte.t()?, None, self.precision)
    }

    /// The cross-entropies `(B * T)`, in nats, of `tokens (B, T)` and the `targets (B * T)` that follow them, with dropout
    /// when given. Equals [`ops::cross_entropy`] of [`Gpt::forward`], in less memory.
    ///
    /// # Errors
    /// As [`Gpt::forward`]; when a target is outside the vocabulary (unnoticed on a GPU: check before).
    pub fn losses(&self, tokens: &Tokens, targets: &Tensor, dropout: Option<&Dropout>) -> Result<Tensor> {
        let x = self.whole(tokens, dropout)?.flatten_to(1)?; // (B, T, C) to (B * T, C)
        ops::head_loss(&x, &self.wte, targets, self.precision, ops::LOGIT_BYTES)
    }

    /// Everything up to the head, for every position of a batch.
    fn whole(&self, tokens: &Tokens, dropout: Option<&Dropout>) -> Result<Tensor> {
        let t = tokens.ids.dim(1)?;
        self.check_positions(t)?;
        let mask = ops::causal_mask(t, 0, self.wte.dtype(), self.device())?;
        self.hidden(tokens, 0, &mut Pass::Whole { dropout, mask, precision: self.precision })
    }

    /// Logits `(B, T, V)` for `T` new positions of every row behind those in the cache, which it extends.
    ///
    /// # Errors
    /// When the new positions do not fit the cache, or its rows are not those of `ids`.
    pub fn forward_cached(&self, ids: &Tensor, cache: &mut KvCache) -> Result<Tensor> {
        let x = self.hidden_cached(ids, cache)?;
        ops::linear_by_row(&x, &self.wte.t()?, None)
    }

    /// [`Gpt::forward_cached`] for the last position alone: logits `(B, V)`. What generation needs of a prompt.
    ///
    /// # Errors
    /// As [`Gpt::forward_cached`].
    pub fn forward_last(&self, ids: &Tensor, cache: &mut KvCache) -> Result<Tensor> {
        let x = self.hidden_cached(ids, cache)?; // (B, T, C)
        let last = x.narrow(1, x.dim(1)? - 1, 1)?; // (B, 1, C)
        Ok(ops::linear_by_row(&last, &self.wte.t()?, None)?.squeeze(1)?)
    }

    fn check_positions(&self, positions: usize) -> Result<()> {
        let block_size = self.config.block_size;
        if positions == 0 {
            return Err(ModelError::NoPositions);
        }
        if positions > block_size {
            return Err(ModelError::ContextFull { positions, block_size });
        }
        Ok(())
    }

    fn hidden_cached(&self, ids: &Tensor, cache: &mut KvCache) -> Result<Tensor> {
        let t = ids.dim(1)?;
        self.check_positions(t)?;
        cache.check_room(t)?;
        let past = cache.len();
        let mask = cache.mask(t, self.wpe.dtype(), self.device())?;
        let mut pass = Pass::Cached { cache, mask };
        let x = self.hidden(&Tokens::on_device(ids), past, &mut pass)?;
        if let Pass::Cached { cache, .. } = pass {
            cache.advance(t);
        }
        Ok(x)
    }

    /// Everything up to the head: `(B, T)` ids at positions `past..past + T` to `(B, T, C)`.
    fn hidden(&self, tokens: &Tokens, past: usize, pass: &mut Pass) -> Result<Tensor> {
        let tok = ops::embedding(&self.wte, tokens)?.to_dtype(self.wpe.dtype())?; // (B, T, C)
        let pos = self.wpe.narrow(0, past, tokens.ids.dim(1)?)?; // (T, C)
        let mut x = pass.dropout(0, count_launch(tok.broadcast_add(&pos))?)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            x = self.block(layer, block, &x, pass)?;
        }
        ops::layer_norm(&x, &self.ln_f.weight, self.ln_f.bias.as_ref())
    }

    /// `x + attention(norm(x))`, then `x + mlp(norm(x))`.
    fn block(&self, layer: usize, p: &Block, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let h = ops::layer_norm(x, &p.ln_1.weight, p.ln_1.bias.as_ref())?;
        let h = self.attention(layer, p, &h, pass)?;
        let x = count_launch(x + pass.dropout(site(layer, 1), h)?)?;

        let h = ops::layer_norm(&x, &p.ln_2.weight, p.ln_2.bias.as_ref())?;
        let h = ops::activate(&pass.linear(&h, &p.c_fc)?, self.config.activation)?;
        let h = pass.linear(&h, &p.mlp_proj)?;
        Ok(count_launch(x + pass.dropout(site(layer, 2), h)?)?)
    }

    /// Causal self-attention: `(B, T, C)` to `(B, T, C)`.
    fn attention(&self, layer: usize, p: &Block, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let qkv = pass.linear(x, &p.c_attn)?; // (B, T, 3C)
        let y = match pass {
            Pass::Whole { dropout, mask, precision } => ops::Attention {
                n_head: self.config.n_head,
                mask: mask.clone(),
                dropout: dropout.filter(|dropout| dropout.p > 0.0).map(|dropout| (dropout.clone(), site(layer, 0))),
                precision: *precision,
                score_bytes: ops::SCORE_BYTES,
            }
            .apply(&qkv)?,
            Pass::Cached { cache, mask } => self.attend_cached(layer, &qkv, cache, mask.as_ref())?,
        };
        pass.linear(&y, &p.attn_proj)
    }

    /// Attention of new positions, `(B, T, 3C)`, to themselves and to those in the cache: `(B, T, C)`.
    fn attend_cached(&self, layer: usize, qkv: &Tensor, cache: &mut KvCache, mask: Option<&Tensor>) -> Result<Tensor> {
        let (b, t, _) = qkv.dims3()?;
        let (nh, hs, c) = (self.config.n_head, self.config.head_size(), self.config.n_embd);
        let head = |i: usize| -> candle_core::Result<Tensor> {
            // (B, T, C) to (B, T, nh, hs) to (B, nh, T, hs)
            qkv.narrow(2, i * c, c)?.reshape((b, t, nh, hs))?.transpose(1, 2)?.contiguous()
        };
        let (k, v) = cache.append(layer, &head(1)?, &head(2)?)?; // (B, nh, past + T, hs)
        let q = head(0)?.affine(1.0 / (hs as f64).sqrt(), 0.0)?;
        let scores = q.matmul(&k.transpose(2, 3)?)?; // (B, nh, T, past + T)
        let scores = match mask {
            Some(mask) => scores.broadcast_add(mask)?,
            None => scores,
        };
        let y = ops::softmax(&scores)?.matmul(&v)?; // (B, nh, T, hs)
        Ok(y.transpose(1, 2)?.reshape((b, t, c))?) // (B, T, nh, hs) to (B, T, C)
    }
}
