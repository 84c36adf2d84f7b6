//! What an operation is in decoding: the trait that it implements, what it is made from and what it runs with.

use tinygpt_sampler::simd::SimdLevel;

use super::{WeightFormat, values::DecodeValues};
use crate::{Network, cpu::spin_pool::Workers, ops::AttentionScratch, plan::ParamId};

/// What an operation's form in decoding is made for.
pub(crate) struct DecodeSetup<'s, 'a> {
    pub(crate) net: &'s Network,
    /// In parameter order.
    pub(super) params: &'s [&'a [f32]],
    pub(crate) format: WeightFormat,
    pub(crate) block_size: usize,
}

/// An operation in decoding.
pub(crate) trait DecodeOp: std::fmt::Debug + Send {
    /// Writes the output's rows.
    fn run(&mut self, step: &mut DecodeStep<'_, '_>);

    /// Forgets all positions, and makes room for so many rows.
    fn set_rows(&mut self, _rows: usize) {}

    /// Gives every other row the first so many positions of the first row.
    fn copy_first_row(&mut self, _positions: usize) {}
}

/// What the rows of a forward pass are.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Positions {
    /// Positions of one row of the batch, from `first` on.
    Prompt {
        /// The row of the batch.
        row: usize,
        /// The position of the first of them.
        first: usize,
    },
    /// One of each row, at this place.
    Next {
        /// The position.
        at: usize,
    },
}

impl Positions {
    /// The position of row `i` of the forward pass.
    pub(crate) fn of(self, i: usize) -> usize {
        match self {
            Self::Prompt { first, .. } => first + i,
            Self::Next { at } => at,
        }
    }
}

/// What an operation is computed with.
pub(crate) struct DecodeStep<'s, 'w> {
    pub(crate) level: SimdLevel,
    pub(crate) workers: &'s mut Workers<'w>,
    /// Rows of every value.
    pub(crate) n: usize,
    /// The token of each row, `(n)`.
    pub(crate) tokens: &'s [u32],
    pub(crate) positions: Positions,
    pub(crate) values: &'s mut DecodeValues,
    pub(crate) scratch: &'s mut DecodeScratch,
}

/// Buffers that operations share, one after the other.
#[derive(Debug)]
pub(crate) struct DecodeScratch {
    /// The logarithms of the sums of a prompt's softmax, `(n_head, T)`, of no use here.
    pub(crate) lse: Vec<f32>,
    /// The tiles of a prompt's attention.
    pub(crate) attention: AttentionScratch,
    /// Attention scores, `(rows, n_head, block_size rounded up to LANES)`.
    pub(crate) scores: Vec<f32>,
}

impl DecodeStep<'_, '_> {
    /// Of a prompt goes on with the last position alone.
    pub(super) fn keep_last(&mut self) {
        if let Positions::Prompt { row, first } = self.positions {
            let last = self.n - 1;
            self.values.keep_row(last);
            (self.n, self.tokens) = (1, &self.tokens[last..]);
            self.positions = Positions::Prompt { row, first: first + last };
        }
    }
}

impl<'a> DecodeSetup<'_, 'a> {
    /// The values of a parameter.
    pub(crate) fn param(&self, param: ParamId) -> &'a [f32] {
        self.params[param.0]
    }
}
