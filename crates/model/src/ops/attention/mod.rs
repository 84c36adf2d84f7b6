//! Causal self-attention: `softmax(Q K^T / sqrt(hs)) V` for each head, where a position attends to itself and the positions
//! before it (Vaswani et al., 2017). A head of keys and values may serve several heads of queries (Ainslie et al., 2023,
//! "GQA").
//!
//! `tensors.rs` computes it on candle tensors, over whole batches; `training.rs` on the CPU, for one sequence in tiles, with products
//! of the operands of `operands.rs`; `prompt.rs` does so on all threads; `decode.rs` computes one new position of each sequence
//! with cached keys and values (`kv_cache.rs`).

mod decode;
mod kv_cache;
mod maps;
mod operands;
mod prompt;
mod tensors;
mod training;

use candle_core::Tensor;

use self::{
    decode::decode_attention,
    kv_cache::{CacheElement, SequenceKvCache},
    prompt::prompt_attention,
    training::{AttentionDropout, AttentionShape},
};
use super::{
    KeepBits, Operation,
    kernels::{attention::AttentionKernels, kernels_for_values},
    tape,
};
use crate::{
    Precision, Result,
    config::Heads,
    cpu::{
        decode::{DecodeOp, DecodeSetup, DecodeStep, KvCacheFormat, Positions},
        training::{TrainOp, TrainPass, TrainSetup},
    },
    dropout::DropoutSite,
    plan::{Network, NetworkBuilder, Value},
    tensors::{Fusion, Mode, Pass},
};

pub(crate) use prompt::PackedKeys;
pub use tensors::{SCORE_BYTES, TensorAttention, causal_mask, softmax};
pub(crate) use training::AttentionScratch;

/// Causal self-attention of one layer.
#[derive(Debug, Clone)]
pub(crate) struct Attention {
    /// Queries, keys and values of all heads side by side, `(T, (nh + 2 nkv) hs)`.
    qkv: Value,
    /// The outputs of all heads side by side, `(T, nh hs)`.
    y: Value,
    heads: Heads,
    /// The index of this attention in the network, and of its key-value cache.
    layer: usize,
    /// The dropout site of the attention weights.
    site: DropoutSite,
}

impl NetworkBuilder {
    /// Causal self-attention: queries, keys and values side by side, `(T, (nh + 2 nkv) hs)`, to `(T, nh hs)`.
    pub fn attention(&mut self, qkv: Value, heads: Heads, site: DropoutSite) -> Value {
        let y = self.value(heads.n_head * heads.head_size);
        let layer = self.ops.iter().filter(|op| op.get().mixes_positions()).count();
        self.push(Attention { qkv, y, heads, layer, site })
    }
}

impl Operation for Attention {
    fn inputs(&self) -> Vec<Value> {
        vec![self.qkv]
    }

    fn output(&self) -> Value {
        self.y
    }

    fn kept(&self) -> Vec<Value> {
        vec![self.qkv, self.y]
    }

    fn mixes_positions(&self) -> bool {
        true
    }

    /// Query p (counted from 1) attends to p keys, each of which costs `nh hs` multiply-adds for its score and as many for its value.
    fn multiply_adds(&self, net: &Network, t: usize) -> f64 {
        net.cols(self.y) as f64 * t as f64 * (t as f64 + 1.0)
    }

    fn kept_floats(&self, net: &Network, t: usize) -> usize {
        // The log-sum-exp of each query, and a bit for each attention weight that may be dropped.
        let bits = if net.config.dropout > 0.0 { t * t.div_ceil(32) } else { 0 };
        self.heads.n_head * (t + bits)
    }

    fn forward(&self, pass: &mut Pass<'_>) -> Result<Tensor> {
        let qkv = pass.value(self.qkv)?; // (B, T, (nh + 2 nkv) hs)
        match &mut pass.mode {
            Mode::FullSequence { dropout, mask, precision } => {
                let dropout =
                    dropout.filter(|dropout| dropout.p > 0.0).map(|dropout| (dropout.clone(), self.site.id()));
                if let Some(kernels) = kernels_for_values(&qkv)
                    && *precision != Precision::F16
                    && let Some(attention) = AttentionKernels::new(kernels, self.heads, dropout.as_ref())
                {
                    return Ok(attention.apply(&qkv)?);
                }
                let attention = TensorAttention {
                    n_head: self.heads.n_head,
                    mask: mask.of(qkv.dim(1)?, pass.dtype, qkv.device())?,
                    dropout,
                    precision: *precision,
                    score_bytes: SCORE_BYTES,
                };
                let repeated = tensors::repeat_kv(&tape::cast(&qkv, pass.dtype)?, self.heads)?;
                Ok(tape::cast(&attention.apply(&repeated)?, qkv.dtype())?)
            }
            Mode::Cached { cache, mask } => {
                // A prompt attends to itself alone, as a sequence in training does.
                if cache.is_empty()
                    && let Some(kernels) = kernels_for_values(&qkv)
                    && let Some(attention) = AttentionKernels::new(kernels, self.heads, None)
                {
                    tensors::append_to_cache(self.heads, self.layer, &qkv, cache)?;
                    return Ok(attention.apply(&qkv)?);
                }
                tensors::attend_cached(self.heads, self.layer, &qkv, cache, mask.as_ref())
            }
        }
    }

    fn fuse(&self, fusion: &mut Fusion<'_>) -> Option<()> {
        fusion.attention(self.qkv, self.heads, self.layer, self.y)
    }

    fn training(&self, setup: &TrainSetup<'_>) -> Box<dyn TrainOp> {
        let (t, n_head) = (setup.block_size, self.heads.n_head);
        let keep = KeepBits::new(setup.dropped(n_head * t), t);
        Box::new(AttentionTape { op: self.clone(), lse: vec![0.0; n_head * t], keep })
    }

    fn decoding<'a>(&self, setup: &DecodeSetup<'_, 'a>) -> Option<Box<dyn DecodeOp + 'a>> {
        let (op, block_size) = (self.clone(), setup.block_size);
        Some(match setup.kv_cache {
            KvCacheFormat::F32 => Box::new(DecodeAttention::<f32> { op, block_size, caches: Vec::new() }),
            KvCacheFormat::Bf16 => Box::new(DecodeAttention::<u16> { op, block_size, caches: Vec::new() }),
        })
    }
}

/// Attention with its tape of one sequence.
#[derive(Debug)]
struct AttentionTape {
    op: Attention,
    /// The log-sum-exp of each query's scores, `(n_head, T)`.
    lse: Vec<f32>,
    /// The dropout mask of the attention weights, `(n_head * T, T)`.
    keep: KeepBits,
}

impl AttentionTape {
    fn dropped<'a>(keep: &'a KeepBits, pass: &TrainPass<'_>) -> Option<AttentionDropout<'a>> {
        pass.dropout.map(|masks| AttentionDropout { keep, scale: masks.dropout.scale() })
    }
}

impl TrainOp for AttentionTape {
    fn forward(&mut self, pass: &mut TrainPass<'_>) {
        let shape = AttentionShape { t: pass.t, heads: self.op.heads };
        if let Some(masks) = pass.dropout {
            // The mask is (B, nh, T, T); only the keys that a query attends to are drawn.
            let n_head = self.op.heads.n_head;
            for head in 0..n_head {
                for i in 0..shape.t {
                    let row = head * shape.t + i;
                    let first = ((masks.row * n_head + head) * shape.t + i) * shape.t;
                    self.keep.draw(pass.level, &masks.dropout, self.op.site, row, first as u64, i + 1);
                }
            }
        }
        let dropped = Self::dropped(&self.keep, pass);
        let (qkv, y) = pass.values.pair(self.op.qkv, self.op.y, &mut pass.scratch.rows);
        training::forward(pass.level, shape, qkv.rows(), dropped, y, &mut self.lse, pass.attention);
    }

    fn backward(&mut self, pass: &mut TrainPass<'_>) {
        let shape = AttentionShape { t: pass.t, heads: self.op.heads };
        let dropped = Self::dropped(&self.keep, pass);
        let (qkv, y) = (pass.values.rows(self.op.qkv), (pass.values.rows(self.op.y), &*self.lse));
        let (dy, d_qkv) = pass.grads.pair(self.op.y, self.op.qkv, &mut pass.scratch.rows);
        training::backward(pass.level, shape, qkv, dropped, y, dy.rows(), d_qkv, pass.attention);
    }
}

/// Attention in decoding, with its key-value caches.
#[derive(Debug)]
struct DecodeAttention<E> {
    op: Attention,
    /// The most positions of a sequence.
    block_size: usize,
    /// One cache for each sequence.
    caches: Vec<SequenceKvCache<E>>,
}

impl<E: CacheElement> DecodeOp for DecodeAttention<E> {
    fn set_rows(&mut self, rows: usize) {
        // Zeros that nobody has written take no memory, and a clone would write them.
        self.caches = (0..rows).map(|_| SequenceKvCache::new(self.block_size, self.op.heads)).collect();
    }

    fn copy_row(&mut self, from: usize, to: usize, positions: usize) {
        if let Ok([from, to]) = self.caches.get_disjoint_mut([from, to]) {
            to.copy_from(from, positions);
        }
    }

    fn run(&mut self, step: &mut DecodeStep<'_, '_>) {
        let Self { op, caches, .. } = self;
        let (qkv, y) = step.values.pair(op.qkv, op.y);
        match step.positions {
            Positions::Prompt { slot, .. } => {
                caches[slot].write_prompt(step.n, qkv, op.heads);
                let shape = AttentionShape { t: step.n, heads: op.heads };
                prompt_attention(step.level, shape, qkv, y, &mut step.scratch.keys);
            }
            Positions::Next(places) => {
                let [q, kv, _] = op.heads.qkv();
                for (i, place) in places.iter().enumerate() {
                    let row = qkv.row(i);
                    caches[place.slot].write(place.at, &row[q..q + kv], &row[q + kv..]);
                }
                let scores = &mut step.scratch.scores;
                decode_attention((step.level, step.workers), (places, op.heads), caches, qkv, y, scores);
            }
        }
    }
}
