//! Causal self-attention in tiles.

use candle_core::{DType, Result, Tensor};
use tinygpt_sampler::kernels::{Arg, Grid, Kernels, Module};

use super::{Element, dropout_args};
use crate::{
    Dropout,
    config::Heads,
    dropout::MaskSource,
    ops::{launches::count_launch, tape},
};

/// The kernels for values of a type.
#[derive(Debug)]
struct Family {
    module: Module,
    /// The threads of a block.
    threads: u32,
    /// The bytes of shared memory of the kernels of some tiles, in the order of their names.
    shared: fn(&Tiles) -> [usize; 3],
    /// By ascending head sizes.
    tiles: &'static [Tiles],
}

/// `attention.cu`.
static F32: Family = Family {
    module: Module { name: "attention", ptx: include_str!("../../../kernels/attention.ptx") },
    threads: 256,
    shared: Tiles::shared_f32,
    tiles: &F32_TILES,
};

/// `attention_bf16.cu`.
static BF16: Family = Family {
    module: Module { name: "attention_bf16", ptx: include_str!("../../../kernels/attention_bf16.ptx") },
    threads: 128,
    shared: Tiles::shared_bf16,
    tiles: &BF16_TILES,
};

/// The kernels for head sizes up to one, and their tiles of scores, as the sources have them.
#[derive(Debug)]
struct Tiles {
    head_size: usize,
    forward: (usize, usize),
    backward: (usize, usize),
    /// Forward, backward for queries, backward for keys.
    names: [&'static str; 3],
}

static F32_TILES: [Tiles; 3] = [
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

static BF16_TILES: [Tiles; 2] = [
    Tiles {
        head_size: 64,
        forward: (64, 64),
        backward: (64, 32),
        names: ["attention_bf16_forward_64", "attention_bf16_backward_queries_64", "attention_bf16_backward_keys_64"],
    },
    Tiles {
        head_size: 128,
        forward: (64, 32),
        backward: (64, 32),
        names: [
            "attention_bf16_forward_128",
            "attention_bf16_backward_queries_128",
            "attention_bf16_backward_keys_128",
        ],
    },
];

impl Tiles {
    /// Rows are padded by four floats.
    fn shared_f32(&self) -> [usize; 3] {
        let (hs, (rows, cols), (back_rows, back_cols)) = (self.head_size, self.forward, self.backward);
        let tile = |rows: usize, cols: usize| 4 * rows * (cols + 4);
        let inputs = 2 * tile(back_rows, hs) + 2 * tile(back_cols, hs);
        let scores = tile(back_rows, back_cols);
        [tile(rows, hs) + 2 * tile(cols, hs) + tile(rows, cols), inputs + scores, inputs + 2 * scores]
    }

    /// Rows are padded by eight elements of two bytes.
    fn shared_bf16(&self) -> [usize; 3] {
        let (hs, (rows, cols), (back_rows, back_cols)) = (self.head_size, self.forward, self.backward);
        let tile = |rows: usize, cols: usize| 2 * rows * (cols + 8);
        let inputs = 2 * tile(back_rows, hs) + 2 * tile(back_cols, hs);
        let transposed = tile(hs, back_cols);
        [tile(rows, hs) + tile(cols, hs) + tile(hs, cols), inputs + transposed, inputs + 2 * transposed]
    }
}

/// Attention over a batch's queries, keys and values, `(B, T, (nh + 2 nkv) hs)`.
#[derive(Debug, Clone)]
pub(crate) struct AttentionKernels {
    kernels: Kernels,
    family: &'static Family,
    heads: Heads,
    tiles: &'static Tiles,
    dropout: Option<(Dropout, u32)>,
}

impl AttentionKernels {
    /// Nothing where no kernel is made for values of this type, heads of this size or masks of this source.
    pub(crate) fn new(
        (kernels, element): (Kernels, Element),
        heads: Heads,
        dropout: Option<&(Dropout, u32)>,
    ) -> Option<Self> {
        let masks = dropout.is_none_or(|(dropout, _)| dropout.source == MaskSource::Hash);
        let family = element.pick([Some(&F32), Some(&BF16), None])?;
        let tiles = family.tiles.iter().find(|tiles| heads.head_size <= tiles.head_size)?;
        masks.then(|| Self { kernels, family, heads, tiles, dropout: dropout.cloned() })
    }

    /// Queues kernel `which` of the tiles, whose blocks take `rows` of the `t` positions of each of `heads` heads.
    fn launch(&self, which: usize, (heads, t, rows): (usize, usize, usize), args: &[Arg<'_>]) -> Result<()> {
        let Family { module, threads, shared, .. } = self.family;
        let shared = shared(self.tiles)[which] as u32;
        let grid = Grid { blocks: (heads as u32, t.div_ceil(rows) as u32, 1), threads: *threads, shared };
        let args = [args, &self.shape_args(t)].concat();
        self.kernels.launch(*module, self.tiles.names[which], grid, &args)
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

    /// The output `(B, T, nh hs)` and the logarithms of the sums of each row's exponentials, `(B nh, T)`.
    fn forward(&self, qkv: &Tensor) -> Result<(Tensor, Tensor)> {
        let (b, t, _) = qkv.dims3()?;
        let Heads { n_head, head_size, .. } = self.heads;
        let y = self.kernels.output((b, t, n_head * head_size), qkv.dtype())?;
        let log_sums = self.kernels.output((b * n_head, t), DType::F32)?;
        let args = [qkv, &y, &log_sums].map(Arg::Tensor);
        let queued = self.launch(0, (b * n_head, t, self.tiles.forward.0), &args);
        count_launch(queued.map(|()| y)).map(|y| (y, log_sums))
    }

    /// The gradient of `qkv`.
    fn backward(&self, qkv: &Tensor, y: &Tensor, log_sums: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let (b, t, _) = qkv.dims3()?;
        let Heads { n_head, n_kv_head, .. } = self.heads;
        let rows = self.tiles.backward.0;
        let d_qkv = self.kernels.output(qkv.shape(), qkv.dtype())?;
        let d_sums = self.kernels.output(log_sums.shape(), DType::F32)?;
        let args = [qkv, y, dy, log_sums, &d_qkv, &d_sums].map(Arg::Tensor);
        count_launch(self.launch(1, (b * n_head, t, rows), &args).map(|()| d_sums.clone()))?;
        let args = [qkv, dy, log_sums, &d_sums, &d_qkv].map(Arg::Tensor);
        count_launch(self.launch(2, (b * n_kv_head, t, rows), &args).map(|()| d_qkv.clone()))
    }
}
