//! Causal self-attention in tiles: of the `T x T` scores no more is ever held than one tile.
//!
//! The softmax goes along with the tiles of keys ("online"): a running maximum and sum a row, by which what was summed
//! so far is rescaled. The backward pass computes the weights anew from the logarithm of that sum. Source: Dao, *FlashAttention-2*
//! (2023). Which tiles there are depends on the positions alone, so a sequence's result is the same in any batch.

use tinygpt_sampler::simd::{Kernel, LANES, Simd, SimdLevel, exp};

use crate::{
    cpu::{
        matmul::{Accumulate, Left, Right, matmul},
        packed::{pack_rows_transposed, transposed, transposed_len},
        rows::{Aligned, Rows},
        vectors,
    },
    ops::KeepBits,
};

/// Queries of a tile.
const QUERIES: usize = 32;
/// Keys of a tile; a multiple of 32.
const KEYS: usize = 64;

/// The shape of attention over one sequence.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionShape {
    /// Positions.
    pub(crate) t: usize,
    pub(crate) n_head: usize,
    /// Channels of a head.
    pub(crate) head_size: usize,
}

impl AttentionShape {
    fn channels(self) -> usize {
        self.n_head * self.head_size
    }

    fn scale(self) -> f32 {
        1.0 / (self.head_size as f32).sqrt()
    }
}

/// Attention weights dropped in training: row `head * T + query` of the bits, and what kept ones are multiplied with.
#[derive(Clone, Copy)]
pub(crate) struct AttentionDropout<'a> {
    pub(crate) keep: &'a KeepBits,
    pub(crate) scale: f32,
}

/// Where one tile after the other is computed.
#[derive(Debug)]
pub(crate) struct AttentionScratch {
    /// Keys of a head, transposed.
    keys: Aligned,
    /// Values of a head, transposed.
    values: Aligned,
    /// Scores, then weights.
    weights: Rows,
    /// Gradients of the weights, then of the scores.
    grads: Rows,
    max: [f32; QUERIES],
    sum: [f32; QUERIES],
}

impl AttentionScratch {
    /// For sequences of up to `t` positions.
    pub(crate) fn new(t: usize, head_size: usize) -> Self {
        let packed = transposed_len(t, head_size);
        Self {
            keys: Aligned::zeros(packed),
            values: Aligned::zeros(packed),
            weights: Rows::zeros(QUERIES, KEYS),
            grads: Rows::zeros(QUERIES, KEYS),
            max: [0.0; QUERIES],
            sum: [0.0; QUERIES],
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
    /// How many of the tile's keys the query in row `i` sees.
    #[inline(always)]
    fn seen(self, i: usize) -> usize {
        (self.q + i + 1).saturating_sub(self.k).min(self.cols)
    }
}

/// The tiles of keys that some of the queries `q..q + rows` see.
fn tiles(q: usize, rows: usize) -> impl Iterator<Item = ScoreTile> {
    (0..q + rows).step_by(KEYS).map(move |k| ScoreTile { q, rows, k, cols: KEYS.min(q + rows - k) })
}

/// From queries, keys and values `qkv (T, 3C)` to `y (T, C)`; `lse` gets the logarithm of each row's sum, head by head.
pub(crate) fn forward(
    level: SimdLevel,
    shape: AttentionShape,
    qkv: &Rows,
    dropped: Option<AttentionDropout<'_>>,
    y: &mut Rows,
    lse: &mut [f32],
    scratch: &mut AttentionScratch,
) {
    let AttentionShape { t, n_head, head_size: hs } = shape;
    let c = shape.channels();
    let ld = y.ld;
    for head in 0..n_head {
        let (q_at, k_at, v_at) = (head * hs, c + head * hs, 2 * c + head * hs);
        pack_rows_transposed(qkv, t, k_at, hs, &mut scratch.keys);
        for q in (0..t).step_by(QUERIES) {
            let rows = QUERIES.min(t - q);
            scratch.max.fill(f32::NEG_INFINITY);
            scratch.sum.fill(0.0);
            for tile in tiles(q, rows) {
                let AttentionScratch { keys, weights, max, sum, .. } = scratch;
                scores(level, tile, Left::rows(qkv, q, q_at), keys, hs, weights);
                let out = y.at_mut(q, q_at);
                let keep = dropped.map(|d| (d, head * t + q));
                level.run(OnlineSoftmax { tile, scale: shape.scale(), keep, weights, max, sum, out, ld, hs });
                let accumulate = if tile.k == 0 { Accumulate::Zero } else { Accumulate::Add };
                let (left, right) = (Left::rows(weights, 0, 0), Right::rows(qkv, tile.k, v_at));
                matmul(level, (rows, hs, tile.cols), left, right, accumulate, out, ld);
            }
            for i in 0..rows {
                let factor = 1.0 / scratch.sum[i];
                y.at_mut(q + i, q_at)[..hs].iter_mut().for_each(|y| *y *= factor);
                lse[head * t + q + i] = scratch.max[i] + scratch.sum[i].ln();
            }
        }
    }
}

/// The scores of a tile, not yet scaled, and some of keys that a query does not see.
fn scores(level: SimdLevel, tile: ScoreTile, queries: Left<'_>, keys: &[f32], hs: usize, out: &mut Rows) {
    let ld = out.ld;
    let right = transposed(keys, hs, tile.k / 32);
    matmul(level, (tile.rows, tile.cols, hs), queries, right, Accumulate::Zero, out.at_mut(0, 0), ld);
}

/// Scores of a tile to weights below a row's maximum so far; what was summed below an earlier maximum is rescaled.
struct OnlineSoftmax<'a> {
    tile: ScoreTile,
    scale: f32,
    /// The masks and the row of the first query.
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
            // The largest score, over the lanes that the query sees.
            let mut largest = least;
            for v in 0..seen.div_ceil(LANES) {
                let inside = vectors::lane_mask(seen, v);
                let x = s.mul(vectors::get(s, row, v), scale);
                vectors::set(s, row, v, x);
                // Where a lane is not seen, the maximum so far again.
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

#[inline(always)]
fn lanes<S: Simd>(s: S, v: S::V) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    s.store(v, &mut lanes);
    lanes
}

/// From the gradient `dy (T, C)` of [`forward`]'s result `y` to that of `qkv`.
#[expect(clippy::too_many_arguments, reason = "what the forward pass took, gave and left")]
pub(crate) fn backward(
    level: SimdLevel,
    shape: AttentionShape,
    qkv: &Rows,
    dropped: Option<AttentionDropout<'_>>,
    (y, lse): (&Rows, &[f32]),
    dy: &Rows,
    dqkv: &mut Rows,
    scratch: &mut AttentionScratch,
) {
    let AttentionShape { t, n_head, head_size: hs } = shape;
    let c = shape.channels();
    let ld = dqkv.ld;
    for head in 0..n_head {
        let (q_at, k_at, v_at) = (head * hs, c + head * hs, 2 * c + head * hs);
        pack_rows_transposed(qkv, t, k_at, hs, &mut scratch.keys);
        pack_rows_transposed(qkv, t, v_at, hs, &mut scratch.values);
        for q in (0..t).step_by(QUERIES) {
            let rows = QUERIES.min(t - q);
            let AttentionScratch { keys, values, weights, grads, sum, .. } = scratch;
            // The sum over keys of weight times gradient is that of y times its gradient.
            for (i, sum) in sum.iter_mut().enumerate().take(rows) {
                *sum = level.run(Dot { a: &y.at(q + i, q_at)[..hs], b: &dy.at(q + i, q_at)[..hs] });
            }
            for tile in tiles(q, rows) {
                let ScoreTile { k, cols, .. } = tile;
                scores(level, tile, Left::rows(qkv, q, q_at), keys, hs, weights);
                scores(level, tile, Left::rows(dy, q, q_at), values, hs, grads);
                let keep = dropped.map(|d| (d, head * t + q));
                let lse = &lse[head * t + q..];
                level.run(SoftmaxBackward { tile, scale: shape.scale(), keep, lse, sum, weights, grads });
                // The first queries that see these keys are the first to add to their gradients. Tiles of queries divide
                // those of keys, so all rows of it are then written.
                let first = if q == k { Accumulate::Zero } else { Accumulate::Add };
                let new_from = if q > k && q < k + KEYS { q - k } else { cols };
                let queries = Right::rows(qkv, q, q_at);
                let (left, right) = (Left::columns(weights, 0, 0), Right::rows(dy, q, q_at));
                add_new(level, (cols, hs, rows), new_from, left, right, first, dqkv.at_mut(k, v_at), ld);
                let left = Left::columns(grads, 0, 0);
                add_new(level, (cols, hs, rows), new_from, left, queries, first, dqkv.at_mut(k, k_at), ld);
                let accumulate = if k == 0 { Accumulate::Zero } else { Accumulate::Add };
                let (left, right) = (Left::rows(grads, 0, 0), Right::rows(qkv, k, k_at));
                matmul(level, (rows, hs, cols), left, right, accumulate, dqkv.at_mut(q, q_at), ld);
            }
        }
    }
}

/// A product added to `out`, of which the rows from `new_from` on are written for the first time.
#[expect(clippy::too_many_arguments, reason = "those of a product and one more")]
fn add_new(
    level: SimdLevel,
    shape: (usize, usize, usize),
    new_from: usize,
    left: Left<'_>,
    right: Right<'_>,
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

/// Scores to weights, and gradients of the (dropped) weights to gradients of the scores.
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
                // Rounding may put a weight a little above 1, where exp's range ends.
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
                // Not the product alone: behind the last key a gradient may be anything.
                let score = s.mul(s.mul(weight, s.sub(through, s.splat(sum[i]))), s.splat(scale));
                vectors::set(s, grad, v, s.keep(inside, score));
            }
        }
    }
}
