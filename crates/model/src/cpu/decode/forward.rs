//! The network in decoding: its operations, their key-value caches, and the buffers of a pass. A prompt is computed operation
//! by operation, and others may be decoded between two of them.

use std::ops::Range;

use tinygpt_sampler::simd::{LANES, SimdLevel};

use super::{
    DecodeFormats, DecodeOp, DecodeScratch, DecodeSetup, DecodeStep, OutputDim, Place, Positions, ProductContext,
    WeightMatrix, quantized::QuantizedRows, shared_output::MIN_PARALLEL_BYTES, values::DecodeValues,
};
use crate::{
    GptConfig, Network, Result,
    checkpoint::ParamValues,
    cpu::spin_pool::{SpinPool, Workers},
    ops::PackedKeys,
    params::check_lengths,
};

/// What an element of an operation without products counts as, in multiply-adds.
const ELEMENT_COST: f64 = 16.0;

/// The network on the threads that compute it.
#[derive(Debug)]
pub(super) struct Forward<'a> {
    passes: Passes<'a>,
    /// Whether the product of the largest matrix is divided among threads.
    shared: bool,
    pool: SpinPool,
}

impl<'a> Forward<'a> {
    /// A network over these parameter values (in parameter order), without caches.
    ///
    /// # Errors
    /// When the values do not match it.
    pub(super) fn new(net: Network, params: &[ParamValues<'a>], formats: DecodeFormats) -> Result<Self> {
        check_lengths(net.params(), params.iter().map(|values| values.len()))?;
        let largest = net.matmul_params().map(|param| net.params()[param.0].len()).max().unwrap_or(0);
        let shared = formats.weights.bytes_of(largest) > MIN_PARALLEL_BYTES;
        Ok(Self { passes: Passes::new(net, params, formats), shared, pool: SpinPool::default() })
    }

    pub(super) fn config(&self) -> &GptConfig {
        self.passes.net.config()
    }

    /// Allocates caches and buffers for this many sequences, all empty.
    pub(super) fn set_slots(&mut self, slots: usize) {
        self.passes.set_slots(slots);
    }

    /// Copies the first `positions` cached positions of a sequence to another.
    pub(super) fn copy_slot(&mut self, from: usize, to: usize, positions: usize) {
        self.passes.ops.iter_mut().for_each(|op| op.op.copy_row(from, to, positions));
    }

    /// Computes all of a prompt: the caches of its sequence, and the logits `(V)` of its next token.
    pub(super) fn prompt(&mut self, slot: usize, tokens: &[u32], logits: &mut [f32]) {
        self.prompt_part((&mut PromptPass::new(slot), tokens), f64::INFINITY, logits);
    }

    /// Computes some of the operations of a prompt: about `budget` multiply-adds of them, at least one operation. With the last
    /// come the logits `(V)` of the next token. Returns whether they have. The values of one prompt are kept, so the parts of
    /// two may not alternate.
    pub(super) fn prompt_part(&mut self, prompt: (&mut PromptPass, &[u32]), budget: f64, logits: &mut [f32]) -> bool {
        self.run(|passes, workers| passes.prompt_part(workers, prompt, budget, logits))
    }

    /// Computes one more position of some sequences, each at its own place, and the logits `(rows, V)` of their next tokens.
    pub(super) fn step(&mut self, tokens: &[u32], places: &[Place], logits: &mut [f32]) {
        self.run(|passes, workers| passes.step(workers, (tokens, places), logits));
    }

    /// Runs `compute`, on the spin pool where a product is divided among threads.
    fn run<T: Send>(&mut self, compute: impl FnOnce(&mut Passes<'a>, &mut Workers<'_>) -> T + Send) -> T {
        let Self { passes, pool, shared } = self;
        if *shared { pool.run(|workers| compute(passes, workers)) } else { compute(passes, &mut Workers::none()) }
    }
}

/// The network with its key-value caches and the buffers of a pass.
#[derive(Debug)]
struct Passes<'a> {
    net: Network,
    level: SimdLevel,
    /// The operations in order.
    ops: Vec<ForwardOp<'a>>,
    /// The number of operations up to the last that mixes positions. Of those behind it, a prompt's last position alone has
    /// need.
    body: usize,
    /// `(V, C)`.
    head: WeightMatrix<'a>,
    /// The values of a prompt, whose pass may pause, `block_size` rows.
    prompt_values: DecodeValues,
    /// The values of a step, a row for each sequence.
    step_values: DecodeValues,
    scratch: DecodeScratch,
}

/// An operation in decoding.
#[derive(Debug)]
struct ForwardOp<'a> {
    op: Box<dyn DecodeOp + 'a>,
    /// Its index in the network.
    at: usize,
}

/// The place at which the pass of a prompt has arrived.
#[derive(Debug, Clone, Copy)]
pub(super) struct PromptPass {
    /// The index of the sequence, and of its caches.
    slot: usize,
    /// The number of operations that are done.
    done: usize,
}

impl PromptPass {
    /// The pass of a sequence's tokens, at its beginning.
    pub(super) fn new(slot: usize) -> Self {
        Self { slot, done: 0 }
    }

    /// The sequence.
    pub(super) fn slot(&self) -> usize {
        self.slot
    }
}

impl<'a> Passes<'a> {
    fn new(net: Network, params: &[ParamValues<'a>], formats: DecodeFormats) -> Self {
        let (block_size, heads) = (net.config().block_size, net.config().heads());
        let DecodeFormats { weights: format, kv_cache } = formats;
        let setup = DecodeSetup { net: &net, params, format, kv_cache, block_size };
        let weight = net.head.weight;
        let head = WeightMatrix::new(params[weight.0], net.params()[weight.0].shape[1], OutputDim::Rows, format);
        // Behind the last operation that mixes positions, a prompt's last position alone goes on.
        let first_of_tail = net.ops.iter().rposition(|op| op.get().mixes_positions()).map_or(1, |at| at + 1);
        let decoding = |at: usize| Some(ForwardOp { op: net.ops[at].get().decoding(&setup)?, at });
        let ops: Vec<_> = (0..net.ops.len()).filter_map(decoding).collect();
        let scratch = DecodeScratch {
            keys: PackedKeys::new(block_size, heads.n_kv_head, heads.head_size),
            scores: Vec::new(),
            quantized: QuantizedRows::default(),
        };
        Self {
            level: SimdLevel::detect(),
            body: ops.iter().take_while(|op| op.at < first_of_tail).count(),
            ops,
            head,
            prompt_values: DecodeValues::new(&net, block_size),
            step_values: DecodeValues::new(&net, 0),
            scratch,
            net,
        }
    }

    fn set_slots(&mut self, slots: usize) {
        let &GptConfig { block_size, n_head, .. } = self.net.config();
        self.ops.iter_mut().for_each(|op| op.op.set_rows(slots));
        self.step_values = DecodeValues::new(&self.net, slots);
        self.scratch.scores = vec![0.0; slots * n_head * block_size.next_multiple_of(LANES)];
    }

    fn prompt_part(
        &mut self,
        workers: &mut Workers<'_>,
        (pass, tokens): (&mut PromptPass, &[u32]),
        budget: f64,
        logits: &mut [f32],
    ) -> bool {
        let mut spent = 0.0;
        while pass.done < self.ops.len() {
            spent += self.prompt_op(workers, pass, tokens);
            if spent >= budget {
                return false;
            }
        }
        let context = ProductContext { level: self.level, workers, quantized: &mut self.scratch.quantized };
        Self::logits((&self.net, &self.head), context, 1, &self.prompt_values, logits);
        true
    }

    /// Computes the next operation of a prompt. Returns its cost in multiply-adds.
    fn prompt_op(&mut self, workers: &mut Workers<'_>, pass: &mut PromptPass, tokens: &[u32]) -> f64 {
        let last = tokens.len() - 1;
        let rows: Range<usize> = if pass.done < self.body { 0..tokens.len() } else { last..tokens.len() };
        let ForwardOp { op, at } = &mut self.ops[pass.done];
        op.run(&mut DecodeStep {
            level: self.level,
            workers,
            n: rows.len(),
            tokens: &tokens[rows.clone()],
            positions: Positions::Prompt { slot: pass.slot, first: rows.start },
            values: &mut self.prompt_values,
            scratch: &mut self.scratch,
        });
        pass.done += 1;
        if pass.done == self.body {
            self.prompt_values.keep_row(last);
        }
        let op = self.net.ops[*at].get();
        let elements = rows.len() * self.net.cols(op.output());
        op.multiply_adds(&self.net, rows.len()) + ELEMENT_COST * elements as f64
    }

    fn step(&mut self, workers: &mut Workers<'_>, (tokens, places): (&[u32], &[Place]), logits: &mut [f32]) {
        let Self { net, level, ops, head, step_values: values, scratch, .. } = self;
        let positions = Positions::Next(places);
        let n = tokens.len();
        let mut step = DecodeStep { level: *level, workers: &mut *workers, n, tokens, positions, values, scratch };
        ops.iter_mut().for_each(|op| op.op.run(&mut step));
        let context = ProductContext { level: *level, workers, quantized: &mut scratch.quantized };
        Self::logits((net, head), context, tokens.len(), values, logits);
    }

    /// Computes the logits `(n, V)` of the first `n` rows of a pass.
    fn logits(
        (net, head): (&Network, &WeightMatrix<'_>),
        context: ProductContext<'_, '_>,
        n: usize,
        values: &DecodeValues,
        logits: &mut [f32],
    ) {
        let (hidden, level) = (values.rows(net.head.x), context.level); // (n, C)
        head.apply_transposed(context, n, hidden, logits);
        if let Some(cap) = net.head.cap {
            // A row at a time, so that its last partial vector is where it would be alone.
            let v = net.config().vocab_size;
            logits.chunks_mut(v).for_each(|logits| cap.apply_cpu(level, logits, None));
        }
    }
}
