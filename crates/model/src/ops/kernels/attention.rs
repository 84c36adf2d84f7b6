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
    /// The bytes of shared memory of the kernels for some heads.
    shared: fn(&HeadKernels) -> [usize; 3],
    /// By ascending head sizes.
    heads: &'static [HeadKernels],
}

/// The kernels for head sizes up to one: forward, backward for queries, backward for keys.
#[derive(Debug)]
struct HeadKernels {
    head_size: usize,
    kernels: [TileKernel; 3],
}

/// A kernel whose blocks take `rows` of the positions of a head, and go over tiles of `cols` others; as the sources have them.
#[derive(Debug)]
struct TileKernel {
    name: &'static str,
    rows: usize,
    cols: usize,
    /// Of a block.
    threads: u32,
}

const fn kernel(name: &'static str, (rows, cols): (usize, usize), threads: u32) -> TileKernel {
    TileKernel { name, rows, cols, threads }
}

/// `attention.cu`.
static F32: Family = Family {
    module: Module { name: "attention", ptx: include_str!("../../../kernels/attention.ptx") },
    shared: HeadKernels::shared_f32,
    heads: &[
        HeadKernels {
            head_size: 32,
            kernels: [
                kernel("attention_forward_32", (64, 64), 256),
                kernel("attention_backward_queries_32", (64, 32), 256),
                kernel("attention_backward_keys_32", (64, 32), 256),
            ],
        },
        HeadKernels {
            head_size: 64,
            kernels: [
                kernel("attention_forward_64", (64, 64), 256),
                kernel("attention_backward_queries_64", (64, 32), 256),
                kernel("attention_backward_keys_64", (64, 32), 256),
            ],
        },
        HeadKernels {
            head_size: 128,
            kernels: [
                kernel("attention_forward_128", (64, 32), 256),
                kernel("attention_backward_queries_128", (32, 32), 256),
                kernel("attention_backward_keys_128", (32, 32), 256),
            ],
        },
    ],
};

/// `attention_bf16.cu`.
static BF16: Family = Family {
    module: Module { name: "attention_bf16", ptx: include_str!("../../../kernels/attention_bf16.ptx") },
    shared: HeadKernels::shared_bf16,
    heads: &[
        HeadKernels {
            head_size: 64,
            kernels: [
                kernel("attention_bf16_forward_64", (64, 64), 128),
                kernel("attention_bf16_backward_queries_64", (64, 32), 128),
                kernel("attention_bf16_backward_keys_64", (64, 32), 128),
            ],
        },
        HeadKernels {
            head_size: 128,
            kernels: [
                kernel("attention_bf16_forward_128", (64, 32), 128),
                kernel("attention_bf16_backward_queries_128", (64, 32), 128),
                kernel("attention_bf16_backward_keys_128", (64, 32), 128),
            ],
        },
    ],
};

impl HeadKernels {
    /// Rows are padded by four floats.
    fn shared_f32(&self) -> [usize; 3] {
        let hs = self.head_size;
        let tile = |rows: usize, cols: usize| 4 * rows * (cols + 4);
        let [forward, queries, keys] = &self.kernels;
        let backward = |kernel: &TileKernel| 2 * tile(kernel.rows, hs) + 2 * tile(kernel.cols, hs);
        [
            tile(forward.rows, hs) + 2 * tile(forward.cols, hs) + tile(forward.rows, forward.cols),
            backward(queries) + tile(queries.rows, queries.cols),
            backward(keys) + 2 * tile(keys.rows, keys.cols),
        ]
    }

    /// Rows are padded by eight elements of two bytes. Of what a block goes over there are two tiles of both tensors.
    fn shared_bf16(&self) -> [usize; 3] {
        let rows = |rows: usize| 2 * rows * (self.head_size + 8);
        let [forward, queries, keys] = &self.kernels;
        [
            rows(forward.rows + 4 * forward.cols),
            rows(2 * queries.rows + 4 * queries.cols),
            rows(2 * keys.rows + 4 * keys.cols),
        ]
    }
}

/// Attention over a batch's queries, keys and values, `(B, T, (nh + 2 nkv) hs)`.
#[derive(Debug, Clone)]
pub(crate) struct AttentionKernels {
    kernels: Kernels,
    family: &'static Family,
    heads: Heads,
    head_kernels: &'static HeadKernels,
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
        let head_kernels = family.heads.iter().find(|of| heads.head_size <= of.head_size)?;
        masks.then(|| Self { kernels, family, heads, head_kernels, dropout: dropout.cloned() })
    }

    /// Queues kernel `which` of those for these heads, for the `t` positions of each of `heads` heads.
    fn launch(&self, which: usize, (heads, t): (usize, usize), args: &[Arg<'_>]) -> Result<()> {
        let kernel = &self.head_kernels.kernels[which];
        let shared = (self.family.shared)(self.head_kernels)[which] as u32;
        let blocks = (heads as u32, t.div_ceil(kernel.rows) as u32, 1);
        let grid = Grid { blocks, threads: kernel.threads, shared };
        let args = [args, &self.shape_args(t)].concat();
        self.kernels.launch(self.family.module, kernel.name, grid, &args)
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
        let queued = self.launch(0, (b * n_head, t), &args);
        count_launch(queued.map(|()| y)).map(|y| (y, log_sums))
    }

    /// The gradient of `qkv`.
    fn backward(&self, qkv: &Tensor, y: &Tensor, log_sums: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let (b, t, _) = qkv.dims3()?;
        let Heads { n_head, n_kv_head, .. } = self.heads;
        let d_qkv = self.kernels.output(qkv.shape(), qkv.dtype())?;
        let d_sums = self.kernels.output(log_sums.shape(), DType::F32)?;
        let args = [qkv, y, dy, log_sums, &d_qkv, &d_sums].map(Arg::Tensor);
        count_launch(self.launch(1, (b * n_head, t), &args).map(|()| d_sums.clone()))?;
        let args = [qkv, dy, log_sums, &d_sums, &d_qkv].map(Arg::Tensor);
        count_launch(self.launch(2, (b * n_kv_head, t), &args).map(|()| d_qkv.clone()))
    }
}
