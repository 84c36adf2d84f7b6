//! Attention of one new position to all before it.

use tinygpt_sampler::simd::{Kernel, LANES, Simd, exp};

use super::super::vectors;

/// The keys and values of one block for one sequence. Keys are kept transposed, `(C, block_size)`, so that a query's
/// scores are sums of rows; values as they come, `(block_size, C)`.
#[derive(Debug, Clone)]
pub(super) struct LayerCache {
    keys: Vec<f32>,
    values: Vec<f32>,
    block_size: usize,
}

impl LayerCache {
    pub(super) fn new(block_size: usize, channels: usize) -> Self {
        // Whole vectors of scores.
        let block_size = block_size.next_multiple_of(LANES);
        Self { keys: vec![0.0; block_size * channels], values: vec![0.0; block_size * channels], block_size }
    }

    /// Takes over the key and the value of a position.
    pub(super) fn write(&mut self, position: usize, key: &[f32], value: &[f32]) {
        for (c, &key) in key.iter().enumerate() {
            self.keys[c * self.block_size + position] = key;
        }
        self.values[position * value.len()..][..value.len()].copy_from_slice(value);
    }

    /// Copies the first `n` positions of another cache.
    pub(super) fn copy_from(&mut self, other: &Self, n: usize) {
        for (to, from) in self.keys.chunks_exact_mut(self.block_size).zip(other.keys.chunks_exact(self.block_size)) {
            to[..n].copy_from_slice(&from[..n]);
        }
        let channels = self.values.len() / self.block_size;
        self.values[..n * channels].copy_from_slice(&other.values[..n * channels]);
    }
}

/// Vectors that are summed side by side, so that one addition need not wait for the other.
const AT_A_TIME: usize = 4;

/// Attention of one head: `y (hs)`, what `query (hs)` gets from the first `n` positions.
pub(super) struct OneHead<'a> {
    pub(super) query: &'a [f32],
    pub(super) cache: &'a LayerCache,
    pub(super) n: usize,
    pub(super) head: usize,
    /// Room for `n`, in whole vectors.
    pub(super) scores: &'a mut [f32],
    pub(super) y: &'a mut [f32],
}

impl Kernel for OneHead<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { query, cache, n, head, scores, y } = self;
        let head_size = query.len();
        let channels = cache.values.len() / cache.block_size;
        let scale = s.splat(1.0 / (head_size as f32).sqrt());
        let count = n.div_ceil(LANES);
        let scores = &mut scores.as_chunks_mut::<LANES>().0[..count];
        let mut largest = s.splat(f32::MIN);
        let mut first = 0;
        for scores in scores.chunks_mut(AT_A_TIME) {
            // Behind the last position there is room, with keys of earlier sequences.
            let mut sums = [s.splat(0.0); AT_A_TIME];
            for (c, &query) in query.iter().enumerate() {
                let keys = &cache.keys[(head * head_size + c) * cache.block_size..][first * LANES..];
                for (sum, keys) in sums.iter_mut().zip(keys.as_chunks::<LANES>().0) {
                    *sum = s.mul_add(s.splat(query), s.load(keys), *sum);
                }
            }
            for (score, sum) in scores.iter_mut().zip(sums) {
                let sum = s.mul(sum, scale);
                s.store(sum, score);
                let inside = vectors::inside(n, first);
                largest = s.max(largest, s.add(s.keep(inside, sum), s.keep(!inside, s.splat(f32::MIN))));
                first += 1;
            }
        }
        let mut lanes = [0.0; LANES];
        s.store(largest, &mut lanes);
        let max = s.splat(lanes.into_iter().fold(f32::MIN, f32::max));
        let mut total = s.splat(0.0);
        for (v, score) in scores.iter_mut().enumerate() {
            let weight = s.keep(vectors::inside(n, v), exp(s, s.sub(s.load(score), max)));
            s.store(weight, score);
            total = s.add(total, weight);
        }
        let factor = s.splat(1.0 / s.sum(total));
        for from in (0..vectors::count(y)).step_by(AT_A_TIME) {
            let count = AT_A_TIME.min(vectors::count(y) - from);
            let mut sums = [s.splat(0.0); AT_A_TIME];
            for (i, &weight) in scores.as_flattened()[..n].iter().enumerate() {
                let value = &cache.values[i * channels + head * head_size..][..head_size];
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
