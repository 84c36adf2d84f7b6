//! The buffers of a sequence's activations and of their gradients, which operations address by [`Value`].

use std::sync::Arc;

use crate::{
    cpu::{
        CpuPrecision,
        operand::{Operand, Storage},
        rows::Rows,
    },
    plan::Value,
};

/// The width and the storage of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BufferSpec {
    pub(crate) cols: usize,
    pub(crate) storage: Storage,
}

/// Buffers `(block_size, channels)`. Several values may share one.
#[derive(Debug)]
pub(crate) struct Buffers {
    buffers: Vec<Operand>,
    /// The index of each value's buffer.
    buffer_of: Arc<[usize]>,
}

impl Buffers {
    /// Allocates the buffers; `buffer_of` has the index of each value's buffer.
    pub(crate) fn new(
        precision: CpuPrecision,
        block_size: usize,
        specs: &[BufferSpec],
        buffer_of: &Arc<[usize]>,
    ) -> Self {
        let buffers = specs.iter().map(|spec| Operand::new(precision, block_size, spec.cols, spec.storage)).collect();
        Self { buffers, buffer_of: Arc::clone(buffer_of) }
    }

    /// The buffer of a value.
    pub(crate) fn get(&self, value: Value) -> &Operand {
        &self.buffers[self.buffer_of[value.0]]
    }

    /// [`Buffers::get`], to be written.
    pub(crate) fn get_mut(&mut self, value: Value) -> &mut Operand {
        &mut self.buffers[self.buffer_of[value.0]]
    }

    /// The f32 rows of a value that keeps them.
    pub(crate) fn rows(&self, value: Value) -> &Rows {
        self.get(value).rows()
    }

    /// The f32 rows of a value, to be written; `scratch` where the value keeps none.
    pub(crate) fn rows_mut<'a>(&'a mut self, value: Value, scratch: &'a mut Rows) -> &'a mut Rows {
        self.get_mut(value).rows_mut(scratch)
    }

    /// The buffer of one value to read, and the f32 rows of another to write. The two must not share a buffer.
    pub(crate) fn pair<'a>(
        &'a mut self,
        read: Value,
        write: Value,
        scratch: &'a mut Rows,
    ) -> (&'a Operand, &'a mut Rows) {
        let [read, write] = self.two(read, write);
        (read, write.rows_mut(scratch))
    }

    /// The f32 rows of two values that keep them, both to be written. The two must not share a buffer.
    pub(crate) fn both_rows_mut(&mut self, a: Value, b: Value) -> (&mut Rows, &mut Rows) {
        let [a, b] = self.two(a, b);
        (a.kept_rows_mut(), b.kept_rows_mut())
    }

    #[expect(
        clippy::expect_used,
        reason = "operations that work in place ask for one value; a test runs every operation"
    )]
    fn two(&mut self, a: Value, b: Value) -> [&mut Operand; 2] {
        self.buffers
            .get_disjoint_mut([self.buffer_of[a.0], self.buffer_of[b.0]])
            .expect("values with buffers of their own")
    }
}
