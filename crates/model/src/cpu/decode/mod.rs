//! Generation on the CPU. A prompt is computed with the matrix products and the attention of training; then every step
//! computes one position of each sequence and reads every weight once.

mod format;
mod gemv;
mod matrix;
mod op;
mod panels;
mod prefetch;
pub(crate) mod shared_output;
mod values;

use tinygpt_sampler::simd::{LANES, SimdLevel};

use self::{shared_output::MIN_PARALLEL_BYTES, values::DecodeValues};
use super::spin_pool::{SpinPool, Workers};
use crate::{
    ContextPolicy, Decoder, GptConfig, Logits, Network, Result,
    checkpoint::ParamValues,
    decode::{append_tokens, crop_prompt},
    network,
    ops::{AttentionScratch, Op},
    params::check_lengths,
};

pub use format::WeightFormat;
pub(crate) use matrix::{OutputDim, WeightMatrix};
pub(crate) use op::{DecodeOp, DecodeScratch, DecodeSetup, DecodeStep, Positions};

/// The [`Decoder`] on the CPU. In [`WeightFormat::F32`] it borrows the weights instead of copying them.
#[derive(Debug)]
pub struct CpuDecoder<'a> {
    forward: Forward<'a>,
    policy: ContextPolicy,
    /// The number of positions in the key-value caches.
    len: usize,
    /// The tokens in the context of each sequence, from which the caches are computed anew when the context is full.
    rows: Vec<Vec<u32>>,
    /// Whether the product of the largest matrix is divided among threads.
    shared: bool,
    pool: SpinPool,
}

/// The network with its key-value caches and the buffers of a pass.
#[derive(Debug)]
struct Forward<'a> {
    net: Network,
    level: SimdLevel,
    /// The operations up to the last that mixes positions.
    body: Vec<Box<dyn DecodeOp + 'a>>,
    /// Those behind it, of which a prompt's last position alone has need.
    tail: Vec<Box<dyn DecodeOp + 'a>>,
    /// `(V, C)`.
    head: WeightMatrix<'a>,
    /// The number of sequences.
    rows: usize,
    values: DecodeValues,
    scratch: DecodeScratch,
    /// `(rows, V)`.
    logits: Vec<f32>,
}

impl<'a> CpuDecoder<'a> {
    /// Creates a decoder of the model with these parameter values (in parameter order).
    ///
    /// # Errors
    /// When the configuration is invalid or the values do not match it.
    pub fn new(config: &GptConfig, params: &[&'a [f32]], policy: ContextPolicy, format: WeightFormat) -> Result<Self> {
        config.validate()?;
        Self::over(network(config), params, policy, format)
    }

    /// [`CpuDecoder::new`] of values that may lie in a file in another way.
    ///
    /// # Errors
    /// As [`CpuDecoder::new`].
    pub(crate) fn of_values(
        config: &GptConfig,
        params: Vec<ParamValues<'a>>,
        policy: ContextPolicy,
        format: WeightFormat,
    ) -> Result<Self> {
        config.validate()?;
        Self::over_values(network(config), params, policy, format)
    }

    /// [`CpuDecoder::new`] of any network.
    ///
    /// # Errors
    /// When the values do not match it.
    #[doc(hidden)]
    pub fn over(net: Network, params: &[&'a [f32]], policy: ContextPolicy, format: WeightFormat) -> Result<Self> {
        Self::over_values(net, params.iter().map(|&values| values.into()).collect(), policy, format)
    }

    fn over_values(
        net: Network,
        params: Vec<ParamValues<'a>>,
        policy: ContextPolicy,
        format: WeightFormat,
    ) -> Result<Self> {
        check_lengths(net.params(), params.iter().map(|values| values.len()))?;
        let largest = net.matmul_params().map(|param| net.params()[param.0].len()).max().unwrap_or(0);
        let forward = Forward::new(net, &params, format);
        let shared = largest * format.bytes() > MIN_PARALLEL_BYTES;
        Ok(Self { forward, policy, len: 0, rows: Vec::new(), shared, pool: SpinPool::default() })
    }

    /// Runs `compute`, on the spin pool where a product is divided among threads.
    fn run(&mut self, compute: impl FnOnce(&mut Forward<'a>, &mut Workers<'_>, &[Vec<u32>]) + Send) {
        let Self { forward, rows, pool, shared, .. } = self;
        if *shared {
            pool.run(|workers| compute(forward, workers, rows));
        } else {
            compute(forward, &mut Workers::none(), rows);
        }
    }

    /// Computes the context of a sequence from its first position on.
    fn prefill(&mut self, row: usize) {
        self.run(|forward, workers, rows| forward.prompt(workers, row, &rows[row]));
    }
}

impl<'a> Forward<'a> {
    fn new(net: Network, params: &[ParamValues<'a>], format: WeightFormat) -> Self {
        let block_size = net.config().block_size;
        let setup = DecodeSetup { net: &net, params, format, block_size };
        let weight = net.head.weight;
        let head = WeightMatrix::new(params[weight.0], net.params()[weight.0].shape[1], OutputDim::Rows, format);
        // Behind the last operation that mixes positions, a prompt's last position alone goes on.
        let first_of_tail = net.ops.iter().rposition(|op| op.get().mixes_positions()).map_or(1, |at| at + 1);
        let (body, tail) = net.ops.split_at(first_of_tail);
        let decoding = |ops: &[Op]| ops.iter().filter_map(|op| op.get().decoding(&setup)).collect();
        let (body, tail) = (decoding(body), decoding(tail));
        let mut forward = Self {
            level: SimdLevel::detect(),
            body,
            tail,
            head,
            rows: 0,
            values: DecodeValues::new(&net, 0),
            scratch: DecodeScratch { lse: Vec::new(), attention: AttentionScratch::new(0, 0), scores: Vec::new() },
            logits: Vec::new(),
            net,
        };
        forward.set_rows(1);
        forward
    }

    /// Allocates caches and buffers for this many sequences, all empty.
    fn set_rows(&mut self, rows: usize) {
        let &GptConfig { block_size, n_head, vocab_size, .. } = self.net.config();
        let head_size = self.net.config().head_size();
        self.rows = rows;
        self.body.iter_mut().for_each(|op| op.set_rows(rows));
        // A pass has the rows of a prompt, or one row of each sequence.
        let n = block_size.max(rows);
        self.values = DecodeValues::new(&self.net, n);
        self.scratch = DecodeScratch {
            lse: vec![0.0; n_head * n],
            attention: AttentionScratch::new(block_size, head_size),
            scores: vec![0.0; rows * n_head * block_size.next_multiple_of(LANES)],
        };
        self.logits = vec![0.0; rows * vocab_size];
    }

    /// Computes a sequence's tokens from the first position on, and writes the logits of its next token.
    fn prompt(&mut self, workers: &mut Workers<'_>, row: usize, tokens: &[u32]) {
        let v = self.net.config().vocab_size;
        self.hidden(workers, tokens, Positions::Prompt { row, first: 0 });
        let hidden = self.values.rows(self.net.head.x); // (1, C)
        let logits = &mut self.logits[row * v..][..v];
        self.head.apply_transposed((self.level, workers), 1, hidden, logits);
        if let Some(cap) = self.net.head.cap {
            cap.apply_cpu(self.level, logits, None);
        }
    }

    /// Computes one more position of each sequence, and the logits of their next tokens.
    fn next(&mut self, workers: &mut Workers<'_>, tokens: &[u32], at: usize) {
        self.hidden(workers, tokens, Positions::Next { at });
        let hidden = self.values.rows(self.net.head.x); // (rows, C)
        self.head.apply_transposed((self.level, workers), tokens.len(), hidden, &mut self.logits);
        if let Some(cap) = self.net.head.cap {
            // A row at a time, so that its last partial vector is where it would be alone.
            let v = self.net.config().vocab_size;
            self.logits.chunks_mut(v).for_each(|logits| cap.apply_cpu(self.level, logits, None));
        }
    }

    /// Runs all operations up to the head.
    fn hidden(&mut self, workers: &mut Workers<'_>, tokens: &[u32], positions: Positions) {
        let Self { level, body, tail, values, scratch, .. } = self;
        let mut step = DecodeStep { level: *level, workers, n: tokens.len(), tokens, positions, values, scratch };
        body.iter_mut().for_each(|op| op.run(&mut step));
        step.keep_last();
        tail.iter_mut().for_each(|op| op.run(&mut step));
    }
}

impl Decoder for CpuDecoder<'_> {
    fn vocab_size(&self) -> usize {
        self.forward.net.config().vocab_size
    }

    fn start(&mut self, prompt: &[u32], rows: usize) -> Result<Logits<'_>> {
        let config = self.forward.net.config();
        let context = crop_prompt(config, prompt, rows)?;
        let v = config.vocab_size;
        let mut tokens = Vec::with_capacity(config.block_size + 1);
        tokens.extend(context);
        if self.forward.rows != rows {
            self.forward.set_rows(rows);
        }
        self.len = tokens.len();
        self.rows = vec![tokens; rows];
        // All sequences have the same prompt, which is computed once.
        self.prefill(0);
        self.forward.body.iter_mut().for_each(|op| op.copy_first_row(self.len));
        for row in 1..rows {
            self.forward.logits.copy_within(..v, row * v);
        }
        Ok(Logits::Host(&self.forward.logits))
    }

    fn step(&mut self, tokens: &[u32]) -> Result<Logits<'_>> {
        append_tokens(self.forward.net.config(), &mut self.rows, tokens)?;
        let block_size = self.forward.net.config().block_size;
        if self.len < block_size {
            let at = self.len;
            self.run(|forward, workers, _| forward.next(workers, tokens, at));
            self.len += 1;
        } else {
            let kept = self.policy.kept(block_size);
            for row in 0..tokens.len() {
                let tokens = &mut self.rows[row];
                tokens.drain(..tokens.len() - kept);
                self.prefill(row);
            }
            self.len = kept;
        }
        Ok(Logits::Host(&self.forward.logits))
    }
}
