//! Which values of a forward pass are kept, as bits: the masks of [`crate::Dropout`] on the CPU.

use tinygpt_sampler::simd::{LANES, SimdLevel};

use crate::Dropout;

/// The masks of some rows: bit `j % 16` of word `j / 16` is set where column `j` of the row is kept.
#[derive(Debug)]
pub(super) struct KeepBits {
    words: Vec<u16>,
    per_row: usize,
}

impl KeepBits {
    pub(super) fn new(rows: usize, cols: usize) -> Self {
        let per_row = cols.div_ceil(LANES);
        Self { words: vec![0; rows * per_row], per_row }
    }

    /// The words of a row.
    pub(super) fn row(&self, i: usize) -> &[u16] {
        &self.words[i * self.per_row..][..self.per_row]
    }

    /// Draws the first `cols` columns of row `i`, the elements from `first` on of a site's mask.
    pub(super) fn draw(&mut self, level: SimdLevel, dropout: &Dropout, site: u32, i: usize, first: u64, cols: usize) {
        let words = &mut self.words[i * self.per_row..][..cols.div_ceil(LANES)];
        dropout.keep_bits(level, site, first, words);
    }
}
