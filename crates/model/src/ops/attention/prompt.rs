//! Attention of a prompt: that of a sequence in training, bit by bit, with its tiles of queries divided among threads.

use rayon::prelude::*;
use tinygpt_sampler::simd::SimdLevel;

use super::{
    operands::Matrix,
    training::{AttentionShape, QUERIES, TileScratch, attend},
};
use crate::cpu::{
    matmul::MIN_PARALLEL_MULTIPLY_ADDS,
    packed::{pack_rows_transposed, transposed_len},
    rows::{Aligned, Rows},
};

/// The keys of the heads of one layer, transposed and packed. No content survives an operation.
#[derive(Debug)]
pub(crate) struct PackedKeys {
    /// `(hs, T)` of each head of keys, whose memory is used once it is written.
    heads: Vec<Aligned>,
}

impl PackedKeys {
    /// Allocates buffers for prompts of up to `t` positions.
    pub(crate) fn new(t: usize, n_kv_head: usize, head_size: usize) -> Self {
        Self { heads: (0..n_kv_head).map(|_| Aligned::zeros(transposed_len(t, head_size))).collect() }
    }
}

/// Computes `y (T, nh hs)` from queries, keys and values `qkv (T, (nh + 2 nkv) hs)`. A thread computes a tile of queries of all
/// heads, with its sums in the order of training, so neither the division nor the number of threads shows in a bit.
pub(super) fn prompt_attention(
    level: SimdLevel,
    shape: AttentionShape,
    qkv: &Rows,
    y: &mut Rows,
    PackedKeys { heads: keys }: &mut PackedKeys,
) {
    let AttentionShape { t, heads } = shape;
    let (ld, multiply_adds) = (y.ld, t * (t + 1) * heads.n_head * heads.head_size);
    let pack = |(kv_head, keys): (usize, &mut Aligned)| {
        pack_rows_transposed(qkv, t, shape.keys_of(kv_head), heads.head_size, keys);
    };
    let attend_tile = |keys: &[Aligned], scratch: &mut TileScratch<f32>, q: usize, y: &mut [f32]| {
        for head in 0..heads.n_head {
            let (out, keys) = (&mut y[head * heads.head_size..], &keys[heads.kv_head(head)]);
            attend(level, shape, (Matrix::of(qkv), keys), (head, q), None, scratch, (out, ld));
        }
    };
    if multiply_adds < MIN_PARALLEL_MULTIPLY_ADDS {
        keys.iter_mut().enumerate().for_each(pack);
        let mut scratch = TileScratch::new();
        y.chunks_mut(t, QUERIES).for_each(|(q, y)| attend_tile(keys, &mut scratch, q, y));
        return;
    }
    keys.par_iter_mut().enumerate().for_each(pack);
    // Later queries attend to more keys, so their tiles come first and the short ones fill the threads at the end.
    let tiles: Vec<_> = y.chunks_mut(t, QUERIES).collect();
    let tiles = tiles.into_par_iter().rev().with_max_len(1);
    tiles.for_each_init(TileScratch::new, |scratch, (q, y)| attend_tile(keys, scratch, q, y));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Heads,
        cpu::{CpuPrecision, rows::tests::random},
        ops::attention::training,
    };

    #[test]
    fn a_prompt_has_the_bits_of_a_sequence_in_training_on_any_number_of_threads() {
        // Below the bound, and above it: with as many heads of keys, with fewer, with a last tile that is not whole.
        let mut both = [false; 2];
        for (t, n_head, n_kv_head, head_size) in [(40, 2, 2, 20), (300, 4, 4, 24), (261, 6, 2, 16), (520, 1, 1, 33)] {
            let heads = Heads { n_head, n_kv_head, head_size };
            let shape = AttentionShape { t, heads };
            let cols = n_head * head_size;
            both[usize::from(t * (t + 1) * cols >= MIN_PARALLEL_MULTIPLY_ADDS)] = true;
            let qkv = random(t, heads.qkv().iter().sum(), 7);
            for level in SimdLevel::available() {
                let mut expected = Rows::zeros(t, cols);
                let mut scratch = training::AttentionScratch::new(CpuPrecision::F32, t, heads);
                training::forward(level, shape, &qkv, None, &mut expected, &mut vec![0.0; n_head * t], &mut scratch);
                for threads in [1, 2, 3, 7] {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    let mut y = Rows::zeros(t, cols);
                    let mut keys = PackedKeys::new(t + 9, n_kv_head, head_size);
                    pool.install(|| prompt_attention(level, shape, &qkv, &mut y, &mut keys));
                    for i in 0..t {
                        let [found, expected] = [&y, &expected].map(|y| y.row(i).iter().map(|x| x.to_bits()));
                        assert!(found.eq(expected), "{shape:?}, {level:?}, {threads} threads, position {i}");
                    }
                }
            }
        }
        assert_eq!(both, [true; 2], "shapes on both sides of the bound");
    }
}
