//! Attention of one new position of each sequence, with cached keys and values.

#![allow(unsafe_code)]

use rayon::prelude::*;
use tinygpt_sampler::simd::{Kernel, LANES, Simd, SimdLevel, exp};

use crate::{
    config::Heads,
    cpu::{
        decode::{Place, shared_output::SharedOutput},
        rows::Rows,
        spin_pool::{MAX_TASKS, Workers},
        vectors,
    },
};

/// From this many channels of keys on, those of a prompt are stored by all threads: fewer take some 50 microseconds.
const MIN_PARALLEL_CHANNELS: usize = 1 << 16;

/// The cached keys and values of one layer and one sequence. What a head reads lies together, since it is read from memory where
/// many sequences take turns. Keys are stored in tiles of sixteen positions, so that the scores of sixteen positions are computed
/// from contiguous vectors.
#[derive(Debug, Clone)]
pub(crate) struct SequenceKvCache {
    /// `(nkv, block_size / 16, hs, 16)`.
    keys: Vec<f32>,
    /// `(nkv, block_size, hs)`.
    values: Vec<f32>,
    /// `block_size / 16`, rounded up.
    tiles: usize,
    block_size: usize,
    /// The channels of a head.
    head_size: usize,
}

impl SequenceKvCache {
    /// Allocates an empty cache.
    pub(crate) fn new(block_size: usize, Heads { n_kv_head, head_size, .. }: Heads) -> Self {
        let tiles = block_size.div_ceil(LANES);
        let keys = vec![0.0; n_kv_head * tiles * head_size * LANES];
        Self { keys, values: vec![0.0; n_kv_head * block_size * head_size], tiles, block_size, head_size }
    }

    /// Stores the keys `(nkv * hs)` and the values `(nkv * hs)` of a position.
    pub(crate) fn write(&mut self, position: usize, key: &[f32], value: &[f32]) {
        let Self { keys, values, tiles, block_size, head_size } = self;
        let by_head = key.chunks_exact(*head_size).zip(value.chunks_exact(*head_size)).enumerate();
        for (head, (key, value)) in by_head {
            let tile = &mut keys.as_chunks_mut::<LANES>().0[(head * *tiles + position / LANES) * *head_size..];
            for (lanes, &key) in tile.iter_mut().zip(key) {
                lanes[position % LANES] = key;
            }
            values[(head * *block_size + position) * *head_size..][..*head_size].copy_from_slice(value);
        }
    }

    /// Stores the keys and values of the first `n` positions, `qkv (n, (nh + 2 nkv) hs)`, by head: all channels of a tile of
    /// positions lie in the cache meanwhile.
    pub(crate) fn write_prompt(&mut self, n: usize, qkv: &Rows, kinds: Heads) {
        let Self { keys, values, tiles, block_size, head_size } = self;
        let (hs, [q, kv, _]) = (*head_size, kinds.qkv());
        let of_head = |(head, (keys, values)): (usize, (&mut [f32], &mut [f32]))| {
            let (k_at, v_at) = (q + head * hs, q + kv + head * hs);
            let (tiles, _) = keys.as_chunks_mut::<LANES>();
            for (tile, keys) in tiles.chunks_exact_mut(hs).enumerate().take(n.div_ceil(LANES)) {
                for lane in 0..LANES.min(n - tile * LANES) {
                    let from = &qkv.at(tile * LANES + lane, k_at)[..hs];
                    keys.iter_mut().zip(from).for_each(|(lanes, &key)| lanes[lane] = key);
                }
            }
            for (i, value) in values.chunks_exact_mut(hs).enumerate().take(n) {
                value.copy_from_slice(&qkv.at(i, v_at)[..hs]);
            }
        };
        let (key_len, value_len) = (*tiles * hs * LANES, *block_size * hs);
        if n * kv < MIN_PARALLEL_CHANNELS {
            keys.chunks_exact_mut(key_len).zip(values.chunks_exact_mut(value_len)).enumerate().for_each(of_head);
        } else {
            let heads = keys.par_chunks_exact_mut(key_len).zip(values.par_chunks_exact_mut(value_len));
            heads.enumerate().for_each(of_head);
        }
    }

    /// Copies the first `n` positions of another cache.
    pub(crate) fn copy_from(&mut self, other: &Self, n: usize) {
        let (keys, values) = (self.tiles * self.head_size * LANES, self.block_size * self.head_size);
        let (key_len, value_len) = (n.next_multiple_of(LANES) * self.head_size, n * self.head_size);
        for (to, from) in self.keys.chunks_exact_mut(keys).zip(other.keys.chunks_exact(keys)) {
            to[..key_len].copy_from_slice(&from[..key_len]);
        }
        for (to, from) in self.values.chunks_exact_mut(values).zip(other.values.chunks_exact(values)) {
            to[..value_len].copy_from_slice(&from[..value_len]);
        }
    }

    /// The keys of a head from a tile on: `head_size` vectors of sixteen positions, then those of the next tile.
    fn keys(&self, tile: usize, head: usize) -> &[[f32; LANES]] {
        &self.keys.as_chunks::<LANES>().0[(head * self.tiles + tile) * self.head_size..]
    }

    /// The values of a head, `(block_size, hs)`.
    fn values(&self, head: usize) -> &[f32] {
        let len = self.block_size * self.head_size;
        &self.values[head * len..][..len]
    }
}

/// From this many `positions * channels` of all rows together on, attention is divided among threads: 64 KiB of keys and
/// values.
const MIN_PARALLEL_SCORES: usize = 1 << 13;

/// Computes `y (rows, nh hs)`, the attention of one new position of some sequences, `qkv (rows, (nh + 2 nkv) hs)`, each to the
/// positions of its cache up to its place, which has been written. `scores` is a buffer `(rows, n_head, positions of the longest
/// rounded up to LANES)` at least.
pub(crate) fn decode_attention(
    (level, workers): (SimdLevel, &mut Workers<'_>),
    (places, kinds): (&[Place], Heads),
    caches: &[SequenceKvCache],
    qkv: &Rows,
    y: &mut Rows,
    scores: &mut [f32],
) {
    let (rows, c) = (places.len(), y.cols);
    let Heads { n_head, head_size, .. } = kinds;
    let (heads, room) = (rows * n_head, scores.len() / (rows * n_head));
    let positions: usize = places.iter().map(|place| place.at + 1).sum();
    let tasks = if positions * c < MIN_PARALLEL_SCORES { 1 } else { MAX_TASKS.min(heads) };
    let ld = y.ld;
    let y = SharedOutput::new(y.at_mut(0, 0), c, ld);
    let scores = SharedOutput::new(scores, room, room);
    workers.parallel_for(tasks, |task| {
        for i in task * heads / tasks..(task + 1) * heads / tasks {
            let (row, head) = (i / n_head, i % n_head);
            let Place { slot, at } = places[row];
            let of_head = head * head_size..(head + 1) * head_size;
            let query = &qkv.row(row)[of_head.clone()];
            // SAFETY: every pair of row and head belongs to one task.
            let (y, scores) = unsafe { (y.part(row, &of_head), scores.part(i, &(0..room))) };
            level.run(DecodeHead { query, cache: &caches[slot], n: at + 1, kv_head: kinds.kv_head(head), scores, y });
        }
    });
}

/// The number of independent accumulators, which hide the latency of additions.
const UNROLL: usize = 4;

/// The attention of one head: `y (hs)` for `query (hs)` and the first `n` positions of a cache.
struct DecodeHead<'a> {
    query: &'a [f32],
    cache: &'a SequenceKvCache,
    n: usize,
    /// The head of keys and values.
    kv_head: usize,
    /// A buffer of `n` rounded up to LANES.
    scores: &'a mut [f32],
    y: &'a mut [f32],
}

impl Kernel for DecodeHead<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { query, cache, n, kv_head, scores, y } = self;
        let head_size = query.len();
        let scale = s.splat(1.0 / (head_size as f32).sqrt());
        let count = n.div_ceil(LANES);
        let scores = &mut scores.as_chunks_mut::<LANES>().0[..count];
        let mut largest = s.splat(f32::MIN);
        let mut first = 0;
        for scores in scores.chunks_mut(UNROLL) {
            // Lanes after the last position hold stale or zero keys, and are masked below.
            let mut sums = [s.splat(0.0); UNROLL];
            let keys = cache.keys(first, kv_head);
            for (c, &query) in query.iter().enumerate() {
                for (tile, sum) in sums.iter_mut().enumerate().take(scores.len()) {
                    *sum = s.mul_add(s.splat(query), s.load(&keys[tile * head_size + c]), *sum);
                }
            }
            for (score, sum) in scores.iter_mut().zip(sums) {
                let sum = s.mul(sum, scale);
                s.store(sum, score);
                let inside = vectors::lane_mask(n, first);
                largest = s.max(largest, s.add(s.keep(inside, sum), s.keep(!inside, s.splat(f32::MIN))));
                first += 1;
            }
        }
        let mut lanes = [0.0; LANES];
        s.store(largest, &mut lanes);
        let max = s.splat(lanes.into_iter().fold(f32::MIN, f32::max));
        let mut total = s.splat(0.0);
        for (v, score) in scores.iter_mut().enumerate() {
            let weight = s.keep(vectors::lane_mask(n, v), exp(s, s.sub(s.load(score), max)));
            s.store(weight, score);
            total = s.add(total, weight);
        }
        let factor = s.splat(1.0 / s.sum(total));
        let values = cache.values(kv_head);
        for from in (0..vectors::count(y)).step_by(UNROLL) {
            let count = UNROLL.min(vectors::count(y) - from);
            let mut sums = [s.splat(0.0); UNROLL];
            for (i, &weight) in scores.as_flattened()[..n].iter().enumerate() {
                let value = &values[i * head_size..][..head_size];
                for (v, sum) in sums.iter_mut().enumerate().take(count) {
                    *sum = s.mul_add(s.splat(weight), vectors::get(s, value, from + v), *sum);
                }
            }
            for (v, sum) in sums.into_iter().enumerate().take(count) {
                vectors::set(s, y, from + v, s.mul(sum, factor));
            }
        }
    }
}
