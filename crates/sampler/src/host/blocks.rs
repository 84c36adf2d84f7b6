//! A row in blocks of 256 logits, the last one padded.

use crate::simd::{LANES, Lanes};

/// The number of vectors in a block.
pub(super) const VECTORS_PER_BLOCK: usize = 16;
/// The number of logits in a block.
pub(super) const BLOCK: usize = VECTORS_PER_BLOCK * LANES;

/// A block of logits, or of weights.
pub(super) type Block = [Lanes; VECTORS_PER_BLOCK];

/// A slice as blocks; the last one is padded.
pub(super) struct Blocks<'a> {
    full: &'a [Block],
    /// The rest of the slice, padded. All padding if the slice is whole blocks; then no block refers to it.
    tail: Block,
    pub(super) count: usize,
}

impl<'a> Blocks<'a> {
    #[inline(always)]
    pub(super) fn new(row: &'a [f32], padding: f32) -> Self {
        let full = row.as_chunks::<LANES>().0.as_chunks::<VECTORS_PER_BLOCK>().0;
        let rest = &row[full.len() * BLOCK..];
        let mut blocks = Self { full, tail: [[padding; LANES]; VECTORS_PER_BLOCK], count: row.len().div_ceil(BLOCK) };
        blocks.tail.as_flattened_mut()[..rest.len()].copy_from_slice(rest);
        blocks
    }

    /// The blocks that lie in the slice. A kernel of few operations goes over these, and then over the tail: where it is one
    /// loop, the choice between the two is made at every vector.
    #[inline(always)]
    pub(super) fn full(&self) -> &'a [Block] {
        self.full
    }

    /// The rest of the slice, padded; nothing but padding if `count` is that of the full blocks.
    #[inline(always)]
    pub(super) fn tail(&self) -> &Block {
        &self.tail
    }

    #[inline(always)]
    pub(super) fn get(&self, block: usize) -> &Block {
        self.full.get(block).unwrap_or(&self.tail)
    }
}
