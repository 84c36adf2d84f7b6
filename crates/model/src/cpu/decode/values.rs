//! The values of a decoding pass. Nothing is kept for a backward pass, so values share buffers by their lifetimes.

use crate::{
    cpu::rows::Rows,
    ops::Op,
    plan::{Network, Value},
};

/// The buffers of a decoding pass's values.
#[derive(Debug)]
pub(crate) struct DecodeValues {
    /// `(n, channels)` each.
    buffers: Vec<Rows>,
    /// The index of each value's buffer.
    buffer_of: Vec<usize>,
}

impl DecodeValues {
    /// Allocates buffers of `n` rows.
    pub(crate) fn new(net: &Network, n: usize) -> Self {
        let (cols, buffer_of) = assign_buffers(net);
        Self { buffers: cols.into_iter().map(|cols| Rows::zeros(n, cols)).collect(), buffer_of }
    }

    /// The rows of a value.
    pub(crate) fn rows(&self, value: Value) -> &Rows {
        &self.buffers[self.buffer_of[value.0]]
    }

    /// The rows of a value, to be written.
    pub(crate) fn rows_mut(&mut self, value: Value) -> &mut Rows {
        &mut self.buffers[self.buffer_of[value.0]]
    }

    /// The rows of one value to read and of another, in a different buffer, to write.
    #[expect(
        clippy::expect_used,
        reason = "operations that work in place ask for one value; a test runs every operation"
    )]
    pub(crate) fn pair(&mut self, read: Value, write: Value) -> (&Rows, &mut Rows) {
        let [read, write] = self
            .buffers
            .get_disjoint_mut([self.buffer_of[read.0], self.buffer_of[write.0]])
            .expect("values with buffers of their own");
        (read, write)
    }

    /// Copies one row of every value to its first row.
    pub(crate) fn keep_row(&mut self, row: usize) {
        self.buffers.iter_mut().for_each(|buffer| buffer.copy_row(row, 0));
    }
}

/// Assigns a buffer to each value. Returns the columns of each buffer and the buffer of each value. A buffer is free again
/// after the last reader of its value; in-place operations, and additions to the residual stream, overwrite their first
/// input.
fn assign_buffers(net: &Network) -> (Vec<usize>, Vec<usize>) {
    let last_readers = net.last_readers();
    let mut buffer_of = vec![usize::MAX; net.cols.len()];
    // The columns of each buffer, and the index of the operation that reads it last.
    let mut buffers: Vec<(usize, usize)> = Vec::new();
    for (at, op) in net.ops.iter().enumerate() {
        let (inputs, output) = (op.get().inputs(), op.get().output());
        let over_input = op.get().in_place() || matches!(op, Op::Add(_));
        let (cols, last) = (net.cols(output), last_readers[output.0]);
        let buffer = if over_input {
            let input = inputs[0];
            // Otherwise the input would be read after it was overwritten.
            assert!(last_readers[input.0] == at, "{op:?}: nothing else may read what is written over later");
            buffer_of[input.0]
        } else {
            // A buffer whose last reader is this operation is not free yet: the operation reads it while it writes.
            let free = buffers.iter().position(|&(other, busy_until)| other == cols && busy_until < at);
            free.unwrap_or_else(|| {
                buffers.push((cols, at));
                buffers.len() - 1
            })
        };
        buffer_of[output.0] = buffer;
        buffers[buffer].1 = last;
    }
    (buffers.into_iter().map(|(cols, _)| cols).collect(), buffer_of)
}
