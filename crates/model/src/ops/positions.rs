//! Learned position embeddings: a row of a table is added at each position.

use candle_core::Tensor;
use rayon::prelude::*;

use super::{Operation, count_launch, tape};
use crate::{
    Result,
    checkpoint::ParamValues,
    cpu::{
        decode::{DecodeOp, DecodeSetup, DecodeStep},
        rows::Rows,
        training::{ParamLayout, TrainOp, TrainPass, TrainSetup},
    },
    plan::{Init, NetworkBuilder, ParamId, Role, Value},
    tensors::{Fusion, Pass},
};

/// The addition of position embeddings.
#[derive(Debug, Clone)]
pub(crate) struct AddPositions {
    pub(crate) x: Value,
    pub(crate) y: Value,
    /// `(block_size, C)`.
    pub(crate) table: ParamId,
}

impl NetworkBuilder {
    /// `x[t] + table[t]`, `(T, C)`, for a table `(block_size, C)`.
    pub fn positions(&mut self, x: Value, module: &str, std: f64) -> Value {
        let c = self.cols[x.0];
        let shape = [self.config.block_size, c];
        let table = self.param(format!("{module}.weight"), &shape, Role::Position, Init::Normal(std));
        let y = self.value(c);
        self.push(AddPositions { x, y, table })
    }
}

impl Operation for AddPositions {
    fn inputs(&self) -> Vec<Value> {
        vec![self.x]
    }

    fn output(&self) -> Value {
        self.y
    }

    fn in_place(&self) -> bool {
        true
    }

    fn forward(&self, pass: &mut Pass<'_>) -> Result<Tensor> {
        let x = pass.value(self.x)?; // (B, T, C)
        let table = pass.param(self.table);
        let (past, t, rows) = (pass.past(), x.dim(1)?, table.dim(0)?);
        let y = count_launch(x.broadcast_add(&table.narrow(0, past, t)?))?; // (B, T, C) + (T, C)
        tape::record("positions", [&x, table], &y, move |dy| {
            let d_rows = count_launch(dy.sum(0))?; // (B, T, C) to (T, C)
            let d_table =
                if t < rows { count_launch(d_rows.pad_with_zeros(0, past, rows - past - t))? } else { d_rows };
            Ok([dy.clone(), d_table])
        });
        Ok(y)
    }

    fn fuse(&self, fusion: &mut Fusion<'_>) -> Option<()> {
        fusion.add_positions(self.x, self.table, self.y)
    }

    fn training(&self, _: &TrainSetup<'_>) -> Box<dyn TrainOp> {
        Box::new(self.clone())
    }

    fn reads_table(&self) -> bool {
        true
    }

    fn add_table_grads(&self, layout: &ParamLayout, _: &[u32], t: usize, dx: &[Rows], grads: &mut [f32]) {
        let Some(c) = dx.first().map(|x| x.cols) else { return };
        grads[layout.range(self.table)].par_chunks_mut(c).take(t).enumerate().for_each(|(i, grad)| {
            for dx in dx {
                grad.iter_mut().zip(dx.row(i)).for_each(|(sum, grad)| *sum += grad);
            }
        });
    }

    fn decoding<'a>(&self, setup: &DecodeSetup<'_, 'a>) -> Option<Box<dyn DecodeOp + 'a>> {
        Some(Box::new(DecodePositions { y: self.y, table: setup.large_param(self.table) }))
    }
}

/// Adds the embedding of a position, a row of `table (block_size, C)`, to `y (C)`.
fn add_row(y: &mut [f32], table: &[f32], position: usize) {
    let from = &table[position * y.len()..];
    y.iter_mut().zip(from).for_each(|(y, p)| *y += p);
}

impl TrainOp for AddPositions {
    fn forward(&mut self, pass: &mut TrainPass<'_>) {
        let table = pass.weights.param(self.table);
        let y = pass.values.rows_mut(self.y, &mut pass.scratch.rows);
        for i in 0..pass.t {
            add_row(y.row_mut(i), table, i);
        }
    }

    /// Does nothing: the gradients of `x` and `y` are the same and share a buffer, and the table's is computed for the whole
    /// batch ([`Operation::add_table_grads`]).
    fn backward(&mut self, _: &mut TrainPass<'_>) {}
}

#[derive(Debug)]
struct DecodePositions<'a> {
    y: Value,
    table: ParamValues<'a>,
}

impl DecodeOp for DecodePositions<'_> {
    fn run(&mut self, step: &mut DecodeStep<'_, '_>) {
        let positions = step.positions;
        let y = step.values.rows_mut(self.y);
        for i in 0..step.n {
            let (y, at) = (y.row_mut(i), positions.of(i));
            self.table.with_rows(y.len(), at..at + 1, |row| add_row(y, row, 0));
        }
    }
}
