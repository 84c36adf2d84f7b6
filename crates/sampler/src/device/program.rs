//! The sampling rules as tensor operations: from the logits of a batch to the tokens that may be drawn of each row.

use super::chunked_cdf::ChunkedCdf;
use super::constants::{MAX_WEIGHT, NEEDS_SEARCH, NO_TOKEN};
use super::fraction;
use super::kept::{Columns, KeptTokens, RowWeights};
use super::ops::{Binary, Constant, Ops, Reduce};
use super::threshold_search::{ThresholdRange, ThresholdSearch};
use super::top_k::{Candidates, window_maxima};
use crate::SamplingParams;
use candle_core::{DType, Result, Tensor};

/// The largest top-k that is selected by sorts. Above it the k x k comparisons of the draw would cost more than a
/// search.
const MAX_SORTED_TOP_K: usize = 128;
/// The number of candidates among which the nucleus of top-p without top-k is looked for first.
const NUCLEUS_CANDIDATES: usize = 96;
/// The logits that there must be for each of these candidates; shorter rows have fewer candidates.
const MIN_LOGITS_PER_CANDIDATE: usize = 256;
/// The rounds of the search that follows if the candidates did not suffice, before its first draw.
const ROUNDS: usize = 10;
/// The additional rounds if these have not decided every row.
const FURTHER_ROUNDS: usize = 3;
/// The rounds of that search for f16 and bf16, whose values lie farther apart.
const HALF_ROUNDS: usize = 4;

/// A batch of rows of logits and the rules to apply, at one temperature.
#[derive(Clone, Copy)]
pub(super) struct BatchProgram<'a> {
    pub(super) ops: &'a Ops,
    /// The logits after penalties, `(B, V)`, contiguous.
    pub(super) logits: &'a Tensor,
    pub(super) params: &'a SamplingParams,
    /// A row is greedy where its largest probability exceeds this.
    pub(super) adaptive: Option<f64>,
    /// Whether rows with a NaN get [`NO_TOKEN`]. The check is by sums of chunks, so that a chunk whose partial sums
    /// overflow to both infinities looks like one with a NaN.
    pub(super) check_nan: bool,
}

impl BatchProgram<'_> {
    /// The greedy tokens, `(B, 1)` u32: the first position of the largest logit, or [`NO_TOKEN`] if that is not finite.
    pub(super) fn greedy(&self) -> Result<Tensor> {
        let ops = self.ops;
        let (size, stride) = windows(self.logits.dim(1)?);
        let maxima = window_maxima(ops, self.logits, size, stride, self.check_nan)?;
        let largest = ops.reduce(Reduce::Max, &maxima)?;
        let is_max = ops.binary(Binary::Eq, &maxima, &largest)?;
        let (first, last) = (ops.arange(maxima.dim(1)?, stride)?, (maxima.dim(1)? - 1) * stride);
        let first = ops.reduce(Reduce::Min, &ops.where_or(&is_max, &first, last as f64)?)?;
        let positions = ops.binary(Binary::Add, &first, &ops.arange(size, 1)?)?; // (B, size)
        // x + (x - x) is NaN where x is not finite, and equals nothing.
        let zero = ops.binary(Binary::Sub, &largest, &largest)?;
        let largest = ops.binary(Binary::Add, &largest, &zero)?;
        let is_max = ops.binary(Binary::Eq, &ops.gather(self.logits, &positions)?, &largest)?;
        ops.reduce(Reduce::Min, &ops.where_or(&is_max, &positions, f64::from(NO_TOKEN))?)
    }

    /// The tokens that the rules keep: among the largest logits if these are few, else by a search over the vocabulary.
    pub(super) fn keep(&self) -> Result<KeptTokens> {
        let vocab = self.logits.dim(1)?;
        let top_k = self.params.top_k;
        if (1..vocab).contains(&top_k) {
            return if top_k <= MAX_SORTED_TOP_K {
                self.keep_of_candidates(top_k, false)
            } else {
                self.keep_of_vocabulary()
            };
        }
        let few =
            if vocab <= MAX_SORTED_TOP_K { vocab } else { NUCLEUS_CANDIDATES.min(vocab / MIN_LOGITS_PER_CANDIDATE) };
        if self.params.top_p < 1.0 && few > 0 { self.keep_of_candidates(few, true) } else { self.keep_of_vocabulary() }
    }

    /// The tokens of a single row that may be drawn and their logits, in no order; none if none can be drawn. A greedy
    /// token comes with the logit 0.
    pub(super) fn tokens(&self) -> Result<Vec<(u32, f32)>> {
        let ops = self.ops;
        if self.params.is_greedy() {
            let token = ops.read_u32(&self.greedy()?)?[0];
            return Ok(if token == NO_TOKEN { Vec::new() } else { vec![(token, 0.0)] });
        }
        let kept = self.keep()?;
        match &kept.sufficient {
            Some(sufficient) if ops.read_u32(&ops.cast(sufficient, DType::U32)?)? == [0] => {
                self.keep_of_vocabulary()?.tokens(ops)
            }
            _ => kept.tokens(ops),
        }
    }

    /// The tokens that the rules keep, all of them among the k largest logits. Top-p is of the mass of these k or, with
    /// `of_whole_row`, of the mass of the row.
    fn keep_of_candidates(&self, k: usize, of_whole_row: bool) -> Result<KeptTokens> {
        let Self { ops, params, adaptive, .. } = *self;
        let candidates = Candidates::new(ops, self.logits, k, self.check_nan)?;
        let (order, falling) = candidates.falling(ops, k)?;
        let mut threshold = falling.narrow(1, k - 1, 1)?;
        let falling_wide = ops.cast(&falling, DType::F32)?;
        let largest = falling_wide.narrow(1, 0, 1)?;
        let (mut count, mut sufficient, mut row_weights) = (None, None, None);
        if params.top_p < 1.0 && of_whole_row {
            let (cdf, x) = self.padded()?;
            let all_weights = self.weigh(ops.binary(Binary::Sub, &x, &largest)?, false)?;
            let weights = ops.gather(&all_weights, &ops.gather(&candidates.positions, &order)?)?;
            let weights = ops.binary_scalar(Binary::Max, &weights, 0.0)?;
            // CUDA casts NaN to `i64::MIN`; clamped, a row with a NaN has the total 0.
            let total = ops.binary_scalar(Binary::Max, &ops.reduce(Reduce::Sum, &all_weights)?, 0.0)?;
            let (extra, sum, target) = self.nucleus(&weights, &total)?;
            sufficient = Some(ops.binary(Binary::Ge, &sum, &target)?);
            threshold = ops.gather(&falling, &extra)?;
            count = Some(extra);
            row_weights = Some(RowWeights { cdf, x, weights: all_weights, falling: falling_wide.clone(), target });
        } else if params.top_p < 1.0 {
            let weights = self.weigh(ops.binary(Binary::Sub, &falling_wide, &largest)?, true)?;
            let total = ops.reduce(Reduce::Sum, &weights)?;
            let (extra, ..) = self.nucleus(&weights, &total)?;
            threshold = ops.gather(&falling, &extra)?;
            count = Some(extra);
        }
        let (positions, logits) = candidates.first_k_from(ops, &threshold, k)?;
        let logits = ops.cast(&logits, DType::F32)?;
        let weights = match &row_weights {
            Some(row_weights) => ops.binary_scalar(Binary::Max, &ops.gather(&row_weights.weights, &positions)?, 0.0)?,
            None => self.weigh(ops.binary(Binary::Sub, &logits, &largest)?, true)?,
        };
        let mut kept = KeptTokens {
            columns: Columns::Candidates(positions),
            logits,
            weights,
            masks: Vec::new(),
            sufficient,
            adaptive,
            row_weights,
        };
        if let Some(count) = count {
            kept.keep(ops, ops.binary(Binary::Ge, &count, &ops.arange(k, 1)?)?)?;
        }
        self.apply_min_p(&mut kept, &largest)?;
        Ok(kept)
    }

    /// The tokens that the rules keep, by a search for the threshold of each rule over the whole vocabulary.
    pub(super) fn keep_of_vocabulary(&self) -> Result<KeptTokens> {
        let Self { ops, params, adaptive, .. } = *self;
        let vocab = self.logits.dim(1)?;
        let (size, stride) = windows(vocab);
        let largest = ops.reduce(Reduce::Max, &window_maxima(ops, self.logits, size, stride, self.check_nan)?)?;
        let largest = ops.cast(&largest, DType::F32)?;
        let (cdf, x) = self.padded()?;
        let weights = self.weigh(ops.binary(Binary::Sub, &x, &largest)?, false)?;
        let mut kept = KeptTokens::all(cdf, x, weights, adaptive);
        let half_precision = self.logits.dtype() != DType::F32;
        if params.top_k > 0 && params.top_k < vocab {
            let finite = ops.binary_scalar(Binary::Gt, &kept.logits, f64::NEG_INFINITY)?;
            // A row whose largest logit is not finite has no mass, so that the search ends.
            let zero = ops.binary(Binary::Sub, &largest, &largest)?;
            let is_finite = ops.binary(Binary::Eq, &zero, &zero)?;
            let ones = ChunkedCdf::mask_weights(ops, &ops.binary(Binary::Mul, &finite, &is_finite)?)?;
            let total = cdf.reduce(ops, Reduce::Sum, &ones)?;
            // At least 1, for rows without mass.
            let target =
                ops.binary_scalar(Binary::Max, &ops.binary_scalar(Binary::Min, &total, params.top_k as f64)?, 1.0)?;
            let search = ThresholdSearch { ops, cdf, x: &kept.logits, largest: &largest, masses: &ones, target };
            let mask = search.smallest_set(half_precision)?;
            // A dropped logit must not look like a tie of a kept one to the searches that follow.
            kept.logits = ops.where_or(&mask, &kept.logits, f64::NEG_INFINITY)?;
            kept.keep(ops, mask)?;
        }
        if params.top_p < 1.0 {
            let total = cdf.reduce(ops, Reduce::Sum, &kept.weights)?;
            let target = ops.binary_scalar(Binary::Max, &fraction::of_total(ops, &total, params.top_p)?, 1.0)?;
            let search =
                ThresholdSearch { ops, cdf, x: &kept.logits, largest: &largest, masses: &kept.weights, target };
            let mask = search.smallest_set(half_precision)?;
            kept.keep(ops, mask)?;
        }
        self.apply_min_p(&mut kept, &largest)?;
        Ok(kept)
    }

    /// The integer weights `trunc(2^40 exp(distance / temperature))`, i64, of distances `x - max` of at most 0.
    ///
    /// A NaN has the weight that the device casts it to; with `clamp`, at least 0.
    fn weigh(&self, distance: Tensor, clamp: bool) -> Result<Tensor> {
        let ops = self.ops;
        // Each step frees its operand, which is as large as the logits.
        let mut weights = distance;
        weights = ops.mul_scalar(&weights, inverse_temperature(self.params.temperature))?;
        weights = ops.exp(&weights)?;
        weights = ops.mul_scalar(&weights, MAX_WEIGHT)?;
        weights = ops.cast(&weights, DType::I64)?;
        if clamp { ops.binary_scalar(Binary::Max, &weights, 0.0) } else { Ok(weights) }
    }

    /// The nucleus among falling weights, `(B, k)`, of rows whose weights sum to `total`. Returns three tensors `(B,
    /// 1)`: how many tokens beside the first it has, u32 and at most `k - 1`; the sum of all k weights; and the mass to
    /// reach, which is 0 in a row without mass.
    fn nucleus(&self, weights: &Tensor, total: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
        let ops = self.ops;
        let (rows, k) = weights.dims2()?;
        let target = fraction::of_total(ops, total, self.params.top_p)?;
        if k == 1 {
            return Ok((ops.tile(Constant::Scalar(0), DType::U32, rows, 1)?, weights.clone(), target));
        }
        let sums = ops.prefix_sums(weights, true)?;
        let short = ops.binary(Binary::Gt, &target, &sums.narrow(1, 0, k - 1)?)?;
        let extra = ops.reduce(Reduce::Sum, &ops.cast(&short, DType::U32)?)?;
        Ok((extra, sums.narrow(1, k - 1, 1)?, target))
    }

    /// The logits padded to the width of a [`ChunkedCdf`], `(B, width)` f32.
    fn padded(&self) -> Result<(ChunkedCdf, Tensor)> {
        let (rows, vocab) = self.logits.dims2()?;
        let cdf = ChunkedCdf::new(rows, vocab);
        Ok((cdf, cdf.pad(self.ops, &self.ops.cast(self.logits, DType::F32)?)?))
    }

    /// The token, or [`NO_TOKEN`], of each of these rows, whose nucleus the candidates did not hold.
    ///
    /// The range of the threshold is narrowed until, in nearly all rows, what reaches the threshold is the nucleus: it
    /// has the mass, and does not have it without its lightest token. The search goes on for the other rows, and for
    /// those whose nucleus ends within equal logits.
    pub(super) fn search_nucleus(&self, row_weights: RowWeights, rows: &[usize], uniforms: &[f64]) -> Result<Vec<u32>> {
        let Self { ops, params, adaptive, .. } = *self;
        let vocab = self.logits.dim(1)?;
        let RowWeights { mut cdf, mut x, mut weights, mut falling, mut target } = row_weights;
        let mut logits = self.logits.clone();
        if rows.len() < logits.dim(0)? {
            for part in [&mut x, &mut weights, &mut falling, &mut target, &mut logits] {
                *part = ops.select_rows(part, rows)?;
            }
            cdf = cdf.with_rows(rows.len());
        }
        let (largest, last) = (falling.narrow(1, 0, 1)?, falling.narrow(1, falling.dim(1)? - 1, 1)?);
        // Together, all tokens lighter than (1 - p) / V of the total weigh less than 1 - p of it. A little deeper, for
        // rounding.
        let depth = (vocab as f64 / (1.0 - params.top_p)).ln() * 1.001 + 0.01;
        // Not a constant: with a schedule each position has another depth.
        let low = ops.add_scalar(&largest, (-depth * params.temperature).max(f64::from(f32::MIN)))?;
        let smallest = ops.cast(&ops.reduce(Reduce::Min, &logits)?, DType::F32)?;
        let low = ops.binary(Binary::Max, &low, &smallest)?;
        let width = ops.binary(Binary::Sub, &last, &low)?;
        let search = ThresholdSearch { ops, cdf, x: &x, largest: &largest, masses: &weights, target: target.clone() };
        let mut range = ThresholdRange { low, width, units: 1, round: 0 };
        // Half-precision logits have many ties, which only `settle` decides.
        let half_precision = self.logits.dtype() != DType::F32;
        let all_tokens = || KeptTokens::all(cdf, x.clone(), weights.clone(), adaptive);
        if half_precision {
            search.narrow(&mut range, HALF_ROUNDS)?;
        } else {
            for rounds in [ROUNDS, FURTHER_ROUNDS] {
                search.narrow(&mut range, rounds)?;
                let mut kept = all_tokens();
                let reached = ops.binary(Binary::Ge, &x, &range.low)?;
                let lightest = ops.reduce(Reduce::Min, &ops.where_or(&reached, &weights, MAX_WEIGHT)?)?;
                kept.keep(ops, reached)?;
                let without = ops.binary(Binary::Sub, &ops.reduce(Reduce::Sum, &kept.weights)?, &lightest)?;
                kept.sufficient = Some(ops.binary(Binary::Gt, &target, &without)?);
                self.apply_min_p(&mut kept, &largest)?;
                let tokens = ops.read_u32(&kept.draw(ops, uniforms)?)?;
                if !tokens.contains(&NEEDS_SEARCH) {
                    return Ok(tokens);
                }
            }
        }
        let mut kept = all_tokens();
        kept.keep(ops, search.settle(range)?)?;
        self.apply_min_p(&mut kept, &largest)?;
        ops.read_u32(&kept.draw(ops, uniforms)?)
    }

    /// Drops the tokens that are less probable than min-p times the largest.
    fn apply_min_p(&self, kept: &mut KeptTokens, largest: &Tensor) -> Result<()> {
        let Self { ops, params, .. } = *self;
        if params.min_p > 0.0 {
            // Not a constant: with a schedule each position has another distance.
            let bound = ops.upload(vec![min_p_distance(params)], &[1], DType::F32)?;
            let distance = ops.binary(Binary::Sub, &kept.logits, largest)?;
            kept.keep(ops, ops.binary(Binary::Ge, &distance, &bound)?)?;
        }
        Ok(())
    }
}

/// What a distance of logits is multiplied with, before `exp`. The reciprocal of a tiny temperature would be infinite in
/// f32.
pub(super) fn inverse_temperature(temperature: f64) -> f64 {
    (1.0 / temperature).min(f64::from(f32::MAX))
}

/// The least distance `x - max`, at most 0, of a logit that min-p keeps; -inf without min-p.
///
/// It compares exponents, in which the logits are exact. A quotient that rounds to 1 in f64 counts as 1.
pub(super) fn min_p_distance(params: &SamplingParams) -> f64 {
    (params.min_p.ln() - f64::EPSILON / 4.0) * params.temperature
}

/// The size and the stride of pooling windows that cover a row exactly, overlapping by as little as possible.
fn windows(vocab: usize) -> (usize, usize) {
    let stride = if vocab < 64 { vocab } else { (24..=64).rev().min_by_key(|stride| vocab % stride).unwrap_or(64) };
    (stride + vocab % stride, stride)
}

/// The first position of a NaN, and the first of a +inf, in a single row.
pub(super) fn find_invalid(ops: &Ops, row: &Tensor) -> Result<(Option<u32>, Option<u32>)> {
    let positions = ops.arange(row.dim(1)?, 1)?;
    let first = |mask: &Tensor| ops.reduce(Reduce::Min, &ops.where_or(mask, &positions, f64::from(NO_TOKEN))?);
    let is_number = ops.binary(Binary::Eq, row, row)?;
    let nan = first(&ops.where_cond(&is_number, &ops.scalar(0.0, DType::U8)?, &ops.scalar(1.0, DType::U8)?)?)?;
    let infinity = first(&ops.binary_scalar(Binary::Eq, row, f64::INFINITY)?)?;
    let found = ops.read_u32(&ops.concat(&[&nan, &infinity])?)?;
    let position = |n: usize| Some(found[n]).filter(|&position| position != NO_TOKEN);
    Ok((position(0), position(1)))
}
