//! The cached keys and values of decoding on the CPU, in f32 or bf16.

use rayon::prelude::*;
use tinygpt_sampler::simd::{LANES, to_bf16};

use crate::{
    config::Heads,
    cpu::{decode::WeightElement, rows::Rows},
};

/// The type in which keys and values are stored: f32, or bf16 as u16.
pub(crate) trait CacheElement: WeightElement + std::fmt::Debug {
    /// Rounds a key or a value.
    fn of(x: f32) -> Self;
}

impl CacheElement for f32 {
    #[inline(always)]
    fn of(x: f32) -> Self {
        x
    }
}

impl CacheElement for u16 {
    #[inline(always)]
    fn of(x: f32) -> Self {
        to_bf16(x)
    }
}

/// From this many channels of keys on, those of a prompt are stored by all threads: fewer take some 50 microseconds.
const MIN_PARALLEL_CHANNELS: usize = 1 << 16;

/// The cached keys and values of one layer and one sequence. What a head reads lies together, since it is read from memory where
/// many sequences take turns. Keys are stored in tiles of sixteen positions, so that the scores of sixteen positions are computed
/// from contiguous vectors.
#[derive(Debug, Clone)]
pub(crate) struct SequenceKvCache<E> {
    /// `(nkv, block_size / 16, hs, 16)`.
    keys: Vec<E>,
    /// `(nkv, block_size, hs)`.
    values: Vec<E>,
    /// `block_size / 16`, rounded up.
    tiles: usize,
    block_size: usize,
    /// The channels of a head.
    head_size: usize,
}

impl<E: CacheElement> SequenceKvCache<E> {
    /// Allocates an empty cache.
    pub(crate) fn new(block_size: usize, Heads { n_kv_head, head_size, .. }: Heads) -> Self {
        let tiles = block_size.div_ceil(LANES);
        let keys = vec![E::default(); n_kv_head * tiles * head_size * LANES];
        Self { keys, values: vec![E::default(); n_kv_head * block_size * head_size], tiles, block_size, head_size }
    }

    /// Stores the keys `(nkv * hs)` and the values `(nkv * hs)` of a position.
    pub(crate) fn write(&mut self, position: usize, key: &[f32], value: &[f32]) {
        let Self { keys, values, tiles, block_size, head_size } = self;
        let by_head = key.chunks_exact(*head_size).zip(value.chunks_exact(*head_size)).enumerate();
        for (head, (key, value)) in by_head {
            let tile = &mut keys.as_chunks_mut::<LANES>().0[(head * *tiles + position / LANES) * *head_size..];
            for (lanes, &key) in tile.iter_mut().zip(key) {
                lanes[position % LANES] = E::of(key);
            }
            let to = &mut values[(head * *block_size + position) * *head_size..][..*head_size];
            to.iter_mut().zip(value).for_each(|(to, &value)| *to = E::of(value));
        }
    }

    /// Stores the keys and values of the first `n` positions, `qkv (n, (nh + 2 nkv) hs)`, by head: all channels of a tile of
    /// positions lie in the cache meanwhile.
    pub(crate) fn write_prompt(&mut self, n: usize, qkv: &Rows, kinds: Heads) {
        let Self { keys, values, tiles, block_size, head_size } = self;
        let (hs, [q, kv, _]) = (*head_size, kinds.qkv());
        let of_head = |(head, (keys, values)): (usize, (&mut [E], &mut [E]))| {
            let (k_at, v_at) = (q + head * hs, q + kv + head * hs);
            let (tiles, _) = keys.as_chunks_mut::<LANES>();
            for (tile, keys) in tiles.chunks_exact_mut(hs).enumerate().take(n.div_ceil(LANES)) {
                for lane in 0..LANES.min(n - tile * LANES) {
                    let from = &qkv.at(tile * LANES + lane, k_at)[..hs];
                    keys.iter_mut().zip(from).for_each(|(lanes, &key)| lanes[lane] = E::of(key));
                }
            }
            for (i, value) in values.chunks_exact_mut(hs).enumerate().take(n) {
                value.iter_mut().zip(qkv.at(i, v_at)).for_each(|(to, &value)| *to = E::of(value));
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
    pub(super) fn keys(&self, tile: usize, head: usize) -> &[[E; LANES]] {
        &self.keys.as_chunks::<LANES>().0[(head * self.tiles + tile) * self.head_size..]
    }

    /// The values of a head, `(block_size, hs)`.
    pub(super) fn values(&self, head: usize) -> &[E] {
        let len = self.block_size * self.head_size;
        &self.values[head * len..][..len]
    }
}

#[cfg(test)]
mod tests {
    use tinygpt_sampler::simd::SimdLevel;

    use super::*;
    use crate::{
        cpu::{decode::Place, rows::tests::random, spin_pool::Workers},
        ops::attention::decode::decode_attention,
    };

    /// The nearest number of bf16.
    fn rounded(x: f32) -> f32 {
        f32::from_bits(u32::from(to_bf16(x)) << 16)
    }

    /// The attention of a position behind those of `qkv (n, (nh + 2 nkv) hs)`, all but the last of which are a prompt's: once from
    /// the sequence's own cache, once from a copy of it.
    fn attention<E: CacheElement>(level: SimdLevel, heads: Heads, n: usize, qkv: &Rows) -> [Vec<u32>; 2] {
        let mut caches = [(); 2].map(|()| SequenceKvCache::<E>::new(n + 5, heads));
        caches[0].write_prompt(n - 1, qkv, heads);
        let ([q, kv, _], last) = (heads.qkv(), qkv.row(n - 1));
        caches[0].write(n - 1, &last[q..q + kv], &last[q + kv..]);
        let [from, to] = &mut caches;
        to.copy_from(from, n);
        let mut query = Rows::zeros(1, qkv.cols);
        query.row_mut(0).copy_from_slice(last);
        [0, 1].map(|slot| {
            let mut y = Rows::zeros(1, q);
            let mut scores = vec![0.0; heads.n_head * n.next_multiple_of(LANES)];
            let places = [Place { slot, at: n - 1 }];
            decode_attention((level, &mut Workers::none()), (&places, heads), &caches, &query, &mut y, &mut scores);
            y.row(0).iter().map(|y| y.to_bits()).collect()
        })
    }

    #[test]
    fn a_cache_in_bf16_is_one_in_f32_of_rounded_keys_and_values() {
        for (n, n_head, n_kv_head, head_size) in [(1, 1, 1, 1), (40, 2, 2, 20), (33, 4, 2, 64), (17, 3, 1, 33)] {
            let heads = Heads { n_head, n_kv_head, head_size };
            let [q, kv, _] = heads.qkv();
            let exact = random(n, q + 2 * kv, n as u64);
            let mut qkv = Rows::zeros(n, q + 2 * kv);
            for i in 0..n {
                qkv.row_mut(i).copy_from_slice(exact.row(i));
                qkv.row_mut(i)[q..].iter_mut().for_each(|x| *x = rounded(*x));
            }
            for level in SimdLevel::available() {
                let [in_bf16, copied] = attention::<u16>(level, heads, n, &exact);
                assert_eq!(in_bf16, attention::<f32>(level, heads, n, &qkv)[0], "{level:?}, {heads:?}, {n} positions");
                assert_ne!(in_bf16, attention::<f32>(level, heads, n, &exact)[0], "rounding shows");
                assert_eq!(copied, in_bf16, "{level:?}, {heads:?}, {n} positions");
            }
        }
    }
}
