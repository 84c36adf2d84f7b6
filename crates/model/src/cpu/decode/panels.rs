//! The memory layout of the weights of a linear layer.

use std::ops::Range;

use rayon::prelude::*;

/// The columns of a panel: eight vectors, so that a row is two cache lines of int8 and four of bf16. Measured, wider panels
/// are no faster, and narrower ones are slower with several rows.
const WIDTH: usize = 128;

/// A view of a matrix `(in, out)` as a sequence of column panels, each stored row after row, so that a thread reads
/// contiguous memory. A plain row-major matrix is one panel of all columns.
#[derive(Debug)]
pub(crate) struct PanelView<'a, E> {
    values: &'a [E],
    n_in: usize,
    n_out: usize,
    width: usize,
}

/// A range of columns that lies within one panel.
pub(crate) struct PanelColumns<'a, E> {
    /// The panel's elements, starting at the first of these columns in the first row.
    pub(crate) weights: &'a [E],
    /// The leading dimension: elements from one row to the next.
    pub(crate) ld: usize,
    /// The columns of the matrix.
    pub(crate) columns: Range<usize>,
}

impl<'a, E: Copy + Default + Send> PanelView<'a, E> {
    /// The view of a row-major matrix.
    pub(crate) fn of_rows(values: &'a [E], n_out: usize) -> Self {
        Self { values, n_in: values.len() / n_out, n_out, width: n_out }
    }

    /// The view of a matrix packed by [`PanelView::pack`].
    pub(crate) fn of_packed(values: &'a [E], n_out: usize) -> Self {
        Self { width: WIDTH, ..Self::of_rows(values, n_out) }
    }

    /// Packs a row-major matrix into panels. `round(column, weight)` gives the stored element.
    pub(crate) fn pack(values: &[f32], n_out: usize, round: impl Fn(usize, f32) -> E + Sync) -> Vec<E> {
        let mut packed = vec![E::default(); values.len()];
        packed.par_chunks_mut(WIDTH * (values.len() / n_out)).enumerate().for_each(|(panel, packed)| {
            let first = panel * WIDTH;
            let width = WIDTH.min(n_out - first);
            for (to, row) in packed.chunks_exact_mut(width).zip(values.chunks_exact(n_out)) {
                let from = row[first..].iter().enumerate();
                to.iter_mut().zip(from).for_each(|(to, (column, &x))| *to = round(first + column, x));
            }
        });
        packed
    }

    /// The size of all weights, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(self.values)
    }

    /// The number of columns.
    pub(crate) fn n_out(&self) -> usize {
        self.n_out
    }

    /// The parts of a range of columns, one for each panel that it overlaps.
    pub(crate) fn parts(&self, columns: Range<usize>) -> impl Iterator<Item = PanelColumns<'a, E>> {
        let panels = columns.start / self.width..columns.end.div_ceil(self.width);
        panels.map(move |panel| {
            let first = panel * self.width;
            let columns = columns.start.max(first)..columns.end.min(first + self.width);
            let weights = &self.values[first * self.n_in + columns.start - first..];
            PanelColumns { weights, ld: self.width.min(self.n_out - first), columns }
        })
    }
}

impl<E> PanelColumns<'_, E> {
    /// The weights of input `l` for `n` of the columns, from the `at`th on.
    #[inline(always)]
    pub(crate) fn row(&self, l: usize, at: usize, n: usize) -> &[E] {
        &self.weights[l * self.ld + at..][..n]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_columns_of_a_packed_matrix_are_those_of_its_rows() {
        for (n_in, n_out) in [(1, 1), (3, WIDTH - 1), (5, WIDTH), (2, WIDTH + 1), (3, 2 * WIDTH + 33)] {
            let values: Vec<f32> = (0..n_in * n_out).map(|i| i as f32).collect();
            let packed = PanelView::pack(&values, n_out, |column, x| {
                assert_eq!(column, x as usize % n_out);
                x
            });
            for panels in [PanelView::of_rows(&values, n_out), PanelView::of_packed(&packed, n_out)] {
                for (from, to) in [(0, n_out), (n_out / 3, n_out), (0, n_out.div_ceil(2)), (n_out - 1, n_out)] {
                    let mut next = from;
                    for panel in panels.parts(from..to) {
                        assert_eq!(panel.columns.start, next);
                        next = panel.columns.end;
                        for l in 0..n_in {
                            let expected = &values[l * n_out..][panel.columns.clone()];
                            assert_eq!(panel.row(l, 0, panel.columns.len()), expected, "{n_in} {n_out} {from} {to}");
                        }
                    }
                    assert_eq!(next, to);
                }
            }
        }
    }
}
