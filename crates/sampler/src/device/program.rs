//! What the rules do to a batch of rows, from the logits to one token for each row.

use super::ops::{Binary, Ops, Reduce};
use super::search::Search;
use super::select::{Candidates, maxima};
use super::tree::Tree;
use super::{BAD, MORE, share};
use crate::SamplingParams;
use candle_core::{DType, Result, Tensor};

/// The weight of the largest logit.
const ONE: f64 = 1_099_511_627_776.0;
/// The largest top-k that is selected by sorts; beyond, comparing all of them with each other is work to count.
const MOST: usize = 128;
/// The candidates among which the nucleus of top-p alone is looked for first, and the logits that there must be for each.
const NUCLEUS: usize = 96;
const FOR_EACH: usize = 256;

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

/// What the rules leave of a batch.
pub(super) struct Kept {
    columns: Columns,
    /// Their logits, `(B, n)`.
    logits: Tensor,
    /// Their weights, `(B, n)` i64: zero if dropped.
    weights: Tensor,
    /// All masks that were applied, `(B, n)`.
    masks: Vec<Tensor>,
    /// Where it is not enough to have looked at the candidates, `(B, 1)`: 0.
    fits: Option<Tensor>,
    /// Greedy where the largest probability exceeds this.
    adaptive: Option<f64>,
}

/// Which tokens the columns are.
enum Columns {
    /// Those at these positions, `(B, n)` u32, in no order.
    Few(Tensor),
    /// The vocabulary.
    All(Tree),
}

impl Kept {
    fn keep(&mut self, ops: &Ops, mask: Tensor) -> Result<()> {
        self.weights = ops.choose_or(&mask, &self.weights, 0.0)?;
        self.masks.push(mask);
        Ok(())
    }

    /// The token of each row, `(B, 1)` u32: [`BAD`] if it has none, [`MORE`] if the candidates were too few.
    pub(super) fn draw(&self, ops: &Ops, uniforms: &[f64]) -> Result<Tensor> {
        let token = match &self.columns {
            Columns::All(tree) => {
                let prefixes = tree.prefixes(ops, &self.weights)?;
                let target = share::of_totals(ops, &prefixes.total, uniforms)?;
                let token = tree.pick(ops, &self.weights, &prefixes, &target)?;
                let largest = |x: &Tensor| tree.reduce(ops, Reduce::Max, x);
                let first = |x: &Tensor| tree.reduce(ops, Reduce::Min, x);
                self.greedy_where_sure(ops, token, &prefixes.total, &tree.positions(ops)?, largest, first)?
            }
            Columns::Few(positions) => {
                let total = ops.reduce(Reduce::Sum, &self.weights)?;
                let target = share::of_totals(ops, &total, uniforms)?;
                // (B, 1, k) against (B, k, 1): which come up to which.
                let up_to = ops.binary(Binary::AtMost, &positions.unsqueeze(1)?, &positions.unsqueeze(2)?)?;
                let sums = ops.choose_or(&up_to, &self.weights.unsqueeze(1)?, 0.0)?;
                let sums = ops.reduce(Reduce::Sum, &sums)?.squeeze(2)?; // (B, k, 1) -> (B, k)
                let passed = ops.binary(Binary::Above, &sums, &target)?;
                let token = ops.reduce(Reduce::Min, &ops.choose_or(&passed, positions, f64::from(BAD))?)?;
                let largest = |x: &Tensor| ops.reduce(Reduce::Max, x);
                let first = |x: &Tensor| ops.reduce(Reduce::Min, x);
                self.greedy_where_sure(ops, token, &total, positions, largest, first)?
            }
        };
        match &self.fits {
            Some(fits) => ops.choose_or(fits, &token, f64::from(MORE)),
            None => Ok(token),
        }
    }

    /// `token`, or the first of the largest logit in rows where its probability, [`ONE`] of `total`, exceeds the threshold.
    fn greedy_where_sure(
        &self,
        ops: &Ops,
        token: Tensor,
        total: &Tensor,
        positions: &Tensor,
        largest: impl Fn(&Tensor) -> Result<Tensor>,
        first: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let Some(threshold) = self.adaptive else { return Ok(token) };
        // The largest integer below the quotient; any probability exceeds 0. A good row has a total of at least `ONE`.
        let most = ((ONE / threshold).ceil() - 1.0).min(62f64.exp2());
        let sure = ops.with(Binary::AtMost, total, most)?;
        let sure = ops.binary(Binary::Mul, &sure, &ops.with(Binary::AtLeast, total, ONE)?)?;
        let here = ops.binary(Binary::Equal, &self.logits, &largest(&self.logits)?)?;
        let first = first(&ops.choose_or(&here, positions, f64::from(BAD))?)?;
        ops.choose(&sure, &first, &token)
    }

    /// The tokens of a single row that may be drawn and their logits, in no order: those of weight zero too, if no rule
    /// dropped them.
    fn tokens(&self, ops: &Ops) -> Result<Vec<(u32, f32)>> {
        let mut kept = ops.with(Binary::Above, &self.logits, f64::NEG_INFINITY)?;
        for mask in &self.masks {
            kept = ops.binary(Binary::Mul, &kept, mask)?;
        }
        let positions = match &self.columns {
            Columns::Few(positions) => positions.clone(),
            Columns::All(tree) => tree.positions(ops)?,
        };
        let tokens = ops.read(&ops.choose_or(&kept, &positions, f64::from(BAD))?)?;
        let logits = ops.read_floats(&self.logits)?;
        Ok(tokens.into_iter().zip(logits).filter(|&(token, _)| token != BAD).collect())
    }
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
        let falling = candidates.falling(ops, k)?;
        let mut least = falling.narrow(1, k - 1, 1)?;
        let falling_wide = ops.cast(&falling, DType::F32)?;
        let largest = falling_wide.narrow(1, 0, 1)?;
        let (mut count, mut fits) = (None, None);
        if params.top_p < 1.0 {
            let weights = self.weigh(ops.binary(Binary::Sub, &falling_wide, &largest)?, true)?;
            let sums = ops.prefixes(&weights, false)?; // (B, k + 1)
            let all = sums.narrow(1, k, 1)?;
            let total = if of_row { self.total(&largest)? } else { all.clone() };
            let target = ops.with(Binary::Max, &share::of_total(ops, &total, params.top_p)?, 1.0)?;
            let stays = ops.binary(Binary::Above, &target, &sums.narrow(1, 0, k)?)?;
            let stay = ops.reduce(Reduce::Sum, &ops.cast(&stays, DType::U32)?)?;
            least = ops.gather(&falling, &ops.with(Binary::Sub, &stay, 1.0)?)?;
            fits = if of_row { Some(ops.binary(Binary::AtLeast, &all, &target)?) } else { None };
            count = Some(stay);
        }
        let (positions, logits) = candidates.down_to(ops, &least, k)?;
        let logits = ops.cast(&logits, DType::F32)?;
        let below = ops.binary(Binary::Sub, &logits, &largest)?;
        let weights = self.weigh(below.clone(), true)?;
        let mut kept = Kept { columns: Columns::Few(positions), logits, weights, masks: Vec::new(), fits, adaptive };
        if let Some(count) = count {
            kept.keep(ops, ops.binary(Binary::Above, &count, &ops.ramp(k, 1)?)?)?;
        }
        self.apply_min_p(&mut kept, &below)?;
        Ok(kept)
    }

    /// What the rules leave, by a search where they cut.
    pub(super) fn kept_of_all(&self) -> Result<Kept> {
        let Self { ops, params, adaptive, .. } = *self;
        let (rows, vocab) = self.logits.dims2()?;
        let tree = Tree::new(rows, vocab);
        let (size, stride) = windows(vocab);
        let largest = ops.reduce(Reduce::Max, &maxima(ops, self.logits, size, stride, self.check)?)?;
        let largest = ops.cast(&largest, DType::F32)?;
        let x = tree.pad(ops, &ops.cast(self.logits, DType::F32)?)?;
        let weights = self.weigh(ops.binary(Binary::Sub, &x, &largest)?, false)?;
        let mut kept =
            Kept { columns: Columns::All(tree), logits: x, weights, masks: Vec::new(), fits: None, adaptive };
        let halves = self.logits.dtype() != DType::F32;
        if params.top_k > 0 && params.top_k < vocab {
            let finite = ops.with(Binary::Above, &kept.logits, f64::NEG_INFINITY)?;
            // A bad row has no mass, so that the search ends.
            let zero = ops.binary(Binary::Sub, &largest, &largest)?;
            let good = ops.binary(Binary::Equal, &zero, &zero)?;
            let ones = Tree::ones(ops, &ops.binary(Binary::Mul, &finite, &good)?)?;
            let total = tree.reduce(ops, Reduce::Sum, &ones)?;
            let target = ops.scalar(params.top_k as f64, DType::I64)?;
            let search = Search { ops, tree, x: &kept.logits, largest: &largest, halves };
            let mask = search.reach(&ones, &total, &target)?;
            // What is dropped must not look like a tie of what is kept.
            kept.logits = ops.choose_or(&mask, &kept.logits, f64::NEG_INFINITY)?;
            kept.keep(ops, mask)?;
        }
        if params.top_p < 1.0 {
            let total = tree.reduce(ops, Reduce::Sum, &kept.weights)?;
            let target = share::of_total(ops, &total, params.top_p)?;
            let search = Search { ops, tree, x: &kept.logits, largest: &largest, halves };
            let mask = search.reach(&kept.weights, &total, &target)?;
            kept.keep(ops, mask)?;
        }
        if params.min_p > 0.0 {
            let below = ops.binary(Binary::Sub, &kept.logits, &largest)?;
            self.apply_min_p(&mut kept, &below)?;
        }
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

    /// The weight of each row, `(B, 1)`.
    fn total(&self, largest: &Tensor) -> Result<Tensor> {
        let ops = self.ops;
        let below = ops.binary(Binary::Sub, &ops.cast(self.logits, DType::F32)?, largest)?;
        let weights = self.weigh(below, false)?;
        ops.with(Binary::Max, &ops.reduce(Reduce::Sum, &weights)?, 0.0)
    }

    fn apply_min_p(&self, kept: &mut Kept, below: &Tensor) -> Result<()> {
        if self.params.min_p > 0.0 {
            // In the exponent, where the logits are exact. A quotient that rounds to 1 in f64 counts as 1.
            let bound = (self.params.min_p.ln() - f64::EPSILON / 4.0) * self.params.temperature;
            // Uploaded and not kept: with a schedule it is another number at every position.
            let bound = self.ops.upload(vec![bound], &[1], DType::F32)?;
            kept.keep(self.ops, self.ops.binary(Binary::AtLeast, below, &bound)?)?;
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
