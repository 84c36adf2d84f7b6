//! What the rules leave of a batch, and the draw from it.

use super::ops::{Binary, Ops, Reduce};
use super::tree::Tree;
use super::{BAD, MORE, ONE, share};
use candle_core::{Result, Tensor};

/// What the rules leave of a batch.
pub(super) struct Kept {
    pub(super) columns: Columns,
    /// Their logits, `(B, n)`.
    pub(super) logits: Tensor,
    /// Their weights, `(B, n)` i64: zero if dropped.
    pub(super) weights: Tensor,
    /// All masks that were applied, `(B, n)`.
    pub(super) masks: Vec<Tensor>,
    /// Where it is not enough to have looked at the candidates, `(B, 1)`: 0.
    pub(super) fits: Option<Tensor>,
    /// Greedy where the largest probability exceeds this.
    pub(super) adaptive: Option<f64>,
    /// For the rows where it is not.
    pub(super) whole: Option<Whole>,
}

/// What the look at the candidates has computed of whole rows, for the search that may follow.
pub(super) struct Whole {
    pub(super) tree: Tree,
    /// `(B, width)` f32
    pub(super) x: Tensor,
    /// `(B, width)` i64
    pub(super) weights: Tensor,
    /// The largest logits, `(B, k)`, falling.
    pub(super) falling: Tensor,
    /// `(B, 1)` i64
    pub(super) target: Tensor,
}

/// Which tokens the columns are.
pub(super) enum Columns {
    /// Those at these positions, `(B, n)` u32, in no order.
    Few(Tensor),
    /// The vocabulary.
    All(Tree),
}

impl Kept {
    /// All tokens, padded to the leaves of a tree.
    pub(super) fn all(tree: Tree, logits: Tensor, weights: Tensor, adaptive: Option<f64>) -> Self {
        let columns = Columns::All(tree);
        Self { columns, logits, weights, masks: Vec::new(), fits: None, adaptive, whole: None }
    }

    /// For a search of the rows that it does not fit.
    pub(super) fn into_whole(self) -> Option<Whole> {
        self.whole
    }

    pub(super) fn keep(&mut self, ops: &Ops, mask: Tensor) -> Result<()> {
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
                self.greedy_where_sure(ops, token, &prefixes.total, || tree.positions(ops), largest, first)?
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
                self.greedy_where_sure(ops, token, &total, || Ok(positions.clone()), largest, first)?
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
        positions: impl FnOnce() -> Result<Tensor>,
        largest: impl Fn(&Tensor) -> Result<Tensor>,
        first: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let Some(threshold) = self.adaptive else { return Ok(token) };
        // The largest integer below the quotient; any probability exceeds 0. A good row has a total of at least `ONE`.
        let most = ((ONE / threshold).ceil() - 1.0).min(62f64.exp2());
        let sure = ops.with(Binary::AtMost, total, most)?;
        let sure = ops.binary(Binary::Mul, &sure, &ops.with(Binary::AtLeast, total, ONE)?)?;
        let here = ops.binary(Binary::Equal, &self.logits, &largest(&self.logits)?)?;
        let first = first(&ops.choose_or(&here, &positions()?, f64::from(BAD))?)?;
        ops.choose(&sure, &first, &token)
    }

    /// The tokens of a single row that may be drawn and their logits, in no order: those of weight zero too, if no rule
    /// dropped them.
    pub(super) fn tokens(&self, ops: &Ops) -> Result<Vec<(u32, f32)>> {
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
