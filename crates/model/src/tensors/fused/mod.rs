//! One new position of each row by kernels: five launches a block, one for the embeddings and one for the logits.

mod fusion;

use candle_core::{DType, Tensor};
use tinygpt_sampler::kernels::Kernels;

use super::{Gpt, KvCache};
use crate::{
    ModelError, Result,
    ops::kernels::{
        QkNormParams,
        decode::{self, SplitScratch},
    },
    plan::{ParamId, Value},
};

use fusion::{FusedNetwork, Input, Launch};
pub(crate) use fusion::{Fusion, InputNorm};

/// A network whose operations are fused for decoding, with the memory in which its values lie.
#[derive(Debug)]
pub(crate) struct FusedDecoder {
    net: FusedNetwork,
    scratch: Option<Scratch>,
}

impl FusedDecoder {
    /// Nothing where the network has operations that kernels do not compute.
    pub(crate) fn new(gpt: &Gpt) -> Option<Self> {
        Some(Self { net: FusedNetwork::new(&gpt.net)?, scratch: None })
    }

    /// The logits `(rows, V)` behind one new token of each row, `tokens (rows, 1)`, after the positions in the cache, which it
    /// extends. Equals [`Gpt::forward_last`].
    ///
    /// # Errors
    /// When the cache is full or has another number of rows, or the device is out of memory.
    pub(crate) fn step(
        &mut self,
        kernels: &Kernels,
        gpt: &Gpt,
        tokens: &Tensor,
        cache: &mut KvCache,
    ) -> Result<Tensor> {
        let rows = tokens.dim(0)?;
        if cache.rows() != rows {
            return Err(ModelError::RowCount { expected: cache.rows(), got: rows });
        }
        cache.check_room(1)?;
        let Self { net, scratch } = self;
        let scratch = match scratch.take().filter(|scratch| scratch.rows == rows) {
            Some(known) => scratch.insert(known),
            None => scratch.insert(Scratch::new(kernels, gpt, net, rows)?),
        };
        let param = |id: ParamId| &gpt.params[id.0];
        let norm = |input: &Input| {
            input.norm.as_ref().map(|norm| decode::InputNorm {
                kind: norm.kind,
                eps: norm.eps,
                weight: param(norm.weight),
                bias: norm.bias.map(param),
            })
        };
        let value = |value: Value| &scratch.buffers[net.buffer_of[value.0]];
        for launch in &net.launches {
            match launch {
                Launch::Embed { table, positions, y } => {
                    decode::embed(
                        kernels,
                        tokens,
                        param(*table),
                        positions.map(param).map(|table| (table, cache.len())),
                        value(*y),
                    )?;
                }
                Launch::Product(product) => {
                    let product = decode::Product {
                        x: value(product.input.x),
                        norm: norm(&product.input),
                        weight: param(product.weight),
                        bias: product.bias.map(param),
                        epilogue: product.epilogue,
                        residual: product.residual.map(value),
                        y: value(product.y),
                    };
                    decode::product(kernels, product)?;
                }
                Launch::Attention { qkv, heads, layer, y } => {
                    let new = decode::NewPosition {
                        heads: *heads,
                        qkv: value(qkv.x),
                        qk_norm: qkv.norm.map(|(weights, eps)| QkNormParams { weights: weights.map(param), eps }),
                        angles: qkv.angles.as_ref().and(scratch.angles.as_ref()),
                        cached: cache.layer(*layer),
                        past: cache.len(),
                        scratch: &scratch.splits,
                        y: value(*y),
                    };
                    decode::attend(kernels, new)?;
                }
            }
        }
        let head = (value(net.head.x), norm(&net.head));
        let logits = decode::logits(kernels, head, (gpt.head(), gpt.net.head.cap))?;
        cache.advance(1);
        Ok(logits)
    }
}

/// What a step writes and the next one overwrites.
#[derive(Debug)]
struct Scratch {
    rows: usize,
    /// `(rows, channels)` each.
    buffers: Vec<Tensor>,
    splits: SplitScratch,
    /// The cosines and sines of rotary positions, `(block_size, hs / 2)` each, where there are any. Read only.
    angles: Option<[Tensor; 2]>,
}

impl Scratch {
    fn new(kernels: &Kernels, gpt: &Gpt, net: &FusedNetwork, rows: usize) -> Result<Self> {
        let buffer = |&channels: &usize| kernels.output((rows, channels), DType::F32);
        let buffers = net.buffers.iter().map(buffer).collect::<candle_core::Result<_>>()?;
        let splits = SplitScratch::new(kernels, gpt.config(), rows, gpt.device())?;
        let angles = net.launches.iter().find_map(|launch| match launch {
            Launch::Attention { qkv, .. } => qkv.angles.as_ref(),
            _ => None,
        });
        let angles = angles.map(|angles| angles.on_device(gpt.device())).transpose()?;
        Ok(Self { rows, buffers, splits, angles })
    }
}
