//! The values of one parameter, wherever they lie, for a decoder that rounds them while it reads.

use std::ops::Range;

use super::Weights;

/// How many bytes of f32 are converted or read at a time.
const PIECE_BYTES: usize = 4 << 20;

/// The values of a parameter: in memory, or in a file that is mapped.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ParamValues<'a> {
    InMemory(&'a [f32]),
    Of {
        weights: &'a Weights,
        param: usize,
        /// Whether the process gives up the pages of the file behind what was read.
        gives_up: bool,
    },
}

impl<'a> From<&'a [f32]> for ParamValues<'a> {
    fn from(values: &'a [f32]) -> Self {
        Self::InMemory(values)
    }
}

impl<'a> ParamValues<'a> {
    /// The number of elements.
    pub(crate) fn len(self) -> usize {
        match self {
            Self::InMemory(values) => values.len(),
            Self::Of { weights, param, .. } => weights.len_of(param),
        }
    }

    /// All values, which stay in memory as long as the weights do.
    pub(crate) fn kept(self) -> &'a [f32] {
        match self {
            Self::InMemory(values) => values,
            Self::Of { weights, param, .. } => weights.kept(param),
        }
    }

    /// As [`ParamValues::kept`], of a parameter so small that a copy is better than the pages of the file that it lies in.
    pub(crate) fn small(self) -> &'a [f32] {
        match self {
            Self::Of { weights, param, gives_up: true } => weights.copied(param),
            values => values.kept(),
        }
    }

    /// What `f` makes of all values. The process holds none of them afterwards, unless it did before.
    pub(crate) fn once<R>(self, f: impl FnOnce(&[f32]) -> R) -> R {
        match self {
            Self::InMemory(values) => f(values),
            Self::Of { weights, param, .. } => {
                let made = f(&weights.values_of(param));
                weights.release(param);
                made
            }
        }
    }

    /// Shows `f` some rows of `cols` elements after the other, each once and in order. The process holds a few at a time.
    pub(crate) fn each_piece(self, cols: usize, mut f: impl FnMut(&[f32])) {
        let at_a_time = (PIECE_BYTES / size_of::<f32>() / cols).max(1);
        match self {
            Self::InMemory(values) => values.chunks(at_a_time * cols).for_each(f),
            Self::Of { weights, param, .. } if weights.lies_by_rows(param, cols) => {
                let rows = self.len() / cols;
                for first in (0..rows).step_by(at_a_time) {
                    let rows = first..rows.min(first + at_a_time);
                    weights.with_rows(param, cols, rows.clone(), &mut f);
                    weights.release_rows(param, cols, rows);
                }
            }
            Self::Of { .. } => self.once(|values| values.chunks(at_a_time * cols).for_each(f)),
        }
    }

    /// Shows `f` some rows of `cols` elements, which lie side by side.
    pub(crate) fn with_rows(self, cols: usize, rows: Range<usize>, mut f: impl FnMut(&[f32])) {
        match self {
            Self::InMemory(values) => f(&values[rows.start * cols..rows.end * cols]),
            Self::Of { weights, param, gives_up } => {
                weights.with_rows(param, cols, rows.clone(), &mut f);
                if gives_up {
                    weights.release_rows(param, cols, rows);
                }
            }
        }
    }
}
