//! The values of a forward pass of decoding, in as few buffers as they fit: nothing is kept for a backward pass.

use crate::{
    cpu::rows::Rows,
    ops::Op,
    plan::{Network, Value},
};

/// Rows of every value that is alive at a time.
#[derive(Debug)]
pub(crate) struct DecodeValues {
    buffers: Vec<Rows>,
    /// The buffer of each value.
    of: Vec<usize>,
}

impl DecodeValues {
    /// Buffers of `n` rows.
    pub(crate) fn new(net: &Network, n: usize) -> Self {
        let (cols, of) = assign(net);
        Self { buffers: cols.into_iter().map(|cols| Rows::zeros(n, cols)).collect(), of }
    }

    pub(crate) fn rows(&self, value: Value) -> &Rows {
        &self.buffers[self.of[value.0]]
    }

    pub(crate) fn rows_mut(&mut self, value: Value) -> &mut Rows {
        &mut self.buffers[self.of[value.0]]
    }

    /// One value to read and another to write.
    #[expect(
        clippy::expect_used,
        reason = "operations that work in place ask for one value; a test runs every operation"
    )]
    pub(crate) fn pair(&mut self, read: Value, write: Value) -> (&Rows, &mut Rows) {
        let [read, write] = self
            .buffers
            .get_disjoint_mut([self.of[read.0], self.of[write.0]])
            .expect("values with buffers of their own");
        (read, write)
    }

    /// Makes a row of every value its first.
    pub(crate) fn keep_row(&mut self, row: usize) {
        self.buffers.iter_mut().for_each(|buffer| buffer.copy_row(row, 0));
    }
}

/// The columns of each buffer, and the buffer of each value. A buffer is used again once nothing reads its value any more;
/// operations in place, and additions to the residual stream, write over their first input.
fn assign(net: &Network) -> (Vec<usize>, Vec<usize>) {
    let last_readers = net.last_readers();
    let mut of = vec![usize::MAX; net.cols.len()];
    // The columns of each buffer, and the operation that reads it last.
    let mut buffers: Vec<(usize, usize)> = Vec::new();
    for (at, op) in net.ops.iter().enumerate() {
        let (inputs, output) = (op.get().inputs(), op.get().output());
        let over_input = op.get().in_place() || matches!(op, Op::Add(_));
        let (cols, last) = (net.cols(output), last_readers[output.0]);
        let buffer = if over_input {
            let input = inputs[0];
            // Otherwise a value would be read after it was written over.
            assert!(last_readers[input.0] == at, "{op:?}: nothing else may read what is written over later");
            of[input.0]
        } else {
            // Of what ends with this operation nothing may be written yet: it reads that.
            let free = buffers.iter().position(|&(other, busy_until)| other == cols && busy_until < at);
            free.unwrap_or_else(|| {
                buffers.push((cols, at));
                buffers.len() - 1
            })
        };
        of[output.0] = buffer;
        buffers[buffer].1 = last;
    }
    (buffers.into_iter().map(|(cols, _)| cols).collect(), of)
}
