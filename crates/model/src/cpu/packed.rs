//! Matrices packed into panels, as the right operands of products.

use rayon::prelude::*;
use tinygpt_sampler::simd::LANES;

use super::{
    matmul::{Element, PANEL, Right},
    rows::{Aligned, Rows},
};

/// Weights in panels of 32 columns, each contiguous, the last one filled up with zeros: what a product reads in order.
#[derive(Debug)]
pub(crate) struct Panels<E = f32> {
    pub(crate) data: Aligned<E>,
    k: usize,
    n: usize,
}

impl<E: Element> Panels<E> {
    /// Room for a matrix of `(k, n)` elements.
    pub(crate) fn new(k: usize, n: usize) -> Self {
        Self { data: Aligned::zeros(n.div_ceil(PANEL) * PANEL * k), k, n }
    }

    /// Elements of a column.
    pub(crate) fn k(&self) -> usize {
        self.k
    }

    /// Columns.
    pub(crate) fn n(&self) -> usize {
        self.n
    }

    /// As the right operand of a product.
    pub(crate) fn right(&self) -> Right<'_, E> {
        Right::panels(&self.data, self.k)
    }
}

impl Panels {
    /// Takes over a matrix `(k, n)` given row after row.
    pub(crate) fn pack(&mut self, w: &[f32]) {
        let (k, n) = (self.k, self.n);
        self.data.par_chunks_mut(PANEL * k).enumerate().for_each(|(p, panel)| {
            let width = PANEL.min(n - p * PANEL);
            for (l, to) in panel.chunks_exact_mut(PANEL).enumerate() {
                to[..width].copy_from_slice(&w[l * n + p * PANEL..][..width]);
            }
        });
    }

    /// Takes over the transpose of a matrix `(n, k)` given row after row.
    pub(crate) fn pack_transposed(&mut self, w: &[f32]) {
        let (k, n) = (self.k, self.n);
        self.data.par_chunks_mut(PANEL * k).enumerate().for_each(|(p, panel)| {
            let width = PANEL.min(n - p * PANEL);
            transpose_panel(panel, k, width, |j| &w[(p * PANEL + j) * k..][..k]);
        });
    }
}

/// Writes columns `row(0)`, `row(1)`, ... `row(width - 1)` side by side.
fn transpose_panel<'a>(panel: &mut [f32], k: usize, width: usize, row: impl Fn(usize) -> &'a [f32]) {
    // Sixteen rows of the source at a time, so that whole cache lines are written.
    for from in (0..width).step_by(LANES) {
        let lanes = LANES.min(width - from);
        if lanes == LANES {
            let rows: [&[f32]; LANES] = std::array::from_fn(|j| row(from + j));
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

/// Packs the transpose of `rows` rows of `x`, `k` columns from `col` on, into `to`, for [`Right`] from [`transposed`].
pub(crate) fn pack_rows_transposed(x: &Rows, rows: usize, col: usize, k: usize, to: &mut [f32]) {
    for (p, panel) in to.chunks_exact_mut(PANEL * k).take(rows.div_ceil(PANEL)).enumerate() {
        let width = PANEL.min(rows - p * PANEL);
        transpose_panel(panel, k, width, |j| &x.at(p * PANEL + j, col)[..k]);
    }
}

/// How many floats [`pack_rows_transposed`] writes.
pub(crate) fn transposed_len(rows: usize, k: usize) -> usize {
    rows.div_ceil(PANEL) * PANEL * k
}

/// The columns from `32 * panel` on of what [`pack_rows_transposed`] wrote, as the right operand of a product.
pub(crate) fn transposed(packed: &[f32], k: usize, panel: usize) -> Right<'_> {
    Right::panels(&packed[panel * PANEL * k..], k)
}
