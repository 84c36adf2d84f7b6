//! Products of many rows, those of a prompt: weights are widened to f32 and packed once for all rows, then multiplied in register
//! tiles.

use std::ops::Range;

use rayon::prelude::*;
use tinygpt_sampler::simd::SimdLevel;

use super::{
    super::{
        matmul::{Accumulate, Left, PANEL, Right, matmul},
        rows::{Aligned, Rows},
    },
    format::WeightElement,
    panels::PanelView,
};

/// The most and the fewest rows of a task.
const MAX_TASK_ROWS: usize = 64;
const MIN_TASK_ROWS: usize = 8;
/// The floats of the weights that are packed at a time: 2 MiB, which the caches keep while all rows are multiplied by them.
const BLOCK_LEN: usize = 1 << 19;

/// Computes `y (m, out) = x (m, in) w (in, out) + b (out)`, on all threads of the rayon pool. Every element is one chain of
/// fused multiply-adds in the order of the inputs, whatever the blocks and tasks.
pub(super) fn multiply<E: WeightElement>(
    level: SimdLevel,
    w: &PanelView<'_, E>,
    (m, x): (usize, &Rows),
    b: Option<&[f32]>,
    y: &mut Rows,
) {
    let (n_in, n_out, ld) = (x.cols, w.n_out(), y.ld);
    let columns = (BLOCK_LEN / n_in / PANEL).max(1) * PANEL;
    let rows = m.div_ceil(rayon::current_num_threads()).clamp(MIN_TASK_ROWS, MAX_TASK_ROWS);
    let mut packed = Aligned::zeros(columns.min(n_out.next_multiple_of(PANEL)) * n_in);
    for first in (0..n_out).step_by(columns) {
        let block = first..n_out.min(first + columns);
        pack(w, block.clone(), n_in, &mut packed);
        let tasks: Vec<_> = y.chunks_mut(m, rows).collect();
        tasks.into_par_iter().for_each(|(from, y)| {
            let accumulate = b.map_or(Accumulate::Zero, |b| Accumulate::Row(&b[block.clone()]));
            let shape = (rows.min(m - from), block.len(), n_in);
            let right = Right::panels(&packed, n_in);
            matmul(level, shape, Left::rows(x, from, 0), right, accumulate, &mut y[first..], ld);
        });
    }
}

/// Packs some columns of the weights, from the first column of a panel on, as [`Right::panels`] has them: `(columns / 32, in, 32)`.
/// What lies behind the last column of the last panel is arbitrary.
fn pack<E: WeightElement>(w: &PanelView<'_, E>, columns: Range<usize>, n_in: usize, packed: &mut [f32]) {
    let panels = packed.par_chunks_exact_mut(PANEL * n_in).take(columns.len().div_ceil(PANEL));
    panels.enumerate().for_each(|(panel, packed)| {
        let first = columns.start + panel * PANEL;
        for part in w.parts(first..columns.end.min(first + PANEL)) {
            let (at, n) = (part.columns.start - first, part.columns.len());
            for (l, to) in packed.chunks_exact_mut(PANEL).enumerate() {
                to[at..].iter_mut().zip(part.row(l, 0, n)).for_each(|(to, &from)| *to = from.value());
            }
        }
    });
}
