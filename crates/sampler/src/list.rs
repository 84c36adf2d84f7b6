//! A list of the tokens that may be drawn, in vocabulary order, found without a sort of the row.

use crate::cut::{Cut, KeepOnly};
use crate::cutoff::Search;
use crate::exponent::{Exponent, Weigh};
use crate::kernels::{BLOCK, Below, Collect, CollectMany, Count, Fold};
use crate::simd::{LANES, Lanes, SimdLevel};

/// The cut that drops nothing.
const EVERYTHING: Cut = Cut { value: f32::NEG_INFINITY, position: u32::MAX };

/// A list of at most this many is sorted; a longer one is narrowed by pivots.
const SHORT: usize = 160;
/// Blocks whose lane maxima are folded into one set before the search for the bound of a small top-k.
const FOLD: usize = 4;
/// Halvings of the interval in the search for that bound; any count of at least k will do.
const HALVINGS: usize = 16;
/// A guess leaves this share of what may be dropped in the list: a sample is a little off.
const SPARED: f64 = 0.25;

/// Where a list comes from.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) row: &'a [f32],
    pub(crate) max: f32,
    pub(crate) maxima: &'a [Lanes],
    /// Some logits of the row, spread over it; none of a short row.
    pub(crate) sample: &'a [Lanes],
    pub(crate) exponent: Exponent,
}

/// All logits of a row that reach `least`, in order, and their weights; only the first `len` of each count.
#[derive(Debug)]
pub(crate) struct List {
    level: SimdLevel,
    least: f32,
    values: Vec<f32>,
    /// How many of the list come before each block of the row: where the tokens are found again.
    starts: Vec<u32>,
    weights: Vec<f32>,
    len: usize,
    /// What of the list may be drawn; once applied, the weights of the others are zero.
    cut: Cut,
    /// The weight of each block of the list, and of all.
    sums: Vec<f64>,
    total: f64,
    ones: Vec<f32>,
    folded: Vec<Lanes>,
    search: Search,
}

impl List {
    pub(crate) fn new(level: SimdLevel) -> Self {
        Self {
            level,
            least: f32::MIN,
            values: Vec::new(),
            starts: Vec::new(),
            weights: Vec::new(),
            len: 0,
            cut: EVERYTHING,
            sums: Vec::new(),
            total: 0.0,
            ones: Vec::new(),
            folded: Vec::new(),
            search: Search::default(),
        }
    }

    /// Keeps the logits of at least `least`, a finite number that some logit reaches.
    pub(crate) fn keep_least(&mut self, source: Source<'_>, least: f32) {
        self.collect(source, least);
        self.weigh(source.exponent);
    }

    /// Keeps the k largest logits and of these, renormalised, the nucleus of mass `top_p` (1 is off).
    pub(crate) fn keep_top_k(&mut self, source: Source<'_>, k: usize, top_p: f64) {
        let least = self.bound_of_kth(source, k);
        if k < source.row.len() / (2 * LANES) {
            self.collect(source, least);
        } else {
            self.collect_many(source, least);
        }
        if self.len <= SHORT {
            self.weigh(source.exponent);
            let (values, weights) = (&self.values[..self.len], &self.weights[..self.len]);
            self.cut = self.search.cut_short(values, weights, k, top_p);
            return;
        }
        self.weigh(source.exponent);
        if self.len > k {
            grow(&mut self.ones, self.len, 1.0);
            let (values, ones) = (&self.values[..self.len], &self.ones[..self.len]);
            self.cut = self.search.cutoff(self.level, values, ones, k as f64, self.len as f64);
            self.apply_cut();
        }
        if top_p < 1.0 {
            self.cut_at_mass(top_p * self.total);
        }
    }

    /// Keeps the nucleus of mass `top_p`, below 1, of a row that weighs `total`.
    pub(crate) fn keep_top_p(&mut self, source: Source<'_>, top_p: f64, temperature: f64, total: f64) {
        // All that is lighter than (1 - p) / V of the total weighs less than 1 - p of it together. A little lower, for the
        // rounding of weights: keeping more is never wrong.
        let outside = (1.0 - top_p) * total;
        let lightest = outside / source.row.len() as f64;
        let least = f64::from(source.exponent.origin) + temperature * (lightest.ln() - 1e-4);
        let least = (least as f32).next_down().max(f32::MIN);
        let guess = if source.sample.is_empty() { least } else { self.guess_of_nucleus(source, least, outside) };
        self.collect_many(source, guess);
        self.weigh(source.exponent);
        let target = top_p * total;
        // All that reaches the guess is in the list: if that is enough, the nucleus is.
        if self.total < target * (1.0 + 1e-6) {
            self.collect_many(source, least);
            self.weigh(source.exponent);
        }
        self.cut_at_mass(target);
    }

    /// Drops the logits below `least` from what may be drawn.
    pub(crate) fn raise_cut(&mut self, least: f32) {
        if least > self.cut.value {
            self.cut = Cut { value: least, position: u32::MAX };
        }
    }

    /// Gives what the cut drops the weight zero.
    pub(crate) fn apply_cut(&mut self) {
        if self.cut == EVERYTHING {
            return;
        }
        let values = &self.values[..self.len];
        self.level.run(KeepOnly { cut: self.cut, values, weights: &mut self.weights, sums: &mut self.sums });
        self.total = self.sums.iter().sum();
    }

    /// The weight of all that may be drawn.
    pub(crate) fn total(&self) -> f64 {
        self.total
    }

    /// The token for a uniform number; `row` is that of the list.
    pub(crate) fn draw(&self, row: &[f32], u: f64) -> u32 {
        let target = u * self.total;
        let (block, before) = find_block(&self.sums, target);
        let start = block * BLOCK;
        let weights = &self.weights[start..(start + BLOCK).min(self.len)];
        self.token(row, start + find_in_block(weights, before, target))
    }

    /// The tokens that may be drawn and their weights; `row` is that of the list.
    pub(crate) fn kept(&self, row: &[f32]) -> Vec<(u32, f64)> {
        let listed = (0..).zip(row).filter(|&(_, &x)| x >= self.least).enumerate();
        listed
            .filter(|&(place, (_, &x))| self.cut.keeps(x, place))
            .map(|(place, (token, _))| (token, f64::from(self.weights[place])))
            .collect()
    }

    /// The token at a place of the list.
    fn token(&self, row: &[f32], place: usize) -> u32 {
        // The last block with no more before it; the first has 0.
        let block = self.starts.partition_point(|&start| start as usize <= place) - 1;
        let first = block * BLOCK;
        let mut within = (first..).zip(&row[first..]).filter(|&(_, &x)| x >= self.least);
        let Some((token, _)) = within.nth(place - self.starts[block] as usize) else {
            unreachable!("the row is not that of the list")
        };
        token as u32
    }

    /// Makes the list of what reaches `least`, from the few blocks that have any.
    fn collect(&mut self, source: Source<'_>, least: f32) {
        let Source { row, maxima, .. } = source;
        self.begin(row.len(), least);
        let (values, starts) = (&mut self.values[..], &mut self.starts[..]);
        self.len = self.level.run(Collect { row, maxima, least, values, starts });
    }

    /// [`List::collect`] where most blocks have some.
    fn collect_many(&mut self, source: Source<'_>, least: f32) {
        self.begin(source.row.len(), least);
        let (values, starts) = (&mut self.values[..], &mut self.starts[..]);
        self.len = self.level.run(CollectMany { row: source.row, least, values, starts });
    }

    /// An empty list without a cut, with room for a whole row.
    fn begin(&mut self, vocab: usize, least: f32) {
        grow(&mut self.values, vocab + BLOCK + LANES, 0.0);
        self.starts.resize(vocab.div_ceil(BLOCK), 0);
        self.least = least;
        self.cut = EVERYTHING;
    }

    fn weigh(&mut self, exponent: Exponent) {
        grow(&mut self.weights, self.len.next_multiple_of(BLOCK), 0.0);
        let values = &self.values[..self.len];
        self.level.run(Weigh { values, exponent, weights: &mut self.weights, sums: Some(&mut self.sums) });
        self.total = self.sums.iter().sum();
    }

    fn cut_at_mass(&mut self, target: f64) {
        let (values, weights) = (&self.values[..self.len], &self.weights[..self.len]);
        let cut = self.search.cutoff(self.level, values, weights, target, self.total);
        self.cut = self.cut.tighter(cut);
    }

    /// A finite number that the k-th largest logit, if it is finite, is not below.
    ///
    /// It is one that at least k of the lane maxima reach: they are maxima of disjoint sets, so as many logits do.
    fn bound_of_kth(&mut self, source: Source<'_>, k: usize) -> f32 {
        let maxima = source.maxima;
        // Fewer and larger sets are quicker to count, and their maxima are still close to the k largest logits.
        let every = if maxima.len() * LANES >= 8 * FOLD * k { FOLD } else { 1 };
        let mut low = self.level.run(Fold { maxima, every, folded: &mut self.folded });
        if self.folded.len() * LANES < k || !low.is_finite() {
            return f32::MIN;
        }
        let mut high = source.max;
        let enough = k + k / 4 + 4;
        for _ in 0..HALVINGS {
            let middle = low + (high - low) / 2.0;
            if middle <= low || middle >= high {
                break;
            }
            let count = self.level.run(Count { values: &self.folded, least: middle });
            if count < k {
                high = middle;
            } else {
                low = middle;
                if count <= enough {
                    break;
                }
            }
        }
        low
    }

    /// A bound, not below `least`, that leaves somewhat more than the nucleus if the sample is like the row; `outside` is
    /// the weight of all that is not in the nucleus.
    fn guess_of_nucleus(&mut self, source: Source<'_>, least: f32, outside: f64) -> f32 {
        let sample = source.sample.as_flattened();
        grow(&mut self.weights, sample.len().next_multiple_of(BLOCK), 0.0);
        let (exponent, weights) = (source.exponent, &mut self.weights[..]);
        self.level.run(Weigh { values: sample, exponent, weights, sums: None });
        // The sample's weight below each step of a ladder from the least to the largest logit.
        let step = (source.max - least) / LANES as f32;
        let thresholds: Lanes = std::array::from_fn(|n| least + n as f32 * step);
        let weights = &self.weights[..sample.len()];
        let below = self.level.run(Below { values: sample, weights, thresholds: &thresholds });
        let outside = ((1.0 - SPARED) * outside * sample.len() as f64 / source.row.len() as f64) as f32;
        // The last step that leaves all of it, and as much of the next as if the weight rose evenly: it rises later.
        let n = below.iter().rposition(|&below| below <= outside).unwrap_or(0);
        let share = below.get(n + 1).map_or(0.0, |next| (outside - below[n]) / (next - below[n]));
        (thresholds[n] + step * share.clamp(0.0, 1.0)).max(least)
    }
}

fn grow<T: Clone>(buffer: &mut Vec<T>, len: usize, value: T) {
    if buffer.len() < len {
        buffer.resize(len, value);
    }
}

/// The first block in which the cumulative weight exceeds the target, and the weight before it.
pub(crate) fn find_block(sums: &[f64], target: f64) -> (usize, f64) {
    let (mut cumulative, mut found) = (0.0, (0, 0.0));
    for (block, &sum) in sums.iter().enumerate() {
        if sum > 0.0 {
            found = (block, cumulative);
        }
        cumulative += sum;
        if cumulative > target {
            break;
        }
    }
    found
}

/// The first place in a block where the cumulative weight exceeds the target; the last one with a weight if rounding
/// kept the block's sum short of it.
pub(crate) fn find_in_block(weights: &[f32], mut cumulative: f64, target: f64) -> usize {
    // What comes before the block does not exceed the target, so a weight of zero cannot be the first to.
    let found = weights.iter().position(|&weight| {
        cumulative += f64::from(weight);
        cumulative > target
    });
    found.or_else(|| weights.iter().rposition(|&weight| weight > 0.0)).unwrap_or(0)
}
