//! The passes over logits and weights, written once for all levels of [`crate::simd`].
//!
//! Rows are walked in blocks of 256, the last one filled up with -infinity. A block is sixteen vectors added (or
//! compared) lane by lane, so its sum is the same on every level and wherever the block is computed; sums over blocks
//! are f64, in the order of the blocks.

use crate::simd::{Kernel, LANES, Lanes, Simd, sum_lanes};

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
        let mut max = [s.splat(f32::NEG_INFINITY); 4];
        for n in 0..blocks.count {
            for group in blocks.get(n).as_chunks::<4>().0 {
                for (max, lanes) in max.iter_mut().zip(group) {
                    *max = s.max(*max, s.load(lanes));
                }
            }
        }
        let mut lanes = [0.0; LANES];
        s.store(s.max(s.max(max[0], max[1]), s.max(max[2], max[3])), &mut lanes);
        lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}

/// The lane maxima of each block, the largest logit of all, and whether there is a NaN (then no maximum is right).
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
        self.maxima.clear();
        self.maxima.resize(blocks.count, [0.0; LANES]);
        let mut all = s.splat(f32::NEG_INFINITY);
        let mut nan = 0;
        for (n, to) in self.maxima.iter_mut().enumerate() {
            let mut max = s.splat(f32::NEG_INFINITY);
            for [a, b] in blocks.get(n).as_chunks::<2>().0 {
                let (a, b) = (s.load(a), s.load(b));
                nan |= s.unordered(a, b);
                max = s.max(s.max(a, b), max);
            }
            s.store(max, to);
            all = s.max(all, max);
        }
        let mut lanes = [0.0; LANES];
        s.store(all, &mut lanes);
        let max = lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
        (max, nan != 0)
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

/// Copies the logits of at least `least` and their tokens to the front of `values` and `tokens`, in order, and returns
/// how many there are. Both buffers need sixteen places more than that.
pub(crate) struct Collect<'a> {
    pub(crate) row: &'a [f32],
    pub(crate) maxima: &'a [Lanes],
    pub(crate) least: f32,
    pub(crate) values: &'a mut [f32],
    pub(crate) tokens: &'a mut [u32],
}

impl Kernel for Collect<'_> {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        let blocks = Blocks::new(self.row, f32::NEG_INFINITY);
        let least = s.splat(self.least);
        let mut count = 0;
        for (n, maxima) in self.maxima.iter().enumerate() {
            if s.ge(s.load(maxima), least) == 0 {
                continue;
            }
            for (m, lanes) in blocks.get(n).iter().enumerate() {
                let v = s.load(lanes);
                let mask = s.ge(v, least);
                if mask != 0 {
                    let first = (n * BLOCK + m * LANES) as u32;
                    s.compress(mask, v, window(self.values, count));
                    s.compress_range(mask, first, window(self.tokens, count));
                    count += mask.count_ones() as usize;
                }
            }
        }
        count
    }
}

/// The sixteen places from `at`.
#[inline(always)]
fn window<T>(buffer: &mut [T], at: usize) -> &mut [T; LANES] {
    // The callers' buffers have the places; a shorter one would be a defect, and is caught by this bounds check.
    let Some(window) = buffer[at..].first_chunk_mut() else { unreachable!("buffers have sixteen spare places") };
    window
}

/// Where a falling order (largest value first, lowest position first among equals) is cut: what stays is above
/// `value`, or equal to it at a position of at most `position`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Cut {
    pub(crate) value: f32,
    pub(crate) position: u32,
}

impl Cut {
    #[inline(always)]
    pub(crate) fn keeps(&self, value: f32, position: usize) -> bool {
        value > self.value || (value == self.value && position <= self.position as usize)
    }

    /// The lanes that stay of a vector whose first lane has this position.
    #[inline(always)]
    fn mask<S: Simd>(&self, s: S, v: S::V, first: usize) -> u16 {
        let value = s.splat(self.value);
        let (above, not_below) = (s.gt(v, value), s.ge(v, value));
        let ties = (self.position as usize).saturating_add(1).saturating_sub(first).min(LANES);
        above | (not_below & ((1u32 << ties) - 1) as u16)
    }
}

/// Moves the values and tokens that a cut keeps to the front; returns how many.
pub(crate) struct Retain<'a> {
    pub(crate) cut: Cut,
    pub(crate) values: &'a mut [f32],
    pub(crate) tokens: &'a mut [u32],
    pub(crate) count: usize,
}

impl Kernel for Retain<'_> {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        let mut kept = 0;
        for first in (0..self.count).step_by(LANES) {
            // Writing goes on behind reading: sixteen places from `kept <= first`.
            let v = s.load(window(self.values, first));
            let tokens = *window(self.tokens, first);
            let valid = ((1u32 << (self.count - first).min(LANES)) - 1) as u16;
            let mask = self.cut.mask(s, v, first) & valid;
            s.compress(mask, v, window(self.values, kept));
            s.compress_integers(mask, &tokens, window(self.tokens, kept));
            kept += mask.count_ones() as usize;
        }
        kept
    }
}

/// Sets the weights of what a cut drops to zero, and sums the others by block.
pub(crate) struct KeepOnly<'a> {
    pub(crate) cut: Cut,
    pub(crate) values: &'a [f32],
    pub(crate) weights: &'a mut [f32],
    pub(crate) sums: &'a mut Vec<f64>,
}

impl Kernel for KeepOnly<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let blocks = Blocks::new(self.values, f32::NEG_INFINITY);
        let weights = self.weights.as_chunks_mut::<LANES>().0;
        self.sums.clear();
        for (n, weights) in weights.chunks_exact_mut(VECTORS).take(blocks.count).enumerate() {
            let mut sum = s.splat(0.0);
            for (m, (lanes, weights)) in blocks.get(n).iter().zip(weights).enumerate() {
                let mask = self.cut.mask(s, s.load(lanes), n * BLOCK + m * LANES);
                let kept = s.keep(mask, s.load(weights));
                s.store(kept, weights);
                sum = s.add(sum, kept);
            }
            self.sums.push(f64::from(sum_lanes(s, sum)));
        }
    }
}

/// The weight of the values above the pivot, and of those equal to it or above.
pub(crate) struct Mass<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) weights: &'a [f32],
    pub(crate) pivot: f32,
}

impl Kernel for Mass<'_> {
    type Output = (f64, f64);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f64, f64) {
        let values = Blocks::new(self.values, f32::NEG_INFINITY);
        let weights = Blocks::new(self.weights, 0.0);
        let pivot = s.splat(self.pivot);
        let (mut above, mut not_below) = (0.0, 0.0);
        for n in 0..values.count {
            let (mut above_sum, mut not_below_sum) = (s.splat(0.0), s.splat(0.0));
            for (v, w) in values.get(n).iter().zip(weights.get(n)) {
                let (v, w) = (s.load(v), s.load(w));
                above_sum = s.add(above_sum, s.keep(s.gt(v, pivot), w));
                not_below_sum = s.add(not_below_sum, s.keep(s.ge(v, pivot), w));
            }
            above += f64::from(sum_lanes(s, above_sum));
            not_below += f64::from(sum_lanes(s, not_below_sum));
        }
        (above, not_below)
    }
}

/// Which part of a list to go on with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Side {
    Above,
    Below,
}

/// Copies the part of a list on one side of the pivot to the front of the `to` buffers, in order; returns how many.
/// Without `positions` the positions are 0, 1, 2 and so on. The buffers need sixteen spare places.
pub(crate) struct Narrow<'a> {
    pub(crate) side: Side,
    pub(crate) pivot: f32,
    pub(crate) values: &'a [f32],
    pub(crate) weights: &'a [f32],
    pub(crate) positions: Option<&'a [u32]>,
    pub(crate) to_values: &'a mut [f32],
    pub(crate) to_weights: &'a mut [f32],
    pub(crate) to_positions: &'a mut [u32],
}

impl Kernel for Narrow<'_> {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        let pivot = s.splat(self.pivot);
        let mut count = 0;
        for first in (0..self.values.len()).step_by(LANES) {
            let length = (self.values.len() - first).min(LANES);
            let valid = ((1u32 << length) - 1) as u16;
            let v = s.load(&padded(self.values, first));
            let mask = valid
                & match self.side {
                    Side::Above => s.gt(v, pivot),
                    Side::Below => s.gt(pivot, v),
                };
            if mask == 0 {
                continue;
            }
            let w = s.load(&padded(self.weights, first));
            s.compress(mask, v, window(self.to_values, count));
            s.compress(mask, w, window(self.to_weights, count));
            match self.positions {
                None => s.compress_range(mask, first as u32, window(self.to_positions, count)),
                Some(positions) => {
                    s.compress_integers(mask, &padded(positions, first), window(self.to_positions, count))
                }
            }
            count += mask.count_ones() as usize;
        }
        count
    }
}

/// Sixteen elements from `at`, with zeros behind the end.
#[inline(always)]
fn padded<T: Copy + Default>(from: &[T], at: usize) -> [T; LANES] {
    match from[at..].first_chunk() {
        Some(chunk) => *chunk,
        None => {
            let mut chunk = [T::default(); LANES];
            let rest = &from[at..];
            chunk[..rest.len()].copy_from_slice(rest);
            chunk
        }
    }
}
