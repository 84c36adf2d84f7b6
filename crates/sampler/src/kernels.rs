//! The passes over logits and weights, written once for all levels of [`crate::simd`].
//!
//! Rows are walked in blocks of 256, the last one filled up with -infinity. A block is sixteen vectors added (or
//! compared) lane by lane, so its sum is the same on every level and wherever the block is computed; sums over blocks
//! are f64, in the order of the blocks.

use crate::exponent::Exponent;
use crate::simd::{Kernel, LANES, Lanes, Simd};

/// Vectors of a block.
pub(crate) const VECTORS: usize = 16;
/// Logits of a block.
pub(crate) const BLOCK: usize = VECTORS * LANES;

/// Sixteen vectors.
pub(crate) type Block = [Lanes; VECTORS];

/// A slice in blocks.
pub(crate) struct Blocks<'a> {
    full: &'a [Block],
    tail: Block,
    pub(crate) count: usize,
}

impl<'a> Blocks<'a> {
    #[inline(always)]
    pub(crate) fn new(row: &'a [f32], filler: f32) -> Self {
        let full = row.as_chunks::<LANES>().0.as_chunks::<VECTORS>().0;
        let rest = &row[full.len() * BLOCK..];
        let mut tail = [[filler; LANES]; VECTORS];
        tail.as_flattened_mut()[..rest.len()].copy_from_slice(rest);
        Self { full, tail, count: row.len().div_ceil(BLOCK) }
    }

    #[inline(always)]
    pub(crate) fn get(&self, block: usize) -> &Block {
        self.full.get(block).unwrap_or(&self.tail)
    }
}

/// The largest logit, without a look for NaN.
pub(crate) struct Max<'a> {
    pub(crate) row: &'a [f32],
}

impl Kernel for Max<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let blocks = Blocks::new(self.row, f32::NEG_INFINITY);
        let least = s.splat(f32::NEG_INFINITY);
        let (mut max_0, mut max_1) = (least, least);
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

/// The lane maxima of each block, the largest logit of all, and whether there may be a NaN (then no maximum is right): there
/// is none unless the sum of all is one, which infinities can make it too.
///
/// Lane maxima are the maxima of 16 disjoint subsets of a block: the k-th largest of them is a lower bound of the k-th
/// largest logit, and a block none of whose maxima reaches a threshold need not be read again.
pub(crate) struct Maxima<'a> {
    pub(crate) row: &'a [f32],
    pub(crate) maxima: &'a mut Vec<Lanes>,
}

impl Kernel for Maxima<'_> {
    type Output = (f32, bool);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f32, bool) {
        let blocks = Blocks::new(self.row, f32::NEG_INFINITY);
        // Every one is written below: from row to row nothing need be cleared.
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

/// [`Maxima`] and, in the same read, the sum of the weights of each block.
pub(crate) struct Survey<'a> {
    pub(crate) row: &'a [f32],
    pub(crate) exponent: Exponent,
    pub(crate) maxima: &'a mut Vec<Lanes>,
    pub(crate) sums: &'a mut Vec<f64>,
}

impl Kernel for Survey<'_> {
    type Output = (f32, bool);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f32, bool) {
        let Self { row, exponent, maxima, sums } = self;
        let blocks = Blocks::new(row, f32::NEG_INFINITY);
        maxima.resize(blocks.count, [0.0; LANES]);
        sums.resize(blocks.count, 0.0);
        let mut all = s.splat(f32::NEG_INFINITY);
        let mut any_nan = s.splat(0.0);
        for (n, (to, block_sum)) in maxima.iter_mut().zip(sums).enumerate() {
            let mut max = s.splat(f32::NEG_INFINITY);
            let mut sum = s.splat(0.0);
            for [a, b] in blocks.get(n).as_chunks::<2>().0 {
                let (a, b) = (s.load(a), s.load(b));
                any_nan = s.add(any_nan, s.add(a, b));
                max = s.max(s.max(a, b), max);
                sum = s.add(sum, exponent.weights(s, a));
                sum = s.add(sum, exponent.weights(s, b));
            }
            s.store(max, to);
            all = s.max(all, max);
            *block_sum = f64::from(s.sum(sum));
        }
        let mut lanes = [0.0; LANES];
        s.store(all, &mut lanes);
        (lanes.into_iter().fold(f32::NEG_INFINITY, f32::max), s.unordered(any_nan, any_nan) != 0)
    }
}

/// Folds the lane maxima of each `every` blocks into one; returns the least of the results, to be used if finite.
pub(crate) struct Fold<'a> {
    pub(crate) maxima: &'a [Lanes],
    pub(crate) every: usize,
    pub(crate) folded: &'a mut Vec<Lanes>,
}

impl Kernel for Fold<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        self.folded.clear();
        let zero = s.splat(0.0);
        // The least is minus the largest of the negated.
        let mut negated = s.splat(f32::NEG_INFINITY);
        for blocks in self.maxima.chunks(self.every) {
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

/// How many of these are at least `least`.
pub(crate) struct Count<'a> {
    pub(crate) values: &'a [Lanes],
    pub(crate) least: f32,
}

impl Kernel for Count<'_> {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        let least = s.splat(self.least);
        self.values.iter().map(|lanes| s.ge(s.load(lanes), least).count_ones() as usize).sum()
    }
}

/// The first block with a logit of at least `least`, by its lane maxima.
pub(crate) struct FirstBlock<'a> {
    pub(crate) maxima: &'a [Lanes],
    pub(crate) least: f32,
}

impl Kernel for FirstBlock<'_> {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        let least = s.splat(self.least);
        for (n, maxima) in self.maxima.iter().enumerate() {
            if s.ge(s.load(maxima), least) != 0 {
                return n;
            }
        }
        0
    }
}

/// Copies the logits of at least `least` to the front of `values`, in order, and returns how many there are; `starts`
/// gets how many come before each block. `values` needs sixteen places more than that.
///
/// Tokens are not written: that would be a second stream of stores that cross cache lines, and a draw needs only one.
pub(crate) struct Collect<'a> {
    pub(crate) row: &'a [f32],
    pub(crate) maxima: &'a [Lanes],
    pub(crate) least: f32,
    pub(crate) values: &'a mut [f32],
    pub(crate) starts: &'a mut [u32],
}

impl Kernel for Collect<'_> {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        let blocks = Blocks::new(self.row, f32::NEG_INFINITY);
        let least = s.splat(self.least);
        let mut count = 0;
        for (n, (maxima, start)) in self.maxima.iter().zip(self.starts).enumerate() {
            *start = count as u32;
            if s.ge(s.load(maxima), least) == 0 {
                continue;
            }
            for lanes in blocks.get(n) {
                let v = s.load(lanes);
                let mask = s.ge(v, least);
                if mask != 0 {
                    s.compress(mask, v, window(self.values, count));
                    count += mask.count_ones() as usize;
                }
            }
        }
        count
    }
}

/// [`Collect`] for many, where looking whether a vector has one costs more than it saves.
pub(crate) struct CollectMany<'a> {
    pub(crate) row: &'a [f32],
    pub(crate) least: f32,
    pub(crate) values: &'a mut [f32],
    pub(crate) starts: &'a mut [u32],
}

impl Kernel for CollectMany<'_> {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        let blocks = Blocks::new(self.row, f32::NEG_INFINITY);
        let least = s.splat(self.least);
        let mut count = 0;
        for (n, start) in self.starts.iter_mut().enumerate() {
            *start = count as u32;
            // Room for a block: one check of the bounds instead of sixteen.
            let Some(to) = self.values[count..].first_chunk_mut::<{ BLOCK + LANES }>() else {
                unreachable!("buffers have a spare block")
            };
            let mut kept = 0;
            for lanes in blocks.get(n) {
                let v = s.load(lanes);
                let mask = s.ge(v, least);
                // At most 240 so far: the remainder says so to the compiler.
                s.compress_few(mask, v, window(to, kept % BLOCK));
                kept += mask.count_ones() as usize;
            }
            count += kept;
        }
        count
    }
}

/// The sixteen places from `at`.
#[inline(always)]
pub(crate) fn window<T>(buffer: &mut [T], at: usize) -> &mut [T; LANES] {
    // The callers' buffers have the places; a shorter one would be a defect, and is caught by this bounds check.
    let Some(window) = buffer[at..].first_chunk_mut() else { unreachable!("buffers have sixteen spare places") };
    window
}

/// Copies one vector of each `every` blocks, a different one each time, to `sample`.
pub(crate) fn sample_vectors(row: &[f32], every: usize, sample: &mut Vec<Lanes>) {
    sample.clear();
    let blocks = row.as_chunks::<LANES>().0.as_chunks::<VECTORS>().0;
    // Seven is coprime to sixteen: all places of a block take their turn.
    sample.extend(blocks.iter().step_by(every).enumerate().map(|(n, block)| block[n * 7 % VECTORS]));
}

/// The weight of the values below each of sixteen thresholds.
pub(crate) struct Below<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) weights: &'a [f32],
    pub(crate) thresholds: &'a Lanes,
}

impl Kernel for Below<'_> {
    type Output = Lanes;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Lanes {
        let thresholds = s.load(self.thresholds);
        // Four chains of additions, so that one need not wait for the other.
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
