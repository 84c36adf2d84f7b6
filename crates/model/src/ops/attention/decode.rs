//! Attention of one new position of each sequence, with cached keys and values.

#![allow(unsafe_code)]

use tinygpt_sampler::simd::{Kernel, LANES, Simd, SimdLevel, exp};

use super::kv_cache::{CacheElement, SequenceKvCache};
use crate::{
    config::Heads,
    cpu::{
        decode::{Place, load_rest, shared_output::SharedOutput},
        rows::Rows,
        spin_pool::{MAX_TASKS, Workers},
        vectors,
    },
};

/// From this many `positions * channels` of all rows together on, attention is divided among threads: 64 KiB of keys and
/// values.
const MIN_PARALLEL_SCORES: usize = 1 << 13;

/// Computes `y (rows, nh hs)`, the attention of one new position of some sequences, `qkv (rows, (nh + 2 nkv) hs)`, each to the
/// positions of its cache up to its place, which has been written. `scores` is a buffer `(rows, n_head, positions of the longest
/// rounded up to LANES)` at least.
pub(crate) fn decode_attention<E: CacheElement>(
    (level, workers): (SimdLevel, &mut Workers<'_>),
    (places, kinds): (&[Place], Heads),
    caches: &[SequenceKvCache<E>],
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
struct DecodeHead<'a, E> {
    query: &'a [f32],
    cache: &'a SequenceKvCache<E>,
    n: usize,
    /// The head of keys and values.
    kv_head: usize,
    /// A buffer of `n` rounded up to LANES.
    scores: &'a mut [f32],
    y: &'a mut [f32],
}

impl<E: CacheElement> Kernel for DecodeHead<'_, E> {
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
                    *sum = s.mul_add(s.splat(query), E::load(s, &keys[tile * head_size + c]), *sum);
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
                    *sum = s.mul_add(s.splat(weight), value_vector(s, value, from + v), *sum);
                }
            }
            for (v, sum) in sums.into_iter().enumerate().take(count) {
                vectors::set(s, y, from + v, s.mul(sum, factor));
            }
        }
    }
}

/// Loads vector `i` of the values of a position, padded with zeros.
#[inline(always)]
fn value_vector<S: Simd, E: CacheElement>(s: S, value: &[E], i: usize) -> S::V {
    let rest = &value[i * LANES..];
    rest.first_chunk::<LANES>().map_or_else(|| load_rest(s, rest), |lanes| E::load(s, lanes))
}
