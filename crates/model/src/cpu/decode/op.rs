//! What an operation is in decoding: the trait that it implements, what it is made from and what it runs with.

use tinygpt_sampler::simd::SimdLevel;

use super::{KvCacheFormat, ProductContext, WeightFormat, quantized::QuantizedRows, values::DecodeValues};
use crate::{
    Network,
    checkpoint::ParamValues,
    cpu::{rows::Rows, spin_pool::Workers},
    ops::PackedKeys,
    plan::{ParamId, Value},
};

/// What [`Operation::decoding`](crate::ops) builds an operation's form in decoding from.
pub(crate) struct DecodeSetup<'s, 'a> {
    pub(crate) net: &'s Network,
    /// The values of all parameters, in parameter order.
    pub(super) params: &'s [ParamValues<'a>],
    /// The format of matrices.
    pub(crate) format: WeightFormat,
    /// The format of key-value caches.
    pub(crate) kv_cache: KvCacheFormat,
    /// The most positions of a sequence.
    pub(crate) block_size: usize,
}

/// The form of an operation in decoding, with its key-value cache if it has one.
pub(crate) trait DecodeOp: std::fmt::Debug + Send {
    /// Computes the output's rows from the inputs'.
    fn run(&mut self, step: &mut DecodeStep<'_, '_>);

    /// Clears the cache and allocates it for this many sequences.
    fn set_rows(&mut self, _rows: usize) {}

    /// Copies the first `positions` cached positions of a sequence to another.
    fn copy_row(&mut self, _from: usize, _to: usize, _positions: usize) {}
}

/// The positions of the rows of a decoding pass.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Positions<'p> {
    /// Consecutive positions of one sequence.
    Prompt {
        /// The index of the sequence.
        slot: usize,
        /// The position of the first row.
        first: usize,
    },
    /// One new position of each of some sequences, which are different ones.
    Next(&'p [Place]),
}

/// The place of a new position.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// The index of the sequence.
    pub(crate) slot: usize,
    /// The position in it.
    pub(crate) at: usize,
}

impl Positions<'_> {
    /// The position of row `i` of the pass.
    pub(crate) fn of(self, i: usize) -> usize {
        match self {
            Self::Prompt { first, .. } => first + i,
            Self::Next(places) => places[i].at,
        }
    }
}

/// The context of one decoding pass, which operations read and write.
pub(crate) struct DecodeStep<'s, 'w> {
    pub(crate) level: SimdLevel,
    pub(crate) workers: &'s mut Workers<'w>,
    /// The number of rows of every value.
    pub(crate) n: usize,
    /// The token of each row, `(n)`.
    pub(crate) tokens: &'s [u32],
    pub(crate) positions: Positions<'s>,
    pub(crate) values: &'s mut DecodeValues,
    pub(crate) scratch: &'s mut DecodeScratch,
}

impl<'w> DecodeStep<'_, 'w> {
    /// The inputs and the outputs, in different buffers, of a product, and what it computes with.
    pub(crate) fn product(&mut self, read: Value, write: Value) -> (&Rows, &mut Rows, ProductContext<'_, 'w>) {
        let (x, y) = self.values.pair(read, write);
        let context =
            ProductContext { level: self.level, workers: self.workers, quantized: &mut self.scratch.quantized };
        (x, y, context)
    }
}

/// Buffers that operations use one after the other; no content survives an operation.
#[derive(Debug)]
pub(crate) struct DecodeScratch {
    /// The keys of a prompt.
    pub(crate) keys: PackedKeys,
    /// Attention scores, `(slots, n_head, block_size rounded up to LANES)`.
    pub(crate) scores: Vec<f32>,
    /// The rows that quantized weights are multiplied with.
    pub(crate) quantized: QuantizedRows,
}

impl<'a> DecodeSetup<'_, 'a> {
    /// The values of a small parameter: of a norm, or a bias.
    pub(crate) fn param(&self, param: ParamId) -> &'a [f32] {
        self.params[param.0].small()
    }

    /// Where the values of a large parameter are found: a table whose single rows are read, or a matrix that is rounded.
    pub(crate) fn large_param(&self, param: ParamId) -> ParamValues<'a> {
        self.params[param.0]
    }
}
