//! Token embeddings: a row of a table for each token.

mod tensors;

use candle_core::Tensor;
use rayon::prelude::*;

use super::Operation;
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

pub(crate) use tensors::embedding_sum;
pub use tensors::{DIRECT_VOCAB, Tokens, embedding};

/// Looks up the embedding of each token; the first operation of a network.
#[derive(Debug, Clone)]
pub(crate) struct Embed {
    pub(crate) y: Value,
    /// `(V, C)`.
    pub(crate) table: ParamId,
}

impl NetworkBuilder {
    /// The embeddings of the tokens, `(T, n_embd)`, and their table, `(vocab_size, n_embd)`, which a tied head reads too.
    pub fn embedding(&mut self, module: &str, vocab_size: usize, n_embd: usize, std: f64) -> (Value, ParamId) {
        let shape = [vocab_size, n_embd];
        let table = self.param(format!("{module}.weight"), &shape, Role::Embedding, Init::Normal(std));
        let y = self.value(n_embd);
        (self.push(Embed { y, table }), table)
    }
}

impl Operation for Embed {
    fn inputs(&self) -> Vec<Value> {
        Vec::new()
    }

    fn output(&self) -> Value {
        self.y
    }

    fn forward(&self, pass: &mut Pass<'_>) -> Result<Tensor> {
        Ok(embedding(pass.param(self.table), pass.tokens)?.to_dtype(pass.dtype())?)
    }

    fn fuse(&self, fusion: &mut Fusion<'_>) -> Option<()> {
        fusion.embed(self.table, self.y)
    }

    fn training(&self, _: &TrainSetup<'_>) -> Box<dyn TrainOp> {
        Box::new(self.clone())
    }

    fn reads_table(&self) -> bool {
        true
    }

    fn add_table_grads(&self, layout: &ParamLayout, ids: &[u32], t: usize, dx: &[Rows], grads: &mut [f32]) {
        let Some(c) = dx.first().map(|x| x.cols) else { return };
        let grads = &mut grads[layout.range(self.table)];
        // A task owns a range of the vocabulary. It iterates over all ids, which costs little beside adding rows.
        let per_task = (grads.len() / c).div_ceil(16);
        grads.par_chunks_mut(per_task * c).enumerate().for_each(|(n, grad)| {
            let first = n * per_task;
            for (ids, x) in ids.chunks_exact(t).zip(dx) {
                for (i, &id) in ids.iter().enumerate() {
                    if let Some(to) = (id as usize).checked_sub(first).and_then(|at| grad.chunks_exact_mut(c).nth(at)) {
                        to.iter_mut().zip(x.row(i)).for_each(|(sum, grad)| *sum += grad);
                    }
                }
            }
        });
    }

    fn decoding<'a>(&self, setup: &DecodeSetup<'_, 'a>) -> Option<Box<dyn DecodeOp + 'a>> {
        Some(Box::new(DecodeEmbed { y: self.y, table: setup.large_param(self.table) }))
    }
}

/// Copies the row of each token, `ids (n)`, from a table `(V, C)` to `y (n, C)`.
fn gather_rows(table: &[f32], ids: &[u32], y: &mut Rows) {
    let c = y.cols;
    for (i, &id) in ids.iter().enumerate() {
        y.row_mut(i).copy_from_slice(&table[id as usize * c..][..c]);
    }
}

impl TrainOp for Embed {
    fn forward(&mut self, pass: &mut TrainPass<'_>) {
        gather_rows(pass.weights.param(self.table), pass.ids, pass.values.rows_mut(self.y, &mut pass.scratch.rows));
    }

    /// Does nothing: the table's gradient is computed for the whole batch ([`Operation::add_table_grads`]).
    fn backward(&mut self, _: &mut TrainPass<'_>) {}
}

#[derive(Debug)]
struct DecodeEmbed<'a> {
    y: Value,
    table: ParamValues<'a>,
}

impl DecodeOp for DecodeEmbed<'_> {
    fn run(&mut self, step: &mut DecodeStep<'_, '_>) {
        let y = step.values.rows_mut(self.y);
        for (i, &id) in step.tokens.iter().enumerate() {
            let (y, id) = (y.row_mut(i), id as usize);
            self.table.with_rows(y.len(), id..id + 1, |row| y.copy_from_slice(row));
        }
    }
}
