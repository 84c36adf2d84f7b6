//! Where the most probable ones reach a given mass: selection by weight, without a sort.

use crate::cut::{Cut, Mass, Narrow};
use crate::simd::{LANES, SimdLevel};
use std::ops::RangeInclusive;

/// Up to this many, sorting is quickest.
const SORTED: usize = 64;
/// Elements looked at to choose a pivot.
const SAMPLE: usize = 31;
/// From this length on the first step looks at more of them and takes two pivots, with this many on either side of the
/// guess: between them lies a quarter of the list, and almost always the cut.
const LONG: usize = 512;
const LONG_SAMPLE: usize = 63;
const MARGIN: usize = 8;
/// After so many pivots the rest is sorted: bad luck with pivots may not cost more than a sort.
const PIVOTS: usize = 40;

/// Two copies of what is left of a list, one narrowed into the other, and scratch for the ends of the search.
#[derive(Debug, Default)]
pub(crate) struct Search {
    lists: [List; 2],
    keys: Vec<u64>,
}

#[derive(Debug, Default)]
struct List {
    values: Vec<f32>,
    weights: Vec<f32>,
    positions: Vec<u32>,
    len: usize,
}

/// What is left to search.
#[derive(Clone, Copy)]
struct Active<'a> {
    values: &'a [f32],
    weights: &'a [f32],
    /// None while nothing was narrowed: element n is at position n.
    positions: Option<&'a [u32]>,
}

impl Active<'_> {
    fn position(&self, n: usize) -> u32 {
        self.positions.map_or(n as u32, |positions| positions[n])
    }
}

impl Search {
    /// The cut that keeps the fewest elements, largest value first and lowest position first among equals, whose
    /// weights reach `target`; at least one, and all if they do not reach it. `total` is the sum of all weights, and
    /// need not be precise. The slices have the same length, above 0; no value is NaN.
    pub(crate) fn cutoff(&mut self, level: SimdLevel, values: &[f32], weights: &[f32], target: f64, total: f64) -> Cut {
        // A target of 0 keeps one: the first step above 0.
        let target = target.max(f64::MIN_POSITIVE);
        let (mut above, mut within) = (0.0, total);
        let [list, spare] = &mut self.lists;
        let mut narrowed = false;
        for _ in 0..PIVOTS {
            let active = if narrowed { list.active() } else { Active { values, weights, positions: None } };
            if active.values.len() <= SORTED {
                break;
            }
            let dropped = above + within - target;
            let (low, high) = if narrowed || active.values.len() < LONG {
                pivots::<SAMPLE>(active, dropped, 0)
            } else {
                pivots::<LONG_SAMPLE>(active, dropped, MARGIN)
            };
            let (over, reached) = level.run(Mass { values: active.values, weights: active.weights, low, high });
            let range = if above + over >= target {
                within = over;
                high.next_up()..=f32::INFINITY
            } else if above + reached < target {
                above += reached;
                within -= reached;
                f32::NEG_INFINITY..=low.next_down()
            } else if low < high {
                above += over;
                within = reached - over;
                low..=high
            } else {
                return cut_ties(active, low, above + over, target);
            };
            if !spare.narrow(level, active, range) {
                // Nothing is below, and rounding kept the sum short of the target: all of it stays.
                return cut_ties(active, low, 0.0, f64::INFINITY);
            }
            std::mem::swap(list, spare);
            narrowed = true;
        }
        let active = if narrowed { list.active() } else { Active { values, weights, positions: None } };
        sort_falling(active, &mut self.keys);
        cut_keys(&self.keys, weights, above, target)
    }

    /// The cut of a short list by count and then by mass: of the first `count` of the order, the fewest whose weights
    /// reach a share of theirs. A share of 1 keeps them all. The slices have the same length, above 0; so is `count`.
    pub(crate) fn cut_short(&mut self, values: &[f32], weights: &[f32], count: usize, share: f64) -> Cut {
        sort_falling(Active { values, weights, positions: None }, &mut self.keys);
        self.keys.truncate(count);
        let target = if share < 1.0 {
            let mass: f64 = self.keys.iter().map(|&key| f64::from(weights[position(key)])).sum();
            (share * mass).max(f64::MIN_POSITIVE)
        } else {
            f64::INFINITY
        };
        cut_keys(&self.keys, weights, 0.0, target)
    }
}

impl List {
    fn active(&self) -> Active<'_> {
        Active {
            values: &self.values[..self.len],
            weights: &self.weights[..self.len],
            positions: Some(&self.positions[..self.len]),
        }
    }

    /// Becomes what of `from` has a value in the range; false if that is nothing.
    fn narrow(&mut self, level: SimdLevel, from: Active<'_>, range: RangeInclusive<f32>) -> bool {
        let room = from.values.len() + LANES;
        if self.values.len() < room {
            self.values.resize(room, 0.0);
            self.weights.resize(room, 0.0);
            self.positions.resize(room, 0);
        }
        self.len = level.run(Narrow {
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

/// Two values of the list, the lower one first, on either side of the point below which the least values weigh `dropped`
/// together; guessed from N elements, `margin` of which lie between each and the guess.
///
/// Counted from below: there the weights are small and much alike, so that a few of them tell of the rest.
fn pivots<const N: usize>(active: Active<'_>, dropped: f64, margin: usize) -> (f32, f32) {
    let len = active.values.len();
    // Values above and weights below in integers, which sort without branches.
    let mut sample: [u64; N] = std::array::from_fn(|n| {
        // Spread over the list, away from its ends.
        let at = (2 * n + 1) * len / (2 * N);
        u64::from(rising_bits(active.values[at])) << 32 | u64::from(active.weights[at].to_bits())
    });
    sample.sort_unstable();
    let dropped = dropped * N as f64 / len as f64;
    let mut mass = 0.0;
    let reaches = sample.iter().position(|&key| {
        mass += f64::from(f32::from_bits(key as u32));
        mass >= dropped
    });
    let guess = reaches.unwrap_or(N - 1);
    let value = |n: usize| from_rising_bits((sample[n] >> 32) as u32);
    (value(guess.saturating_sub(margin)), value((guess + margin).min(N - 1)))
}

/// The cut within the elements equal to `value`, `mass` being above them.
fn cut_ties(active: Active<'_>, value: f32, mut mass: f64, target: f64) -> Cut {
    let mut position = 0;
    for (n, _) in active.values.iter().enumerate().filter(|&(_, &x)| x == value) {
        mass += f64::from(active.weights[n]);
        position = active.position(n);
        if mass >= target {
            break;
        }
    }
    Cut { value, position }
}

/// Keys that sort largest value first and lowest position first among equals. Plain integers, which sort without
/// branches; a weight is found by its position.
fn sort_falling(active: Active<'_>, keys: &mut Vec<u64>) {
    keys.clear();
    keys.extend(active.values.iter().enumerate().map(|(n, &value)| {
        let falling = !rising_bits(value);
        u64::from(falling) << 32 | u64::from(active.position(n))
    }));
    keys.sort_unstable();
}

/// The position in a key.
fn position(key: u64) -> usize {
    key as u32 as usize
}

/// The cut where sorted keys reach the target, `mass` being above them.
fn cut_keys(keys: &[u64], weights: &[f32], mut mass: f64, target: f64) -> Cut {
    let mut last = 0;
    for &key in keys {
        mass += f64::from(weights[position(key)]);
        last = key;
        if mass >= target {
            break;
        }
    }
    Cut { value: from_rising_bits(!((last >> 32) as u32)), position: last as u32 }
}

/// Integers in the order of the floats; 0 and -0 are equal.
pub(crate) fn rising_bits(x: f32) -> u32 {
    // Adding +0 turns -0 into +0 and leaves everything else.
    let bits = (x + 0.0).to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

/// The float of [`rising_bits`].
pub(crate) fn from_rising_bits(bits: u32) -> f32 {
    f32::from_bits(if bits >> 31 == 1 { bits & !(1 << 31) } else { !bits })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::uniform;

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
    fn rising_bits_keep_the_order_and_merge_the_zeros() {
        let rising = [f32::NEG_INFINITY, -3.0, -1e-40, 0.0, 1e-40, 2.0, f32::MAX];
        for pair in rising.windows(2) {
            assert!(rising_bits(pair[0]) < rising_bits(pair[1]));
        }
        for x in rising {
            assert_eq!(from_rising_bits(rising_bits(x)), x);
        }
        assert_eq!(rising_bits(-0.0), rising_bits(0.0));
    }

    #[test]
    fn the_cut_is_that_of_a_full_sort_for_counts_and_for_masses() {
        let mut search = Search::default();
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
                        let found = search.cutoff(level, &values, w, target, total);
                        assert_eq!(found, cut, "{name} {case} {share} {level:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_short_list_is_cut_by_count_and_then_by_mass() {
        let values = [1.0, 3.0, 2.0, 3.0, 0.0];
        let weights = [1.0, 4.0, 2.0, 4.0, 0.5];
        let cut = |count, share| Search::default().cut_short(&values, &weights, count, share);
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
            let cut = Search::default().cutoff(SimdLevel::detect(), &values, &ones, 1e9, length as f64);
            let kept = (0..length).filter(|&n| cut.keeps(values[n], n)).count();
            assert_eq!(kept, length);
        }
    }

    #[test]
    fn bad_pivots_end_in_a_sort() {
        // Organ pipes and powers: samples mislead, the answer stays right.
        let values: Vec<f32> = (0..4000).map(|n| 2f32.powi((n % 120) - (n / 40))).collect();
        let weights: Vec<f32> = (0..4000).map(|n| if n == 3999 { 1.0 } else { 0.0 }).collect();
        let cut = Search::default().cutoff(SimdLevel::detect(), &values, &weights, 0.5, 1.0);
        assert_eq!(cut, expected(&values, &weights, 0.5));
    }
}
