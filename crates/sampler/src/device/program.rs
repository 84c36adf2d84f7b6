//! What the rules do to a batch of rows, from the logits to one token for each row.

use super::kept::{Columns, Kept, Whole};
use super::ops::{Binary, Constant, Ops, Reduce};
use super::search::{Range, Search};
use super::select::{Candidates, maxima};
use super::tree::Tree;
use super::{BAD, MORE, ONE, share};
use crate::SamplingParams;
use candle_core::{DType, Result, Tensor};

/// The largest top-k that is selected by sorts; beyond, comparing all of them with each other is work to count.
const MOST: usize = 128;
/// The candidates among which the nucleus of top-p alone is looked for first, and the logits that there must be for each.
const NUCLEUS: usize = 96;
const FOR_EACH: usize = 256;
/// Rounds of the search that follows a look at the candidates, before its first draw.
const ROUNDS: usize = 10;
/// More of them where two values are left in the range of some row.
const FURTHER_ROUNDS: usize = 3;
const ROUNDS_OF_HALVES: usize = 4;

/// A batch of rows and what is to be done to it.
#[derive(Clone, Copy)]
pub(super) struct Program<'a> {
    pub(super) ops: &'a Ops,
    /// `(B, V)`
    pub(super) logits: &'a Tensor,
    pub(super) params: &'a SamplingParams,
    /// Greedy where the largest probability exceeds this.
    pub(super) adaptive: Option<f64>,
    /// Whether NaNs are looked for. The look takes a sum that overflowed in both directions for one.
    pub(super) check: bool,
}

impl Program<'_> {
    /// Greedy: the first position of the largest logit, `(B, 1)` u32; [`BAD`] if that is not finite.
    pub(super) fn greedy(&self) -> Result<Tensor> {
        let ops = self.ops;
        let (size, stride) = windows(self.logits.dim(1)?);
        let maxima = maxima(ops, self.logits, size, stride, self.check)?;
        let largest = ops.reduce(Reduce::Max, &maxima)?;
        let here = ops.binary(Binary::Equal, &maxima, &largest)?;
        let (first, last) = (ops.ramp(maxima.dim(1)?, stride)?, (maxima.dim(1)? - 1) * stride);
        let first = ops.reduce(Reduce::Min, &ops.choose_or(&here, &first, last as f64)?)?;
        let positions = ops.binary(Binary::Add, &first, &ops.ramp(size, 1)?)?; // (B, size)
        // What is not finite becomes NaN, which nothing equals.
        let zero = ops.binary(Binary::Sub, &largest, &largest)?;
        let largest = ops.binary(Binary::Add, &largest, &zero)?;
        let here = ops.binary(Binary::Equal, &ops.gather(self.logits, &positions)?, &largest)?;
        ops.reduce(Reduce::Min, &ops.choose_or(&here, &positions, f64::from(BAD))?)
    }

    /// What the rules leave, by way of candidates where these are few.
    pub(super) fn kept(&self) -> Result<Kept> {
        let vocab = self.logits.dim(1)?;
        let top_k = self.params.top_k;
        if (1..vocab).contains(&top_k) {
            return if top_k <= MOST { self.of_candidates(top_k, false) } else { self.kept_of_all() };
        }
        let few = if vocab <= MOST { vocab } else { NUCLEUS.min(vocab / FOR_EACH) };
        if self.params.top_p < 1.0 && few > 0 { self.of_candidates(few, true) } else { self.kept_of_all() }
    }

    /// The tokens of a single row that may be drawn and their logits, in no order; none if the row is bad.
    pub(super) fn tokens(&self) -> Result<Vec<(u32, f32)>> {
        let ops = self.ops;
        if self.params.is_greedy() {
            let token = ops.read(&self.greedy()?)?[0];
            return Ok(if token == BAD { Vec::new() } else { vec![(token, 0.0)] });
        }
        let kept = self.kept()?;
        match &kept.fits {
            Some(fits) if ops.read(&ops.cast(fits, DType::U32)?)? == [0] => self.kept_of_all()?.tokens(ops),
            _ => kept.tokens(ops),
        }
    }

    /// What the rules leave of the k largest. Top-p is of their mass or, with `of_row`, of the whole row's.
    fn of_candidates(&self, k: usize, of_row: bool) -> Result<Kept> {
        let Self { ops, params, adaptive, .. } = *self;
        let candidates = Candidates::new(ops, self.logits, k, self.check)?;
        let (order, falling) = candidates.falling(ops, k)?;
        let mut least = falling.narrow(1, k - 1, 1)?;
        let falling_wide = ops.cast(&falling, DType::F32)?;
        let largest = falling_wide.narrow(1, 0, 1)?;
        let (mut count, mut fits, mut whole) = (None, None, None);
        if params.top_p < 1.0 && of_row {
            let (tree, x) = self.padded()?;
            let all = self.weigh(ops.binary(Binary::Sub, &x, &largest)?, false)?;
            let weights = ops.gather(&all, &ops.gather(&candidates.positions, &order)?)?;
            let weights = ops.with(Binary::Max, &weights, 0.0)?;
            // What is no number in a bad row weighs the least integer on CUDA, and all else 0.
            let total = ops.with(Binary::Max, &ops.reduce(Reduce::Sum, &all)?, 0.0)?;
            let (more, sum, target) = self.nucleus(&weights, &total)?;
            fits = Some(ops.binary(Binary::AtLeast, &sum, &target)?);
            least = ops.gather(&falling, &more)?;
            count = Some(more);
            whole = Some(Whole { tree, x, weights: all, falling: falling_wide.clone(), target });
        } else if params.top_p < 1.0 {
            let weights = self.weigh(ops.binary(Binary::Sub, &falling_wide, &largest)?, true)?;
            let total = ops.reduce(Reduce::Sum, &weights)?;
            let (more, ..) = self.nucleus(&weights, &total)?;
            least = ops.gather(&falling, &more)?;
            count = Some(more);
        }
        let (positions, logits) = candidates.down_to(ops, &least, k)?;
        let logits = ops.cast(&logits, DType::F32)?;
        let weights = match &whole {
            Some(whole) => ops.with(Binary::Max, &ops.gather(&whole.weights, &positions)?, 0.0)?,
            None => self.weigh(ops.binary(Binary::Sub, &logits, &largest)?, true)?,
        };
        let mut kept =
            Kept { columns: Columns::Few(positions), logits, weights, masks: Vec::new(), fits, adaptive, whole };
        if let Some(count) = count {
            kept.keep(ops, ops.binary(Binary::AtLeast, &count, &ops.ramp(k, 1)?)?)?;
        }
        self.apply_min_p(&mut kept, &largest)?;
        Ok(kept)
    }

    /// What the rules leave, by a search where they cut.
    pub(super) fn kept_of_all(&self) -> Result<Kept> {
        let Self { ops, params, adaptive, .. } = *self;
        let vocab = self.logits.dim(1)?;
        let (size, stride) = windows(vocab);
        let largest = ops.reduce(Reduce::Max, &maxima(ops, self.logits, size, stride, self.check)?)?;
        let largest = ops.cast(&largest, DType::F32)?;
        let (tree, x) = self.padded()?;
        let weights = self.weigh(ops.binary(Binary::Sub, &x, &largest)?, false)?;
        let mut kept = Kept::all(tree, x, weights, adaptive);
        let halves = self.logits.dtype() != DType::F32;
        if params.top_k > 0 && params.top_k < vocab {
            let finite = ops.with(Binary::Above, &kept.logits, f64::NEG_INFINITY)?;
            // A bad row has no mass, so that the search ends.
            let zero = ops.binary(Binary::Sub, &largest, &largest)?;
            let good = ops.binary(Binary::Equal, &zero, &zero)?;
            let ones = Tree::ones(ops, &ops.binary(Binary::Mul, &finite, &good)?)?;
            let total = tree.reduce(ops, Reduce::Sum, &ones)?;
            // Of a bad row, whatever there is.
            let target = ops.with(Binary::Max, &ops.with(Binary::Min, &total, params.top_k as f64)?, 1.0)?;
            let search = Search { ops, tree, x: &kept.logits, largest: &largest, masses: &ones, target };
            let mask = search.reach(halves)?;
            // What is dropped must not look like a tie of what is kept.
            kept.logits = ops.choose_or(&mask, &kept.logits, f64::NEG_INFINITY)?;
            kept.keep(ops, mask)?;
        }
        if params.top_p < 1.0 {
            let total = tree.reduce(ops, Reduce::Sum, &kept.weights)?;
            let target = ops.with(Binary::Max, &share::of_total(ops, &total, params.top_p)?, 1.0)?;
            let search = Search { ops, tree, x: &kept.logits, largest: &largest, masses: &kept.weights, target };
            let mask = search.reach(halves)?;
            kept.keep(ops, mask)?;
        }
        self.apply_min_p(&mut kept, &largest)?;
        Ok(kept)
    }

    /// Integer weights of what lies so far below the largest logit, 0 or less. Those of a bad row are 0 but for its NaNs,
    /// which a device may make anything; `clamp` makes them 0 too.
    fn weigh(&self, below: Tensor, clamp: bool) -> Result<Tensor> {
        let ops = self.ops;
        // Each step frees what it came from: these are as large as the logits.
        let mut weights = below;
        // A temperature below the range of f32 acts as the smallest in it.
        weights = ops.scale(&weights, (1.0 / self.params.temperature).min(f64::from(f32::MAX)))?;
        weights = ops.exp(&weights)?;
        weights = ops.scale(&weights, ONE)?;
        weights = ops.cast(&weights, DType::I64)?;
        if clamp { ops.with(Binary::Max, &weights, 0.0) } else { Ok(weights) }
    }

    /// Of falling weights, `(B, k)`, how many stay beside the first so that they reach top-p of `total`, `(B, 1)` u32 and
    /// at most `k - 1`; the sum of all; and what is to be reached, which is 0 in a bad row.
    fn nucleus(&self, weights: &Tensor, total: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
        let ops = self.ops;
        let (rows, k) = weights.dims2()?;
        let target = share::of_total(ops, total, self.params.top_p)?;
        if k == 1 {
            return Ok((ops.tile(Constant::Scalar(0), DType::U32, rows, 1)?, weights.clone(), target));
        }
        let sums = ops.prefixes(weights, true)?;
        let short = ops.binary(Binary::Above, &target, &sums.narrow(1, 0, k - 1)?)?;
        let more = ops.reduce(Reduce::Sum, &ops.cast(&short, DType::U32)?)?;
        Ok((more, sums.narrow(1, k - 1, 1)?, target))
    }

    /// The logits as a tree's leaves, `(B, width)` f32.
    fn padded(&self) -> Result<(Tree, Tensor)> {
        let (rows, vocab) = self.logits.dims2()?;
        let tree = Tree::new(rows, vocab);
        Ok((tree, tree.pad(self.ops, &self.ops.cast(self.logits, DType::F32)?)?))
    }

    /// A token for each of these rows, whose nucleus is not among the candidates, or [`BAD`].
    ///
    /// The range of the threshold is narrowed until what reaches it is, in nearly all rows, the nucleus: then without the
    /// least of it there is too little. The others, and those whose nucleus ends within equal logits, are searched on.
    pub(super) fn search_on(&self, whole: Whole, rows: &[usize], uniforms: &[f64]) -> Result<Vec<u32>> {
        let Self { ops, params, adaptive, .. } = *self;
        let vocab = self.logits.dim(1)?;
        let Whole { mut tree, mut x, mut weights, mut falling, mut target } = whole;
        let mut logits = self.logits.clone();
        if rows.len() < logits.dim(0)? {
            for part in [&mut x, &mut weights, &mut falling, &mut target, &mut logits] {
                *part = ops.rows(part, rows)?;
            }
            tree = tree.with_rows(rows.len());
        }
        let (largest, least) = (falling.narrow(1, 0, 1)?, falling.narrow(1, falling.dim(1)? - 1, 1)?);
        // What weighs less than the V-th part of what may be missing is missing together; by a little less, for rounding.
        let depth = (vocab as f64 / (1.0 - params.top_p)).ln() * 1.001 + 0.01;
        // With a schedule it is another depth at every position.
        let low = ops.shift(&largest, (-depth * params.temperature).max(f64::from(f32::MIN)))?;
        let smallest = ops.cast(&ops.reduce(Reduce::Min, &logits)?, DType::F32)?;
        let low = ops.binary(Binary::Max, &low, &smallest)?;
        let width = ops.binary(Binary::Sub, &least, &low)?;
        let search = Search { ops, tree, x: &x, largest: &largest, masses: &weights, target: target.clone() };
        let mut range = Range { low, width, units: 1, round: 0 };
        let ties = self.logits.dtype() != DType::F32;
        let all = || Kept::all(tree, x.clone(), weights.clone(), adaptive);
        if ties {
            search.narrow(&mut range, ROUNDS_OF_HALVES)?;
        } else {
            for rounds in [ROUNDS, FURTHER_ROUNDS] {
                search.narrow(&mut range, rounds)?;
                let mut kept = all();
                let reached = ops.binary(Binary::AtLeast, &x, &range.low)?;
                let lightest = ops.reduce(Reduce::Min, &ops.choose_or(&reached, &weights, ONE)?)?;
                kept.keep(ops, reached)?;
                let without = ops.binary(Binary::Sub, &ops.reduce(Reduce::Sum, &kept.weights)?, &lightest)?;
                kept.fits = Some(ops.binary(Binary::Above, &target, &without)?);
                self.apply_min_p(&mut kept, &largest)?;
                let tokens = ops.read(&kept.draw(ops, uniforms)?)?;
                if !tokens.contains(&MORE) {
                    return Ok(tokens);
                }
            }
        }
        let mut kept = all();
        kept.keep(ops, search.settle(range)?)?;
        self.apply_min_p(&mut kept, &largest)?;
        ops.read(&kept.draw(ops, uniforms)?)
    }

    fn apply_min_p(&self, kept: &mut Kept, largest: &Tensor) -> Result<()> {
        let Self { ops, params, .. } = *self;
        if params.min_p > 0.0 {
            // In the exponent, where the logits are exact. A quotient that rounds to 1 in f64 counts as 1.
            let bound = (params.min_p.ln() - f64::EPSILON / 4.0) * params.temperature;
            // Uploaded and not kept: with a schedule it is another number at every position.
            let bound = ops.upload(vec![bound], &[1], DType::F32)?;
            let below = ops.binary(Binary::Sub, &kept.logits, largest)?;
            kept.keep(ops, ops.binary(Binary::AtLeast, &below, &bound)?)?;
        }
        Ok(())
    }
}

/// The size and the stride of windows that cover a row: they overlap by as little as they can.
fn windows(vocab: usize) -> (usize, usize) {
    let stride = if vocab < 64 { vocab } else { (24..=64).rev().min_by_key(|stride| vocab % stride).unwrap_or(64) };
    (stride + vocab % stride, stride)
}

/// The first place of a single row that is NaN, and that is +inf.
pub(super) fn faults(ops: &Ops, row: &Tensor) -> Result<(Option<u32>, Option<u32>)> {
    let places = ops.ramp(row.dim(1)?, 1)?;
    let first = |mask: &Tensor| ops.reduce(Reduce::Min, &ops.choose_or(mask, &places, f64::from(BAD))?);
    let number = ops.binary(Binary::Equal, row, row)?;
    let nan = first(&ops.choose(&number, &ops.scalar(0.0, DType::U8)?, &ops.scalar(1.0, DType::U8)?)?)?;
    let infinity = first(&ops.with(Binary::Equal, row, f64::INFINITY)?)?;
    let found = ops.read(&ops.concat(&[&nan, &infinity])?)?;
    let place = |n: usize| Some(found[n]).filter(|&place| place != BAD);
    Ok((place(0), place(1)))
}
