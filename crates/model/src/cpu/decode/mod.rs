//! Generation on the CPU: the prompt by the products and the attention of training, then one position at a time, for
//! which every weight is read once.

mod attend;
mod columns;
mod format;
mod matrix;

use rayon::prelude::*;
use tinygpt_sampler::simd::{LANES, Level};

use self::{
    attend::{LayerCache, OneHead},
    columns::LEAST_BYTES,
    matrix::{Matrix, Output},
};
use super::{
    attention::{self, Scratch, Shape},
    awake::Awake,
    gelu,
    layer_norm::{self, Moments},
    rows::Rows,
};
use crate::{
    Decoder, GptConfig, Logits, Result, Window,
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
    config: GptConfig,
    level: Level,
    window: Window,
    format: WeightFormat,
    wte: &'a [f32],
    wpe: &'a [f32],
    blocks: Vec<Block<'a>>,
    ln_f: Norm<'a>,
    head: Matrix<'a>,
    /// Of each row, the cache of each block.
    caches: Vec<Vec<LayerCache>>,
    /// Filled positions of the caches.
    len: usize,
    /// The tokens of each row since the last start, for the windows.
    rows: Vec<Vec<u32>>,
    buffers: Buffers,
    awake: Awake,
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
    vec![vec![LayerCache::new(config.block_size, config.n_embd); config.n_layer]; rows]
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
    pub fn new(config: &GptConfig, params: &[&'a [f32]], window: Window, format: WeightFormat) -> Result<Self> {
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
        Ok(Self {
            config: config.clone(),
            level: Level::detect(),
            window,
            format,
            wte,
            wpe,
            blocks,
            ln_f: Norm { weight: next(), bias: config.bias.then(next) },
            head: Matrix::new(wte, c, Output::Rows, format),
            caches: new_caches(config, 1),
            len: 0,
            rows: Vec::new(),
            buffers: Buffers::new(config, 1),
            awake: Awake::default(),
        })
    }

    /// Puts the sum of the embeddings of a token and a position into a row of the residual stream.
    fn embed(&mut self, i: usize, token: u32, position: usize) {
        let c = self.config.n_embd;
        let (tok, pos) = (&self.wte[token as usize * c..][..c], &self.wpe[position * c..][..c]);
        for ((x, tok), pos) in self.buffers.x.row_mut(i).iter_mut().zip(tok).zip(pos) {
            *x = tok + pos;
        }
    }

    /// Computes a row's tokens from the first position on; the logits behind the last go to the row's.
    fn prefill(&mut self, row: usize) {
        let tokens = std::mem::take(&mut self.rows[row]);
        for (i, &token) in tokens.iter().enumerate() {
            self.embed(i, token, i);
        }
        let t = tokens.len();
        self.rows[row] = tokens;
        self.blocks(t, &Positions::Prompt { row });
        let Self { level, ln_f, head, buffers, config, .. } = self;
        let Buffers { x, normed, moments, logits, .. } = buffers;
        // The last position alone: it takes the first's place.
        x.copy_row(t - 1, 0);
        layer_norm::forward(*level, 1, x, (ln_f.weight, ln_f.bias), moments, normed);
        let v = config.vocab_size;
        head.apply_transposed(*level, 1, normed, &mut logits[row * v..][..v]);
    }

    /// Computes one more position of each row.
    fn next(&mut self, tokens: &[u32], at: usize) {
        for (i, &token) in tokens.iter().enumerate() {
            self.embed(i, token, at);
        }
        self.blocks(tokens.len(), &Positions::Next { at });
        let Self { level, ln_f, head, buffers, .. } = self;
        let Buffers { x, normed, moments, logits, .. } = buffers;
        layer_norm::forward(*level, tokens.len(), x, (ln_f.weight, ln_f.bias), moments, normed);
        head.apply_transposed(*level, tokens.len(), normed, logits);
    }

    /// The blocks over `n` rows of the residual stream.
    fn blocks(&mut self, n: usize, positions: &Positions) {
        let Self { config, level, blocks, caches, buffers, .. } = self;
        let level = *level;
        let Buffers { x, normed, moments, qkv, y, projected, fc, slope, lse, scratch, scores, .. } = buffers;
        let (c, head_size) = (config.n_embd, config.head_size());
        let write = |cache: &mut LayerCache, position, qkv: &[f32]| {
            cache.write(position, &qkv[c..2 * c], &qkv[2 * c..]);
        };
        for (layer, block) in blocks.iter().enumerate() {
            layer_norm::forward(level, n, x, (block.ln_1.weight, block.ln_1.bias), moments, normed);
            block.c_attn.weight.apply(level, n, normed, block.c_attn.bias, qkv);
            match *positions {
                Positions::Prompt { row } => {
                    for i in 0..n {
                        write(&mut caches[row][layer], i, qkv.row(i));
                    }
                    let shape = Shape { t: n, n_head: config.n_head, head_size };
                    attention::forward(level, shape, qkv, None, y, lse, scratch);
                }
                Positions::Next { at } => {
                    for (i, cache) in caches.iter_mut().enumerate() {
                        write(&mut cache[layer], at, qkv.row(i));
                    }
                    let room = scores.len() / (caches.len() * config.n_head);
                    let heads = |i: usize| qkv.row(i)[..c].par_chunks_exact(head_size);
                    // Few positions are not worth two threads.
                    let least = if n * at * c < LEAST_SCORES { usize::MAX } else { 1 };
                    y.par_rows_mut(n)
                        .zip(scores.par_chunks_mut(room * config.n_head))
                        .enumerate()
                        .with_min_len(least)
                        .for_each(|(i, (y, scores))| {
                            y.par_chunks_exact_mut(head_size)
                                .zip(scores.par_chunks_mut(room))
                                .zip(heads(i))
                                .enumerate()
                                .with_min_len(least)
                                .for_each(|(head, ((y, scores), query))| {
                                    let cache = &caches[i][layer];
                                    level.run(OneHead { query, cache, n: at + 1, head, scores, y });
                                });
                        });
                }
            }
            block.attn_proj.weight.apply(level, n, y, block.attn_proj.bias, projected);
            x.add(projected, n);
            layer_norm::forward(level, n, x, (block.ln_2.weight, block.ln_2.bias), moments, normed);
            block.c_fc.weight.apply(level, n, normed, block.c_fc.bias, fc);
            gelu::forward(level, config.activation, n, fc, slope);
            block.mlp_proj.weight.apply(level, n, fc, block.mlp_proj.bias, projected);
            x.add(projected, n);
        }
    }
}

/// Rows times positions times channels from which attention is shared among threads.
const LEAST_SCORES: usize = 1 << 17;

impl Decoder for CpuDecoder<'_> {
    fn config(&self) -> &GptConfig {
        &self.config
    }

    fn start(&mut self, prompt: &[u32], rows: usize) -> Result<Logits<'_>> {
        let context = context(&self.config, prompt, rows)?;
        let (block_size, v) = (self.config.block_size, self.config.vocab_size);
        if self.caches.len() != rows {
            self.caches = new_caches(&self.config, rows);
            self.buffers = Buffers::new(&self.config, rows);
        }
        let mut tokens = Vec::with_capacity(block_size + 1);
        tokens.extend(context);
        self.rows = vec![tokens; rows];
        self.len = context.len();
        // The rows share their prompt: it is computed once.
        self.prefill(0);
        if let Some((first, others)) = self.caches.split_first_mut() {
            for (other, first) in others.iter_mut().flat_map(|other| other.iter_mut().zip(&*first)) {
                other.copy_from(first, context.len());
            }
        }
        let logits = &mut self.buffers.logits;
        for row in 1..rows {
            logits.copy_within(..v, row * v);
        }
        Ok(Logits::Host(logits))
    }

    fn step(&mut self, tokens: &[u32]) -> Result<Logits<'_>> {
        append(&self.config, &mut self.rows, tokens)?;
        let rows = tokens.len();
        let block_size = self.config.block_size;
        if self.len < block_size {
            let at = self.len;
            // The largest matrix decides whether any product is shared among threads.
            let largest = self.config.n_embd * self.config.vocab_size.max(4 * self.config.n_embd);
            if largest * self.format.bytes() > LEAST_BYTES {
                self.awake.clone().run(|| self.next(tokens, at));
            } else {
                self.next(tokens, at);
            }
            self.len += 1;
        } else {
            let kept = self.window.kept(block_size);
            for row in 0..rows {
                let tokens = &mut self.rows[row];
                tokens.drain(..tokens.len() - kept);
                self.prefill(row);
            }
            self.len = kept;
        }
        Ok(Logits::Host(&self.buffers.logits))
    }
}
