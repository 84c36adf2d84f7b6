//! The search for the cut where the largest values of a list reach a given mass: a quickselect by weight.
//!
//! Each step takes two pivots, sums the weights above and between them in one pass, and goes on with the part in which the mass is
//! reached. The first pivots may be given; others are interpolated between those before, or where that has missed, come from a
//! sample of the list. Short lists are sorted.

use super::cut::{CompressRange, Cut, MassAtPivots, WeighAndCompress, Weighed};
use super::softmax_scale::SoftmaxScale;
use crate::simd::{LANES, SimdLevel};
use std::ops::RangeInclusive;

/// The longest list that is sorted.
const MAX_SORTED: usize = 64;
/// The number of elements from which a pivot is chosen.
const PIVOT_SAMPLE: usize = 31;
/// From this length on, the first step takes two pivots instead of one.
const MIN_LONG: usize = 512;
/// The number of elements from which those two are chosen.
const LONG_PIVOT_SAMPLE: usize = 63;
/// The number of sampled elements between each of the two and the best guess. A quarter of the list lies between the
/// two, and almost always the cut.
const PIVOT_MARGIN: usize = 8;
/// How far off an interpolated pivot may be since the weight is not spread evenly, as a share of the range.
const INTERPOLATION_BIAS: f64 = 0.06;
/// After so many steps the rest is sorted, so that unlucky pivots do not cost more than a sort.
const MAX_PIVOT_STEPS: usize = 40;

/// The buffers of a search, reused from search to search: each step narrows one list into the other.
#[derive(Debug, Default)]
pub(super) struct CutSearch {
    lists: [NarrowedList; 2],
    /// Sort keys of a short list.
    keys: Vec<u64>,
}

/// The elements that a step has left. Only the first `len` elements are valid.
#[derive(Debug, Default)]
struct NarrowedList {
    values: Vec<f32>,
    weights: Vec<f32>,
    positions: Vec<u32>,
    len: usize,
}

/// The elements that are left to search.
#[derive(Clone, Copy)]
struct ListView<'a> {
    values: &'a [f32],
    weights: &'a [f32],
    /// The positions in the original list; None before the first step, when element n is at position n.
    positions: Option<&'a [u32]>,
}

/// What is known of the elements that are left to search.
#[derive(Debug, Clone, Copy)]
struct Rest {
    /// The weight above them.
    above: f64,
    /// Their weight.
    within: f64,
    /// No value is lower.
    low: f32,
    /// No value is higher.
    high: f32,
}

impl Rest {
    /// Two values that are likely to enclose the one below which the weights of `len` elements sum to `dropped`, if these are spread
    /// evenly from the lowest to the highest. None if the values have no bounds, or these leave no room.
    fn interpolated_pivots(&self, dropped: f64, len: usize) -> Option<(f32, f32)> {
        let margin = INTERPOLATION_BIAS + 1.0 / (len as f64).sqrt();
        let share = dropped / self.within;
        let (low, width) = (f64::from(self.low), f64::from(self.high) - f64::from(self.low));
        let pivot = |share: f64| (low + width * share.clamp(0.0, 1.0)) as f32;
        let (from, to) = (pivot(share - margin), pivot(share + margin));
        let narrows = (self.low < from || to < self.high) && from < to;
        (width.is_finite() && narrows).then_some((from, to))
    }
}

impl ListView<'_> {
    fn position(&self, n: usize) -> u32 {
        self.positions.map_or(n as u32, |positions| positions[n])
    }
}

impl CutSearch {
    /// The cut that keeps the fewest elements, in falling order, whose weights sum to at least `target`; it keeps at
    /// least one element, and all if their weights do not reach the target.
    ///
    /// `total` is the sum of all weights and may have rounding errors. The slices have the same length, above 0; no
    /// value is NaN.
    pub(super) fn cut_at_mass(
        &mut self,
        level: SimdLevel,
        values: &[f32],
        weights: &[f32],
        target: f64,
        total: f64,
    ) -> Cut {
        let all = Rest { above: 0.0, within: total, low: f32::NEG_INFINITY, high: f32::INFINITY };
        self.cut_in(level, (values, weights), false, all, target)
    }

    /// Computes the weights of a list and lists those elements anew that are between two pivots, which are likely to enclose
    /// the cut of [`CutSearch::cut_between`]. `weights` must have room for whole blocks.
    pub(super) fn weigh_between(
        &mut self,
        level: SimdLevel,
        values: &[f32],
        scale: SoftmaxScale,
        pivots: (f32, f32),
        weights: &mut [f32],
    ) -> Weighed {
        let (list, (low, high)) = (&mut self.lists[0], pivots);
        list.make_room(values.len());
        let NarrowedList { values: to_values, weights: to_weights, positions: to_positions, len } = list;
        let weighed =
            level.run(WeighAndCompress { values, scale, low, high, weights, to_values, to_weights, to_positions });
        *len = weighed.between;
        weighed
    }

    /// [`CutSearch::cut_at_mass`] after [`CutSearch::weigh_between`] of the same values with these pivots.
    pub(super) fn cut_between(
        &mut self,
        level: SimdLevel,
        values: &[f32],
        weights: &[f32],
        target: f64,
        (low, high): (f32, f32),
        weighed: &Weighed,
    ) -> Cut {
        if weighed.above < target && weighed.not_below >= target && weighed.between > 0 {
            let rest = Rest { above: weighed.above, within: weighed.not_below - weighed.above, low, high };
            self.cut_in(level, (values, weights), true, rest, target)
        } else {
            self.cut_at_mass(level, values, weights, target, weighed.total)
        }
    }

    /// The search for a cut in the elements that are left: those of `self.lists[0]` if `narrowed`, else all.
    fn cut_in(
        &mut self,
        level: SimdLevel,
        (values, weights): (&[f32], &[f32]),
        mut narrowed: bool,
        mut rest: Rest,
        target: f64,
    ) -> Cut {
        // The smallest number above 0, so that a target of 0 keeps one element.
        let target = target.max(f64::MIN_POSITIVE);
        let [list, spare] = &mut self.lists;
        let mut interpolates = true;
        for _ in 0..MAX_PIVOT_STEPS {
            let view = if narrowed { list.view() } else { ListView { values, weights, positions: None } };
            if view.values.len() <= MAX_SORTED {
                break;
            }
            let dropped = rest.above + rest.within - target;
            let interpolated = rest.interpolated_pivots(dropped, view.values.len()).filter(|_| interpolates);
            let (low, high) = if let Some(pivots) = interpolated {
                pivots
            } else if narrowed || view.values.len() < MIN_LONG {
                pivots::<PIVOT_SAMPLE>(view, dropped, 0)
            } else {
                pivots::<LONG_PIVOT_SAMPLE>(view, dropped, PIVOT_MARGIN)
            };
            let (over, reached) = level.run(MassAtPivots { values: view.values, weights: view.weights, low, high });
            if rest.above + over >= target {
                rest = Rest { within: over, low: high.next_up(), ..rest };
                interpolates = false;
            } else if rest.above + reached < target {
                rest.above += reached;
                rest.within -= reached;
                rest.high = low.next_down();
                interpolates = false;
            } else if low < high {
                rest = Rest { above: rest.above + over, within: reached - over, low, high };
            } else {
                return cut_ties(view, low, rest.above + over, target);
            }
            if !spare.fill_from(level, view, rest.low..=rest.high) {
                // No element is below the pivot, and rounding kept the sum short of the target: all elements are kept.
                return cut_ties(view, low, 0.0, f64::INFINITY);
            }
            // Many equal values are not spread evenly.
            interpolates &= spare.len < view.values.len() / 2;
            std::mem::swap(list, spare);
            narrowed = true;
        }
        let view = if narrowed { list.view() } else { ListView { values, weights, positions: None } };
        sort_descending(view, &mut self.keys);
        cut_keys(&self.keys, weights, rest.above, target)
    }

    /// The cut of a short list by top-k and then by top-p: of the first `count` elements in falling order, the fewest
    /// whose weights sum to at least `top_p` of the weights of all `count`; 1 keeps them all. The slices have the same
    /// length; this and `count` are above 0.
    pub(super) fn cut_by_count_and_mass(&mut self, values: &[f32], weights: &[f32], count: usize, top_p: f64) -> Cut {
        sort_descending(ListView { values, weights, positions: None }, &mut self.keys);
        self.keys.truncate(count);
        let target = if top_p < 1.0 {
            let mass: f64 = self.keys.iter().map(|&key| f64::from(weights[position_of(key)])).sum();
            (top_p * mass).max(f64::MIN_POSITIVE)
        } else {
            f64::INFINITY
        };
        cut_keys(&self.keys, weights, 0.0, target)
    }
}

impl NarrowedList {
    fn view(&self) -> ListView<'_> {
        ListView {
            values: &self.values[..self.len],
            weights: &self.weights[..self.len],
            positions: Some(&self.positions[..self.len]),
        }
    }

    /// Makes room for so many elements, and for a vector more.
    fn make_room(&mut self, len: usize) {
        let room = len + LANES;
        if self.values.len() < room {
            self.values.resize(room, 0.0);
            self.weights.resize(room, 0.0);
            self.positions.resize(room, 0);
        }
    }

    /// Replaces the list by the elements of `from` with values in the range; false if there are none.
    fn fill_from(&mut self, level: SimdLevel, from: ListView<'_>, range: RangeInclusive<f32>) -> bool {
        self.make_room(from.values.len());
        self.len = level.run(CompressRange {
            range,
            values: from.values,
            weights: from.weights,
            positions: from.positions,
            to_values: &mut self.values,
            to_weights: &mut self.weights,
            to_positions: &mut self.positions,
        });
        self.len > 0
    }
}

/// Two values of the list, the lower one first, likely to enclose the value below which the weights sum to `dropped`:
/// in a sorted sample of N elements they are `margin` before and after the best guess.
///
/// The mass is summed from the smallest value up: the weights there are small and similar, so a sample estimates them
/// well.
fn pivots<const N: usize>(view: ListView<'_>, dropped: f64, margin: usize) -> (f32, f32) {
    let len = view.values.len();
    // Value keys in the upper and weights in the lower half of integers, which sort without branches.
    let mut sample: [u64; N] = std::array::from_fn(|n| {
        // Evenly spaced, half a step from both ends.
        let at = (2 * n + 1) * len / (2 * N);
        u64::from(total_order_key(view.values[at])) << 32 | u64::from(view.weights[at].to_bits())
    });
    sample.sort_unstable();
    let dropped = dropped * N as f64 / len as f64;
    let mut mass = 0.0;
    let reaches = sample.iter().position(|&key| {
        mass += f64::from(f32::from_bits(key as u32));
        mass >= dropped
    });
    let guess = reaches.unwrap_or(N - 1);
    let value = |n: usize| from_total_order_key((sample[n] >> 32) as u32);
    (value(guess.saturating_sub(margin)), value((guess + margin).min(N - 1)))
}

/// The cut among the elements equal to `value`; `mass` is the sum of the weights above them.
fn cut_ties(view: ListView<'_>, value: f32, mut mass: f64, target: f64) -> Cut {
    let mut position = 0;
    for (n, _) in view.values.iter().enumerate().filter(|&(_, &x)| x == value) {
        mass += f64::from(view.weights[n]);
        position = view.position(n);
        if mass >= target {
            break;
        }
    }
    Cut { value, position }
}

/// Fills `keys` with integers in falling order of the elements: the inverted value key in the upper half, the position
/// in the lower. Integers sort without branches.
fn sort_descending(view: ListView<'_>, keys: &mut Vec<u64>) {
    keys.clear();
    keys.extend(view.values.iter().enumerate().map(|(n, &value)| {
        let descending = !total_order_key(value);
        u64::from(descending) << 32 | u64::from(view.position(n))
    }));
    keys.sort_unstable();
}

/// The position in a sort key.
fn position_of(key: u64) -> usize {
    key as u32 as usize
}

/// The cut where the weights of sorted keys reach the target; `mass` is the sum of the weights before the first key.
fn cut_keys(keys: &[u64], weights: &[f32], mut mass: f64, target: f64) -> Cut {
    let mut last = 0;
    for &key in keys {
        mass += f64::from(weights[position_of(key)]);
        last = key;
        if mass >= target {
            break;
        }
    }
    Cut { value: from_total_order_key(!((last >> 32) as u32)), position: last as u32 }
}

/// An integer that orders as the float does. It is the order of [`f32::total_cmp`], except that 0 and -0 are equal.
pub(super) fn total_order_key(x: f32) -> u32 {
    // Adding +0 turns -0 into +0 and leaves every other number as it is.
    let bits = (x + 0.0).to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

/// The inverse of [`total_order_key`].
pub(super) fn from_total_order_key(bits: u32) -> f32 {
    f32::from_bits(if bits >> 31 == 1 { bits & !(1 << 31) } else { !bits })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::uniform;

    /// The definition: sort everything.
    fn expected(values: &[f32], weights: &[f32], target: f64) -> Cut {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|&a, &b| values[b].partial_cmp(&values[a]).unwrap());
        let mut mass = 0.0;
        for &n in &order {
            mass += f64::from(weights[n]);
            if mass >= target {
                return Cut { value: values[n], position: n as u32 };
            }
        }
        let last = order[order.len() - 1];
        Cut { value: values[last], position: last as u32 }
    }

    #[test]
    fn total_order_keys_keep_the_order_and_merge_the_zeros() {
        let ascending = [f32::NEG_INFINITY, -3.0, -1e-40, 0.0, 1e-40, 2.0, f32::MAX];
        for pair in ascending.windows(2) {
            assert!(total_order_key(pair[0]) < total_order_key(pair[1]));
        }
        for x in ascending {
            assert_eq!(from_total_order_key(total_order_key(x)), x);
        }
        assert_eq!(total_order_key(-0.0), total_order_key(0.0));
    }

    #[test]
    fn the_cut_is_that_of_a_full_sort_for_counts_and_for_masses() {
        let mut search = CutSearch::default();
        for case in 0..400u64 {
            let length = 1 + (uniform(1, case, 0) * 3000.0) as usize;
            let distinct = [3.0, 40.0, 1e6][case as usize % 3];
            let values: Vec<f32> = (0..length)
                .map(|n| (uniform(2, case, n as u64) * distinct) as f32 - 1.0)
                .map(|x| if case % 2 == 0 { x.floor() } else { x })
                .collect();
            // Sixteenths: every order of summation is exact.
            let weights: Vec<f32> =
                (0..length).map(|n| (uniform(3, case, n as u64) * 16.0).ceil() as f32 / 16.0).collect();
            let ones = vec![1.0; length];
            for (w, name) in [(&ones, "count"), (&weights, "mass")] {
                let total: f64 = w.iter().map(|&w| f64::from(w)).sum();
                for share in [0.0, 0.01, uniform(4, case, 0), 0.99, 1.0] {
                    let target = (share * total * 16.0).floor() / 16.0;
                    let cut = expected(&values, w, target);
                    for level in SimdLevel::available() {
                        let found = search.cut_at_mass(level, &values, w, target, total);
                        assert_eq!(found, cut, "{name} {case} {share} {level:?}");
                    }
                }
            }
        }
    }

    /// At this temperature the weights of whole numbers are powers of two, whose sums are exact in any order.
    const POWERS_OF_TWO: f64 = std::f64::consts::LOG2_E;

    #[test]
    fn the_cut_between_pivots_is_that_of_a_full_sort_wherever_these_are() {
        let mut search = CutSearch::default();
        for case in 0..200u64 {
            let length = 1 + (uniform(5, case, 0) * 9000.0) as usize;
            let distinct = [1.0, 4.0, 12.0][case as usize % 3];
            let values: Vec<f32> =
                (0..length).map(|n| (uniform(6, case, n as u64) * distinct).floor() as f32 - 12.0).collect();
            let scale = SoftmaxScale::new(-2.0, POWERS_OF_TWO);
            let weights: Vec<f32> = values.iter().map(|x| (x + 2.0).exp2()).collect();
            let total: f64 = weights.iter().map(|&w| f64::from(w)).sum();
            let pivot = |n| (uniform(7, case, n) * 16.0) as f32 - 14.0;
            let pivots = (pivot(0).min(pivot(1)), pivot(0).max(pivot(1)));
            let above: f64 =
                values.iter().zip(&weights).filter(|(x, _)| **x > pivots.1).map(|(_, &w)| f64::from(w)).sum();
            for share in [0.0, uniform(8, case, 0), uniform(8, case, 1), 1.0] {
                let target = (share * total * 4096.0).floor() / 4096.0;
                let cut = expected(&values, &weights, target);
                for level in SimdLevel::available() {
                    let mut written = vec![f32::NAN; length.next_multiple_of(256)];
                    let weighed = search.weigh_between(level, &values, scale, pivots, &mut written);
                    assert_eq!(written[..length], weights);
                    assert!(written[length..].iter().all(|&w| w == 0.0));
                    assert_eq!((weighed.total, weighed.above), (total, above));
                    let found = search.cut_between(level, &values, &weights, target, pivots, &weighed);
                    assert_eq!(found, cut, "{case} {share} {pivots:?} {level:?}");
                }
            }
        }
    }

    #[test]
    fn a_short_list_is_cut_by_count_and_then_by_mass() {
        let values = [1.0, 3.0, 2.0, 3.0, 0.0];
        let weights = [1.0, 4.0, 2.0, 4.0, 0.5];
        let cut = |count, share| CutSearch::default().cut_by_count_and_mass(&values, &weights, count, share);
        assert_eq!(cut(5, 1.0), Cut { value: 0.0, position: 4 });
        assert_eq!(cut(3, 1.0), Cut { value: 2.0, position: 2 });
        assert_eq!(cut(1, 1.0), Cut { value: 3.0, position: 1 });
        assert_eq!(cut(3, 0.8), Cut { value: 3.0, position: 3 });
        assert_eq!(cut(3, 0.81), Cut { value: 2.0, position: 2 });
        assert_eq!(cut(3, 0.0), Cut { value: 3.0, position: 1 });
    }

    #[test]
    fn a_target_out_of_reach_keeps_everything() {
        for length in [5usize, 500] {
            let values: Vec<f32> = (0..length).map(|n| (n % 7) as f32).collect();
            let ones = vec![1.0; length];
            let cut = CutSearch::default().cut_at_mass(SimdLevel::detect(), &values, &ones, 1e9, length as f64);
            let kept = (0..length).filter(|&n| cut.keeps(values[n], n)).count();
            assert_eq!(kept, length);
        }
    }

    #[test]
    fn bad_pivots_end_in_a_sort() {
        // Organ pipes and powers: samples mislead, the answer stays right.
        let values: Vec<f32> = (0..4000).map(|n| 2f32.powi((n % 120) - (n / 40))).collect();
        let weights: Vec<f32> = (0..4000).map(|n| if n == 3999 { 1.0 } else { 0.0 }).collect();
        let cut = CutSearch::default().cut_at_mass(SimdLevel::detect(), &values, &weights, 0.5, 1.0);
        assert_eq!(cut, expected(&values, &weights, 0.5));
    }
}
