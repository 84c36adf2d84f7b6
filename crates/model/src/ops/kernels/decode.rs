//! One new position of each row: the embeddings, products with what stands before and behind them, attention over the cache, and
//! the logits. A row gets the same bits in any batch.

use candle_core::{DType, Device, Result, Tensor, bail};
use tinygpt_sampler::kernels::{Arg, Grid, Kernels, Module};

use super::QkNormParams;
use crate::{
    GptConfig,
    config::{Heads, Norm},
    ops::{Activation, LogitCap, launches::count_launch},
};

/// The kernels for matrices of a type. Of four names the first two are for four elements at a time, the others for any number;
/// of two the first is for one row, the other for several.
#[derive(Debug)]
struct MatrixKernels {
    module: Module,
    embed: &'static str,
    product: [&'static str; 4],
    /// For one row and for several, where the inner dimension is large.
    deep_product: [&'static str; 2],
    logits: [&'static str; 4],
}

macro_rules! matrix_kernels {
    ($type:literal) => {
        MatrixKernels {
            module: Module {
                name: concat!("decode_", $type),
                ptx: include_str!(concat!("../../../kernels/decode_", $type, ".ptx")),
            },
            embed: concat!("decode_embed_", $type),
            product: [
                concat!("decode_product_", $type),
                concat!("decode_product_", $type, "_rows"),
                concat!("decode_product_", $type, "_any"),
                concat!("decode_product_", $type, "_any_rows"),
            ],
            deep_product: [concat!("decode_product_", $type, "_deep"), concat!("decode_product_", $type, "_deep_rows")],
            logits: [
                concat!("decode_logits_", $type),
                concat!("decode_logits_", $type, "_rows"),
                concat!("decode_logits_", $type, "_any"),
                concat!("decode_logits_", $type, "_any_rows"),
            ],
        }
    };
}

static F32: MatrixKernels = matrix_kernels!("f32");
static BF16: MatrixKernels = matrix_kernels!("bf16");
static F16: MatrixKernels = matrix_kernels!("f16");

impl MatrixKernels {
    fn of(weight: &Tensor) -> Result<&'static Self> {
        Ok(match weight.dtype() {
            DType::F32 => &F32,
            DType::BF16 => &BF16,
            DType::F16 => &F16,
            other => bail!("no kernel multiplies with a matrix of {other:?}"),
        })
    }
}

const ATTENTION: Module =
    Module { name: "decode_attention", ptx: include_str!("../../../kernels/decode_attention.ptx") };

/// The threads of a block of a product and of a deep one, its outputs, and the rows of the kernels for several, as the source has
/// them.
const PRODUCT_THREADS: u32 = 256;
const DEEP_THREADS: u32 = 512;
const PRODUCT_COLS: usize = 8;
/// The inputs from which on a product is deep: a thread would load its part of the matrix in more than two turns.
const DEEP: usize = 1537;
const HEAD_THREADS: usize = 256;
const HEAD_COLS: usize = 64;
const ROWS: usize = 4;
/// The positions of a split of attention, and its threads.
const SPLIT: usize = 128;
/// The most channels of a head of attention.
pub(crate) const MAX_HEAD_SIZE: usize = 128;

/// The floats of shared memory that a block may have on every card.
const SHARED_FLOATS: usize = (96 << 10) / 4;
/// The most elements of an input row of the logits.
pub(crate) const MAX_INPUTS: usize = SHARED_FLOATS;
/// The most outputs of a product, and the most tokens of the logits: the second dimension of a grid is limited. (A block of SwiGLU's
/// has half as many outputs, each of two sums.)
pub(crate) const MAX_OUTPUTS: usize = 65_535 * PRODUCT_COLS;
pub(crate) const MAX_TOKENS: usize = 65_535 * HEAD_COLS;

/// The norm of the input rows of a product: its kind, epsilon, weight `(in)` and bias `(in)`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InputNorm<'a> {
    pub(crate) kind: Norm,
    pub(crate) eps: f64,
    pub(crate) weight: &'a Tensor,
    pub(crate) bias: Option<&'a Tensor>,
}

/// What is done with the sums of a product and their bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Epilogue {
    /// Nothing.
    None,
    /// The activation of each.
    Activation(Activation),
    /// The first half are gates, the second what they gate.
    Swiglu,
}

/// A product `y = residual + epilogue(norm(x) w + bias)`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Product<'a> {
    /// `(rows, in)`.
    pub(crate) x: &'a Tensor,
    pub(crate) norm: Option<InputNorm<'a>>,
    /// `(in, out)`, with [`Epilogue::Swiglu`] `(in, 2 out)`; f32, bf16 or f16.
    pub(crate) weight: &'a Tensor,
    /// As long as a row of the matrix.
    pub(crate) bias: Option<&'a Tensor>,
    pub(crate) epilogue: Epilogue,
    /// `(rows, out)`.
    pub(crate) residual: Option<&'a Tensor>,
    /// `(rows, out)`, which is written.
    pub(crate) y: &'a Tensor,
}

/// Picks a name from those of [`MatrixKernels`].
fn pick(names: [&'static str; 4], fours: bool, several: bool) -> &'static str {
    names[2 * usize::from(!fours) + usize::from(several)]
}

/// The arguments of input rows `x (rows, in)`.
fn input_args<'a>(x: &'a Tensor, norm: Option<InputNorm<'a>>) -> Result<[Arg<'a>; 7]> {
    let (rows, n_in) = x.dims2()?;
    let kind = match norm.map(|norm| norm.kind) {
        None => 0,
        Some(Norm::Layer) => 1,
        Some(Norm::Rms) => 2,
    };
    let eps = norm.map_or(0.0, |norm| norm.eps);
    Ok([
        Arg::Tensor(x),
        Arg::optional(norm.map(|norm| norm.weight)),
        Arg::optional(norm.and_then(|norm| norm.bias)),
        Arg::U32(kind),
        Arg::U32(rows as u32),
        Arg::U32(n_in as u32),
        Arg::F32(eps as f32),
    ])
}

/// Writes the product.
pub(crate) fn product(kernels: &Kernels, product: Product<'_>) -> Result<()> {
    let Product { x, norm, weight, bias, epilogue, residual, y } = product;
    let n_out = y.dim(1)?;
    let rows = x.dim(0)?;
    let code = match epilogue {
        Epilogue::None => 0,
        Epilogue::Activation(Activation::Gelu) => 1,
        Epilogue::Activation(Activation::GeluNew) => 2,
        Epilogue::Activation(Activation::Relu2) => 3,
        Epilogue::Swiglu => 4,
    };
    let rest = [
        Arg::Tensor(weight),
        Arg::optional(bias),
        Arg::optional(residual),
        Arg::Tensor(y),
        Arg::U32(n_out as u32),
        Arg::U32(code),
    ];
    let of_type = MatrixKernels::of(weight)?;
    // Neither depends on the number of rows, with which no sum's order may change.
    let fours = n_out.is_multiple_of(4);
    let deep = fours && x.dim(1)? >= DEEP;
    let name = if deep { of_type.deep_product[usize::from(rows > 1)] } else { pick(of_type.product, fours, rows > 1) };
    let outputs = if epilogue == Epilogue::Swiglu { PRODUCT_COLS / 2 } else { PRODUCT_COLS };
    let at_once = if rows > 1 { ROWS } else { 1 };
    // Blocks with the same part of the matrix are neighbours, so that they share what the cache has of it.
    let blocks = (rows.div_ceil(at_once) as u32, n_out.div_ceil(outputs) as u32, 1);
    let grid = Grid { blocks, threads: if deep { DEEP_THREADS } else { PRODUCT_THREADS }, shared: 0 };
    count_launch(kernels.launch(of_type.module, name, grid, &[&input_args(x, norm)?[..], &rest].concat()))
}

/// The logits `(rows, V)` of hidden states `x (rows, C)` by a head `(V, C)`.
pub(crate) fn logits(
    kernels: &Kernels,
    (x, norm): (&Tensor, Option<InputNorm<'_>>),
    (weight, cap): (&Tensor, Option<LogitCap>),
) -> Result<Tensor> {
    let (v, c) = weight.dims2()?;
    let y = kernels.output((x.dim(0)?, v), DType::F32)?;
    let (rows, floats) = (x.dim(0)?, c.next_multiple_of(4));
    // A block has the rows in shared memory.
    let at_once = if rows > 1 && ROWS * floats <= SHARED_FLOATS { ROWS } else { 1 };
    let cap = cap.map_or(0.0, |LogitCap(cap)| cap as f32);
    let rest = [Arg::Tensor(weight), Arg::Tensor(&y), Arg::U32(v as u32), Arg::F32(cap)];
    let of_type = MatrixKernels::of(weight)?;
    let name = pick(of_type.logits, c.is_multiple_of(4), at_once > 1);
    let blocks = (rows.div_ceil(at_once) as u32, v.div_ceil(HEAD_COLS) as u32, 1);
    let grid = Grid { blocks, threads: HEAD_THREADS as u32, shared: 4 * (at_once * floats) as u32 };
    count_launch(kernels.launch(of_type.module, name, grid, &[&input_args(x, norm)?[..], &rest].concat()))?;
    Ok(y)
}

/// Writes the embeddings of `tokens (rows, 1)`, rows of a table `(V, C)`, to `y (rows, C)`, plus a row of a table of positions
/// `(block_size, C)`, which is given with its number.
pub(crate) fn embed(
    kernels: &Kernels,
    tokens: &Tensor,
    table: &Tensor,
    position: Option<(&Tensor, usize)>,
    y: &Tensor,
) -> Result<()> {
    let (rows, c) = y.dims2()?;
    let n = rows * c;
    let args = [
        Arg::Tensor(tokens),
        Arg::Tensor(table),
        Arg::optional(position.map(|(table, _)| table)),
        Arg::Tensor(y),
        Arg::U64(n as u64),
        Arg::U32(c as u32),
        Arg::U32(position.map_or(0, |(_, row)| row as u32)),
    ];
    let of_type = MatrixKernels::of(table)?;
    count_launch(kernels.launch(of_type.module, of_type.embed, Grid::over(n, 256), &args))
}

/// What the splits of attention leave for the last of them.
#[derive(Debug)]
pub(crate) struct SplitScratch {
    /// Of each row, head and split its maximum, its sum and its outputs, `(rows, nh, splits, 2 + hs)`.
    partials: Tensor,
    /// How many splits have come, `(rows, nh)`; zeros between launches.
    arrived: Tensor,
}

impl SplitScratch {
    /// For `rows` sequences of a model.
    pub(crate) fn new(kernels: &Kernels, config: &GptConfig, rows: usize, device: &Device) -> Result<Self> {
        let Heads { n_head, head_size, .. } = config.heads();
        let shape = (rows, n_head, config.block_size.div_ceil(SPLIT), 2 + head_size);
        let arrived = Tensor::zeros((rows, n_head), DType::U32, device)?;
        Ok(Self { partials: kernels.output(shape, DType::F32)?, arrived })
    }
}

/// Attention of one new position.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewPosition<'a> {
    pub(crate) heads: Heads,
    /// `(rows, (nh + 2 nkv) hs)`.
    pub(crate) qkv: &'a Tensor,
    /// The norms of queries and keys.
    pub(crate) qk_norm: Option<QkNormParams<'a>>,
    /// The cosines and sines of rotary positions, `(block_size, hs / 2)` each.
    pub(crate) angles: Option<&'a [Tensor; 2]>,
    /// The cached keys and values, `(rows, nkv, block_size, hs)` each; the new ones are written.
    pub(crate) cached: [&'a Tensor; 2],
    /// The positions before the new one.
    pub(crate) past: usize,
    pub(crate) scratch: &'a SplitScratch,
    /// `(rows, nh hs)`, which is written.
    pub(crate) y: &'a Tensor,
}

/// Writes the attention of a new position, and its key and value into the cache.
pub(crate) fn attend(kernels: &Kernels, new: NewPosition<'_>) -> Result<()> {
    let Heads { n_head, n_kv_head, head_size } = new.heads;
    let (rows, _, block_size, _) = new.cached[0].dims4()?;
    if new.past >= block_size || head_size > MAX_HEAD_SIZE {
        bail!("no kernel attends from position {} of {block_size} with heads of {head_size}", new.past)
    }
    let args = [
        Arg::Tensor(new.qkv),
        Arg::optional(new.qk_norm.map(|norms| norms.weights[0])),
        Arg::optional(new.qk_norm.map(|norms| norms.weights[1])),
        Arg::optional(new.angles.map(|tables| &tables[0])),
        Arg::optional(new.angles.map(|tables| &tables[1])),
        Arg::Tensor(new.cached[0]),
        Arg::Tensor(new.cached[1]),
        Arg::Tensor(&new.scratch.partials),
        Arg::Tensor(&new.scratch.arrived),
        Arg::Tensor(new.y),
        Arg::U32(n_kv_head as u32),
        Arg::U32(head_size as u32),
        Arg::U32(block_size as u32),
        Arg::U32(new.past as u32),
        Arg::F32((1.0 / (head_size as f64).sqrt()) as f32),
        Arg::F32(new.qk_norm.map_or(0.0, |norms| norms.eps) as f32),
    ];
    let name = if head_size.is_multiple_of(4) { "decode_attention" } else { "decode_attention_any" };
    let splits = (new.past + 1).div_ceil(SPLIT);
    let blocks = (splits as u32, n_head as u32, rows as u32);
    count_launch(kernels.launch(ATTENTION, name, Grid { blocks, threads: SPLIT as u32, shared: 0 }, &args))
}
