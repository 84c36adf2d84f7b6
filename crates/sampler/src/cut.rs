//! Cutting a falling order without having sorted it: what stays, what it weighs, and either side of a pivot.

use crate::kernels::{BLOCK, Blocks, VECTORS, window};
use crate::simd::{Kernel, LANES, Lanes, Simd};
use std::ops::RangeInclusive;

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

    /// Whichever keeps less.
    pub(crate) fn tighter(self, other: Self) -> Self {
        let other_keeps_less =
            other.value > self.value || (other.value == self.value && other.position < self.position);
        if other_keeps_less { other } else { self }
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
            self.sums.push(f64::from(s.sum(sum)));
        }
    }
}

/// The weight of the values above `high`, and of those not below `low`.
pub(crate) struct Mass<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) weights: &'a [f32],
    pub(crate) low: f32,
    pub(crate) high: f32,
}

impl Kernel for Mass<'_> {
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

/// Copies the part of a list with values in the range to the front of the `to` buffers, in order; returns how many.
/// Without `positions` the positions are 0, 1, 2 and so on. The buffers need sixteen spare places.
pub(crate) struct Narrow<'a> {
    pub(crate) range: RangeInclusive<f32>,
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
    fn run<S: Simd>(mut self, s: S) -> usize {
        let (values, weights) = (self.values, self.weights);
        let positions = self.positions.unwrap_or(&[]);
        let whole = values.as_chunks::<LANES>().0.iter().zip(weights.as_chunks::<LANES>().0);
        let mut position_chunks = positions.as_chunks::<LANES>().0.iter();
        let mut count = 0;
        for (n, (v, w)) in whole.enumerate() {
            self.narrow(s, n * LANES, u16::MAX, v, w, position_chunks.next(), &mut count);
        }
        let done = values.len() / LANES * LANES;
        if done < values.len() {
            let valid = (1 << (values.len() - done)) - 1;
            let rest = positions.get(done..).map(padded);
            let (v, w) = (padded(&values[done..]), padded(&weights[done..]));
            self.narrow(s, done, valid, &v, &w, rest.as_ref(), &mut count);
        }
        count
    }
}

impl Narrow<'_> {
    /// Appends the lanes of one vector that are in the range.
    #[allow(clippy::too_many_arguments)]
    #[inline(always)]
    fn narrow<S: Simd>(
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
        s.compress(mask, v, window(self.to_values, *count));
        s.compress(mask, s.load(weights), window(self.to_weights, *count));
        let to = window(self.to_positions, *count);
        match positions {
            None => s.compress_range(mask, first as u32, to),
            Some(positions) => s.compress_integers(mask, positions, to),
        }
        *count += mask.count_ones() as usize;
    }
}

/// Up to sixteen elements, and zeros behind them.
#[inline(always)]
fn padded<T: Copy + Default>(from: &[T]) -> [T; LANES] {
    let mut chunk = [T::default(); LANES];
    chunk[..from.len()].copy_from_slice(from);
    chunk
}
