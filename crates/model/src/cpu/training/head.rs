//! The head over the sequences in flight: logits, losses, and the gradients of hidden states and of the head's weights, in tasks
//! of some rows.

use rayon::prelude::*;
use tinygpt_sampler::simd::SimdLevel;

use super::{CpuGpt, CpuReference, Sequence, Weights};
use crate::{
    Network,
    cpu::operand::add_outer_products,
    ops::head_training::{GRAD_TASK_ROWS, HeadTask, HeadWorkspace, ReferenceHead, TASK_ROWS},
};

/// Calls `visit(sequence, position, logits (V))` for the positions of some sequences from `from` on, as many tasks at a time
/// as there are workspaces.
pub(super) fn head_logits(
    level: SimdLevel,
    (net, weights): (&Network, &Weights),
    workspaces: &mut [HeadWorkspace],
    sequences: &mut [Sequence],
    from: usize,
    visit: &(dyn Fn(usize, usize, &[f32]) + Sync),
) {
    let head = (weights.packed(net.head.weight), net.head.cap);
    let mut tasks = Vec::new();
    for (row, sequence) in sequences.iter_mut().enumerate() {
        let t = sequence.t;
        let (hidden, quantized, _) = sequence.hidden(net.head.x);
        let tasks_of_row = (0..t).step_by(TASK_ROWS).map(|at| at..t.min(at + TASK_ROWS));
        tasks.extend(tasks_of_row.filter(|rows| rows.end > from).map(|rows| (row, hidden, quantized, rows)));
    }
    for tasks in tasks.chunks(workspaces.len()) {
        tasks.par_iter().zip(&mut *workspaces).for_each(|((row, hidden, quantized, positions), workspace)| {
            let logits = workspace.logits(level, head, (hidden, quantized), positions.clone());
            for position in positions.clone().filter(|&position| position >= from) {
                visit(*row, position, logits.row(position - positions.start));
            }
        });
    }
}

/// Computes the losses of some sequences, from a position on, and the gradients of their hidden states, as many tasks at a
/// time as there are workspaces. `grad` has the gradient `(V, C)` of the head's weights to add to, and the weight of a token
/// in the loss. A `reference` has made its forward passes of the same sequences.
pub(super) fn run_head(
    level: SimdLevel,
    (net, weights): (&Network, &Weights),
    workspaces: &mut [HeadWorkspace],
    sequences: &mut [Sequence],
    (targets, losses, from): (&[u32], &mut [f32], usize),
    mut grad: Option<(&mut [f32], f32)>,
    reference: Option<&mut CpuReference>,
) {
    let (packed, cap) = (weights.packed(net.head.weight), net.head.cap);
    let (mut targets, mut losses) = (targets, losses);
    let (mut of_reference, mut references) = (None, Vec::new());
    let mut reference_workspaces: Vec<_> = workspaces.iter().map(|_| None).collect();
    if let Some(CpuReference { gpt, weight }) = reference {
        let CpuGpt { net, weights, sequences, workspaces, .. } = gpt;
        let head = (weights.packed(net.head.weight), net.head.cap);
        of_reference = Some(ReferenceHead { head, weight: *weight });
        let hidden = |sequence| Sequence::hidden(sequence, net.head.x);
        references = sequences.iter_mut().map(hidden).map(|(hidden, quantized, _)| (hidden, quantized)).collect();
        reference_workspaces = workspaces.iter_mut().map(Some).collect();
    }
    let mut tasks = Vec::new();
    for (i, sequence) in sequences.iter_mut().enumerate() {
        let reference = references.get(i).copied();
        let t = sequence.t;
        let (hidden, quantized, d_hidden) = sequence.hidden(net.head.x);
        let ld = d_hidden.ld;
        for (at, dx) in d_hidden.chunks_mut(t, TASK_ROWS) {
            let n = TASK_ROWS.min(t - at);
            let (here, loss);
            (here, targets) = targets.split_at(n);
            (loss, losses) = std::mem::take(&mut losses).split_at_mut(n);
            if at + n > from {
                tasks.push(HeadTask { hidden, quantized, from: at, targets: here, losses: loss, dx, ld, reference });
            }
        }
    }
    // A task needs a workspace of either model.
    for tasks in tasks.chunks_mut(workspaces.len().min(reference_workspaces.len())) {
        let scale = grad.as_ref().map(|(_, scale)| *scale);
        tasks.par_iter_mut().zip(&mut *workspaces).zip(&mut reference_workspaces).for_each(
            |((task, workspace), of_its_reference)| {
                let reference = of_reference.zip(of_its_reference.as_deref_mut());
                workspace.run(level, (packed, cap), task, scale, reference);
            },
        );
        if let Some((grad, _)) = &mut grad {
            let c = packed.weight.n();
            let products: Vec<_> =
                tasks.iter().zip(&*workspaces).map(|(task, workspace)| workspace.weight_grads(task)).collect();
            grad.par_chunks_mut(GRAD_TASK_ROWS * c).enumerate().for_each(|(i, grad)| {
                add_outer_products(level, i * GRAD_TASK_ROWS, &products, grad);
            });
        }
    }
}
