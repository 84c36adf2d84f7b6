//! A step of Muon: kernels over all matrices, and batched products of those of one shape.

use candle_core::{DType, Device, Tensor};
use tinygpt_model::{ops::count_launch, plan::Role};
use tinygpt_sampler::kernels::{Arg, Grid, Kernels, Module};

use super::{KernelStep, Rows, Table, upload};
use crate::{
    Result,
    engine::{Muon, groups::columns, muon::shape_factor, optimizer::slot_count},
};

const MODULE: Module = Module { name: "muon", ptx: include_str!("../../../../kernels/muon.ptx") };

/// The rows and columns of a block.
const TILE: usize = 32;

/// The words of a matrix in the table that the kernels read.
const WORDS: usize = 10;

/// Stacks begin at multiples of this many elements, so that products find them aligned.
const ALIGNMENT: usize = 128;

/// A matrix of a linear layer, which may lie beside others in its parameter.
struct Matrix {
    /// The parameter.
    at: usize,
    /// Its first column there.
    from: usize,
    n_in: usize,
    n_out: usize,
}

/// Matrices of one shape, each as it is or transposed, and never higher than wide: `(n, short, long)`.
struct Stack {
    short: usize,
    long: usize,
    matrices: Vec<Matrix>,
    /// The first of its elements in what is orthogonalised, and the first of its blocks.
    start: usize,
    first_block: usize,
    blocks: usize,
}

impl KernelStep<'_> {
    /// Queues a step of Muon for matrices and of AdamW for all else, and returns the norm of the gradients and their factor.
    pub(super) fn muon(&self, kernels: &Kernels, rule: &Muon, grads: &[Tensor], device: &Device) -> Result<Tensor> {
        let [m, _] = self.slots else { return Err(slot_count(rule, self.slots.len())) };
        let stacks = self.stacks();
        let mut table = Table::default();
        self.add_rows(&mut table, kernels, &rule.adamw, grads, |role| role != Role::Matrix)?;
        let (rest, rest_blocks) = (table.rows, table.blocks);
        self.add_rows(&mut table, kernels, &rule.adamw, grads, |role| role == Role::Matrix)?;
        let Table { mut words, rows, blocks } = table;
        let of_matrices = words.len();
        for stack in &stacks {
            self.add_matrices(&mut words, kernels, rule, grads, stack)?;
        }
        let words = upload(words, device)?;

        let part = |start: usize, len: usize| words.narrow(0, start, len);
        let norm_and_factor = self.clip(kernels, &Rows { words: part(0, of_matrices)?, rows, blocks })?;
        let rest = Rows { words: part(0, rest * super::WORDS)?, rows: rest, blocks: rest_blocks };
        self.adamw(kernels, &rule.adamw, &rest, &norm_and_factor)?;

        let n: usize = stacks.iter().map(|stack| stack.matrices.len()).sum();
        let blocks = stacks.iter().map(|stack| stack.blocks).sum();
        let all = Rows { words: part(of_matrices, n * WORDS)?, rows: n, blocks };
        let x = self.scaled_momenta(kernels, rule, &all, (m, &norm_and_factor), &stacks)?;
        let mut row = of_matrices;
        for stack in &stacks {
            let len = stack.matrices.len() * WORDS;
            let rows = Rows { words: part(row, len)?, rows: stack.matrices.len(), blocks: stack.blocks };
            row += len;
            let x = orthogonalized(kernels, rule, stack.of(&x)?)?;
            let args = [&rows.args()[..], &[Arg::Tensor(&x)]].concat();
            count_launch(kernels.launch(MODULE, "muon_update", Grid::new(stack.blocks, 256), &args))?;
        }
        Ok(norm_and_factor)
    }

    /// All matrices, by shape.
    fn stacks(&self) -> Vec<Stack> {
        let mut stacks: Vec<Stack> = Vec::new();
        for (at, (spec, _)) in self.flat.iter().enumerate().filter(|(_, (spec, _))| spec.role == Role::Matrix) {
            let (n_in, mut from) = (spec.shape[0], 0);
            for &n_out in columns(spec) {
                let (short, long) = (n_in.min(n_out), n_in.max(n_out));
                let matrix = Matrix { at, from, n_in, n_out };
                from += n_out;
                match stacks.iter_mut().find(|stack| (stack.short, stack.long) == (short, long)) {
                    Some(stack) => stack.matrices.push(matrix),
                    None => {
                        let matrices = vec![matrix];
                        stacks.push(Stack { short, long, matrices, start: 0, first_block: 0, blocks: 0 });
                    }
                }
            }
        }
        let (mut end, mut block) = (0, 0);
        for stack in &mut stacks {
            (stack.start, stack.first_block) = (end, block);
            stack.blocks = stack.matrices.len() * stack.tiles();
            block += stack.blocks;
            end = stack.end().next_multiple_of(ALIGNMENT);
        }
        stacks
    }

    /// Adds the rows of a stack's matrices to a table.
    fn add_matrices(
        &self,
        words: &mut Vec<u64>,
        kernels: &Kernels,
        rule: &Muon,
        grads: &[Tensor],
        stack: &Stack,
    ) -> Result<()> {
        let (decay, rate) = (self.decay(&rule.adamw, Role::Matrix), rule.adamw.rates.matrices);
        for (i, &Matrix { at, from, n_in, n_out }) in stack.matrices.iter().enumerate() {
            let first = |tensor: &Tensor| -> Result<u64> {
                Ok(kernels.address(tensor)? + (from * DType::F32.size_in_bytes()) as u64)
            };
            let scale = self.lr * shape_factor(n_in, n_out) * rate;
            words.extend([
                first(&self.params[at])?,
                first(&grads[at])?,
                (stack.first_block + i * stack.tiles()) as u64,
                n_in as u64,
                n_out as u64,
                self.flat.specs[at].shape[1] as u64,
                (self.flat.ranges[at].start + from) as u64,
                (stack.start + i * stack.short * stack.long) as u64,
                u64::from((decay as f32).to_bits()),
                u64::from((scale as f32).to_bits()),
            ]);
        }
        Ok(())
    }

    /// Updates the momenta `m`, and returns what is orthogonalised, in all stacks, each matrix divided by its norm.
    fn scaled_momenta(
        &self,
        kernels: &Kernels,
        rule: &Muon,
        all: &Rows,
        (m, norm_and_factor): (&Tensor, &Tensor),
        stacks: &[Stack],
    ) -> Result<Tensor> {
        let x = kernels.output(stacks.last().map_or(0, Stack::end), DType::F32)?;
        let sums = kernels.output(all.blocks, DType::F32)?;
        let momentum = [rule.momentum, 1.0 - rule.momentum].map(|x| Arg::F32(x as f32));
        let state = [norm_and_factor, m, &x, &sums].map(Arg::Tensor);
        let grid = Grid::new(all.blocks, 256);
        let args = [&all.args()[..], &state, &momentum].concat();
        count_launch(kernels.launch(MODULE, "muon_momentum", grid, &args))?;
        let args = [&all.args()[..], &[Arg::Tensor(&sums), Arg::Tensor(&x)]].concat();
        count_launch(kernels.launch(MODULE, "muon_scale", grid, &args))?;
        Ok(x)
    }
}

impl Stack {
    /// The tiles of a matrix.
    fn tiles(&self) -> usize {
        self.short.div_ceil(TILE) * self.long.div_ceil(TILE)
    }

    /// The end of its elements in what is orthogonalised.
    fn end(&self) -> usize {
        self.start + self.matrices.len() * self.short * self.long
    }

    /// Its matrices in `x`, those of all stacks: `(n, short, long)`.
    fn of(&self, x: &Tensor) -> Result<Tensor> {
        let flat = x.narrow(0, self.start, self.end() - self.start)?;
        Ok(flat.reshape((self.matrices.len(), self.short, self.long))?) // (n * short * long) to (n, short, long)
    }
}

/// The matrices `x (n, short, long)` with singular values of about 1, by Newton-Schulz iterations:
/// `A = X X^T; X = (a I + b A + c A^2) X`.
fn orthogonalized(kernels: &Kernels, rule: &Muon, mut x: Tensor) -> Result<Tensor> {
    for &coefficients in rule.coefficients {
        let gram = count_launch(x.matmul(&x.t()?))?; // (n, short, short)
        let polynomial = count_launch(gram.matmul(&gram))?;
        let [n, short] = [gram.elem_count(), gram.dim(1)?];
        let shape = [Arg::Tensor(&gram), Arg::Tensor(&polynomial), Arg::U64(n as u64), Arg::U32(short as u32)];
        let args = [&shape[..], &coefficients.map(|x| Arg::F32(x as f32))].concat();
        count_launch(kernels.launch(MODULE, "muon_polynomial", Grid::over(n.div_ceil(4), 256), &args))?;
        x = count_launch(polynomial.matmul(&x))?;
    }
    Ok(x)
}
