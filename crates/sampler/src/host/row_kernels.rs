//! The SIMD passes over a whole row, as [`Kernel`]s.
//!
//! A row is read in blocks of 256 logits (`blocks`). The sixteen vectors of a block are added (or compared) lane by lane,
//! so the sum of a block is the same at every SIMD level and wherever the block is computed; sums over blocks are f64, in
//! the order of the blocks.

use super::blocks::{BLOCK, Block, Blocks, VECTORS_PER_BLOCK};
use super::softmax_scale::SoftmaxScale;
use crate::simd::{Kernel, LANES, Lanes, Simd};

/// The largest logit of a row. Of a row with a NaN the result is any number.
pub(super) struct RowMax<'a> {
    pub(super) row: &'a [f32],
}

impl Kernel for RowMax<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let blocks = Blocks::new(self.row, f32::NEG_INFINITY);
        // Two chains of maxima, which the processor overlaps.
        let (mut max_0, mut max_1) = (s.splat(f32::NEG_INFINITY), s.splat(f32::NEG_INFINITY));
        for n in 0..blocks.count {
            for [a, b, c, d] in blocks.get(n).as_chunks::<4>().0 {
                max_0 = s.max(max_0, s.max(s.load(a), s.load(b)));
                max_1 = s.max(max_1, s.max(s.load(c), s.load(d)));
            }
        }
        let mut lanes = [0.0; LANES];
        s.store(s.max(max_0, max_1), &mut lanes);
        lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}

/// Writes the lane maxima of each block; returns the largest logit and whether the row may have a NaN, in which case no
/// maximum is right. The flag is whether the sum of all logits is NaN, which infinities of both signs cause too.
///
/// Lane maxima are the maxima of 16 disjoint subsets of a block. So the k-th largest of them is a lower bound of the
/// k-th largest logit, and a block none of whose lane maxima reaches a threshold need not be read again.
pub(super) struct LaneMaxima<'a> {
    pub(super) row: &'a [f32],
    pub(super) maxima: &'a mut Vec<Lanes>,
}

impl Kernel for LaneMaxima<'_> {
    type Output = (f32, bool);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f32, bool) {
        let blocks = Blocks::new(self.row, f32::NEG_INFINITY);
        // Not cleared from row to row: every element is written below.
        self.maxima.resize(blocks.count, [0.0; LANES]);
        let mut all = s.splat(f32::NEG_INFINITY);
        let mut any_nan = s.splat(0.0);
        for (n, to) in self.maxima.iter_mut().enumerate() {
            let mut max = s.splat(f32::NEG_INFINITY);
            for [a, b, c, d] in blocks.get(n).as_chunks::<4>().0 {
                let (a, b, c, d) = (s.load(a), s.load(b), s.load(c), s.load(d));
                max = s.max(max, s.max(s.max(a, b), s.max(c, d)));
                any_nan = s.add(any_nan, s.add(s.add(a, b), s.add(c, d)));
            }
            s.store(max, to);
            all = s.max(all, max);
        }
        let mut lanes = [0.0; LANES];
        s.store(all, &mut lanes);
        let max = lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
        (max, s.unordered(any_nan, any_nan) != 0)
    }
}

/// The lane maxima of [`LaneMaxima`] and, in the same read of the row, [`BlockSums`](super::softmax_scale::BlockSums). Returns the
/// largest logit, which of a row with a NaN is any number; then, and with +infinity, the sum of a block is NaN.
pub(super) struct MaximaAndSums<'a> {
    pub(super) row: &'a [f32],
    pub(super) scale: SoftmaxScale,
    pub(super) maxima: &'a mut Vec<Lanes>,
    pub(super) block_sums: &'a mut Vec<f64>,
}

impl Kernel for MaximaAndSums<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) -> f32 {
        let blocks = Blocks::new(self.row, f32::NEG_INFINITY);
        self.maxima.resize(blocks.count, [0.0; LANES]);
        self.block_sums.resize(blocks.count, 0.0);
        for first in (0..blocks.count).step_by(LANES) {
            let mut sums = [[0.0; LANES]; LANES];
            let end = (first + LANES).min(blocks.count);
            let mut n = first;
            // Where there are registers for it, blocks side by side: a weight is a chain of operations that wait for each other.
            while S::VECTORS >= 32 && n + 4 <= end {
                self.side_by_side::<S, 4>(s, &blocks, n, &mut sums[n - first..]);
                n += 4;
            }
            while n < end {
                self.side_by_side::<S, 1>(s, &blocks, n, &mut sums[n - first..]);
                n += 1;
            }
            for (to, sum) in self.block_sums[first..end].iter_mut().zip(sums_of(s, &sums)) {
                *to = f64::from(sum);
            }
        }
        let mut all = s.splat(f32::NEG_INFINITY);
        for maxima in &*self.maxima {
            all = s.max(all, s.load(maxima));
        }
        let mut lanes = [0.0; LANES];
        s.store(all, &mut lanes);
        lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}

impl MaximaAndSums<'_> {
    /// Writes the lane maxima of `N` blocks, from number `first` on, and the lanes of their sums.
    #[inline(always)]
    fn side_by_side<S: Simd, const N: usize>(&mut self, s: S, blocks: &Blocks<'_>, first: usize, sums: &mut [Lanes]) {
        let blocks: [&Block; N] = std::array::from_fn(|n| blocks.get(first + n));
        let mut max = [s.splat(f32::NEG_INFINITY); N];
        let mut sum = [s.splat(0.0); N];
        let vector = |block: usize, at: usize| s.load(&blocks[block][at]);
        for m in 0..VECTORS_PER_BLOCK {
            let x: [S::V; N] = std::array::from_fn(|n| vector(n, m));
            let weights = self.scale.weights_of(s, x);
            max = std::array::from_fn(|n| s.max(x[n], max[n]));
            sum = std::array::from_fn(|n| s.add(sum[n], weights[n]));
        }
        for (n, (max, sum)) in max.into_iter().zip(sum).enumerate() {
            s.store(max, &mut self.maxima[first + n]);
            s.store(sum, &mut sums[n]);
        }
    }
}

/// The sum of the lanes of each of sixteen vectors, in a third of the time that they take one after the other.
#[inline(always)]
pub(super) fn sums_of<S: Simd>(s: S, vectors: &[Lanes; LANES]) -> Lanes {
    s.sums(std::array::from_fn(|n| s.load(&vectors[n])))
}

/// Reduces the lane maxima of every `blocks_per_fold` blocks to their maxima; returns the smallest of the results.
pub(super) struct FoldMaxima<'a> {
    pub(super) maxima: &'a [Lanes],
    pub(super) blocks_per_fold: usize,
    pub(super) folded: &'a mut Vec<Lanes>,
}

impl Kernel for FoldMaxima<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        self.folded.clear();
        let zero = s.splat(0.0);
        // The minimum, as minus the maximum of the negated: there is no SIMD minimum.
        let mut negated = s.splat(f32::NEG_INFINITY);
        for blocks in self.maxima.chunks(self.blocks_per_fold) {
            let mut max = s.splat(f32::NEG_INFINITY);
            for block in blocks {
                max = s.max(max, s.load(block));
            }
            negated = s.max(negated, s.sub(zero, max));
            let mut lanes = [0.0; LANES];
            s.store(max, &mut lanes);
            self.folded.push(lanes);
        }
        let mut lanes = [0.0; LANES];
        s.store(negated, &mut lanes);
        -lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}

/// The number of values that are at least `threshold`.
pub(super) struct CountAtLeast<'a> {
    pub(super) values: &'a [Lanes],
    pub(super) threshold: f32,
}

impl Kernel for CountAtLeast<'_> {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        let threshold = s.splat(self.threshold);
        self.values.iter().map(|lanes| s.ge(s.load(lanes), threshold).count_ones() as usize).sum()
    }
}

/// The first block with a logit of at least `threshold`, found by the lane maxima; 0 if there is none.
pub(super) struct FirstBlockReaching<'a> {
    pub(super) maxima: &'a [Lanes],
    pub(super) threshold: f32,
}

impl Kernel for FirstBlockReaching<'_> {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        let threshold = s.splat(self.threshold);
        for (n, maxima) in self.maxima.iter().enumerate() {
            if s.ge(s.load(maxima), threshold) != 0 {
                return n;
            }
        }
        0
    }
}

/// Copies the logits of at least `threshold` to the front of `values`, in order, and returns how many there are; writes
/// to `block_starts` how many of them precede each block. `values` must have room for sixteen more.
///
/// The tokens are not written, which would be a second stream of stores across cache lines: a draw needs the token of
/// one place, and finds it by `block_starts`.
pub(super) struct CollectSparse<'a> {
    pub(super) row: &'a [f32],
    pub(super) maxima: &'a [Lanes],
    pub(super) threshold: f32,
    pub(super) values: &'a mut [f32],
    pub(super) block_starts: &'a mut [u32],
}

impl Kernel for CollectSparse<'_> {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        let blocks = Blocks::new(self.row, f32::NEG_INFINITY);
        let threshold = s.splat(self.threshold);
        let mut count = 0;
        for (n, (maxima, start)) in self.maxima.iter().zip(self.block_starts).enumerate() {
            *start = count as u32;
            if s.ge(s.load(maxima), threshold) == 0 {
                continue;
            }
            for lanes in blocks.get(n) {
                let v = s.load(lanes);
                let mask = s.ge(v, threshold);
                if mask != 0 {
                    s.compress(mask, v, lanes_at(self.values, count));
                    count += mask.count_ones() as usize;
                }
            }
        }
        count
    }
}

/// [`CollectSparse`] for thresholds that most vectors reach, which tests neither blocks nor vectors before copying.
/// `values` must have room for a block and sixteen more.
pub(super) struct CollectDense<'a> {
    pub(super) row: &'a [f32],
    pub(super) threshold: f32,
    pub(super) values: &'a mut [f32],
    pub(super) block_starts: &'a mut [u32],
}

impl Kernel for CollectDense<'_> {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        let blocks = Blocks::new(self.row, f32::NEG_INFINITY);
        let threshold = s.splat(self.threshold);
        let mut count = 0;
        let (starts, tail_start) = self.block_starts.split_at_mut(blocks.full().len());
        for (block, start) in blocks.full().iter().zip(starts) {
            *start = count as u32;
            count += collect_block(s, block, threshold, room_for_block(self.values, count));
        }
        for start in tail_start {
            *start = count as u32;
            count += collect_block(s, blocks.tail(), threshold, room_for_block(self.values, count));
        }
        count
    }
}

/// The room for a block's elements from index `at` on: one bounds check a block instead of sixteen.
#[inline(always)]
fn room_for_block(values: &mut [f32], at: usize) -> &mut [f32; BLOCK + LANES] {
    let Some(room) = values[at..].first_chunk_mut() else { unreachable!("`values` is too short") };
    room
}

/// Copies the logits of a block that are at least `threshold` to the front of `to`, in order; returns how many there are.
#[inline(always)]
fn collect_block<S: Simd>(s: S, block: &Block, threshold: S::V, to: &mut [f32; BLOCK + LANES]) -> usize {
    let mut kept = 0;
    for lanes in block {
        let v = s.load(lanes);
        let mask = s.ge(v, threshold);
        // `kept` is at most 240 here; the remainder tells the compiler, which drops the bounds check.
        s.compress_few(mask, v, lanes_at(to, kept % BLOCK));
        kept += u32::from(mask).count_ones() as usize;
    }
    kept
}

/// The sixteen elements from index `at` on, which the buffers of all kernels have room for.
#[inline(always)]
pub(super) fn lanes_at<T>(buffer: &mut [T], at: usize) -> &mut [T; LANES] {
    let Some(lanes) = buffer[at..].first_chunk_mut() else { unreachable!("the buffer is too short") };
    lanes
}

/// Copies to `sample` one vector of every `blocks_per_vector` whole blocks, each time another of the sixteen.
pub(super) fn sample_vectors(row: &[f32], blocks_per_vector: usize, sample: &mut Vec<Lanes>) {
    sample.clear();
    let blocks = row.as_chunks::<LANES>().0.as_chunks::<VECTORS_PER_BLOCK>().0;
    // Seven is coprime to sixteen, so every vector of a block takes its turn.
    sample.extend(
        blocks.iter().step_by(blocks_per_vector).enumerate().map(|(n, block)| block[n * 7 % VECTORS_PER_BLOCK]),
    );
}

/// For each of sixteen thresholds, the sum of the weights of the values below it. The slices have the
/// same length, a multiple of 4.
pub(super) struct MassBelow<'a> {
    pub(super) values: &'a [f32],
    pub(super) weights: &'a [f32],
    pub(super) thresholds: &'a Lanes,
}

impl Kernel for MassBelow<'_> {
    type Output = Lanes;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Lanes {
        let thresholds = s.load(self.thresholds);
        // Four chains of additions, which the processor overlaps.
        let mut sums = [s.splat(0.0); 4];
        let (values, weights) = (self.values.as_chunks::<4>().0, self.weights.as_chunks::<4>().0);
        for (values, weights) in values.iter().zip(weights) {
            for ((sum, &x), &w) in sums.iter_mut().zip(values).zip(weights) {
                *sum = s.add(*sum, s.keep(s.gt(thresholds, s.splat(x)), s.splat(w)));
            }
        }
        let [a, b, c, d] = sums;
        let mut lanes = [0.0; LANES];
        s.store(s.add(s.add(a, b), s.add(c, d)), &mut lanes);
        lanes
    }
}
