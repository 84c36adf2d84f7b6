//! Generation on the CPU: the prompt by the products and the attention of training, then one position at a time, for
//! which every weight is read once.

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
    decode::{append_tokens, crop_prompt},
    network,
    ops::AttentionScratch,
    params::check_values,
};

pub use format::WeightFormat;
pub(crate) use matrix::{OutputDim, WeightMatrix};
pub(crate) use op::{DecodeOp, DecodeScratch, DecodeSetup, DecodeStep, Positions};

/// The [`Decoder`] on the CPU. In f32 it uses the weights where they lie.
#[derive(Debug)]
pub struct CpuDecoder<'a> {
    forward: Forward<'a>,
    policy: ContextPolicy,
    /// Filled positions of the caches.
    len: usize,
    /// The tokens of each row since the last start, for when the context is full.
    rows: Vec<Vec<u32>>,
    /// Whether the largest matrix is one whose product is shared among threads.
    shared: bool,
    pool: SpinPool,
}

/// The network, and what it remembers of the positions so far.
#[derive(Debug)]
struct Forward<'a> {
    net: Network,
    level: SimdLevel,
    ops: Vec<Box<dyn DecodeOp + 'a>>,
    /// The operation before which a prompt's last position alone goes on: behind it no position sees another.
    tail: usize,
    /// `(V, C)`.
    head: WeightMatrix<'a>,
    rows: usize,
    values: DecodeValues,
    scratch: DecodeScratch,
    /// `(rows, V)`.
    logits: Vec<f32>,
}

impl<'a> CpuDecoder<'a> {
    /// A decoder of the model with these parameter values (in parameter order).
    ///
    /// # Errors
    /// When the configuration is invalid or the values do not match it.
    pub fn new(config: &GptConfig, params: &[&'a [f32]], policy: ContextPolicy, format: WeightFormat) -> Result<Self> {
        config.validate()?;
        Self::over(network(config), params, policy, format)
    }

    /// [`CpuDecoder::new`] of any network.
    ///
    /// # Errors
    /// When the values do not match it.
    #[doc(hidden)]
    pub fn over(net: Network, params: &[&'a [f32]], policy: ContextPolicy, format: WeightFormat) -> Result<Self> {
        check_values(net.params(), params)?;
        let largest = net.matmul_params().map(|param| net.params()[param.0].len()).max().unwrap_or(0);
        let forward = Forward::new(net, params, format);
        let shared = largest * format.bytes() > MIN_PARALLEL_BYTES;
        Ok(Self { forward, policy, len: 0, rows: Vec::new(), shared, pool: SpinPool::default() })
    }

    /// Computes on the spin pool, if there is a product that is worth sharing.
    fn run(&mut self, compute: impl FnOnce(&mut Forward<'a>, &mut Workers<'_>, &[Vec<u32>]) + Send) {
        let Self { forward, rows, pool, shared, .. } = self;
        if *shared {
            pool.run(|workers| compute(forward, workers, rows));
        } else {
            compute(forward, &mut Workers::none(), rows);
        }
    }

    /// Computes a row's tokens from the first position on.
    fn prefill(&mut self, row: usize) {
        self.run(|forward, workers, rows| forward.prompt(workers, row, &rows[row]));
    }
}

impl<'a> Forward<'a> {
    fn new(net: Network, params: &[&'a [f32]], format: WeightFormat) -> Self {
        let block_size = net.config().block_size;
        let setup = DecodeSetup { net: &net, params, format, block_size };
        let weight = net.head.weight;
        let head = WeightMatrix::new(params[weight.0], net.params()[weight.0].shape[1], OutputDim::Rows, format);
        let last_mix = net.ops.iter().rposition(|op| op.get().mixes_positions());
        let ops = net.ops.iter().map(|op| op.get().decoding(&setup)).collect();
        let mut forward = Self {
            level: SimdLevel::detect(),
            ops,
            tail: last_mix.map_or(1, |at| at + 1),
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

    /// Makes room for so many rows, of which nothing is known.
    fn set_rows(&mut self, rows: usize) {
        let &GptConfig { block_size, n_head, vocab_size, .. } = self.net.config();
        let head_size = self.net.config().head_size();
        self.rows = rows;
        self.ops.iter_mut().for_each(|op| op.set_rows(rows));
        // A prompt of any length, then the rows side by side.
        let n = block_size.max(rows);
        self.values = DecodeValues::new(&self.net, n);
        self.scratch = DecodeScratch {
            lse: vec![0.0; n_head * n],
            attention: AttentionScratch::new(block_size, head_size),
            scores: vec![0.0; rows * n_head * block_size.next_multiple_of(LANES)],
        };
        self.logits = vec![0.0; rows * vocab_size];
    }

    /// Computes a row's tokens from the first position on; the logits behind the last go to the row's.
    fn prompt(&mut self, workers: &mut Workers<'_>, row: usize, tokens: &[u32]) {
        let v = self.net.config().vocab_size;
        self.hidden(workers, tokens, Positions::Prompt { row, first: 0 });
        let hidden = self.values.rows(self.net.head.x); // (1, C)
        self.head.apply_transposed((self.level, workers), 1, hidden, &mut self.logits[row * v..][..v]);
    }

    /// Computes one more position of each row.
    fn next(&mut self, workers: &mut Workers<'_>, tokens: &[u32], at: usize) {
        self.hidden(workers, tokens, Positions::Next { at });
        let hidden = self.values.rows(self.net.head.x); // (rows, C)
        self.head.apply_transposed((self.level, workers), tokens.len(), hidden, &mut self.logits);
    }

    /// Everything up to the head.
    fn hidden(&mut self, workers: &mut Workers<'_>, tokens: &[u32], positions: Positions) {
        let Self { level, ops, tail, values, scratch, .. } = self;
        let mut step = DecodeStep { level: *level, workers, n: tokens.len(), tokens, positions, values, scratch };
        for (at, op) in ops.iter_mut().enumerate() {
            if at == *tail {
                step.keep_last();
            }
            op.run(&mut step);
        }
        if *tail == ops.len() {
            step.keep_last();
        }
    }
}

impl Decoder for CpuDecoder<'_> {
    fn config(&self) -> &GptConfig {
        self.forward.net.config()
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
        // The rows share their prompt: it is computed once.
        self.prefill(0);
        self.forward.ops.iter_mut().for_each(|op| op.copy_first_row(self.len));
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
