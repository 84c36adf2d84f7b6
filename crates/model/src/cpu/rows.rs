//! Matrices whose rows start on cache lines: of f32, or of pairs of bf16, which are as large.

use std::ops::Range;

/// Floats of a cache line, and lanes of a vector.
const FLOATS_PER_LINE: usize = 16;

/// Floats that may be read, though they mean nothing, behind a matrix's last row: kernels load whole vectors.
pub(crate) const READ_PADDING: usize = 32;

/// Elements of four bytes that start on a cache line.
#[derive(Debug)]
pub(crate) struct Aligned<T = f32> {
    storage: Vec<T>,
    start: usize,
    len: usize,
}

impl<T: Copy + Default> Aligned<T> {
    /// `len` zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        let storage = vec![T::default(); len + FLOATS_PER_LINE];
        // A pointer that cannot be aligned is slow, not wrong.
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

/// A matrix, row after row, `ld` elements from one to the next.
#[derive(Debug)]
pub(crate) struct Rows<T = f32> {
    data: Aligned<T>,
    pub(crate) cols: usize,
    pub(crate) ld: usize,
}

/// The leading_dimension between rows: an odd number of lines, as rows a power of two apart would share the same few sets of the
/// cache.
fn leading_dimension(cols: usize) -> usize {
    (cols.div_ceil(FLOATS_PER_LINE) | 1) * FLOATS_PER_LINE
}

impl<T: Copy + Default> Rows<T> {
    pub(crate) fn zeros(rows: usize, cols: usize) -> Self {
        let ld = leading_dimension(cols);
        Self { data: Aligned::zeros(rows * ld + READ_PADDING), cols, ld }
    }

    /// The same memory as rows of another length, whose contents are then arbitrary.
    pub(crate) fn set_cols(&mut self, cols: usize) {
        (self.cols, self.ld) = (cols, leading_dimension(cols));
    }

    pub(crate) fn row(&self, i: usize) -> &[T] {
        &self.data[i * self.ld..][..self.cols]
    }

    pub(crate) fn row_mut(&mut self, i: usize) -> &mut [T] {
        &mut self.data[i * self.ld..][..self.cols]
    }

    /// From (row, col) on, with what lies between the rows.
    pub(crate) fn at(&self, row: usize, col: usize) -> &[T] {
        &self.data[row * self.ld + col..]
    }

    /// [`Rows::at`], to be written.
    pub(crate) fn at_mut(&mut self, row: usize, col: usize) -> &mut [T] {
        &mut self.data[row * self.ld + col..]
    }
}

impl Rows {
    /// Copies the first `n` rows.
    pub(crate) fn copy_from(&mut self, other: &Self, n: usize) {
        self.data[..n * self.ld].copy_from_slice(&other.data[..n * self.ld]);
    }

    /// Copies a row to the place of another.
    pub(crate) fn copy_row(&mut self, from: usize, to: usize) {
        self.data.copy_within(from * self.ld..from * self.ld + self.cols, to * self.ld);
    }

    /// Adds the first `n` rows of another.
    pub(crate) fn add(&mut self, other: &Self, n: usize) {
        for i in 0..n {
            self.row_mut(i).iter_mut().zip(other.row(i)).for_each(|(x, y)| *x += y);
        }
    }

    /// The first `rows` rows in chunks of `n`, each with its first row.
    pub(crate) fn chunks_mut(&mut self, rows: usize, n: usize) -> impl Iterator<Item = (usize, &mut [f32])> {
        let ld = self.ld;
        self.data[..rows * ld].chunks_mut(n * ld).enumerate().map(move |(i, chunk)| (i * n, chunk))
    }

    pub(crate) fn fill(&mut self, rows: Range<usize>, value: f32) {
        self.data[rows.start * self.ld..rows.end * self.ld].fill(value);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use tinygpt_sampler::{RngDomain, philox_at};

    /// Uniform numbers around zero.
    pub(in crate::cpu) fn random(rows: usize, cols: usize, seed: u64) -> Rows {
        let mut x = Rows::zeros(rows, cols);
        for i in 0..rows {
            for (j, x) in x.row_mut(i).iter_mut().enumerate() {
                let word = philox_at(seed, RngDomain::Noise, (i * cols + j) as u64, 0)[0];
                *x = word as f32 / u32::MAX as f32 - 0.5;
            }
        }
        x
    }

    /// The first rows, one after the other.
    pub(in crate::cpu) fn flat(x: &Rows, rows: usize) -> Vec<f32> {
        (0..rows).flat_map(|i| x.row(i).to_vec()).collect()
    }
}
