//! Causal self-attention in tiles.

use candle_core::{DType, Result, Tensor};
use tinygpt_sampler::kernels::{Arg, Grid, Kernels, Module};

use super::dropout_args;
use crate::{
    Dropout,
    config::Heads,
    dropout::MaskSource,
    ops::{launches::count_launch, tape},
};

const MODULE: Module = Module { name: "attention", ptx: include_str!("../../../kernels/attention.ptx") };

/// The kernels for head sizes up to one, and their tiles of scores, as the source has them.
#[derive(Debug)]
struct Tiles {
    head_size: usize,
    forward: (usize, usize),
    backward: (usize, usize),
    /// Forward, backward for queries, backward for keys.
    names: [&'static str; 3],
}

static TILES: [Tiles; 3] = [
    Tiles {
        head_size: 32,
        forward: (64, 64),
        backward: (64, 32),
        names: ["attention_forward_32", "attention_backward_queries_32", "attention_backward_keys_32"],
    },
    Tiles {
        head_size: 64,
        forward: (64, 64),
        backward: (64, 32),
        names: ["attention_forward_64", "attention_backward_queries_64", "attention_backward_keys_64"],
    },
    Tiles {
        head_size: 128,
        forward: (64, 32),
        backward: (32, 32),
        names: ["attention_forward_128", "attention_backward_queries_128", "attention_backward_keys_128"],
    },
];

/// Blocks over heads and the tiles of their positions.
fn grid(positions: usize, tile: usize, heads: usize, floats: usize) -> Grid {
    Grid { blocks: (heads as u32, positions.div_ceil(tile) as u32, 1), threads: 256, shared: (4 * floats) as u32 }
}

/// The floats of a tile of `rows` rows, which are padded by four.
fn tile(rows: usize, cols: usize) -> usize {
    rows * (cols + 4)
}

/// Attention over a batch's queries, keys and values, `(B, T, (nh + 2 nkv) hs)`.
#[derive(Debug, Clone)]
pub(crate) struct AttentionKernels {
    kernels: Kernels,
    heads: Heads,
    tiles: &'static Tiles,
    dropout: Option<(Dropout, u32)>,
}

impl AttentionKernels {
    /// Nothing where no kernel is made for heads of this size or masks of this source.
    pub(crate) fn new(kernels: Kernels, heads: Heads, dropout: Option<&(Dropout, u32)>) -> Option<Self> {
        let masks = dropout.is_none_or(|(dropout, _)| dropout.source == MaskSource::Hash);
        let tiles = TILES.iter().find(|tiles| heads.head_size <= tiles.head_size)?;
        masks.then(|| Self { kernels, heads, tiles, dropout: dropout.cloned() })
    }

    /// [`TensorAttention::apply`](crate::ops::TensorAttention::apply).
    pub(crate) fn apply(self, qkv: &Tensor) -> Result<Tensor> {
        let (y, log_sums) = self.forward(qkv)?;
        let (input, output) = (qkv.clone(), y.clone());
        tape::record("attention", [qkv], &y, move |dy| {
            Ok([self.backward(&input, &output, &log_sums, &dy.contiguous()?)?])
        });
        Ok(y)
    }

    fn shape_args(&self, t: usize) -> Vec<Arg<'static>> {
        let Heads { n_head, n_kv_head, head_size } = self.heads;
        let mut args: Vec<_> = [t, n_head, n_kv_head, head_size].map(|n| Arg::U32(n as u32)).into();
        args.push(Arg::F32((1.0 / (head_size as f64).sqrt()) as f32));
        args.extend(dropout_args(self.dropout.as_ref().map(|(dropout, site)| (dropout, *site))));
        args
    }

    /// The output `(B, T, C)` and the logarithms of the sums of each row's exponentials, `(B nh, T)`.
    fn forward(&self, qkv: &Tensor) -> Result<(Tensor, Tensor)> {
        let (b, t, _) = qkv.dims3()?;
        let Heads { n_head, head_size, .. } = self.heads;
        let &Tiles { head_size: hs, forward: (rows, cols), names, .. } = self.tiles;
        let y = self.kernels.output((b, t, n_head * head_size), DType::F32)?;
        let log_sums = self.kernels.output((b * n_head, t), DType::F32)?;
        let floats = tile(rows, hs) + 2 * tile(cols, hs) + tile(rows, cols);
        let args = [&[Arg::Tensor(qkv), Arg::Tensor(&y), Arg::Tensor(&log_sums)][..], &self.shape_args(t)].concat();
        let launched = self.kernels.launch(MODULE, names[0], grid(t, rows, b * n_head, floats), &args);
        count_launch(launched.map(|()| y)).map(|y| (y, log_sums))
    }

    /// The gradient of `qkv`.
    fn backward(&self, qkv: &Tensor, y: &Tensor, log_sums: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let (b, t, _) = qkv.dims3()?;
        let Heads { n_head, n_kv_head, .. } = self.heads;
        let &Tiles { head_size: hs, backward: (rows, cols), names, .. } = self.tiles;
        let d_qkv = self.kernels.output(qkv.shape(), DType::F32)?;
        let d_sums = self.kernels.output(log_sums.shape(), DType::F32)?;
        let inputs = 2 * tile(rows, hs) + 2 * tile(cols, hs);
        let [queries, keys] = [(n_head, inputs + tile(rows, cols)), (n_kv_head, inputs + 2 * tile(rows, cols))]
            .map(|(heads, floats)| grid(t, rows, b * heads, floats));
        let [qkv, y, dy, log_sums, of_qkv, of_sums] = [qkv, y, dy, log_sums, &d_qkv, &d_sums].map(Arg::Tensor);
        let args = [&[qkv, y, dy, log_sums, of_qkv, of_sums][..], &self.shape_args(t)].concat();
        count_launch(self.kernels.launch(MODULE, names[1], queries, &args).map(|()| d_sums.clone()))?;
        let args = [&[qkv, dy, log_sums, of_sums, of_qkv][..], &self.shape_args(t)].concat();
        count_launch(self.kernels.launch(MODULE, names[2], keys, &args).map(|()| d_qkv.clone()))
    }
}
