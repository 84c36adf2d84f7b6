//! A step of Muon in tensor operations: matrices of one shape are stacked, and orthogonalised in batched products.

use candle_core::Tensor;
use tinygpt_model::{
    ParamSpec,
    ops::{cat, count_launch},
    plan::Role,
};

use super::{Muon, shape_factor};
use crate::{
    Result,
    engine::{Optimizer, TensorStep, TensorUpdate, groups::columns, optimizer::slot_count},
};

/// Matrices (rows, cols) whose steps have the same factor.
struct Stack {
    shape: (usize, usize),
    factor: f64,
    /// Each (1, rows, cols), contiguous.
    matrices: Vec<Tensor>,
}

impl Muon {
    pub(super) fn on_tensors(&self, update: TensorUpdate<'_>) -> Result<TensorStep> {
        let TensorUpdate { specs, ranges, grads, slots, lr, .. } = update;
        let [old_m, old_v] = slots else { return Err(slot_count(self, slots.len())) };
        // Of all parameters, since single operations on a flat tensor cost less than gathering those that need it.
        let momentum = self.momentum;
        let scaled = count_launch(grads.affine(1.0 - momentum, 0.0))?;
        let m = count_launch(count_launch(old_m.affine(momentum, 0.0))? + &scaled)?;
        let ahead = count_launch(count_launch(m.affine(momentum, 0.0))? + &scaled)?;
        let rest = self.adamw.step_tensors(update)?;
        let [rest_m, rest_v] = &rest.slots[..] else { return Err(slot_count(self, rest.slots.len())) };

        let mut stacks = Vec::new();
        let mut places = Vec::with_capacity(specs.len());
        for (spec, range) in specs.iter().zip(ranges) {
            places.push(if spec.role == Role::Matrix {
                add_to_stacks(&mut stacks, spec, &ahead.narrow(0, range.start, range.len())?)?
            } else {
                Vec::new()
            });
        }
        let stacks = stacks.into_iter().map(|stack| self.step_of(stack, lr)).collect::<Result<Vec<_>>>()?;

        // Neighbours of one kind go together. What follows the last parameter is zero in all.
        let (mut step, mut new_m, mut new_v) = (Vec::new(), Vec::new(), Vec::new());
        let is_matrix = |at: usize| specs.get(at).is_some_and(|spec| spec.role == Role::Matrix);
        let mut at = 0;
        while at < specs.len() {
            let matrices = is_matrix(at);
            let next = (at..specs.len()).find(|&next| is_matrix(next) != matrices).unwrap_or(specs.len());
            let start = ranges[at].start;
            let end = ranges[next - 1].end;
            let part = |flat: &Tensor| flat.narrow(0, start, end - start);
            if matrices {
                for (spec, places) in specs[at..next].iter().zip(&places[at..next]) {
                    step.push(flat_step(spec, places, &stacks)?);
                }
            } else {
                step.push(part(&rest.step)?);
            }
            new_m.push(part(if matrices { &m } else { rest_m })?);
            new_v.push(part(if matrices { old_v } else { rest_v })?);
            at = next;
        }
        let end = ranges.last().map_or(0, |range| range.end);
        let padding = scaled.narrow(0, end, scaled.elem_count() - end)?;
        if padding.elem_count() > 0 {
            [&mut step, &mut new_m, &mut new_v].into_iter().for_each(|parts| parts.push(padding.clone()));
        }
        Ok(TensorStep { slots: vec![cat(&new_m)?, cat(&new_v)?], step: cat(&step)? })
    }

    /// The steps of the matrices of a stack, (n, rows, cols).
    fn step_of(&self, stack: Stack, lr: f64) -> Result<Tensor> {
        let Stack { shape: (rows, cols), factor, matrices } = stack;
        let n = matrices.len();
        let mut x = cat(&matrices)?;
        let squares = count_launch(x.sqr())?.reshape((n, rows * cols))?; // (n, rows, cols) to (n, rows * cols)
        let norm = count_launch(count_launch(squares.sum_keepdim(1))?.sqrt())?;
        x = count_launch(x.broadcast_div(&count_launch(norm.affine(1.02, 1e-7))?.reshape((n, 1, 1))?))?;
        if rows > cols {
            x = count_launch(x.t()?.contiguous())?;
        }
        for &[a, b, c] in self.coefficients {
            let gram = count_launch(x.matmul(&x.t()?))?;
            let square = count_launch(count_launch(gram.matmul(&gram))?.affine(c, 0.0))?;
            let sum = count_launch(count_launch(gram.affine(b, 0.0))? + square)?;
            x = count_launch(count_launch(x.affine(a, 0.0))? + count_launch(sum.matmul(&x))?)?;
        }
        if rows > cols {
            x = count_launch(x.t()?.contiguous())?;
        }
        Ok(count_launch(x.affine(lr * factor, 0.0))?)
    }
}

/// Adds the matrices of a flat parameter to the stacks of their shapes. Returns the stack of each, and its place there.
/// Several side by side are stacked as (out, in), in which each is contiguous; a single one as it is, (in, out).
fn add_to_stacks(stacks: &mut Vec<Stack>, spec: &ParamSpec, flat: &Tensor) -> Result<Vec<(usize, usize)>> {
    let (n_in, columns) = (spec.shape[0], columns(spec));
    let whole = flat.reshape((n_in, spec.shape[1]))?;
    let several = columns.len() > 1;
    let whole = if several { count_launch(whole.t()?.contiguous())? } else { whole };
    let mut from = 0;
    let mut places = Vec::with_capacity(columns.len());
    for &n_out in columns {
        let matrix = if several { whole.narrow(0, from, n_out)? } else { whole.clone() };
        from += n_out;
        let shape @ (rows, cols) = matrix.dims2()?;
        let factor = shape_factor(n_in, n_out);
        let found = stacks.iter().position(|stack| stack.shape == shape && stack.factor == factor);
        let stack = found.unwrap_or(stacks.len());
        if found.is_none() {
            stacks.push(Stack { shape, factor, matrices: Vec::new() });
        }
        places.push((stack, stacks[stack].matrices.len()));
        stacks[stack].matrices.push(matrix.reshape((1, rows, cols))?);
    }
    Ok(places)
}

/// The step of a parameter, flat, from those of its matrices.
fn flat_step(spec: &ParamSpec, places: &[(usize, usize)], stacks: &[Tensor]) -> Result<Tensor> {
    let step = |&(stack, at): &(usize, usize)| -> Result<Tensor> { Ok(stacks[stack].get(at)?) };
    let steps = places.iter().map(step).collect::<Result<Vec<_>>>()?;
    let whole = match &steps[..] {
        [whole] => whole.clone(),
        // (out, in) to (in, out)
        several => count_launch(cat(several)?.t()?.contiguous())?,
    };
    Ok(whole.reshape(spec.len())?)
}
