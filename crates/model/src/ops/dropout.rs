//! Dropout: in training, a value becomes zero with probability `p`, and is multiplied with `1 / (1 - p)` otherwise.
//! [`crate::Dropout`] generates the masks.

use candle_core::Tensor;
use tinygpt_sampler::simd::{LANES, SimdLevel};

use super::Operation;
use crate::{
    Dropout, Result,
    cpu::{
        decode::{DecodeOp, DecodeSetup},
        rows::Rows,
        training::{RowDropout, TrainOp, TrainPass, TrainSetup},
    },
    dropout::DropoutSite,
    plan::{Network, NetworkBuilder, Value},
    tensors::{Fusion, Pass},
};

/// Dropout at a site of the network.
#[derive(Debug, Clone)]
pub(crate) struct ApplyDropout {
    pub(crate) x: Value,
    pub(crate) y: Value,
    pub(crate) site: DropoutSite,
}

impl NetworkBuilder {
    /// Dropout of `x (T, C)`, in training only: `(T, C)`.
    pub fn dropout(&mut self, x: Value, site: DropoutSite) -> Value {
        let y = self.value(self.cols[x.0]);
        self.push(ApplyDropout { x, y, site })
    }
}

impl Operation for ApplyDropout {
    fn inputs(&self) -> Vec<Value> {
        vec![self.x]
    }

    fn output(&self) -> Value {
        self.y
    }

    fn in_place(&self) -> bool {
        true
    }

    fn forward(&self, pass: &mut Pass<'_>) -> Result<Tensor> {
        let x = pass.value(self.x)?;
        match pass.dropout() {
            Some(dropout) => dropout.apply(self.site.id(), &x),
            None => Ok(x),
        }
    }

    fn kept_floats(&self, net: &Network, t: usize) -> usize {
        if net.config.dropout > 0.0 { t * net.cols(self.y).div_ceil(2 * LANES) } else { 0 }
    }

    fn fuse(&self, fusion: &mut Fusion<'_>) -> Option<()> {
        fusion.identity(self.x, self.y)
    }

    fn training(&self, setup: &TrainSetup<'_>) -> Box<dyn TrainOp> {
        Box::new(DropoutTape { op: self.clone(), mask: DropoutMask::new(setup, self.site, setup.net.cols(self.y)) })
    }

    fn decoding<'a>(&self, _: &DecodeSetup<'_, 'a>) -> Option<Box<dyn DecodeOp + 'a>> {
        None
    }
}

/// Dropout with the masks of one sequence.
#[derive(Debug)]
struct DropoutTape {
    op: ApplyDropout,
    mask: DropoutMask,
}

impl TrainOp for DropoutTape {
    fn forward(&mut self, pass: &mut TrainPass<'_>) {
        let Some(masks) = pass.dropout else { return };
        let y = pass.values.rows_mut(self.op.y, &mut pass.scratch.rows);
        self.mask.draw(pass.level, masks, pass.t, y.cols);
        self.mask.apply(masks, pass.t, y);
    }

    fn backward(&mut self, pass: &mut TrainPass<'_>) {
        if let Some(masks) = pass.dropout {
            self.mask.apply(masks, pass.t, pass.grads.rows_mut(self.op.y, &mut pass.scratch.rows));
        }
    }
}

/// The dropout mask `(T, C)` of one sequence at a site.
#[derive(Debug)]
pub(crate) struct DropoutMask {
    site: DropoutSite,
    keep: KeepBits,
}

impl DropoutMask {
    /// Allocates the mask; no memory where the model has no dropout.
    pub(crate) fn new(setup: &TrainSetup<'_>, site: DropoutSite, cols: usize) -> Self {
        Self { site, keep: KeepBits::new(setup.dropped(setup.block_size), cols) }
    }

    /// Draws the sequence's `(t, cols)` elements of the batch's mask `(B, T, C)`.
    pub(crate) fn draw(&mut self, level: SimdLevel, masks: &RowDropout, t: usize, cols: usize) {
        for i in 0..t {
            let first = ((masks.row * t + i) * cols) as u64;
            self.keep.draw(level, &masks.dropout, self.site, i, first, cols);
        }
    }

    /// Multiplies the first `t` rows of `x (T, C)` with the mask.
    pub(crate) fn apply(&self, masks: &RowDropout, t: usize, x: &mut Rows) {
        let scale = masks.dropout.scale();
        for i in 0..t {
            for (word, values) in self.keep.row(i).iter().zip(x.row_mut(i).chunks_mut(LANES)) {
                for (j, value) in values.iter_mut().enumerate() {
                    *value = if word >> j & 1 == 1 { *value * scale } else { 0.0 };
                }
            }
        }
    }
}

/// A mask `(rows, cols)` in bits: bit `j % 16` of word `j / 16` of a row is set where column `j` is kept.
#[derive(Debug)]
pub(crate) struct KeepBits {
    /// `(rows, cols / 16)`.
    words: Vec<u16>,
    per_row: usize,
}

impl KeepBits {
    /// Allocates a mask.
    pub(crate) fn new(rows: usize, cols: usize) -> Self {
        let per_row = cols.div_ceil(LANES);
        Self { words: vec![0; rows * per_row], per_row }
    }

    /// The words of a row.
    pub(crate) fn row(&self, i: usize) -> &[u16] {
        &self.words[i * self.per_row..][..self.per_row]
    }

    /// Draws the first `cols` columns of row `i`, which are the elements from `first` on of a site's mask.
    pub(crate) fn draw(
        &mut self,
        level: SimdLevel,
        dropout: &Dropout,
        site: DropoutSite,
        i: usize,
        first: u64,
        cols: usize,
    ) {
        let words = &mut self.words[i * self.per_row..][..cols.div_ceil(LANES)];
        dropout.keep_bits(level, site.id(), first, words);
    }
}
