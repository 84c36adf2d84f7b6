//! Draws by the project's own CUDA kernels (`kernels/sample.cu`): one upload, one to three kernels, one read-back,
//! whatever the rules.
//!
//! They draw the tokens that the tensor operations of the modules beside this one draw on the same device, without an
//! exception: weights are the same integers, from the same operations in f32, and all that follows is arithmetic of
//! integers. What the kernels are told is packed into one tensor of words, which `kernels/row.cuh` declares as `Rules`,
//! `Row` and `Patch`.

use super::kept::max_greedy_total;
use super::limbs::fraction_bits;
use super::ops::Ops;
use super::penalties::penalised_tokens;
use super::program::{inverse_temperature, min_p_distance};
use super::{DeviceRow, Rows, at_temperature};
use crate::kernels::{Arg, Grid, Kernels, Module};
use crate::penalties::biases_of;
use crate::rules::Rules;
use crate::{SamplingError, SamplingParams, uniform};
use candle_core::{DType, Result, Tensor, bail};

const MODULE: Module = Module { name: "sample", ptx: include_str!("../../kernels/sample.ptx") };

/// The threads of a block.
const THREADS: u32 = 512;
/// The logits that a block takes at once.
const TILE: usize = 2048;
/// The bins of the logits of a row.
const BINS: usize = 1024;
/// The most tiles of a row that a single block takes, since it needs one kernel in the place of three.
const MAX_TILES_OF_ONE_BLOCK: usize = 4;
/// The number of blocks that rows are divided into at most, so that a few rows occupy all processors of a device.
const MAX_BLOCKS: usize = 256;
/// The largest vocabulary, whose weights sum to at most `2^62`.
const MAX_VOCAB: usize = 1 << 22;
/// No token, no bin.
const NONE: u32 = u32::MAX;
/// Added to a logit, changes nothing, not even -0.
const NO_BIAS: f32 = -0.0;

/// A draw from each row of a batch.
pub(super) struct FusedDraw<'a> {
    ops: &'a Ops,
    kernels: Kernels,
    /// `(B, V)` in f32, bf16 or f16, contiguous.
    logits: &'a Tensor,
    rules: &'a Rules,
    rows: &'a [DeviceRow<'a>],
    vocab: usize,
    /// The blocks of a row.
    blocks: usize,
}

impl<'a> FusedDraw<'a> {
    /// None where the device runs no kernels, or the vocabulary is too large.
    pub(super) fn of(
        ops: &'a Ops,
        logits: &'a Tensor,
        rules: &'a Rules,
        rows: &'a [DeviceRow<'a>],
    ) -> Result<Option<Self>> {
        let vocab = logits.dim(1)?;
        let kernels = Kernels::of(logits.device()).filter(|_| vocab <= MAX_VOCAB);
        let blocks = blocks_of_row(rows.len(), vocab);
        Ok(kernels.map(|kernels| Self { ops, kernels, logits, rules, rows, vocab, blocks }))
    }

    /// The token of each row, or why it has none.
    pub(super) fn sample(&self) -> Result<Rows<u32>> {
        let Self { ops, kernels, logits, rows, vocab, blocks, .. } = self;
        let (words, errors) = self.words()?;
        let words = ops.upload_words(words)?;
        let params = &self.rules.params;
        let searches = self.top_k() > 0 || params.top_p < 1.0;
        let is_greedy = |row: &DeviceRow<'_>| at_temperature(self.rules, row.position).is_greedy();
        let tiles = vocab.div_ceil(TILE);
        let of_row = if searches { tiles + BINS + BINS / 2 + vocab } else { tiles };
        let memory = kernels.output(rows.len() * of_row, DType::I64)?;
        let answers = kernels.output((rows.len(), 2), DType::U32)?;
        // Each with its reads of the logits.
        let launches: &[(&'static str, usize)] = match () {
            () if rows.iter().all(is_greedy) => &[("sample_largest", 1)],
            () if *blocks == 1 => &[("sample_rows", 2 + usize::from(searches))],
            () if searches => &[("sample_largest", 1), ("sample_bins", 1), ("sample_draw", 1)],
            () => &[("sample_largest", 1), ("sample_draw", 1)],
        };
        for &(name, reads) in launches {
            let grid = Grid::new(rows.len() * blocks, THREADS);
            let args = [Arg::Tensor(logits), Arg::Tensor(&words), Arg::Tensor(&memory), Arg::Tensor(&answers)];
            ops.launch(kernels, MODULE, name, grid, &args, reads * rows.len() * vocab)?;
        }
        // Of each row its kind, an `Answer` of `sample.cu`, and a token.
        let answers = ops.read_u32(&answers)?;
        let answer = |(row, (error, answer)): (usize, (Option<SamplingError>, &[u32]))| match (error, answer) {
            (Some(error), _) => Ok(Err(error)),
            (None, &[0, token]) => Ok(Ok(token)),
            (None, &[1, index]) => Ok(Err(SamplingError::NotANumber { row, index: index as usize })),
            (None, &[2, index]) => Ok(Err(SamplingError::PositiveInfinity { row, index: index as usize })),
            (None, &[3, _]) => Ok(Err(SamplingError::NothingFinite { row, vocab: *vocab })),
            (None, answer) => bail!("a kernel answered {answer:?} for row {row}"),
        };
        errors.into_iter().zip(answers.chunks(2)).enumerate().map(answer).collect()
    }

    /// The number of tokens that top-k keeps, 0 if all.
    fn top_k(&self) -> usize {
        if self.rules.params.top_k < self.vocab { self.rules.params.top_k } else { 0 }
    }

    /// What the kernels are told, and the error of each row that has a token outside of the vocabulary.
    fn words(&self) -> Result<(Vec<u32>, Vec<Option<SamplingError>>)> {
        let Self { rules, rows, vocab, blocks, .. } = self;
        let params = &rules.params;
        let mut words = Words(Vec::with_capacity(16 + 24 * rows.len()));
        for number in [params.repetition_penalty, params.frequency_penalty, params.presence_penalty] {
            words.wide(number.to_bits());
        }
        words.wide(fraction_bits(params.top_p));
        words.wide(rules.adaptive.map_or(0, |threshold| max_greedy_total(threshold) as u64));
        let dtype = match self.logits.dtype() {
            DType::F32 => 0,
            DType::BF16 => 1,
            DType::F16 => 2,
            dtype => bail!("logits of type {dtype:?}"),
        };
        words.narrow([self.top_k() as u32, rows.len() as u32, *vocab as u32, *blocks as u32, dtype, 0]);

        let mut patches = Vec::new();
        let mut errors = vec![None; rows.len()];
        for (row, here) in rows.iter().enumerate() {
            let begin = patches.len() as u32;
            match patches_of(params, here.history, *vocab) {
                Ok(of_row) => patches.extend(of_row),
                Err(error) => errors[row] = Some(error.at_row(row)),
            }
            let params = at_temperature(rules, here.position);
            words.wide(fraction_bits(uniform(params.seed, here.sequence, here.position)));
            for _ in ["best", "before_p", "before_k"] {
                words.wide(0);
            }
            let distances = [inverse_temperature(params.temperature), min_p_distance(&params)];
            words.narrow(distances.map(|distance| (distance as f32).to_bits()));
            words.narrow([u32::from(params.is_greedy())]);
            let [lowest, first_nan, first_infinity] = [NONE; 3];
            words.narrow([lowest, first_nan, first_infinity]);
            let finished = [0; 3];
            words.narrow(finished);
            words.narrow([begin, patches.len() as u32]);
            let [p_bins, p_bins_end, k_bin] = [NONE; 3];
            let (k_left, candidates) = (0, 0);
            words.narrow([p_bins, p_bins_end, k_bin, k_left, candidates]);
        }
        for Patch { token, count, bias } in patches {
            words.narrow([token, count, bias.to_bits()]);
        }
        Ok((words.0, errors))
    }
}

/// The blocks that a row is divided into.
fn blocks_of_row(rows: usize, vocab: usize) -> usize {
    let tiles = vocab.div_ceil(TILE);
    if tiles <= MAX_TILES_OF_ONE_BLOCK {
        return 1;
    }
    let tiles_of_block = tiles.div_ceil((MAX_BLOCKS / rows).max(1));
    tiles.div_ceil(tiles_of_block)
}

/// 32-bit words in the order of the members of a struct, 64-bit members with the low half first.
struct Words(Vec<u32>);

impl Words {
    fn wide(&mut self, bits: u64) {
        self.narrow([bits as u32, (bits >> 32) as u32]);
    }

    fn narrow<const N: usize>(&mut self, words: [u32; N]) {
        self.0.extend(words);
    }
}

/// A change of the logit of a token: a penalty for `count` occurrences in the history, then a bias.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Patch {
    token: u32,
    count: u32,
    bias: f32,
}

/// The patches of a row by token: of each, first that of the history, then the biases in their order.
fn patches_of(
    params: &SamplingParams,
    history: &[u32],
    vocab: usize,
) -> std::result::Result<Vec<Patch>, SamplingError> {
    if penalised_tokens(params, history, vocab)?.is_empty() {
        return Ok(Vec::new());
    }
    let mut sorted = history.to_vec();
    sorted.sort_unstable();
    let of_history = sorted.chunk_by(|a, b| a == b);
    let of_history = of_history.map(|same| Patch { token: same[0], count: same.len() as u32, bias: NO_BIAS });
    let of_bias = biases_of(params, history).map(|(token, bias)| Patch { token, count: 0, bias });
    let mut patches: Vec<Patch> = of_history.chain(of_bias).collect();
    patches.sort_by_key(|patch| patch.token);
    Ok(patches)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_are_by_token_with_the_penalty_before_the_biases() {
        let params = SamplingParams {
            presence_penalty: 1.0,
            logit_bias: vec![(5, 1.0), (2, 0.5), (5, 2.0)],
            ..SamplingParams::default()
        };
        let patch = |token, count, bias| Patch { token, count, bias };
        let expected = [patch(2, 0, 0.5), patch(5, 2, -0.0), patch(5, 0, 1.0), patch(5, 0, 2.0), patch(7, 1, -0.0)];
        assert_eq!(patches_of(&params, &[5, 7, 5], 8).unwrap(), expected);
        assert_eq!(patches_of(&SamplingParams::default(), &[5, 7, 5], 8).unwrap(), []);
        assert!(matches!(patches_of(&params, &[8], 8), Err(SamplingError::UnknownToken { token: 8, .. })));
    }

    #[test]
    fn few_long_rows_are_divided_and_many_or_short_ones_are_not() {
        assert_eq!([65, 8192].map(|vocab| blocks_of_row(1, vocab)), [1, 1]);
        assert_eq!([1, 16, 256, 1000].map(|rows| blocks_of_row(rows, 50_257)), [25, 13, 1, 1]);
    }
}
