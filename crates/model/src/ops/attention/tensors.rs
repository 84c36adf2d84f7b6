//! Causal self-attention on candle tensors, in chunks: no tensor of the size of a chunk's scores outlives the chunk.

use std::ops::Range;

use candle_core::{D, DType, Device, Tensor};

use crate::{
    Dropout, KvCache, Precision, Result,
    config::Heads,
    ops::{
        launches::{cat, cat_last, count_launch, to_operand, upcast},
        tape,
    },
};

/// The most bytes of f32 scores in one chunk: large enough that launches are a small part of its time, small enough for any
/// GPU. In the backward pass about eight tensors of this size are alive at a time.
#[doc(hidden)]
pub const SCORE_BYTES: usize = 64 << 20;

/// Causal self-attention of one layer. The forward pass keeps its input and its output only; the backward pass computes the
/// probabilities anew, chunk by chunk (Dao et al., 2022, "FlashAttention", appendix B).
#[derive(Debug, Clone)]
pub struct TensorAttention {
    /// The number of heads; divides the channels.
    pub n_head: usize,
    /// [`causal_mask`] of the positions: `(T, T)`.
    pub mask: Tensor,
    /// Dropout on the probabilities, and its site.
    pub dropout: Option<(Dropout, u32)>,
    /// The precision to which the operands of products are rounded.
    pub precision: Precision,
    /// The most bytes of f32 scores in one chunk.
    pub score_bytes: usize,
}

/// A chunk of the scores: either all queries of some heads or some queries of one head, so that the elements of its dropout
/// mask are consecutive. Its keys are those up to the last query.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Chunk {
    heads: Range<usize>,
    queries: Range<usize>,
}

/// Divides the scores `(heads, t, t)` into chunks of at most `scores` elements, but at least one query.
fn chunks(heads: usize, t: usize, scores: usize) -> Vec<Chunk> {
    let cut = |n: usize, step: usize| (0..n).step_by(step).map(move |from| from..n.min(from + step));
    if t * t <= scores {
        return cut(heads, scores / (t * t)).map(|heads| Chunk { heads, queries: 0..t }).collect();
    }
    let queries = |head| cut(t, (scores / t).max(1)).map(move |queries| Chunk { heads: head..head + 1, queries });
    (0..heads).flat_map(queries).collect()
}

/// Queries, keys and values of all heads as operands of products: `(H, T, hs)` each, with `H = B * nh`. Queries are
/// multiplied with the scale of the scores and values with that of dropout before they are rounded, since that is
/// `T x hs` multiplications instead of `T x T`.
struct Qkv {
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl TensorAttention {
    /// Applies attention to queries, keys and values of all heads side by side: `(B, T, 3C)` to `(B, T, C)`, with `C` the
    /// channels of all heads.
    ///
    /// # Errors
    /// On a shape mismatch, or when the device is out of memory.
    pub fn apply(&self, qkv: &Tensor) -> Result<Tensor> {
        let y = self.forward(qkv)?;
        let (attention, input, output) = (self.clone(), qkv.clone(), y.clone());
        tape::record("attention", [qkv], &y, move |dy| Ok([attention.backward(&input, &output, dy)?]));
        Ok(y)
    }

    fn chunks(&self, all: &Qkv) -> candle_core::Result<Vec<Chunk>> {
        let (n, t, _) = all.q.dims3()?;
        Ok(chunks(n, t, self.score_bytes / DType::F32.size_in_bytes()))
    }

    /// The factors of queries, keys and values.
    fn scales(&self, hs: usize) -> [f64; 3] {
        [1.0 / (hs as f64).sqrt(), 1.0, self.dropout.as_ref().map_or(1.0, |(dropout, _)| 1.0 / (1.0 - dropout.p))]
    }

    /// Splits `qkv (B, T, 3C)`.
    fn split_qkv(&self, qkv: &Tensor) -> candle_core::Result<Qkv> {
        let (b, t, c3) = qkv.dims3()?;
        let (nh, hs) = (self.n_head, c3 / 3 / self.n_head);
        let parts = qkv.reshape((b, t, 3, nh, hs))?.permute((2, 0, 3, 1, 4))?; // (B, T, 3C) to (3, B, nh, T, hs)
        let mut heads = Vec::with_capacity(3);
        for (i, scale) in self.scales(hs).into_iter().enumerate() {
            heads.push(to_operand(&scaled(parts.narrow(0, i, 1)?, scale)?, self.precision)?.reshape((
                b * nh,
                t,
                hs,
            ))?);
        }
        let [q, k, v] = [0, 1, 2].map(|i| heads[i].clone());
        Ok(Qkv { q, k, v })
    }

    /// Splits `(B, T, C)` by heads, to an operand `(H, T, hs)`.
    fn split(&self, y: &Tensor) -> candle_core::Result<Tensor> {
        let (b, t, c) = y.dims3()?;
        let (nh, hs) = (self.n_head, c / self.n_head);
        to_operand(&y.reshape((b, t, nh, hs))?.transpose(1, 2)?, self.precision)?.reshape((b * nh, t, hs))
    }

    /// The probabilities of a chunk before dropout: `(h, r, keys)`.
    fn probabilities(&self, q: &Tensor, k: &Tensor, queries: &Range<usize>) -> candle_core::Result<Tensor> {
        let mask = self.mask.narrow(0, queries.start, queries.len())?.narrow(1, 0, queries.end)?;
        let scores = upcast(&count_launch(q.matmul(&k.t()?))?, mask.dtype())?;
        softmax(&count_launch(scores.broadcast_add(&mask))?)
    }

    /// The probabilities of all heads at once, before dropout: `(B, T, 3C)` to `(B, nh, T, T)`.
    pub(super) fn all_probabilities(&self, qkv: &Tensor) -> candle_core::Result<Tensor> {
        let (b, t, _) = qkv.dims3()?;
        let Qkv { q, k, .. } = self.split_qkv(qkv)?;
        self.probabilities(&q, &k, &(0..t))?.reshape((b, self.n_head, t, t)) // (H, T, T) to (B, nh, T, T)
    }

    /// The dropout mask of a chunk, 1 where an element is kept: `(h, r, keys)`.
    fn keep(&self, chunk: &Chunk, device: &Device) -> candle_core::Result<Option<Tensor>> {
        let Some((dropout, site)) = &self.dropout else { return Ok(None) };
        let t = self.mask.dim(0)?;
        let (heads, queries) = (&chunk.heads, &chunk.queries);
        // The index of the chunk's first element in the whole mask, (B, nh, T, T).
        let first = (heads.start * t + queries.start) * t;
        let keep = dropout.keep(*site, first as u64, &(heads.len(), queries.len(), t).into(), device)?;
        let keep = keep.narrow(2, 0, queries.end)?;
        Ok(Some(if keep.is_contiguous() { keep } else { count_launch(keep.contiguous())? }))
    }

    fn forward(&self, qkv: &Tensor) -> candle_core::Result<Tensor> {
        let (b, t, c3) = qkv.dims3()?;
        let (nh, hs) = (self.n_head, c3 / 3 / self.n_head);
        let all = self.split_qkv(qkv)?;
        let mut outputs = Vec::new();
        for chunk in self.chunks(&all)? {
            let operands = ChunkOperands::new(&all, &chunk)?;
            let p = self.probabilities(&operands.q, &operands.k, &chunk.queries)?;
            let [p] = masked([p], self.keep(&chunk, qkv.device())?.as_ref())?;
            outputs.push(count_launch(to_operand(&p, self.precision)?.matmul(&operands.v))?.reshape(((), hs))?); // (h, r, hs) to (h * r, hs)
        }
        let y = cat(&outputs)?.reshape((b, nh, t, hs))?; // (H * T, hs) to (B, nh, T, hs)
        upcast(&y.transpose(1, 2)?, qkv.dtype())?.reshape((b, t, c3 / 3)) // (B, T, nh, hs) to (B, T, C)
    }

    /// With `M` the mask of dropout and `*` by element, `O = (P * M) V`, `P = softmax(S)` and `S = Q K^T`:
    /// `dV = (P * M)^T dO`, `dP = (dO V^T) * M`, `dS = P * (dP - D)`, `dQ = dS K`, `dK = dS^T Q`, where `D`, the sums of
    /// the rows of `dP * P`, are those of `dO * O`.
    fn backward(&self, qkv: &Tensor, y: &Tensor, dy: &Tensor) -> candle_core::Result<Tensor> {
        let (b, t, c3) = qkv.dims3()?;
        let (nh, hs, dtype) = (self.n_head, c3 / 3 / self.n_head, qkv.dtype());
        let all = self.split_qkv(qkv)?;
        let d_out = self.split(dy)?; // (H, T, hs)
        let rows = count_launch(count_launch(dy.mul(y))?.reshape((b, t, nh, hs))?.sum_keepdim(D::Minus1))?; // (B, T, nh, 1)
        let rows = count_launch(rows.transpose(1, 2)?.contiguous())?.reshape((b * nh, t, 1))?; // (B, nh, T, 1) to (H, T, 1)
        let (mut dq, mut dk, mut dv) = (Vec::new(), Vec::new(), Vec::new());
        for chunk in self.chunks(&all)? {
            let operands = ChunkOperands::new(&all, &chunk)?;
            let (d_out, rows) = (chunk.of(&d_out)?, chunk.of(&rows)?);
            let p = self.probabilities(&operands.q, &operands.k, &chunk.queries)?;
            let dp = upcast(&count_launch(d_out.matmul(&operands.v.t()?))?, dtype)?; // (h, r, keys)
            let keep = self.keep(&chunk, qkv.device())?;
            let [dp, kept] = masked([dp, p.clone()], keep.as_ref())?;
            let ds = to_operand(&count_launch(p.mul(&count_launch(dp.broadcast_sub(&rows))?))?, self.precision)?;
            dq.push(count_launch(ds.matmul(&operands.k))?.reshape(((), hs))?); // (h, r, hs) to (h * r, hs)
            let key_parts = [
                count_launch(ds.t()?.matmul(&operands.q))?,
                count_launch(to_operand(&kept, self.precision)?.t()?.matmul(&d_out))?,
            ];
            for (sums, part) in [&mut dk, &mut dv].into_iter().zip(key_parts) {
                add_keys(sums, part, t, chunk.queries.start)?;
            }
        }
        let mut parts = Vec::with_capacity(3);
        for (outputs, scale) in [dq, dk, dv].iter().zip(self.scales(hs)) {
            parts.push(scaled(upcast(&cat(outputs)?, dtype)?, scale)?); // (H * T, hs)
        }
        let parts = cat(&parts)?.reshape((3, b, nh, t, hs))?; // (3 * H * T, hs) to (3, B, nh, T, hs)
        count_launch(parts.permute((1, 3, 0, 2, 4))?.contiguous())?.reshape((b, t, c3)) // (B, T, 3, nh, hs) to (B, T, 3C)
    }
}

fn scaled(x: Tensor, scale: f64) -> candle_core::Result<Tensor> {
    if scale == 1.0 { Ok(x) } else { count_launch(x.affine(scale, 0.0)) }
}

/// Zeroes the elements that are not kept, of tensors of one shape. The scale of dropout is a factor of the values instead.
fn masked<const N: usize>(mut xs: [Tensor; N], keep: Option<&Tensor>) -> candle_core::Result<[Tensor; N]> {
    if let Some(keep) = keep {
        // As large as a chunk: where any operand broadcasts, CUDA computes the strided index of each of the three.
        let zeros = count_launch(xs[0].zeros_like())?;
        for x in &mut xs {
            *x = count_launch(keep.where_cond(x, &zeros))?;
        }
    }
    Ok(xs)
}

/// Adds a chunk's gradient of keys or values, `(h, keys, hs)`, to that of its heads: to the last one in `sums` where the
/// chunk has further queries of that head, otherwise as a new one.
fn add_keys(sums: &mut Vec<Tensor>, part: Tensor, t: usize, first_query: usize) -> candle_core::Result<()> {
    let (_, keys, hs) = part.dims3()?;
    let part = if keys < t { count_launch(part.pad_with_zeros(1, 0, t - keys))? } else { part };
    let part = part.reshape(((), hs))?; // (h, T, hs) to (h * T, hs)
    match sums.pop() {
        Some(sum) if first_query > 0 => sums.push(count_launch(sum + part)?),
        last => sums.extend(last.into_iter().chain([part])),
    }
    Ok(())
}

impl Chunk {
    /// The chunk's part of a tensor with a row for each query: `(H, T, n)` to `(h, r, n)`.
    fn of(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        x.narrow(0, self.heads.start, self.heads.len())?.narrow(1, self.queries.start, self.queries.len())
    }
}

/// The operands of a chunk: queries `(h, r, hs)`, keys and values `(h, keys, hs)`.
struct ChunkOperands {
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl ChunkOperands {
    fn new(Qkv { q, k, v }: &Qkv, chunk: &Chunk) -> candle_core::Result<Self> {
        let keys = Chunk { heads: chunk.heads.clone(), queries: 0..chunk.queries.end };
        Ok(Self { q: chunk.of(q)?, k: keys.of(k)?, v: keys.of(v)? })
    }
}

/// Repeats each head of keys and values for all heads of queries that attend to it:
/// `(B, T, (nh + 2 nkv) hs)` to `(B, T, 3C)`.
pub(super) fn repeat_kv(qkv: &Tensor, heads: Heads) -> candle_core::Result<Tensor> {
    let Heads { n_head, n_kv_head, head_size: hs } = heads;
    if n_head == n_kv_head {
        return Ok(qkv.clone());
    }
    let (b, t, _) = qkv.dims3()?;
    let (group, [q, k, v]) = (n_head / n_kv_head, heads.qkv());
    let queries = count_launch(qkv.narrow(2, 0, q)?.contiguous())?;
    let kv = qkv.narrow(2, q, k + v)?.reshape((b, t, 2 * n_kv_head, 1, hs))?;
    let kv = count_launch(kv.broadcast_as((b, t, 2 * n_kv_head, group, hs))?.contiguous())?;
    // (B, T, 2 nkv, nh / nkv, hs) to (B, T, 2C)
    let y = cat_last(&[queries, kv.reshape((b, t, 2 * q))?])?;
    tape::record("repeat kv", [qkv], &y, move |dy| {
        let dq = count_launch(dy.narrow(2, 0, q)?.contiguous())?;
        // (B, T, 2C) to (B, T, 2 nkv, nh / nkv, hs)
        let d_kv = count_launch(dy.narrow(2, q, 2 * q)?.contiguous())?.reshape((b, t, 2 * n_kv_head, group, hs))?;
        Ok([cat_last(&[dq, count_launch(d_kv.sum(3))?.reshape((b, t, k + v))?])?]) // (B, T, 2 nkv, hs)
    });
    Ok(y)
}

/// Channels `from .. from + cols` of `qkv (B, T, (nh + 2 nkv) hs)` by heads, `(B, heads, T, hs)`.
fn by_head(qkv: &Tensor, from: usize, cols: usize, hs: usize) -> candle_core::Result<Tensor> {
    let (b, t, _) = qkv.dims3()?;
    // (B, T, heads * hs) to (B, T, heads, hs) to (B, heads, T, hs)
    qkv.narrow(2, from, cols)?.reshape((b, t, cols / hs, hs))?.transpose(1, 2)?.contiguous()
}

/// Appends the keys and values of new positions `qkv (B, T, (nh + 2 nkv) hs)` to those of a layer, and returns those of all
/// positions, `(B, nkv, past + T, hs)` each.
pub(super) fn append_to_cache(
    heads: Heads,
    layer: usize,
    qkv: &Tensor,
    cache: &mut KvCache,
) -> Result<(Tensor, Tensor)> {
    let [q, kv, _] = heads.qkv();
    let part = |from: usize| by_head(qkv, from, kv, heads.head_size);
    cache.append(layer, &part(q)?, &part(q + kv)?)
}

/// Attention of new positions `qkv (B, T, (nh + 2 nkv) hs)` to the cached positions of a layer and to themselves: `(B, T, C)`. Appends
/// their keys and values to the cache.
pub(super) fn attend_cached(
    heads: Heads,
    layer: usize,
    qkv: &Tensor,
    cache: &mut KvCache,
    mask: Option<&Tensor>,
) -> Result<Tensor> {
    let (b, t, _) = qkv.dims3()?;
    let Heads { n_head, n_kv_head, head_size: hs } = heads;
    let (k, v) = append_to_cache(heads, layer, qkv, cache)?; // (B, nkv, past + T, hs)
    let repeated = |x: Tensor| -> candle_core::Result<Tensor> {
        let (group, positions) = (n_head / n_kv_head, x.dim(2)?);
        if group == 1 {
            return Ok(x);
        }
        let x = x.unsqueeze(2)?.broadcast_as((b, n_kv_head, group, positions, hs))?.contiguous()?;
        x.reshape((b, n_head, positions, hs)) // (B, nkv, nh / nkv, past + T, hs) to (B, nh, past + T, hs)
    };
    let (k, v) = (repeated(k)?, repeated(v)?);
    let q = by_head(qkv, 0, n_head * hs, hs)?.affine(1.0 / (hs as f64).sqrt(), 0.0)?;
    let scores = q.matmul(&k.transpose(2, 3)?)?; // (B, nh, T, past + T)
    let scores = match mask {
        Some(mask) => scores.broadcast_add(mask)?,
        None => scores,
    };
    let y = softmax(&scores)?.matmul(&v)?; // (B, nh, T, hs)
    Ok(y.transpose(1, 2)?.reshape((b, t, n_head * hs))?) // (B, T, nh, hs) to (B, T, C)
}

/// Softmax over the last dimension, of any shape. Entries of -inf get probability 0.
///
/// # Errors
/// When the device is out of memory.
pub fn softmax(x: &Tensor) -> candle_core::Result<Tensor> {
    let max = count_launch(x.max_keepdim(D::Minus1))?;
    let e = count_launch(count_launch(x.broadcast_sub(&max))?.exp())?;
    // Multiplied by the reciprocal, since the backward pass of a quotient reads the row twice more.
    count_launch(e.broadcast_mul(&count_launch(count_launch(e.sum_keepdim(D::Minus1))?.recip())?))
}

/// The mask of causal attention for `t` new positions after `past` earlier ones: `(t, past + t)`, 0 where position
/// `past + i` attends, -inf elsewhere.
///
/// # Errors
/// When the device is out of memory.
pub fn causal_mask(t: usize, past: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    // Computed on the device: T x T elements are too many to upload for each batch.
    let position = |n: usize| count_launch(Tensor::arange(0, n as u32, device));
    let ahead = count_launch(position(past + t)?.reshape((1, past + t))?.broadcast_gt(
        &position(past + t)?.narrow(0, past, t)?.reshape((t, 1))?, // (past + T) to (T, 1)
    ))?;
    let number = |x: f64| {
        count_launch(count_launch(Tensor::new(x as f32, device))?.to_dtype(dtype))?.broadcast_as((t, past + t))
    };
    Ok(count_launch(ahead.where_cond(&number(f64::NEG_INFINITY)?, &number(0.0)?))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_whole_heads_or_queries_of_one_head_and_cover_everything_once() {
        for (heads, t) in [(1, 1), (5, 1), (6, 4), (3, 7)] {
            for scores in [0, 1, 3, 7, 16, 20, 33, 49, 100, 1000] {
                let mut seen = vec![0; heads * t];
                for Chunk { heads, queries } in chunks(heads, t, scores) {
                    assert!(queries.len() == t || heads.len() == 1);
                    assert!(heads.len() * queries.len() * t <= scores || (heads.len(), queries.len()) == (1, 1));
                    heads.for_each(|head| queries.clone().for_each(|query| seen[head * t + query] += 1));
                }
                assert!(seen.iter().all(|&n| n == 1), "{heads} heads, {t} positions, {scores} scores");
            }
        }
    }
}
