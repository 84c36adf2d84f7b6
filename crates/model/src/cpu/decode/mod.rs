//! Generation on the CPU: the prompt by the products and the attention of training, then one position at a time, for
//! which every weight is read once.

mod attend;
mod columns;
mod fetch;
mod format;
mod matrix;
mod one_row;
mod panels;

use tinygpt_sampler::simd::{LANES, SimdLevel};

use self::{
    attend::{LayerCache, attend},
    columns::MIN_PARALLEL_BYTES,
    matrix::{Matrix, Output},
};
use super::{
    attention::{self, Scratch, Shape},
    gelu,
    layer_norm::{self, Moments},
    rows::Rows,
    spin_pool::{SpinPool, Workers},
};
use crate::{
    ContextPolicy, Decoder, GptConfig, Logits, Result,
    decode::{append, context},
    param_specs,
    params::check_values,
};

pub use format::WeightFormat;

/// A weight with its optional bias.
#[derive(Debug)]
struct Linear<'a> {
    weight: Matrix<'a>,
    bias: Option<&'a [f32]>,
}

#[derive(Debug)]
struct Norm<'a> {
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
}

#[derive(Debug)]
struct Block<'a> {
    ln_1: Norm<'a>,
    c_attn: Linear<'a>,
    attn_proj: Linear<'a>,
    ln_2: Norm<'a>,
    c_fc: Linear<'a>,
    mlp_proj: Linear<'a>,
}

/// The [`Decoder`] on the CPU. In f32 it uses the weights where they lie.
#[derive(Debug)]
pub struct CpuDecoder<'a> {
    network: Network<'a>,
    window: ContextPolicy,
    format: WeightFormat,
    /// Filled positions of the caches.
    len: usize,
    /// The tokens of each row since the last start, for the windows.
    rows: Vec<Vec<u32>>,
    pool: SpinPool,
}

/// The model, and what it remembers of the positions so far.
#[derive(Debug)]
struct Network<'a> {
    config: GptConfig,
    level: SimdLevel,
    wte: &'a [f32],
    wpe: &'a [f32],
    blocks: Vec<Block<'a>>,
    ln_f: Norm<'a>,
    head: Matrix<'a>,
    /// Of each block, the cache of each row.
    caches: Vec<Vec<LayerCache>>,
    buffers: Buffers,
}

/// Where a forward pass is computed.
#[derive(Debug)]
struct Buffers {
    /// The residual stream.
    x: Rows,
    normed: Rows,
    moments: Vec<Moments>,
    qkv: Rows,
    y: Rows,
    projected: Rows,
    fc: Rows,
    slope: Rows,
    lse: Vec<f32>,
    scratch: Scratch,
    /// Of each row and head.
    scores: Vec<f32>,
    logits: Vec<f32>,
}

impl Buffers {
    /// For a prompt of any length, and then for `rows` sequences side by side.
    fn new(config: &GptConfig, rows: usize) -> Self {
        let (c, n) = (config.n_embd, config.block_size.max(rows));
        Self {
            x: Rows::zeros(n, c),
            normed: Rows::zeros(n, c),
            moments: vec![Moments::default(); n],
            qkv: Rows::zeros(n, 3 * c),
            y: Rows::zeros(n, c),
            projected: Rows::zeros(n, c),
            fc: Rows::zeros(n, 4 * c),
            slope: Rows::zeros(n, 4 * c),
            lse: vec![0.0; config.n_head * n],
            scratch: Scratch::new(config.block_size, config.head_size()),
            scores: vec![0.0; rows * config.n_head * config.block_size.next_multiple_of(LANES)],
            logits: vec![0.0; rows * config.vocab_size],
        }
    }
}

/// Empty caches of `rows` sequences.
fn new_caches(config: &GptConfig, rows: usize) -> Vec<Vec<LayerCache>> {
    vec![vec![LayerCache::new(config.block_size, config.n_embd); rows]; config.n_layer]
}

/// What the positions of a forward pass are.
enum Positions {
    /// The first ones of one row.
    Prompt { row: usize },
    /// One of each row, at this place.
    Next { at: usize },
}

impl<'a> CpuDecoder<'a> {
    /// A decoder of the model with these parameter values (in parameter order).
    ///
    /// # Errors
    /// When the values do not match the configuration.
    pub fn new(config: &GptConfig, params: &[&'a [f32]], window: ContextPolicy, format: WeightFormat) -> Result<Self> {
        config.validate()?;
        check_values(&param_specs(config), params)?;
        // `param_specs` gives them in this order.
        let mut rest = params.iter().copied();
        let mut next = || rest.next().unwrap_or_default();
        let c = config.n_embd;
        let (wte, wpe) = (next(), next());
        let blocks = (0..config.n_layer)
            .map(|_| {
                let mut affine = || (next(), config.bias.then(&mut next));
                let norm = |(weight, bias)| Norm { weight, bias };
                let linear =
                    |(weight, bias), n_out| Linear { weight: Matrix::new(weight, n_out, Output::Cols, format), bias };
                Block {
                    ln_1: norm(affine()),
                    c_attn: linear(affine(), 3 * c),
                    attn_proj: linear(affine(), c),
                    ln_2: norm(affine()),
                    c_fc: linear(affine(), 4 * c),
                    mlp_proj: linear(affine(), c),
                }
            })
            .collect();
        let network = Network {
            config: config.clone(),
            level: SimdLevel::detect(),
            wte,
            wpe,
            blocks,
            ln_f: Norm { weight: next(), bias: config.bias.then(next) },
            head: Matrix::new(wte, c, Output::Rows, format),
            caches: new_caches(config, 1),
            buffers: Buffers::new(config, 1),
        };
        Ok(Self { network, window, format, len: 0, rows: Vec::new(), pool: SpinPool::default() })
    }

    /// Computes on the spin pool if the largest matrix is one whose product is shared among threads.
    fn run(&mut self, compute: impl FnOnce(&mut Network<'a>, &mut Workers<'_>, &[Vec<u32>]) + Send) {
        let Self { network, rows, pool, .. } = self;
        let GptConfig { n_embd, vocab_size, .. } = network.config;
        if n_embd * vocab_size.max(4 * n_embd) * self.format.bytes() > MIN_PARALLEL_BYTES {
            pool.run(|work| compute(network, work, rows));
        } else {
            compute(network, &mut Workers::none(), rows);
        }
    }

    /// Computes a row's tokens from the first position on.
    fn prefill(&mut self, row: usize) {
        self.run(|network, work, rows| network.prefill(work, row, &rows[row]));
    }
}

impl Network<'_> {
    /// Puts the sum of the embeddings of a token and a position into a row of the residual stream.
    fn embed(&mut self, i: usize, token: u32, position: usize) {
        let c = self.config.n_embd;
        let (tok, pos) = (&self.wte[token as usize * c..][..c], &self.wpe[position * c..][..c]);
        for ((x, tok), pos) in self.buffers.x.row_mut(i).iter_mut().zip(tok).zip(pos) {
            *x = tok + pos;
        }
    }

    /// Computes a row's tokens from the first position on; the logits behind the last go to the row's.
    fn prefill(&mut self, work: &mut Workers<'_>, row: usize, tokens: &[u32]) {
        for (i, &token) in tokens.iter().enumerate() {
            self.embed(i, token, i);
        }
        let t = tokens.len();
        self.blocks(work, t, &Positions::Prompt { row });
        let Self { level, ln_f, head, buffers, config, .. } = self;
        let Buffers { x, normed, moments, logits, .. } = buffers;
        // The last position alone: it takes the first's place.
        x.copy_row(t - 1, 0);
        layer_norm::forward(*level, 1, x, (ln_f.weight, ln_f.bias), moments, normed);
        let v = config.vocab_size;
        head.apply_transposed((*level, work), 1, normed, &mut logits[row * v..][..v]);
    }

    /// Computes one more position of each row.
    fn next(&mut self, work: &mut Workers<'_>, tokens: &[u32], at: usize) {
        for (i, &token) in tokens.iter().enumerate() {
            self.embed(i, token, at);
        }
        self.blocks(work, tokens.len(), &Positions::Next { at });
        let Self { level, ln_f, head, buffers, .. } = self;
        let Buffers { x, normed, moments, logits, .. } = buffers;
        layer_norm::forward(*level, tokens.len(), x, (ln_f.weight, ln_f.bias), moments, normed);
        head.apply_transposed((*level, work), tokens.len(), normed, logits);
    }

    /// The blocks over `n` rows of the residual stream.
    fn blocks(&mut self, work: &mut Workers<'_>, n: usize, positions: &Positions) {
        let Self { config, level, blocks, caches, buffers, .. } = self;
        let level = *level;
        let Buffers { x, normed, moments, qkv, y, projected, fc, slope, lse, scratch, scores, .. } = buffers;
        let (c, head_size) = (config.n_embd, config.head_size());
        let write = |cache: &mut LayerCache, position, qkv: &[f32]| {
            cache.write(position, &qkv[c..2 * c], &qkv[2 * c..]);
        };
        for (block, caches) in blocks.iter().zip(caches) {
            layer_norm::forward(level, n, x, (block.ln_1.weight, block.ln_1.bias), moments, normed);
            block.c_attn.weight.apply((level, work), n, normed, block.c_attn.bias, qkv);
            match *positions {
                Positions::Prompt { row } => {
                    for i in 0..n {
                        write(&mut caches[row], i, qkv.row(i));
                    }
                    let shape = Shape { t: n, n_head: config.n_head, head_size };
                    attention::forward(level, shape, qkv, None, y, lse, scratch);
                }
                Positions::Next { at } => {
                    for (i, cache) in caches.iter_mut().enumerate() {
                        write(cache, at, qkv.row(i));
                    }
                    attend((level, work), (at + 1, config.n_head), caches, qkv, y, scores);
                }
            }
            block.attn_proj.weight.apply((level, work), n, y, block.attn_proj.bias, projected);
            x.add(projected, n);
            layer_norm::forward(level, n, x, (block.ln_2.weight, block.ln_2.bias), moments, normed);
            block.c_fc.weight.apply((level, work), n, normed, block.c_fc.bias, fc);
            gelu::forward(level, config.activation, n, fc, slope);
            block.mlp_proj.weight.apply((level, work), n, fc, block.mlp_proj.bias, projected);
            x.add(projected, n);
        }
    }
}

impl Decoder for CpuDecoder<'_> {
    fn config(&self) -> &GptConfig {
        &self.network.config
    }

    fn start(&mut self, prompt: &[u32], rows: usize) -> Result<Logits<'_>> {
        let network = &mut self.network;
        let context = context(&network.config, prompt, rows)?;
        let (block_size, v) = (network.config.block_size, network.config.vocab_size);
        if network.caches.iter().any(|caches| caches.len() != rows) {
            network.caches = new_caches(&network.config, rows);
            network.buffers = Buffers::new(&network.config, rows);
        }
        let mut tokens = Vec::with_capacity(block_size + 1);
        tokens.extend(context);
        self.rows = vec![tokens; rows];
        self.len = context.len();
        // The rows share their prompt: it is computed once.
        self.prefill(0);
        let Network { caches, buffers, .. } = &mut self.network;
        for caches in caches {
            if let Some((first, others)) = caches.split_first_mut() {
                others.iter_mut().for_each(|other| other.copy_from(first, self.len));
            }
        }
        for row in 1..rows {
            buffers.logits.copy_within(..v, row * v);
        }
        Ok(Logits::Host(&buffers.logits))
    }

    fn step(&mut self, tokens: &[u32]) -> Result<Logits<'_>> {
        append(&self.network.config, &mut self.rows, tokens)?;
        let block_size = self.network.config.block_size;
        if self.len < block_size {
            let at = self.len;
            self.run(|network, work, _| network.next(work, tokens, at));
            self.len += 1;
        } else {
            let kept = self.window.kept(block_size);
            for row in 0..tokens.len() {
                let tokens = &mut self.rows[row];
                tokens.drain(..tokens.len() - kept);
                self.prefill(row);
            }
            self.len = kept;
        }
        Ok(Logits::Host(&self.network.buffers.logits))
    }
}
