//! Matrices packed into panels of [`PANEL`] columns, as the right operands of matrix products.

use rayon::prelude::*;
use tinygpt_sampler::simd::LANES;

use super::{
    matmul::{Element, PANEL, Right},
    rows::{Aligned, Rows},
};

/// A matrix `(k, n)` in contiguous panels `(k, 32)`, which a product reads in order.
#[derive(Debug)]
pub(crate) struct Panels<E = f32> {
    /// `(n / 32, k, 32)`; the last panel is padded with zeros.
    pub(crate) data: Aligned<E>,
    k: usize,
    n: usize,
}

impl<E: Element> Panels<E> {
    /// Allocates a matrix of `(k, n)` elements.
    pub(crate) fn new(k: usize, n: usize) -> Self {
        Self { data: Aligned::zeros(n.div_ceil(PANEL) * PANEL * k), k, n }
    }

    /// The number of rows.
    pub(crate) fn k(&self) -> usize {
        self.k
    }

    /// The number of columns.
    pub(crate) fn n(&self) -> usize {
        self.n
    }

    /// The matrix as the right operand of a product.
    pub(crate) fn right(&self) -> Right<'_, E> {
        Right::panels(&self.data, self.k)
    }
}

impl Panels {
    /// Packs a row-major matrix `(k, n)`.
    pub(crate) fn pack(&mut self, w: &[f32]) {
        let (k, n) = (self.k, self.n);
        self.data.par_chunks_mut(PANEL * k).enumerate().for_each(|(p, panel)| {
            let width = PANEL.min(n - p * PANEL);
            for (l, to) in panel.chunks_exact_mut(PANEL).enumerate() {
                to[..width].copy_from_slice(&w[l * n + p * PANEL..][..width]);
            }
        });
    }

    /// Packs the transpose of a row-major matrix `(n, k)`.
    pub(crate) fn pack_transposed(&mut self, w: &[f32]) {
        let (k, n) = (self.k, self.n);
        self.data.par_chunks_mut(PANEL * k).enumerate().for_each(|(p, panel)| {
            let width = PANEL.min(n - p * PANEL);
            transpose_panel(panel, k, width, |j| &w[(p * PANEL + j) * k..][..k]);
        });
    }
}

/// Fills a panel `(k, 32)` whose column j is `row(j) (k)`, for the first `width` columns.
fn transpose_panel<'a, E: Element + 'a>(panel: &mut [E], k: usize, width: usize, row: impl Fn(usize) -> &'a [E]) {
    // Sixteen rows of the source at a time, so that whole cache lines are written.
    for from in (0..width).step_by(LANES) {
        let lanes = LANES.min(width - from);
        if lanes == LANES {
            let rows: [&[E]; LANES] = std::array::from_fn(|j| row(from + j));
            for l in 0..k {
                let to = &mut panel[l * PANEL + from..][..LANES];
                for (to, row) in to.iter_mut().zip(rows) {
                    *to = row[l];
                }
            }
        } else {
            for j in from..from + lanes {
                for (l, &x) in row(j).iter().enumerate() {
                    panel[l * PANEL + j] = x;
                }
            }
        }
    }
}

/// Packs the transpose of the block `x[..rows, col..col + k]` into `to`, which [`transposed`] reads.
pub(crate) fn pack_rows_transposed<E: Element>(x: &Rows<E>, rows: usize, col: usize, k: usize, to: &mut [E]) {
    for (p, panel) in to.chunks_exact_mut(PANEL * k).take(rows.div_ceil(PANEL)).enumerate() {
        let width = PANEL.min(rows - p * PANEL);
        transpose_panel(panel, k, width, |j| &x.at(p * PANEL + j, col)[..k]);
    }
}

/// The number of elements that [`pack_rows_transposed`] writes.
pub(crate) fn transposed_len(rows: usize, k: usize) -> usize {
    rows.div_ceil(PANEL) * PANEL * k
}

/// The matrix `(k, rows)` packed by [`pack_rows_transposed`], from column `32 * panel` on, as the right operand of a product.
pub(crate) fn transposed<E: Element>(packed: &[E], k: usize, panel: usize) -> Right<'_, E> {
    Right::panels(&packed[panel * PANEL * k..], k)
}
