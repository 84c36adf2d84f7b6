//! Token and position embeddings.

use rayon::prelude::*;

use super::rows::Rows;

/// `x[t] = wte[ids[t]] + wpe[t]`.
pub(super) fn forward(ids: &[u32], wte: &[f32], wpe: &[f32], x: &mut Rows) {
    let c = x.cols;
    for (t, &id) in ids.iter().enumerate() {
        let (tok, pos) = (&wte[id as usize * c..][..c], &wpe[t * c..][..c]);
        for ((x, tok), pos) in x.row_mut(t).iter_mut().zip(tok).zip(pos) {
            *x = tok + pos;
        }
    }
}

/// Adds the gradients `dx` of every sequence to those of its tokens and positions, in the order of the sequences.
/// `ids` has `t` tokens a sequence.
pub(super) fn backward(ids: &[u32], t: usize, dx: &[Rows], dwte: &mut [f32], dwpe: &mut [f32]) {
    let Some(c) = dx.first().map(|x| x.cols) else { return };
    let add = |to: &mut [f32], from: &[f32]| to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
    dwpe.par_chunks_mut(c).take(t).enumerate().for_each(|(i, grad)| {
        for x in dx {
            add(grad, x.row(i));
        }
    });
    // A task for each run of tokens of the vocabulary: each walks over all ids, which costs little beside the rows.
    let per_task = (dwte.len() / c).div_ceil(16);
    dwte.par_chunks_mut(per_task * c).enumerate().for_each(|(n, grad)| {
        let first = n * per_task;
        for (ids, x) in ids.chunks_exact(t).zip(dx) {
            for (i, &id) in ids.iter().enumerate() {
                if let Some(to) = (id as usize).checked_sub(first).and_then(|at| grad.chunks_exact_mut(c).nth(at)) {
                    add(to, x.row(i));
                }
            }
        }
    });
}
