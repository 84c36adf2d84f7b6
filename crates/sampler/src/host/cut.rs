//! Kernels for a cut of the falling order of values that were never sorted: applying the cut, the mass on either side
//! of two pivots, and narrowing to the values between them.

use super::blocks::{BLOCK, Blocks, VECTORS_PER_BLOCK};
use super::row_kernels::{lanes_at, sums_of};
use super::softmax_scale::SoftmaxScale;
use crate::simd::{Kernel, LANES, Lanes, Simd};
use std::ops::RangeInclusive;

/// A cut of the falling order of a list (largest value first, of equal ones the lowest position first). It keeps the
/// values above `value`, and those equal to it up to `position`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Cut {
    pub(super) value: f32,
    pub(super) position: u32,
}

impl Cut {
    /// Whether the element with this value and position is kept.
    #[inline(always)]
    pub(super) fn keeps(&self, value: f32, position: usize) -> bool {
        value > self.value || (value == self.value && position <= self.position as usize)
    }

    /// The cut of the two that keeps fewer elements.
    pub(super) fn tighter(self, other: Self) -> Self {
        let other_keeps_fewer =
            other.value > self.value || (other.value == self.value && other.position < self.position);
        if other_keeps_fewer { other } else { self }
    }

    /// The mask of the lanes that are kept; lane 0 of the vector is at position `first`.
    #[inline(always)]
    fn mask<S: Simd>(&self, s: S, v: S::V, first: usize) -> u16 {
        let value = s.splat(self.value);
        let (above, not_below) = (s.gt(v, value), s.ge(v, value));
        let ties = (self.position as usize).saturating_add(1).saturating_sub(first).min(LANES);
        above | (not_below & ((1u32 << ties) - 1) as u16)
    }
}

/// Sets the weights of the elements that a cut drops to 0, and writes the sums of the weights by block. `weights` has
/// room for whole blocks.
pub(super) struct ApplyCut<'a> {
    pub(super) cut: Cut,
    pub(super) values: &'a [f32],
    pub(super) weights: &'a mut [f32],
    pub(super) block_sums: &'a mut Vec<f64>,
}

impl Kernel for ApplyCut<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let blocks = Blocks::new(self.values, f32::NEG_INFINITY);
        let weights = self.weights.as_chunks_mut::<LANES>().0;
        self.block_sums.clear();
        for (n, weights) in weights.chunks_exact_mut(VECTORS_PER_BLOCK).take(blocks.count).enumerate() {
            let mut sum = s.splat(0.0);
            for (m, (lanes, weights)) in blocks.get(n).iter().zip(weights).enumerate() {
                let mask = self.cut.mask(s, s.load(lanes), n * BLOCK + m * LANES);
                let kept = s.keep(mask, s.load(weights));
                s.store(kept, weights);
                sum = s.add(sum, kept);
            }
            self.block_sums.push(f64::from(s.sum(sum)));
        }
    }
}

/// Sums the weights of the values above `high`, and those of the values of at least `low`.
pub(super) struct MassAtPivots<'a> {
    pub(super) values: &'a [f32],
    pub(super) weights: &'a [f32],
    pub(super) low: f32,
    pub(super) high: f32,
}

impl Kernel for MassAtPivots<'_> {
    type Output = (f64, f64);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f64, f64) {
        let values = Blocks::new(self.values, f32::NEG_INFINITY);
        let weights = Blocks::new(self.weights, 0.0);
        let (low, high) = (s.splat(self.low), s.splat(self.high));
        let (mut above, mut not_below) = (0.0, 0.0);
        for n in 0..values.count {
            let (mut above_sum, mut not_below_sum) = (s.splat(0.0), s.splat(0.0));
            for (v, w) in values.get(n).iter().zip(weights.get(n)) {
                let (v, w) = (s.load(v), s.load(w));
                above_sum = s.add(above_sum, s.keep(s.gt(v, high), w));
                not_below_sum = s.add(not_below_sum, s.keep(s.ge(v, low), w));
            }
            above += f64::from(s.sum(above_sum));
            not_below += f64::from(s.sum(not_below_sum));
        }
        (above, not_below)
    }
}

/// Computes the weights of a list, sums them, and copies the elements with values from `low` to `high` to the front of the `to`
/// buffers, as [`CompressRange`] does. `weights` must have room for whole blocks; the rest of the last one gets weights of 0.
pub(super) struct WeighAndCompress<'a> {
    pub(super) values: &'a [f32],
    pub(super) scale: SoftmaxScale,
    pub(super) low: f32,
    pub(super) high: f32,
    pub(super) weights: &'a mut [f32],
    pub(super) to_values: &'a mut [f32],
    pub(super) to_weights: &'a mut [f32],
    pub(super) to_positions: &'a mut [u32],
}

/// What [`WeighAndCompress`] finds of a list.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weighed {
    /// The sum of all weights.
    pub(super) total: f64,
    /// The sum of the weights of the values above `high`.
    pub(super) above: f64,
    /// The sum of the weights of the values that are not below `low`.
    pub(super) not_below: f64,
    /// How many values are from `low` to `high`.
    pub(super) between: usize,
}

impl Kernel for WeighAndCompress<'_> {
    type Output = Weighed;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Weighed {
        let Self { values, scale, low, high, weights, to_values, to_weights, to_positions } = self;
        let blocks = Blocks::new(values, f32::NEG_INFINITY);
        let (low, high) = (s.splat(low), s.splat(high));
        let mut sums = [0.0; 3];
        let mut between = 0;
        let weights = &mut weights.as_chunks_mut::<LANES>().0[..blocks.count * VECTORS_PER_BLOCK];
        for (group, weights) in weights.chunks_mut(LANES * VECTORS_PER_BLOCK).enumerate() {
            // The lanes of the sums of each block, and zeros: of all weights, of those above `high`, and of those not below `low`.
            let mut lanes = [[[0.0; LANES]; LANES]; 3];
            for (n, weights) in weights.chunks_exact_mut(VECTORS_PER_BLOCK).enumerate() {
                let block = group * LANES + n;
                let (mut all, mut above, mut not_below) = (s.splat(0.0), s.splat(0.0), s.splat(0.0));
                for (m, (x, weights)) in blocks.get(block).iter().zip(weights).enumerate() {
                    let x = s.load(x);
                    let w = scale.weights(s, x);
                    s.store(w, weights);
                    let (is_above, is_not_below) = (s.gt(x, high), s.ge(x, low));
                    all = s.add(all, w);
                    above = s.add(above, s.keep(is_above, w));
                    not_below = s.add(not_below, s.keep(is_not_below, w));
                    let mask = is_not_below & !is_above;
                    s.compress(mask, x, lanes_at(to_values, between));
                    s.compress(mask, w, lanes_at(to_weights, between));
                    s.compress_range(mask, (block * BLOCK + m * LANES) as u32, lanes_at(to_positions, between));
                    between += mask.count_ones() as usize;
                }
                for (sum, lanes) in [all, above, not_below].into_iter().zip(&mut lanes) {
                    s.store(sum, &mut lanes[n]);
                }
            }
            for (sum, lanes) in sums.iter_mut().zip(&lanes) {
                *sum += sums_of(s, lanes).into_iter().map(f64::from).sum::<f64>();
            }
        }
        let [total, above, not_below] = sums;
        Weighed { total, above, not_below, between }
    }
}

/// Copies the elements of a list with values in `range` to the front of the `to` buffers, in order; returns how many
/// there are. Without `positions` element n is at position n. The buffers must have room for sixteen elements more.
pub(super) struct CompressRange<'a> {
    pub(super) range: RangeInclusive<f32>,
    pub(super) values: &'a [f32],
    pub(super) weights: &'a [f32],
    pub(super) positions: Option<&'a [u32]>,
    pub(super) to_values: &'a mut [f32],
    pub(super) to_weights: &'a mut [f32],
    pub(super) to_positions: &'a mut [u32],
}

impl Kernel for CompressRange<'_> {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) -> usize {
        let (values, weights) = (self.values, self.weights);
        let positions = self.positions.unwrap_or(&[]);
        let whole = values.as_chunks::<LANES>().0.iter().zip(weights.as_chunks::<LANES>().0);
        let mut position_chunks = positions.as_chunks::<LANES>().0.iter();
        let mut count = 0;
        for (n, (v, w)) in whole.enumerate() {
            self.append(s, n * LANES, u16::MAX, v, w, position_chunks.next(), &mut count);
        }
        let done = values.len() / LANES * LANES;
        if done < values.len() {
            let valid = (1 << (values.len() - done)) - 1;
            let rest = positions.get(done..).map(padded);
            let (v, w) = (padded(&values[done..]), padded(&weights[done..]));
            self.append(s, done, valid, &v, &w, rest.as_ref(), &mut count);
        }
        count
    }
}

impl CompressRange<'_> {
    /// Appends the `valid` lanes of one vector whose values are in the range.
    #[allow(clippy::too_many_arguments)]
    #[inline(always)]
    fn append<S: Simd>(
        &mut self,
        s: S,
        first: usize,
        valid: u16,
        values: &Lanes,
        weights: &Lanes,
        positions: Option<&[u32; LANES]>,
        count: &mut usize,
    ) {
        let v = s.load(values);
        let mask = valid & s.ge(v, s.splat(*self.range.start())) & s.ge(s.splat(*self.range.end()), v);
        s.compress(mask, v, lanes_at(self.to_values, *count));
        s.compress(mask, s.load(weights), lanes_at(self.to_weights, *count));
        let to = lanes_at(self.to_positions, *count);
        match positions {
            None => s.compress_range(mask, first as u32, to),
            Some(positions) => s.compress_integers(mask, positions, to),
        }
        *count += mask.count_ones() as usize;
    }
}

/// Up to sixteen elements, padded with zeros.
#[inline(always)]
fn padded<T: Copy + Default>(from: &[T]) -> [T; LANES] {
    let mut chunk = [T::default(); LANES];
    chunk[..from.len()].copy_from_slice(from);
    chunk
}
