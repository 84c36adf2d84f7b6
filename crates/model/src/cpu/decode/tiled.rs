//! Products of many rows, those of a prompt: weights are widened to f32 and packed once for all rows, then multiplied in register
//! tiles.

use std::ops::Range;

use rayon::prelude::*;
use tinygpt_sampler::simd::SimdLevel;

use super::{
    super::{
        matmul::{Accumulate, Left, MIN_PARALLEL_MULTIPLY_ADDS, PANEL, Right, matmul},
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

/// Computes `y (m, out) = x (m, in) w (in, out) + b (out)`, on all threads of the rayon pool where there is enough to do. Every
/// element is one chain of fused multiply-adds in the order of the inputs, whatever the blocks and tasks.
pub(super) fn multiply<E: WeightElement>(
    level: SimdLevel,
    w: &PanelView<'_, E>,
    (m, x): (usize, &Rows),
    b: Option<&[f32]>,
    y: &mut Rows,
) {
    let (n_in, n_out, ld) = (x.cols, w.n_out(), y.ld);
    let is_divided = m * n_in * n_out >= MIN_PARALLEL_MULTIPLY_ADDS;
    let threads = if is_divided { rayon::current_num_threads() } else { 1 };
    let columns = (BLOCK_LEN / n_in / PANEL).max(1) * PANEL;
    let rows = m.div_ceil(threads).clamp(MIN_TASK_ROWS, MAX_TASK_ROWS);
    let mut packed = Aligned::zeros(columns.min(n_out.next_multiple_of(PANEL)) * n_in);
    for first in (0..n_out).step_by(columns) {
        let block = first..n_out.min(first + columns);
        pack(w, block.clone(), n_in, is_divided, &mut packed);
        let task = |(from, y): (usize, &mut [f32])| {
            let accumulate = b.map_or(Accumulate::Zero, |b| Accumulate::Row(&b[block.clone()]));
            let shape = (rows.min(m - from), block.len(), n_in);
            let right = Right::panels(&packed, n_in);
            matmul(level, shape, Left::rows(x, from, 0), right, accumulate, &mut y[first..], ld);
        };
        if is_divided {
            let tasks: Vec<_> = y.chunks_mut(m, rows).collect();
            tasks.into_par_iter().for_each(task);
        } else {
            y.chunks_mut(m, rows).for_each(task);
        }
    }
}

/// Packs some columns of the weights, from the first column of a panel on, as [`Right::panels`] has them: `(columns / 32, in, 32)`.
/// What lies behind the last column of the last panel is arbitrary.
fn pack<E: WeightElement>(
    w: &PanelView<'_, E>,
    columns: Range<usize>,
    n_in: usize,
    is_divided: bool,
    packed: &mut [f32],
) {
    let (panels, panel_len) = (columns.len().div_ceil(PANEL), PANEL * n_in);
    let pack_panel = |(panel, packed): (usize, &mut [f32])| {
        let first = columns.start + panel * PANEL;
        for part in w.parts(first..columns.end.min(first + PANEL)) {
            let (at, n) = (part.columns.start - first, part.columns.len());
            for (l, to) in packed.chunks_exact_mut(PANEL).enumerate() {
                to[at..].iter_mut().zip(part.row(l, 0, n)).for_each(|(to, &from)| *to = from.value());
            }
        }
    };
    if is_divided {
        packed.par_chunks_exact_mut(panel_len).take(panels).enumerate().for_each(pack_panel);
    } else {
        packed.chunks_exact_mut(panel_len).take(panels).enumerate().for_each(pack_panel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::rows::tests::random;

    #[test]
    fn a_product_is_a_chain_of_multiply_adds_whether_it_is_divided_or_not() {
        let mut both = [false; 2];
        for (m, n_in, n_out) in [(64, 40, 100), (70, 300, 215)] {
            both[usize::from(m * n_in * n_out >= MIN_PARALLEL_MULTIPLY_ADDS)] = true;
            let (x, w, b) = (random(m, n_in, 1), random(n_in, n_out, 2), random(1, n_out, 3));
            let values: Vec<f32> = (0..n_in).flat_map(|l| w.row(l).to_vec()).collect();
            let b = b.row(0);
            let chain = |i: usize, j: usize| (0..n_in).fold(b[j], |sum, l| x.row(i)[l].mul_add(w.row(l)[j], sum));
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let mut y = Rows::zeros(m, n_out);
                let view = PanelView::of_rows(&values, n_out);
                pool.install(|| multiply(SimdLevel::detect(), &view, (m, &x), Some(b), &mut y));
                for i in 0..m {
                    for (j, found) in y.row(i).iter().enumerate() {
                        assert_eq!(found.to_bits(), chain(i, j).to_bits(), "{m} rows, {threads} threads: {i}, {j}");
                    }
                }
            }
        }
        assert_eq!(both, [true; 2], "shapes on both sides of the bound");
    }
}
