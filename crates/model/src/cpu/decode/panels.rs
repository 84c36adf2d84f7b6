//! Where the weights of a linear layer lie.

use std::ops::Range;

use rayon::prelude::*;

/// SharedOutput of a panel: eight vectors, so that a row is two cache lines of numbers of 8 bits and four of 16. Wider panels are
/// no faster, narrower ones slower for several rows.
const WIDTH: usize = 128;

/// A matrix `(in, out)` in panels of some columns, one after another, each row after row: what a thread reads of rounded
/// weights lies in one piece. A matrix that is used where it lies is one panel.
#[derive(Debug)]
pub(crate) struct PanelView<'a, E> {
    values: &'a [E],
    n_in: usize,
    n_out: usize,
    width: usize,
}

/// Some columns of a panel.
pub(crate) struct PanelColumns<'a, E> {
    /// From the first row's first of these columns on.
    pub(crate) weights: &'a [E],
    /// Elements from a row to the next.
    pub(crate) ld: usize,
    pub(crate) columns: Range<usize>,
}

impl<'a, E: Copy + Default + Send> PanelView<'a, E> {
    /// A matrix row after row.
    pub(crate) fn of_rows(values: &'a [E], n_out: usize) -> Self {
        Self { values, n_in: values.len() / n_out, n_out, width: n_out }
    }

    /// A matrix as [`PanelView::pack`] makes it.
    pub(crate) fn of_packed(values: &'a [E], n_out: usize) -> Self {
        Self { width: WIDTH, ..Self::of_rows(values, n_out) }
    }

    /// Packs a matrix that lies row after row; `round` gets each weight with its column.
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

    /// Bytes of all weights.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(self.values)
    }

    pub(crate) fn n_out(&self) -> usize {
        self.n_out
    }

    /// What makes up these columns.
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
    /// The weights of an input for `n` columns, from one on.
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
