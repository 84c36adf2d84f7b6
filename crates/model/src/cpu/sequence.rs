//! One sequence through the network, forward and backward, by one thread: it reads like the model.

use tinygpt_sampler::simd::SimdLevel;

use super::{
    attention::{self, Dropped, Shape},
    dropout::KeepBits,
    embedding, gelu,
    layer_norm::{self, Moments},
    layout::{Affine, Block, Layout},
    matmul::{Pair, Start},
    operand::{InOut, Operand, Packed, Scratch},
    rows::Rows,
    weights::Weights,
};
use crate::{Dropout, GptConfig, Precision, gpt::site};

/// The dropout masks of a sequence: those of row `row` of a batch.
#[derive(Debug, Clone)]
pub struct RowDropout {
    /// The masks of the batch.
    pub dropout: Dropout,
    /// The row in that batch.
    pub row: usize,
}

/// The gradients of a norm, or of a linear layer's bias alone.
#[derive(Debug, Default)]
pub(super) struct VectorGrads {
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl VectorGrads {
    fn of_norm(at: &Affine) -> Self {
        Self { weight: vec![0.0; at.weight.len()], bias: at.bias.clone().map(|b| vec![0.0; b.len()]) }
    }

    pub(super) fn of_linear(at: &Affine) -> Self {
        Self { weight: Vec::new(), bias: at.bias.clone().map(|b| vec![0.0; b.len()]) }
    }

    fn clear(&mut self) {
        self.weight.fill(0.0);
        if let Some(bias) = &mut self.bias {
            bias.fill(0.0);
        }
    }

    /// Adds the columns of rows `0..n` to the gradient of the bias, where there is one.
    fn add_rows(&mut self, n: usize, grads: &Rows) {
        if let Some(bias) = &mut self.bias {
            for i in 0..n {
                bias.iter_mut().zip(grads.row(i)).for_each(|(sum, grad)| *sum += grad);
            }
        }
    }

    /// Adds them to the flat gradients.
    pub(super) fn add_to(&self, at: &Affine, grads: &mut [f32]) {
        let mut add = |range: std::ops::Range<usize>, from: &[f32]| {
            grads[range].iter_mut().zip(from).for_each(|(to, from)| *to += from);
        };
        add(at.weight.clone(), &self.weight);
        if let (Some(range), Some(bias)) = (&at.bias, &self.bias) {
            add(range.clone(), bias);
        }
    }
}

/// What a block keeps of a sequence for its backward pass, and what that leaves for the weights' gradients.
#[derive(Debug)]
pub(super) struct Saved {
    /// The residual stream before the block, and between attention and MLP.
    x: Rows,
    mid: Rows,
    moments_1: Vec<Moments>,
    moments_2: Vec<Moments>,
    qkv: Rows,
    lse: Vec<f32>,
    /// The slope of the activation.
    slope: Rows,
    keep_attn: KeepBits,
    keep_1: KeepBits,
    keep_2: KeepBits,
    /// The input of each linear layer with the gradient of its output.
    pub(super) c_attn: InOut,
    pub(super) attn_proj: InOut,
    pub(super) c_fc: InOut,
    pub(super) mlp_proj: InOut,
    pub(super) ln_1: VectorGrads,
    pub(super) ln_2: VectorGrads,
}

impl Saved {
    fn new(config: &GptConfig, precision: Precision, at: &Block) -> Self {
        let (t, c, n_head) = (config.block_size, config.n_embd, config.n_head);
        let in_out = |n_in: usize, n_out: usize, at| InOut::new(precision, t, (n_in, n_out), at);
        let keep = |rows: usize, cols| KeepBits::new(if config.dropout > 0.0 { rows } else { 0 }, cols);
        Self {
            x: Rows::zeros(t, c),
            mid: Rows::zeros(t, c),
            moments_1: vec![Moments::default(); t],
            moments_2: vec![Moments::default(); t],
            qkv: Rows::zeros(t, 3 * c),
            lse: vec![0.0; n_head * t],
            slope: Rows::zeros(t, 4 * c),
            keep_attn: keep(n_head * t, t),
            keep_1: keep(t, c),
            keep_2: keep(t, c),
            c_attn: in_out(c, 3 * c, &at.c_attn),
            // The backward pass of attention asks for what it gave.
            attn_proj: InOut { x: Operand::kept(precision, t, c), ..in_out(c, c, &at.attn_proj) },
            c_fc: in_out(c, 4 * c, &at.c_fc),
            mlp_proj: in_out(4 * c, c, &at.mlp_proj),
            ln_1: VectorGrads::of_norm(&at.ln_1),
            ln_2: VectorGrads::of_norm(&at.ln_2),
        }
    }
}

/// The buffers of one sequence.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) t: usize,
    pub(super) layers: Vec<Saved>,
    /// The residual stream behind the last block.
    x: Rows,
    moments_f: Vec<Moments>,
    /// What the head reads, and the gradient that it sends back.
    pub(super) hidden: Operand,
    pub(super) dhidden: Rows,
    pub(super) ln_f: VectorGrads,
    keep_0: KeepBits,
    /// The gradient on its way back through a branch.
    dbranch: Rows,
    tiles: attention::Scratch,
    pub(super) scratch: Scratch,
}

impl Sequence {
    pub(super) fn new(config: &GptConfig, precision: Precision, layout: &Layout) -> Self {
        let (t, c) = (config.block_size, config.n_embd);
        Self {
            t,
            layers: layout.blocks.iter().map(|at| Saved::new(config, precision, at)).collect(),
            x: Rows::zeros(t, c),
            moments_f: vec![Moments::default(); t],
            hidden: Operand::new(precision, t, c),
            dhidden: Rows::zeros(t, c),
            ln_f: VectorGrads::of_norm(&layout.ln_f),
            keep_0: KeepBits::new(if config.dropout > 0.0 { t } else { 0 }, c),
            dbranch: Rows::zeros(t, c),
            tiles: attention::Scratch::new(t, config.head_size()),
            scratch: Scratch::new(precision, t, 4 * c),
        }
    }

    /// From tokens to the hidden states that the head reads.
    pub(super) fn forward(
        &mut self,
        level: SimdLevel,
        config: &GptConfig,
        weights: &Weights,
        ids: &[u32],
        dropout: Option<&RowDropout>,
    ) {
        let t = ids.len();
        self.t = t;
        let Self { layers, x, moments_f, hidden, keep_0, tiles, scratch, .. } = self;
        let shape = Shape { t, n_head: config.n_head, head_size: config.head_size() };
        let layout = &weights.layout;

        embedding::forward(ids, &weights.flat[layout.wte.clone()], &weights.flat[layout.wpe.clone()], x);
        if let Some(masks) = dropout {
            draw(level, masks, 0, t, config.n_embd, keep_0);
            drop_rows(masks, keep_0, t, x);
        }
        for (layer, ((saved, at), packed)) in layers.iter_mut().zip(&layout.blocks).zip(&weights.blocks).enumerate() {
            let Saved { c_attn, attn_proj, c_fc, mlp_proj, .. } = saved;
            saved.x.copy_from(x, t);

            // x + attention(norm(x))
            let norm = (weights.weight(&at.ln_1), weights.bias(&at.ln_1));
            layer_norm::forward(level, t, x, norm, &mut saved.moments_1, c_attn.x.rows_mut(&mut scratch.rows));
            c_attn.x.round(level, t, scratch);
            let (packed_qkv, bias) = (&packed.c_attn.packed, weights.bias(&at.c_attn));
            linear(level, t, &c_attn.x, &scratch.rounded, packed_qkv, bias, &mut saved.qkv);
            if let Some(masks) = dropout {
                draw_attention(level, masks, site(layer, 0), shape, &mut saved.keep_attn);
            }
            let dropped = dropped(dropout, &saved.keep_attn);
            let y = attn_proj.x.rows_mut(&mut scratch.rows);
            attention::forward(level, shape, &saved.qkv, dropped, y, &mut saved.lse, tiles);
            attn_proj.x.round(level, t, scratch);
            let branch = Branch::new(&attn_proj.x, scratch, &packed.attn_proj.packed, weights.bias(&at.attn_proj));
            branch.add(level, t, x, &mut saved.mid, dropout, site(layer, 1), &mut saved.keep_1);

            // x + mlp(norm(x))
            let norm = (weights.weight(&at.ln_2), weights.bias(&at.ln_2));
            layer_norm::forward(level, t, &saved.mid, norm, &mut saved.moments_2, c_fc.x.rows_mut(&mut scratch.rows));
            c_fc.x.round(level, t, scratch);
            let h = mlp_proj.x.rows_mut(&mut scratch.rows);
            linear(level, t, &c_fc.x, &scratch.rounded, &packed.c_fc.packed, weights.bias(&at.c_fc), h);
            gelu::forward(level, config.activation, t, h, &mut saved.slope);
            mlp_proj.x.round(level, t, scratch);
            let branch = Branch::new(&mlp_proj.x, scratch, &packed.mlp_proj.packed, weights.bias(&at.mlp_proj));
            branch.add(level, t, &saved.mid, x, dropout, site(layer, 2), &mut saved.keep_2);
        }
        let norm = (weights.weight(&layout.ln_f), weights.bias(&layout.ln_f));
        layer_norm::forward(level, t, x, norm, moments_f, hidden.rows_mut(&mut scratch.rows));
        hidden.round(level, t, scratch);
    }

    /// From the gradient of the hidden states to that of the embeddings, `dx`; what the weights' gradients are made of
    /// is left in [`Saved`].
    pub(super) fn backward(
        &mut self,
        level: SimdLevel,
        config: &GptConfig,
        weights: &Weights,
        dropout: Option<&RowDropout>,
        dx: &mut Rows,
    ) {
        let t = self.t;
        let Self { layers, x, moments_f, dhidden, ln_f, keep_0, dbranch, tiles, scratch, .. } = self;
        let shape = Shape { t, n_head: config.n_head, head_size: config.head_size() };
        let layout = &weights.layout;

        dx.fill(0..t, 0.0);
        let weight = weights.weight(&layout.ln_f);
        norm_backward(level, t, (x, moments_f), weight, dhidden, dx, ln_f);
        for ((saved, at), packed) in layers.iter_mut().zip(&layout.blocks).zip(&weights.blocks).rev() {
            let Saved { c_attn, attn_proj, c_fc, mlp_proj, .. } = saved;

            branch_backward(level, dropout, &saved.keep_2, t, dx, mlp_proj, scratch);
            let dh = c_fc.dy.rows_mut(&mut scratch.rows);
            linear(level, t, &mlp_proj.dy, &scratch.rounded, &packed.mlp_proj.transposed, None, dh);
            gelu::backward(level, t, dh, &saved.slope);
            c_fc.bias.clear();
            c_fc.bias.add_rows(t, dh);
            c_fc.dy.round(level, t, scratch);
            linear(level, t, &c_fc.dy, &scratch.rounded, &packed.c_fc.transposed, None, dbranch);
            let weight = weights.weight(&at.ln_2);
            norm_backward(level, t, (&saved.mid, &saved.moments_2), weight, dbranch, dx, &mut saved.ln_2);

            branch_backward(level, dropout, &saved.keep_1, t, dx, attn_proj, scratch);
            linear(level, t, &attn_proj.dy, &scratch.rounded, &packed.attn_proj.transposed, None, dbranch);
            let (y, dropped) = ((attn_proj.x.rows(), &*saved.lse), dropped(dropout, &saved.keep_attn));
            let dqkv = c_attn.dy.rows_mut(&mut scratch.rows);
            attention::backward(level, shape, &saved.qkv, dropped, y, dbranch, dqkv, tiles);
            c_attn.bias.clear();
            c_attn.bias.add_rows(t, dqkv);
            c_attn.dy.round(level, t, scratch);
            linear(level, t, &c_attn.dy, &scratch.rounded, &packed.c_attn.transposed, None, dbranch);
            let weight = weights.weight(&at.ln_1);
            norm_backward(level, t, (&saved.x, &saved.moments_1), weight, dbranch, dx, &mut saved.ln_1);
        }
        if let Some(masks) = dropout {
            drop_rows(masks, keep_0, t, dx);
        }
    }
}

/// `y = x w + b`, where `x` was rounded last; the gradient of the input too, with the weights transposed.
fn linear(level: SimdLevel, t: usize, x: &Operand, rounded: &Rows<Pair>, w: &Packed, b: Option<&[f32]>, y: &mut Rows) {
    let ld = y.ld;
    x.multiply(level, 0..t, rounded, w, b.map_or(Start::Zero, Start::Row), (y.at_mut(0, 0), ld));
}

fn norm_backward(
    level: SimdLevel,
    t: usize,
    forward: (&Rows, &[Moments]),
    weight: &[f32],
    dy: &mut Rows,
    dx: &mut Rows,
    grads: &mut VectorGrads,
) {
    grads.clear();
    let VectorGrads { weight: dw, bias: db } = grads;
    layer_norm::backward(level, t, forward, weight, dy, dx, (dw, db.as_deref_mut()));
}

/// A branch's end and its projection back into the residual stream.
struct Branch<'a> {
    y: &'a Operand,
    rounded: &'a Rows<Pair>,
    packed: &'a Packed,
    bias: Option<&'a [f32]>,
}

impl<'a> Branch<'a> {
    fn new(y: &'a Operand, scratch: &'a Scratch, packed: &'a Packed, bias: Option<&'a [f32]>) -> Self {
        Self { y, rounded: &scratch.rounded, packed, bias }
    }

    /// `out = x + dropout(y w + b)`.
    #[expect(clippy::too_many_arguments, reason = "a stream in, one out, and the masks")]
    fn add(
        &self,
        level: SimdLevel,
        t: usize,
        x: &Rows,
        out: &mut Rows,
        dropout: Option<&RowDropout>,
        site: u32,
        keep: &mut KeepBits,
    ) {
        if let Some(masks) = dropout {
            linear(level, t, self.y, self.rounded, self.packed, self.bias, out);
            draw(level, masks, site, t, x.cols, keep);
            drop_rows(masks, keep, t, out);
            out.add(x, t);
            return;
        }
        out.copy_from(x, t);
        if let Some(bias) = self.bias {
            for i in 0..t {
                out.row_mut(i).iter_mut().zip(bias).for_each(|(out, b)| *out += b);
            }
        }
        let ld = out.ld;
        self.y.multiply(level, 0..t, self.rounded, self.packed, Start::Sum, (out.at_mut(0, 0), ld));
    }
}

/// The gradient of a branch's projection from that of the residual stream, and its bias's.
fn branch_backward(
    level: SimdLevel,
    dropout: Option<&RowDropout>,
    keep: &KeepBits,
    t: usize,
    dx: &Rows,
    proj: &mut InOut,
    scratch: &mut Scratch,
) {
    let dy = proj.dy.rows_mut(&mut scratch.rows);
    dy.copy_from(dx, t);
    if let Some(masks) = dropout {
        drop_rows(masks, keep, t, dy);
    }
    proj.bias.clear();
    proj.bias.add_rows(t, dy);
    proj.dy.round(level, t, scratch);
}

/// Draws the masks of a site over `(B, T, C)`.
fn draw(level: SimdLevel, masks: &RowDropout, site: u32, t: usize, c: usize, keep: &mut KeepBits) {
    for i in 0..t {
        let first = ((masks.row * t + i) * c) as u64;
        keep.draw(level, &masks.dropout, site, i, first, c);
    }
}

/// Draws the masks of attention weights `(B, nh, T, T)`, up to what each query sees.
fn draw_attention(level: SimdLevel, masks: &RowDropout, site: u32, shape: Shape, keep: &mut KeepBits) {
    for head in 0..shape.n_head {
        for i in 0..shape.t {
            let first = (((masks.row * shape.n_head + head) * shape.t + i) * shape.t) as u64;
            keep.draw(level, &masks.dropout, site, head * shape.t + i, first, i + 1);
        }
    }
}

fn dropped<'a>(dropout: Option<&RowDropout>, keep: &'a KeepBits) -> Option<Dropped<'a>> {
    dropout.map(|masks| Dropped { keep, scale: masks.dropout.scale() })
}

/// Applies masks to rows `0..t`.
fn drop_rows(masks: &RowDropout, keep: &KeepBits, t: usize, x: &mut Rows) {
    let scale = masks.dropout.scale();
    for i in 0..t {
        for (word, values) in keep.row(i).iter().zip(x.row_mut(i).chunks_mut(16)) {
            for (j, value) in values.iter_mut().enumerate() {
                *value = if word >> j & 1 == 1 { *value * scale } else { 0.0 };
            }
        }
    }
}
