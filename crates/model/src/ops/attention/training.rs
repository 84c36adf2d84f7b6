//! Causal self-attention in tiles: only one tile of the `T x T` scores is ever held.
//!
//! The softmax is computed online over the tiles of keys: each query has a running maximum and sum, and its output so far is
//! rescaled when the maximum rises. The backward pass computes the weights anew from the log-sum-exp. Source: Dao,
//! *FlashAttention-2* (2023). The tiles depend on the number of positions alone, so a sequence's result is the same in any
//! batch.

use tinygpt_sampler::simd::{Kernel, LANES, Simd, SimdLevel, exp};

use super::operands::{AttentionElement, Matrix};
use crate::{
    config::Heads,
    cpu::{
        CpuPrecision,
        matmul::{Accumulate, Left, Pair, Right, matmul},
        packed::{transposed, transposed_len},
        rows::{Aligned, Rows},
        vectors,
    },
    ops::KeepBits,
};

/// The queries of a tile.
pub(super) const QUERIES: usize = 32;
/// The keys of a tile, a multiple of [`PANEL`](crate::cpu::matmul::PANEL).
const KEYS: usize = 64;

/// The shape of attention over one sequence.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionShape {
    /// The number of positions.
    pub(crate) t: usize,
    pub(crate) heads: Heads,
}

impl AttentionShape {
    /// The first channels of a head's queries, keys and values in `qkv`.
    fn channels(self, head: usize) -> (usize, usize, usize) {
        let ([_, k, _], hs) = (self.heads.qkv(), self.heads.head_size);
        let k_at = self.keys_of(self.heads.kv_head(head));
        (head * hs, k_at, k_at + k)
    }

    /// The first channel of a head of keys in `qkv`.
    pub(super) fn keys_of(self, kv_head: usize) -> usize {
        let [q, ..] = self.heads.qkv();
        q + kv_head * self.heads.head_size
    }

    /// Whether this is the first head of queries that attends to its keys and values.
    fn first_of_kv_head(self, head: usize) -> bool {
        head == 0 || self.heads.kv_head(head) != self.heads.kv_head(head - 1)
    }

    fn scale(self) -> f32 {
        1.0 / (self.heads.head_size as f32).sqrt()
    }
}

/// The dropout of the attention weights of one sequence.
#[derive(Clone, Copy)]
pub(crate) struct AttentionDropout<'a> {
    /// `(n_head * T, T)`.
    pub(crate) keep: &'a KeepBits,
    /// The factor `1 / (1 - p)` of kept weights.
    pub(crate) scale: f32,
}

/// The buffers of one sequence, for products of f32 or of bf16.
#[derive(Debug)]
pub(crate) enum AttentionScratch {
    F32(Box<Scratch<f32>>),
    Bf16(Box<Scratch<Pair>>),
}

/// [`AttentionScratch`] for operands of one type.
#[derive(Debug)]
pub(crate) struct Scratch<E: AttentionElement> {
    /// The queries, keys and values, rounded.
    qkv: E::Rounded,
    /// The gradient of the output, rounded.
    dy: E::Rounded,
    /// The keys of a head, transposed and packed, `(hs, T)`.
    keys: Aligned<E>,
    /// The values of a head, transposed and packed, `(hs, T)`.
    values: Aligned<E>,
    tile: TileScratch<E>,
    /// Gradients of the weights, then of the scores, `(QUERIES, KEYS)`.
    grads: Rows,
    /// The gradients of the scores, rounded.
    rounded_grads: E::Rounded,
}

/// The buffers of a tile of queries.
#[derive(Debug)]
pub(super) struct TileScratch<E: AttentionElement> {
    /// Scores, then weights, `(QUERIES, KEYS)`.
    weights: Rows,
    /// The weights, rounded.
    rounded: E::Rounded,
    /// The running maximum of each query's scores.
    max: [f32; QUERIES],
    /// The running sum of each query's weights; in the backward pass, the dot product of its output and its gradient.
    sum: [f32; QUERIES],
}

impl<E: AttentionElement> TileScratch<E> {
    pub(super) fn new() -> Self {
        Self {
            weights: Rows::zeros(QUERIES, KEYS),
            rounded: E::rounded(QUERIES, KEYS),
            max: [0.0; QUERIES],
            sum: [0.0; QUERIES],
        }
    }
}

impl AttentionScratch {
    /// Allocates buffers for sequences of up to `t` positions. Heads of an odd size cannot be read in pairs, and stay in f32.
    pub(crate) fn new(precision: CpuPrecision, t: usize, heads: Heads) -> Self {
        match precision {
            CpuPrecision::Bf16 if heads.head_size.is_multiple_of(2) => Self::Bf16(Box::new(Scratch::new(t, heads))),
            CpuPrecision::F32 | CpuPrecision::Bf16 => Self::F32(Box::new(Scratch::new(t, heads))),
        }
    }
}

impl<E: AttentionElement> Scratch<E> {
    fn new(t: usize, heads: Heads) -> Self {
        let packed = transposed_len(t, E::inner(heads.head_size));
        Self {
            qkv: E::rounded(t, heads.qkv().iter().sum()),
            dy: E::rounded(t, heads.n_head * heads.head_size),
            keys: Aligned::zeros(packed),
            values: Aligned::zeros(packed),
            tile: TileScratch::new(),
            grads: Rows::zeros(QUERIES, KEYS),
            rounded_grads: E::rounded(QUERIES, KEYS),
        }
    }
}

/// A tile of scores: queries `q..q + rows`, keys `k..k + cols`.
#[derive(Debug, Clone, Copy)]
struct ScoreTile {
    q: usize,
    rows: usize,
    k: usize,
    cols: usize,
}

impl ScoreTile {
    /// The number of the tile's keys that the query in row `i` attends to.
    #[inline(always)]
    fn seen(self, i: usize) -> usize {
        (self.q + i + 1).saturating_sub(self.k).min(self.cols)
    }
}

/// The tiles of queries `q..q + rows`, up to the last key that any of them attends to.
fn tiles(q: usize, rows: usize) -> impl Iterator<Item = ScoreTile> {
    (0..q + rows).step_by(KEYS).map(move |k| ScoreTile { q, rows, k, cols: KEYS.min(q + rows - k) })
}

/// Computes `y (T, nh hs)` and the log-sum-exp `lse (n_head, T)` from queries, keys and values
/// `qkv (T, (nh + 2 nkv) hs)`.
pub(crate) fn forward(
    level: SimdLevel,
    shape: AttentionShape,
    qkv: &Rows,
    dropped: Option<AttentionDropout<'_>>,
    y: &mut Rows,
    lse: &mut [f32],
    scratch: &mut AttentionScratch,
) {
    match scratch {
        AttentionScratch::F32(scratch) => forward_in::<f32>(level, shape, qkv, dropped, y, lse, scratch),
        AttentionScratch::Bf16(scratch) => forward_in::<Pair>(level, shape, qkv, dropped, y, lse, scratch),
    }
}

fn forward_in<E: AttentionElement>(
    level: SimdLevel,
    shape: AttentionShape,
    qkv: &Rows,
    dropped: Option<AttentionDropout<'_>>,
    y: &mut Rows,
    lse: &mut [f32],
    scratch: &mut Scratch<E>,
) {
    let AttentionShape { t, heads: Heads { n_head, head_size: hs, .. } } = shape;
    let ld = y.ld;
    let Scratch { qkv: rounded, keys, tile, .. } = scratch;
    let qkv = E::operand(level, t, qkv, rounded);
    for head in 0..n_head {
        let (q_at, k_at, _) = shape.channels(head);
        if shape.first_of_kv_head(head) {
            qkv.pack_transposed(t, k_at, hs, keys);
        }
        for q in (0..t).step_by(QUERIES) {
            let keep = dropped.map(|d| (d, head * t + q));
            attend(level, shape, (qkv, keys), (head, q), keep, tile, (y.at_mut(q, q_at), ld));
            for (lse, (max, sum)) in lse[head * t + q..(head + 1) * t].iter_mut().zip(tile.max.iter().zip(&tile.sum)) {
                *lse = max + sum.ln();
            }
        }
    }
}

/// Computes the outputs `(rows, hs)` of the queries of a head from `q` on, [`QUERIES`] at most, which lie in `out` with a leading
/// dimension. `keys` are those of the head, transposed and packed; `keep` is the dropout and the row of the first query in it.
pub(super) fn attend<E: AttentionElement>(
    level: SimdLevel,
    shape: AttentionShape,
    (qkv, keys): (Matrix<'_, E>, &[E]),
    (head, q): (usize, usize),
    keep: Option<(AttentionDropout<'_>, usize)>,
    scratch: &mut TileScratch<E>,
    (out, ld): (&mut [f32], usize),
) {
    let (hs, (q_at, _, v_at)) = (shape.heads.head_size, shape.channels(head));
    let rows = QUERIES.min(shape.t - q);
    let TileScratch { weights, rounded, max, sum } = scratch;
    max.fill(f32::NEG_INFINITY);
    sum.fill(0.0);
    for tile in tiles(q, rows) {
        scores(level, tile, qkv.left(q, q_at), keys, hs, weights);
        level.run(OnlineSoftmax { tile, scale: shape.scale(), keep, weights, max, sum, out, ld, hs });
        let accumulate = if tile.k == 0 { Accumulate::Zero } else { Accumulate::Add };
        let weights = E::operand(level, rows, weights, rounded);
        let (left, right) = (weights.left(0, 0), qkv.right(tile.k, v_at));
        matmul(level, (rows, hs, E::inner(tile.cols)), left, right, accumulate, out, ld);
    }
    for (i, sum) in sum.iter().enumerate().take(rows) {
        let factor = 1.0 / sum;
        out[i * ld..][..hs].iter_mut().for_each(|y| *y *= factor);
    }
}

/// Computes the scores `(rows, cols)` of a tile, unscaled and unmasked.
fn scores<E: AttentionElement>(
    level: SimdLevel,
    tile: ScoreTile,
    queries: Left<'_, E>,
    keys: &[E],
    hs: usize,
    out: &mut Rows,
) {
    let (ld, inner) = (out.ld, E::inner(hs));
    let right = transposed(keys, inner, tile.k / 32);
    matmul(level, (tile.rows, tile.cols, inner), queries, right, Accumulate::Zero, out.at_mut(0, 0), ld);
}

/// Turns the scores of a tile into weights relative to each query's running maximum, after dropout, and rescales the
/// query's output so far where the maximum rises.
struct OnlineSoftmax<'a> {
    tile: ScoreTile,
    scale: f32,
    /// The mask, and its row of the tile's first query.
    keep: Option<(AttentionDropout<'a>, usize)>,
    weights: &'a mut Rows,
    max: &'a mut [f32; QUERIES],
    sum: &'a mut [f32; QUERIES],
    out: &'a mut [f32],
    ld: usize,
    hs: usize,
}

impl Kernel for OnlineSoftmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { tile, scale, keep, weights, max, sum, out, ld, hs } = self;
        let least = s.splat(f32::NEG_INFINITY);
        let scale = s.splat(scale);
        for i in 0..tile.rows {
            let seen = tile.seen(i);
            let row = &mut weights.row_mut(i)[..tile.cols.next_multiple_of(LANES)];
            // The largest score of the keys that the query attends to.
            let mut largest = least;
            for v in 0..seen.div_ceil(LANES) {
                let inside = vectors::lane_mask(seen, v);
                let x = s.mul(vectors::get(s, row, v), scale);
                vectors::set(s, row, v, x);
                // Masked lanes get the least f32, which changes no maximum.
                let shown = s.add(s.keep(inside, x), s.keep(!inside, s.splat(f32::MIN)));
                largest = s.max(largest, shown);
            }
            let new_max = lanes(s, largest).into_iter().fold(max[i], f32::max);
            let mut total = s.splat(0.0);
            for v in 0..tile.cols.div_ceil(LANES) {
                let below = s.sub(vectors::get(s, row, v), s.splat(new_max));
                let weight = s.keep(vectors::lane_mask(seen, v), exp(s, below));
                total = s.add(total, weight);
                let kept = match keep {
                    Some((dropped, first)) => {
                        let word = dropped.keep.row(first + i)[tile.k / LANES + v];
                        s.keep(word, s.mul(weight, s.splat(dropped.scale)))
                    }
                    None => weight,
                };
                vectors::set(s, row, v, kept);
            }
            let factor = if max[i] == new_max { 1.0 } else { (max[i] - new_max).exp() };
            sum[i] = sum[i] * factor + s.sum(total);
            max[i] = new_max;
            if tile.k > 0 && factor != 1.0 {
                out[i * ld..][..hs].iter_mut().for_each(|y| *y *= factor);
            }
        }
    }
}

/// The lanes of a vector.
#[inline(always)]
fn lanes<S: Simd>(s: S, v: S::V) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    s.store(v, &mut lanes);
    lanes
}

/// Computes the gradient `dqkv (T, (nh + 2 nkv) hs)` from that of the output, `dy (T, nh hs)`, with [`forward`]'s results `y` and `lse`.
#[expect(
    clippy::too_many_arguments,
    reason = "a backward pass has the inputs, outputs and gradients of its forward pass"
)]
pub(crate) fn backward(
    level: SimdLevel,
    shape: AttentionShape,
    qkv: &Rows,
    dropped: Option<AttentionDropout<'_>>,
    results: (&Rows, &[f32]),
    dy: &Rows,
    dqkv: &mut Rows,
    scratch: &mut AttentionScratch,
) {
    match scratch {
        AttentionScratch::F32(scratch) => backward_in::<f32>(level, shape, qkv, dropped, results, dy, dqkv, scratch),
        AttentionScratch::Bf16(scratch) => backward_in::<Pair>(level, shape, qkv, dropped, results, dy, dqkv, scratch),
    }
}

#[expect(clippy::too_many_arguments, reason = "those of `backward`")]
fn backward_in<E: AttentionElement>(
    level: SimdLevel,
    shape: AttentionShape,
    qkv: &Rows,
    dropped: Option<AttentionDropout<'_>>,
    (y, lse): (&Rows, &[f32]),
    dy_rows: &Rows,
    dqkv: &mut Rows,
    scratch: &mut Scratch<E>,
) {
    let AttentionShape { t, heads: Heads { n_head, head_size: hs, .. } } = shape;
    let ld = dqkv.ld;
    let Scratch { qkv: rounded_qkv, dy: rounded_dy, keys, values, tile, grads, rounded_grads } = scratch;
    let TileScratch { weights, rounded, sum, .. } = tile;
    let qkv = E::operand(level, t, qkv, rounded_qkv);
    let dy = E::operand(level, t, dy_rows, rounded_dy);
    for head in 0..n_head {
        let (q_at, k_at, v_at) = shape.channels(head);
        // Later heads of queries add to the gradients of the keys and values that they share.
        let first_head = shape.first_of_kv_head(head);
        if first_head {
            qkv.pack_transposed(t, k_at, hs, keys);
            qkv.pack_transposed(t, v_at, hs, values);
        }
        for q in (0..t).step_by(QUERIES) {
            let rows = QUERIES.min(t - q);
            // The row sums of dP * P are those of dO * O (FlashAttention, appendix B).
            for (i, sum) in sum.iter_mut().enumerate().take(rows) {
                *sum = level.run(Dot { a: &y.at(q + i, q_at)[..hs], b: &dy_rows.at(q + i, q_at)[..hs] });
            }
            for tile in tiles(q, rows) {
                let ScoreTile { k, cols, .. } = tile;
                scores(level, tile, qkv.left(q, q_at), keys, hs, weights);
                scores(level, tile, dy.left(q, q_at), values, hs, grads);
                let keep = dropped.map(|d| (d, head * t + q));
                let lse = &lse[head * t + q..];
                level.run(SoftmaxBackward { tile, scale: shape.scale(), keep, lse, sum, weights, grads });
                let weights = E::operand(level, rows, weights, rounded);
                let grads = E::operand(level, rows, grads, rounded_grads);
                // The first queries that attend to these keys overwrite their gradients, later ones add. A tile of keys is
                // two tiles of queries, so the second half of its rows is first written by the second of them.
                let first = if first_head && q == k { Accumulate::Zero } else { Accumulate::Add };
                let new_from = if first_head && q > k && q < k + KEYS { q - k } else { cols };
                let (queries, of_keys) = (qkv.right(q, q_at), (cols, hs, E::inner(rows)));
                let (left, right) = (weights.left_transposed(), dy.right(q, q_at));
                add_new(level, of_keys, new_from, left, right, first, dqkv.at_mut(k, v_at), ld);
                add_new(level, of_keys, new_from, grads.left_transposed(), queries, first, dqkv.at_mut(k, k_at), ld);
                let accumulate = if k == 0 { Accumulate::Zero } else { Accumulate::Add };
                let (of_queries, keys) = ((rows, hs, E::inner(cols)), qkv.right(k, k_at));
                matmul(level, of_queries, grads.left(0, 0), keys, accumulate, dqkv.at_mut(q, q_at), ld);
            }
        }
    }
}

/// A [`matmul`] whose output rows from `new_from` on hold no sum yet, and are zeroed first.
#[expect(clippy::too_many_arguments, reason = "it has the arguments of `matmul` and one more")]
fn add_new<E: AttentionElement>(
    level: SimdLevel,
    shape: (usize, usize, usize),
    new_from: usize,
    left: Left<'_, E>,
    right: Right<'_, E>,
    accumulate: Accumulate<'_>,
    out: &mut [f32],
    ld: usize,
) {
    let (m, n, _) = shape;
    for row in new_from..m {
        out[row * ld..][..n].fill(0.0);
    }
    matmul(level, shape, left, right, accumulate, out, ld);
}

/// The dot product of two slices of equal length.
struct Dot<'a> {
    a: &'a [f32],
    b: &'a [f32],
}

impl Kernel for Dot<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut sum = s.splat(0.0);
        for v in 0..vectors::count(self.a) {
            sum = s.mul_add(vectors::get(s, self.a, v), vectors::get(s, self.b, v), sum);
        }
        s.sum(sum)
    }
}

/// Turns the scores of a tile into weights after dropout, and the gradients of those into gradients of the scores.
struct SoftmaxBackward<'a> {
    tile: ScoreTile,
    scale: f32,
    keep: Option<(AttentionDropout<'a>, usize)>,
    lse: &'a [f32],
    sum: &'a [f32; QUERIES],
    weights: &'a mut Rows,
    grads: &'a mut Rows,
}

impl Kernel for SoftmaxBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { tile, scale, keep, lse, sum, weights, grads } = self;
        for i in 0..tile.rows {
            let seen = tile.seen(i);
            let width = tile.cols.next_multiple_of(LANES);
            let (row, grad) = (&mut weights.row_mut(i)[..width], &mut grads.row_mut(i)[..width]);
            for v in 0..tile.cols.div_ceil(LANES) {
                let inside = vectors::lane_mask(seen, v);
                let below = s.sub(s.mul(vectors::get(s, row, v), s.splat(scale)), s.splat(lse[i]));
                // The exponent is at most 0 but for rounding, and `exp` takes no more.
                let below = s.sub(s.splat(0.0), s.max(s.splat(0.0), s.sub(s.splat(0.0), below)));
                let weight = s.keep(inside, exp(s, below));
                let (kept, through) = match keep {
                    Some((dropped, first)) => {
                        let word = dropped.keep.row(first + i)[tile.k / LANES + v];
                        let scaled = |x| s.keep(word, s.mul(x, s.splat(dropped.scale)));
                        (scaled(weight), scaled(vectors::get(s, grad, v)))
                    }
                    None => (weight, vectors::get(s, grad, v)),
                };
                vectors::set(s, row, v, kept);
                // Masked once more, since the gradient of a lane after the last key may be NaN.
                let score = s.mul(s.mul(weight, s.sub(through, s.splat(sum[i]))), s.splat(scale));
                vectors::set(s, grad, v, s.keep(inside, score));
            }
        }
    }
}
