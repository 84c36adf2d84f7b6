//! Matrices whose rows start on cache lines. Elements have four bytes: f32, or pairs of bf16.

use std::ops::Range;

/// The floats of a cache line, which are the lanes of a vector.
const FLOATS_PER_LINE: usize = 16;

/// The floats allocated after a matrix's last row, since kernels load whole vectors. Their values are never used.
pub(crate) const READ_PADDING: usize = 32;

/// A slice of four-byte elements that starts on a cache line.
#[derive(Debug, Default)]
pub(crate) struct Aligned<T = f32> {
    storage: Vec<T>,
    start: usize,
    len: usize,
}

impl<T: Copy + Default> Aligned<T> {
    /// Allocates `len` zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        let storage = vec![T::default(); len + FLOATS_PER_LINE];
        // `align_offset` may fail; an unaligned start is slow but correct.
        let start = storage.as_ptr().align_offset(FLOATS_PER_LINE * size_of::<f32>()).min(FLOATS_PER_LINE);
        Self { storage, start, len }
    }
}

impl<T> std::ops::Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.storage[self.start..self.start + self.len]
    }
}

impl<T> std::ops::DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.storage[self.start..self.start + self.len]
    }
}

/// A row-major matrix `(rows, cols)` with padded rows.
#[derive(Debug, Default)]
pub(crate) struct Rows<T = f32> {
    /// `(rows, ld)`, and [`READ_PADDING`] more.
    data: Aligned<T>,
    pub(crate) cols: usize,
    /// The leading dimension: elements from one row to the next.
    pub(crate) ld: usize,
}

/// The leading dimension of rows of `cols` elements: an odd number of cache lines, since rows a power of two apart would
/// compete for the same few sets of the cache.
fn leading_dimension(cols: usize) -> usize {
    (cols.div_ceil(FLOATS_PER_LINE) | 1) * FLOATS_PER_LINE
}

impl<T: Copy + Default> Rows<T> {
    /// Allocates a matrix of zeros.
    pub(crate) fn zeros(rows: usize, cols: usize) -> Self {
        let ld = leading_dimension(cols);
        Self { data: Aligned::zeros(rows * ld + READ_PADDING), cols, ld }
    }

    /// Reuses the memory for rows of another length, whose contents are arbitrary.
    pub(crate) fn set_cols(&mut self, cols: usize) {
        (self.cols, self.ld) = (cols, leading_dimension(cols));
    }

    /// Makes a matrix of another shape of this one. Its contents are arbitrary. Memory is only allocated where the present
    /// memory is too small.
    pub(crate) fn reshape(&mut self, rows: usize, cols: usize) {
        self.set_cols(cols);
        let len = rows * self.ld + READ_PADDING;
        if self.data.len() < len {
            self.data = Aligned::zeros(len);
        }
    }

    /// Row `i`, without its padding.
    pub(crate) fn row(&self, i: usize) -> &[T] {
        &self.data[i * self.ld..][..self.cols]
    }

    /// [`Rows::row`], to be written.
    pub(crate) fn row_mut(&mut self, i: usize) -> &mut [T] {
        &mut self.data[i * self.ld..][..self.cols]
    }

    /// All elements from (row, col) on, with the padding of the rows.
    pub(crate) fn at(&self, row: usize, col: usize) -> &[T] {
        &self.data[row * self.ld + col..]
    }

    /// [`Rows::at`], to be written.
    pub(crate) fn at_mut(&mut self, row: usize, col: usize) -> &mut [T] {
        &mut self.data[row * self.ld + col..]
    }
}

impl Rows {
    /// Copies the first `n` rows of a matrix of the same shape.
    pub(crate) fn copy_from(&mut self, other: &Self, n: usize) {
        self.data[..n * self.ld].copy_from_slice(&other.data[..n * self.ld]);
    }

    /// Copies row `from` to row `to`.
    pub(crate) fn copy_row(&mut self, from: usize, to: usize) {
        self.data.copy_within(from * self.ld..from * self.ld + self.cols, to * self.ld);
    }

    /// Adds the first `n` rows of another matrix.
    pub(crate) fn add(&mut self, other: &Self, n: usize) {
        for i in 0..n {
            self.row_mut(i).iter_mut().zip(other.row(i)).for_each(|(x, y)| *x += y);
        }
    }

    /// The first `rows` rows in chunks of `n`, each with the index of its first row.
    pub(crate) fn chunks_mut(&mut self, rows: usize, n: usize) -> impl Iterator<Item = (usize, &mut [f32])> {
        let ld = self.ld;
        self.data[..rows * ld].chunks_mut(n * ld).enumerate().map(move |(i, chunk)| (i * n, chunk))
    }

    /// Sets all elements of a range of rows.
    pub(crate) fn fill(&mut self, rows: Range<usize>, value: f32) {
        self.data[rows.start * self.ld..rows.end * self.ld].fill(value);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use tinygpt_sampler::{RngDomain, philox_at};

    /// Uniform random numbers in [-0.5, 0.5].
    pub(crate) fn random(rows: usize, cols: usize, seed: u64) -> Rows {
        let mut x = Rows::zeros(rows, cols);
        for i in 0..rows {
            for (j, x) in x.row_mut(i).iter_mut().enumerate() {
                let word = philox_at(seed, RngDomain::Noise, (i * cols + j) as u64, 0)[0];
                *x = word as f32 / u32::MAX as f32 - 0.5;
            }
        }
        x
    }

    /// The first rows without padding, `(rows * cols)`.
    pub(in crate::cpu) fn flat(x: &Rows, rows: usize) -> Vec<f32> {
        (0..rows).flat_map(|i| x.row(i).to_vec()).collect()
    }
}
