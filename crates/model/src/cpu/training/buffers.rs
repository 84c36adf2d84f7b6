//! The values of a sequence, and their gradients: buffers that operations read and write by name.

use std::sync::Arc;

use crate::{
    cpu::{
        CpuPrecision,
        operand::{Operand, Storage},
        rows::Rows,
    },
    plan::Value,
};

/// A buffer that is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BufferSpec {
    pub(crate) cols: usize,
    pub(crate) storage: Storage,
}

/// Buffers of up to `block_size` rows. Several values may share one.
#[derive(Debug)]
pub(crate) struct Buffers {
    slots: Vec<Operand>,
    /// The slot of each value.
    of: Arc<[usize]>,
}

impl Buffers {
    pub(crate) fn new(precision: CpuPrecision, block_size: usize, specs: &[BufferSpec], of: &Arc<[usize]>) -> Self {
        let slots = specs.iter().map(|spec| Operand::new(precision, block_size, spec.cols, spec.storage)).collect();
        Self { slots, of: Arc::clone(of) }
    }

    pub(crate) fn get(&self, value: Value) -> &Operand {
        &self.slots[self.of[value.0]]
    }

    pub(crate) fn get_mut(&mut self, value: Value) -> &mut Operand {
        &mut self.slots[self.of[value.0]]
    }

    /// The f32 rows of a value that keeps them.
    pub(crate) fn rows(&self, value: Value) -> &Rows {
        self.get(value).rows()
    }

    /// The f32 rows of a value, to be written; `scratch` where it keeps none.
    pub(crate) fn rows_mut<'a>(&'a mut self, value: Value, scratch: &'a mut Rows) -> &'a mut Rows {
        self.get_mut(value).rows_mut(scratch)
    }

    /// One value to read, and the f32 rows of another to write.
    pub(crate) fn pair<'a>(
        &'a mut self,
        read: Value,
        write: Value,
        scratch: &'a mut Rows,
    ) -> (&'a Operand, &'a mut Rows) {
        let [read, write] = self.two(read, write);
        (read, write.rows_mut(scratch))
    }

    /// The f32 rows of two values that keep them, both to be written.
    pub(crate) fn both_rows_mut(&mut self, a: Value, b: Value) -> (&mut Rows, &mut Rows) {
        let [a, b] = self.two(a, b);
        (a.kept_rows_mut(), b.kept_rows_mut())
    }

    #[expect(
        clippy::expect_used,
        reason = "operations that work in place ask for one value; a test runs every operation"
    )]
    fn two(&mut self, a: Value, b: Value) -> [&mut Operand; 2] {
        self.slots.get_disjoint_mut([self.of[a.0], self.of[b.0]]).expect("values with buffers of their own")
    }
}
