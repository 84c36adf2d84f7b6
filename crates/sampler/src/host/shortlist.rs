//! The shortlist: the logits of a row among which top-k, top-p or min-p cut, found without a sort of the row.
//!
//! A threshold that is certain, or likely, to be below the cut selects the shortlist in one pass; then [`CutSearch`]
//! finds the cut within it. The shortlist is in vocabulary order, as the draw by inverse CDF needs it.

use super::blocks::BLOCK;
use super::cut::{ApplyCut, Cut};
use super::cut_search::CutSearch;
use super::nucleus::{LowerTail, Nucleus};
use super::row_kernels::{CollectDense, CollectSparse, CountAtLeast, FoldMaxima};
use super::softmax_scale::{SoftmaxScale, SoftmaxWeights};
use crate::simd::{LANES, Lanes, SimdLevel};

/// The cut that keeps everything.
const KEEP_ALL: Cut = Cut { value: f32::NEG_INFINITY, position: u32::MAX };

/// The longest shortlist of a top-k that is cut by sorting it; a longer one is cut by pivots.
const MAX_SORTED: usize = 160;
/// The number of blocks whose lane maxima are reduced to one vector, before the bound of a small top-k is searched for.
const BLOCKS_PER_FOLD: usize = 4;
/// The most bisection steps in the search for that bound, which need not be tight.
const BISECTION_STEPS: usize = 16;
/// The fraction of the weight outside the nucleus that a guessed threshold keeps in the shortlist, as the samples that it is
/// guessed from are not exact.
const GUESS_SLACK: f64 = 0.25;

/// A row and what the first pass has found of it.
#[derive(Clone, Copy)]
pub(super) struct RowScan<'a> {
    pub(super) row: &'a [f32],
    /// The largest logit.
    pub(super) max: f32,
    /// The lane maxima of each block.
    pub(super) maxima: &'a [Lanes],
    pub(super) scale: SoftmaxScale,
}

/// All logits of a row that are at least `threshold`, in vocabulary order, and their weights. Of `values` and `weights`
/// only the first `len` elements are valid.
#[derive(Debug)]
pub(super) struct Shortlist {
    level: SimdLevel,
    threshold: f32,
    values: Vec<f32>,
    /// The number of listed logits before each block of the row, by which the token of a listed logit is found.
    block_starts: Vec<u32>,
    weights: Vec<f32>,
    len: usize,
    /// Where the shortlist is cut. Once applied, the weights beyond it are 0.
    cut: Cut,
    /// The sum of the weights of each block of the shortlist.
    block_sums: Vec<f64>,
    /// The sum of all weights.
    total_weight: f64,
    /// Weights of 1, with which a cut by mass becomes a cut by count.
    ones: Vec<f32>,
    folded: Vec<Lanes>,
    search: CutSearch,
}

impl Shortlist {
    pub(super) fn new(level: SimdLevel) -> Self {
        Self {
            level,
            threshold: f32::MIN,
            values: Vec::new(),
            block_starts: Vec::new(),
            weights: Vec::new(),
            len: 0,
            cut: KEEP_ALL,
            block_sums: Vec::new(),
            total_weight: 0.0,
            ones: Vec::new(),
            folded: Vec::new(),
            search: CutSearch::default(),
        }
    }

    /// Keeps the logits of at least `threshold`, a finite number that some logit reaches.
    pub(super) fn keep_at_least(&mut self, scan: RowScan<'_>, threshold: f32) {
        self.collect_sparse(scan, threshold);
        self.weigh(scan.scale);
    }

    /// Keeps the k largest logits, then of these the nucleus of `top_p` of their mass (1 is off).
    pub(super) fn keep_top_k(&mut self, scan: RowScan<'_>, k: usize, top_p: f64) {
        let threshold = self.lower_bound_of_kth(scan, k);
        if k < scan.row.len() / (2 * LANES) {
            self.collect_sparse(scan, threshold);
        } else {
            self.collect_dense(scan.row, threshold);
        }
        if self.len <= MAX_SORTED {
            self.weigh(scan.scale);
            let (values, weights) = (&self.values[..self.len], &self.weights[..self.len]);
            self.cut = self.search.cut_by_count_and_mass(values, weights, k, top_p);
            return;
        }
        self.weigh(scan.scale);
        if self.len > k {
            ensure_len(&mut self.ones, self.len, 1.0);
            let (values, ones) = (&self.values[..self.len], &self.ones[..self.len]);
            self.cut = self.search.cut_at_mass(self.level, values, ones, k as f64, self.len as f64);
            self.apply_cut();
        }
        if top_p < 1.0 {
            self.tighten_to_mass(top_p * self.total_weight);
        }
    }

    /// Keeps the nucleus of a row whose weights sum to `total_weight`. The origin of the weights is the largest logit of `sample`,
    /// some vectors of the row; a short row has none.
    pub(super) fn keep_nucleus(&mut self, scan: RowScan<'_>, nucleus: Nucleus, sample: &[Lanes], total_weight: f64) {
        let certain = nucleus.certain_threshold(total_weight, scan.row.len());
        if !sample.is_empty() && self.keep_guessed_nucleus(scan, nucleus, sample, total_weight, certain) {
            return;
        }
        self.collect_dense(scan.row, certain);
        self.weigh(scan.scale);
        self.tighten_to_mass(nucleus.top_p * total_weight);
    }

    /// Keeps the nucleus by what a sample of the row suggests; false if that was no good guess.
    fn keep_guessed_nucleus(
        &mut self,
        scan: RowScan<'_>,
        nucleus: Nucleus,
        sample: &[Lanes],
        total_weight: f64,
        certain: f32,
    ) -> bool {
        let RowScan { row, scale, .. } = scan;
        ensure_len(&mut self.weights, sample.as_flattened().len().next_multiple_of(BLOCK), 0.0);
        let tail = LowerTail::of_sample(self.level, sample, row.len(), scale, certain, scan.max, &mut self.weights);
        let (target, outside) = (nucleus.top_p * total_weight, nucleus.outside(total_weight));
        let threshold = tail.threshold((1.0 - GUESS_SLACK) * outside);
        if tail.is_last(threshold) {
            // A row of a few heavy tokens; or one of many equal ones, of which the sample does not tell how many are in the nucleus.
            let reaching = self.level.run(CountAtLeast { values: scan.maxima, threshold });
            if reaching > scan.maxima.len() * LANES / 8 {
                return false;
            }
            self.collect_sparse(scan, threshold);
        } else {
            self.collect_dense(row, threshold);
        }
        ensure_len(&mut self.weights, self.len.next_multiple_of(BLOCK), 0.0);
        let (values, weights) = (&self.values[..self.len], &mut self.weights);
        let pivots = tail.pivots(outside);
        let weighed = self.search.weigh_between(self.level, values, scale, pivots, weights);
        // The nucleus is in the shortlist if the shortlist has its weight.
        if weighed.total < target * (1.0 + 1e-6) {
            return false;
        }
        self.cut = self.search.cut_between(self.level, values, &weights[..self.len], target, pivots, &weighed);
        true
    }

    /// Makes the cut drop all logits below `threshold` too.
    pub(super) fn raise_cut(&mut self, threshold: f32) {
        if threshold > self.cut.value {
            self.cut = Cut { value: threshold, position: u32::MAX };
        }
    }

    /// Sets the weights of what the cut drops to 0.
    pub(super) fn apply_cut(&mut self) {
        if self.cut == KEEP_ALL {
            return;
        }
        let values = &self.values[..self.len];
        self.level.run(ApplyCut {
            cut: self.cut,
            values,
            weights: &mut self.weights,
            block_sums: &mut self.block_sums,
        });
        self.total_weight = self.block_sums.iter().sum();
    }

    /// The sum of the weights of all tokens that may be drawn.
    pub(super) fn total_weight(&self) -> f64 {
        self.total_weight
    }

    /// The token that `u` draws; `row` is the row of the shortlist.
    pub(super) fn draw(&self, row: &[f32], u: f64) -> u32 {
        let target = u * self.total_weight;
        let (block, before) = find_block(&self.block_sums, target);
        let start = block * BLOCK;
        let weights = &self.weights[start..(start + BLOCK).min(self.len)];
        self.token(row, start + find_in_block(weights, before, target))
    }

    /// The tokens that may be drawn and their weights; `row` is the row of the shortlist.
    pub(super) fn kept(&self, row: &[f32]) -> Vec<(u32, f64)> {
        let listed = (0..).zip(row).filter(|&(_, &x)| x >= self.threshold).enumerate();
        listed
            .filter(|&(place, (_, &x))| self.cut.keeps(x, place))
            .map(|(place, (token, _))| (token, f64::from(self.weights[place])))
            .collect()
    }

    /// The token of the shortlist's element `place`.
    fn token(&self, row: &[f32], place: usize) -> u32 {
        // The last block before which there are at most `place` elements; before the first there are 0.
        let block = self.block_starts.partition_point(|&start| start as usize <= place) - 1;
        let first = block * BLOCK;
        let mut within = (first..).zip(&row[first..]).filter(|&(_, &x)| x >= self.threshold);
        let Some((token, _)) = within.nth(place - self.block_starts[block] as usize) else {
            unreachable!("this is not the row of the shortlist")
        };
        token as u32
    }

    /// Fills the shortlist; for thresholds that few blocks reach.
    fn collect_sparse(&mut self, scan: RowScan<'_>, threshold: f32) {
        let RowScan { row, maxima, .. } = scan;
        self.reset(row.len(), threshold);
        let (values, block_starts) = (&mut self.values[..], &mut self.block_starts[..]);
        self.len = self.level.run(CollectSparse { row, maxima, threshold, values, block_starts });
    }

    /// Fills the shortlist; for thresholds that most blocks reach.
    fn collect_dense(&mut self, row: &[f32], threshold: f32) {
        self.reset(row.len(), threshold);
        let (values, block_starts) = (&mut self.values[..], &mut self.block_starts[..]);
        self.len = self.level.run(CollectDense { row, threshold, values, block_starts });
    }

    /// Removes the cut and makes room for a whole row.
    fn reset(&mut self, vocab: usize, threshold: f32) {
        ensure_len(&mut self.values, vocab + BLOCK + LANES, 0.0);
        self.block_starts.resize(vocab.div_ceil(BLOCK), 0);
        self.threshold = threshold;
        self.cut = KEEP_ALL;
    }

    /// Computes the weights of the shortlist and their sums.
    fn weigh(&mut self, scale: SoftmaxScale) {
        ensure_len(&mut self.weights, self.len.next_multiple_of(BLOCK), 0.0);
        let values = &self.values[..self.len];
        self.level.run(SoftmaxWeights {
            values,
            scale,
            weights: &mut self.weights,
            block_sums: Some(&mut self.block_sums),
        });
        self.total_weight = self.block_sums.iter().sum();
    }

    /// Makes the cut keep no more than the heaviest elements whose weights reach `target`.
    fn tighten_to_mass(&mut self, target: f64) {
        let (values, weights) = (&self.values[..self.len], &self.weights[..self.len]);
        let cut = self.search.cut_at_mass(self.level, values, weights, target, self.total_weight);
        self.cut = self.cut.tighter(cut);
    }

    /// A finite lower bound of the k-th largest logit, if that is finite.
    ///
    /// At least k lane maxima reach it. They are maxima of disjoint sets of logits, so at least k logits reach it.
    fn lower_bound_of_kth(&mut self, scan: RowScan<'_>, k: usize) -> f32 {
        let maxima = scan.maxima;
        // Fewer, larger sets are faster to count, and their maxima are still close to the k largest logits.
        let blocks_per_fold = if maxima.len() * LANES >= 8 * BLOCKS_PER_FOLD * k { BLOCKS_PER_FOLD } else { 1 };
        let mut low = self.level.run(FoldMaxima { maxima, blocks_per_fold, folded: &mut self.folded });
        if self.folded.len() * LANES < k || !low.is_finite() {
            return f32::MIN;
        }
        let mut high = scan.max;
        let enough = k + k / 4 + 4;
        for _ in 0..BISECTION_STEPS {
            let middle = low + (high - low) / 2.0;
            if middle <= low || middle >= high {
                break;
            }
            let count = self.level.run(CountAtLeast { values: &self.folded, threshold: middle });
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
}

/// Makes a buffer at least this long; never shortens it.
fn ensure_len<T: Clone>(buffer: &mut Vec<T>, len: usize, value: T) {
    if buffer.len() < len {
        buffer.resize(len, value);
    }
}

/// The first block in which the cumulative weight exceeds the target, and the cumulative weight before it. If rounding
/// puts the target at the total, the last block with a weight.
pub(super) fn find_block(block_sums: &[f64], target: f64) -> (usize, f64) {
    let (mut cumulative, mut found) = (0.0, (0, 0.0));
    for (block, &sum) in block_sums.iter().enumerate() {
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

/// The first index in a block where the cumulative weight exceeds the target, given the cumulative weight before the
/// block; if rounding keeps the sum of the block short of the target, the last index with a weight.
pub(super) fn find_in_block(weights: &[f32], mut cumulative: f64, target: f64) -> usize {
    // The weight before the block does not exceed the target, so an index of weight 0 cannot be the first that does.
    let found = weights.iter().position(|&weight| {
        cumulative += f64::from(weight);
        cumulative > target
    });
    found.or_else(|| weights.iter().rposition(|&weight| weight > 0.0)).unwrap_or(0)
}
