//! The tokens that the rules keep of a batch of rows, and the draw of one of each.

use super::chunked_cdf::ChunkedCdf;
use super::constants::{MAX_WEIGHT, NEEDS_SEARCH, NO_TOKEN};
use super::fraction;
use super::ops::{Binary, Ops, Reduce};
use candle_core::{Result, Tensor};

/// The tokens that the rules keep of a batch of rows, as weights that are 0 for all other tokens.
pub(super) struct KeptTokens {
    /// The tokens that the n columns stand for.
    pub(super) columns: Columns,
    /// The logits, `(B, n)` f32.
    pub(super) logits: Tensor,
    /// The integer weights, `(B, n)` i64: 0 for a dropped token.
    pub(super) weights: Tensor,
    /// The masks of all rules that were applied, `(B, n)` or broadcast to it.
    pub(super) masks: Vec<Tensor>,
    /// 0 for rows whose nucleus the candidates do not hold, `(B, 1)` u8; None if no row can be one.
    pub(super) sufficient: Option<Tensor>,
    /// A row is greedy where its largest probability exceeds this.
    pub(super) adaptive: Option<f64>,
    /// The weights of whole rows, for a search in the rows that are not sufficient.
    pub(super) row_weights: Option<RowWeights>,
}

/// Values of whole rows that were computed for the candidates, and that a search for the nucleus takes over.
pub(super) struct RowWeights {
    pub(super) cdf: ChunkedCdf,
    /// The logits, `(B, width)` f32.
    pub(super) x: Tensor,
    /// The integer weights, `(B, width)` i64.
    pub(super) weights: Tensor,
    /// The k largest logits, falling, `(B, k)` f32.
    pub(super) falling: Tensor,
    /// The mass that the nucleus has to reach, `(B, 1)` i64.
    pub(super) target: Tensor,
}

/// The tokens that the columns of a batch stand for.
pub(super) enum Columns {
    /// The tokens at these positions, `(B, n)` u32, in no order.
    Candidates(Tensor),
    /// The whole vocabulary, padded to the width of this CDF.
    Vocabulary(ChunkedCdf),
}

impl KeptTokens {
    /// All tokens of the vocabulary, before any rule.
    pub(super) fn all(cdf: ChunkedCdf, logits: Tensor, weights: Tensor, adaptive: Option<f64>) -> Self {
        let columns = Columns::Vocabulary(cdf);
        Self { columns, logits, weights, masks: Vec::new(), sufficient: None, adaptive, row_weights: None }
    }

    /// The weights of whole rows, for a search in the rows that are not sufficient.
    pub(super) fn into_row_weights(self) -> Option<RowWeights> {
        self.row_weights
    }

    /// Drops the tokens where the mask is 0.
    pub(super) fn keep(&mut self, ops: &Ops, mask: Tensor) -> Result<()> {
        self.weights = ops.where_or(&mask, &self.weights, 0.0)?;
        self.masks.push(mask);
        Ok(())
    }

    /// Draws the token of each row by its uniform number, `(B, 1)` u32: [`NO_TOKEN`] if none can be drawn,
    /// [`NEEDS_SEARCH`] if the candidates do not hold the nucleus.
    pub(super) fn draw(&self, ops: &Ops, uniforms: &[f64]) -> Result<Tensor> {
        let token = match &self.columns {
            Columns::Vocabulary(cdf) => {
                let cumulative = cdf.cumulative_weights(ops, &self.weights)?;
                let target = fraction::of_each_total(ops, &cumulative.total, uniforms)?;
                let token = cdf.first_above(ops, &self.weights, &cumulative, &target)?;
                let largest = |x: &Tensor| cdf.reduce(ops, Reduce::Max, x);
                let first = |x: &Tensor| cdf.reduce(ops, Reduce::Min, x);
                self.greedy_where_probable(ops, token, &cumulative.total, || cdf.positions(ops), largest, first)?
            }
            Columns::Candidates(positions) => {
                let total = ops.reduce(Reduce::Sum, &self.weights)?;
                let target = fraction::of_each_total(ops, &total, uniforms)?;
                // The CDF of unsorted columns: (B, 1, k) against (B, k, 1), which positions are up to which.
                let up_to = ops.binary(Binary::Le, &positions.unsqueeze(1)?, &positions.unsqueeze(2)?)?;
                let sums = ops.where_or(&up_to, &self.weights.unsqueeze(1)?, 0.0)?;
                let sums = ops.reduce(Reduce::Sum, &sums)?.squeeze(2)?; // (B, k, 1) -> (B, k)
                let passed = ops.binary(Binary::Gt, &sums, &target)?;
                let token = ops.reduce(Reduce::Min, &ops.where_or(&passed, positions, f64::from(NO_TOKEN))?)?;
                let largest = |x: &Tensor| ops.reduce(Reduce::Max, x);
                let first = |x: &Tensor| ops.reduce(Reduce::Min, x);
                self.greedy_where_probable(ops, token, &total, || Ok(positions.clone()), largest, first)?
            }
        };
        match &self.sufficient {
            Some(sufficient) => ops.where_or(sufficient, &token, f64::from(NEEDS_SEARCH)),
            None => Ok(token),
        }
    }

    /// `token`, except in rows where the largest probability, [`MAX_WEIGHT`] of `total`, exceeds the adaptive
    /// threshold: there the first token of the largest logit. `largest` and `first` reduce a row to its maximum and
    /// minimum.
    fn greedy_where_probable(
        &self,
        ops: &Ops,
        token: Tensor,
        total: &Tensor,
        positions: impl FnOnce() -> Result<Tensor>,
        largest: impl Fn(&Tensor) -> Result<Tensor>,
        first: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let Some(threshold) = self.adaptive else { return Ok(token) };
        // The total of a row without a token to draw is below `MAX_WEIGHT`.
        let is_greedy = ops.binary_scalar(Binary::Le, total, max_greedy_total(threshold))?;
        let is_greedy = ops.binary(Binary::Mul, &is_greedy, &ops.binary_scalar(Binary::Ge, total, MAX_WEIGHT)?)?;
        let is_max = ops.binary(Binary::Eq, &self.logits, &largest(&self.logits)?)?;
        let first = first(&ops.where_or(&is_max, &positions()?, f64::from(NO_TOKEN))?)?;
        ops.where_cond(&is_greedy, &first, &token)
    }

    /// The tokens of a single row that no rule drops and their logits, in no order; tokens whose weight rounds to 0
    /// included.
    pub(super) fn tokens(&self, ops: &Ops) -> Result<Vec<(u32, f32)>> {
        let mut kept = ops.binary_scalar(Binary::Gt, &self.logits, f64::NEG_INFINITY)?;
        for mask in &self.masks {
            kept = ops.binary(Binary::Mul, &kept, mask)?;
        }
        let positions = match &self.columns {
            Columns::Candidates(positions) => positions.clone(),
            Columns::Vocabulary(cdf) => cdf.positions(ops)?,
        };
        let tokens = ops.read_u32(&ops.where_or(&kept, &positions, f64::from(NO_TOKEN))?)?;
        let logits = ops.read_f32(&self.logits)?;
        Ok(tokens.into_iter().zip(logits).filter(|&(token, _)| token != NO_TOKEN).collect())
    }
}

/// The largest total of the weights of a row whose largest probability exceeds the adaptive threshold: the largest integer
/// below `MAX_WEIGHT / threshold`. A threshold of 0 is always exceeded.
pub(super) fn max_greedy_total(threshold: f64) -> f64 {
    ((MAX_WEIGHT / threshold).ceil() - 1.0).min(62f64.exp2())
}
