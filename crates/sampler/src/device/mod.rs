//! The device path: drawing tokens where the logits are, without a copy of the logits to the host, by candle's tensor
//! operations alone or, on CUDA, by kernels that draw the same tokens (`fused`).
//!
//! [`DeviceSampler`] draws the tokens that [`Sampler`] draws for the same `(seed, sequence, position)`, except where a
//! boundary of the definition is nearer than `2^-20` and the device rounds `exp` differently.
//!
//! - **Weights** are integers, `trunc(2^40 exp((x - max) / T))`. Sums of integers are the same in every order, so the
//!   same weights give the same draw on every device. A token 20 nats below the largest still weighs 2266.
//! - **The draw** is the first token whose cumulative weight exceeds u times the total (`fraction`, `chunked_cdf`).
//! - **Top-k** up to 128 sorts the maxima of chunks, and the elements of the best chunks (`top_k`).
//! - **Top-p** after top-k needs nothing but those k logits. Top-p without top-k looks for the nucleus among the 96
//!   largest logits; rows for which these are too few return a flag in the place of the token, and are searched.
//! - **A search** (`threshold_search`), for such rows and for a larger top-k, raises a threshold until the mass above
//!   it is just enough, snaps it to a logit of the row, and of the logits equal to it keeps the first.
//! - **Invalid rows** (a NaN, a +inf, nothing finite) return another flag. Each flagged row is then examined alone, on
//!   the device, to report the token at fault.
//! - **Penalties and biases** change the few logits concerned in f64, as the definition does, in a copy of the logits
//!   (`penalties`). Only on Metal, which has no f64, are these few logits read back.
//! - **Schedules** give each row the temperature of its position. Rows of one temperature, as all rows of one step are,
//!   form one batch. **Adaptive** takes the first of the largest logits where the total shows that it is probable
//!   enough.
//! - **Rules about the whole distribution** (top-n-sigma, a dynamic temperature, typical-p, XTC, mirostat) are the host's:
//!   with one of them the logits are read back, and a [`Sampler`] draws. DRY and the ban of n-grams are biases of a row,
//!   and stay here.
//!
//! # What a step costs by kernels
//! One upload, one read-back and, for every rule, at most three kernels and three reads of the logits (`fused`). What
//! follows is of tensor operations.
//!
//! # What a step costs by tensor operations
//! Counted by [`DeviceSampler::sample_counted`], for batches of B rows of V logits. Work is in units of B x V elements;
//! each operation counts all elements that it touches. Memory is that beside the logits, in units of the logits in f32.
//!
//! | rules | launches | work | memory | read-backs | what the work is |
//! |---|---|---|---|---|---|
//! | greedy | 15 | 2.2 | 0.2 | 1 | maxima and sums of chunks; then one chunk |
//! | temperature | 36 | 10.1 | 4.1 | 1 | the same; subtract, scale, exp, scale, cast; sums; padding; the CDF |
//! | top-k 50 | 48 | 2.8 | 0.8 | 1 | maxima and sums; 10 operations on 50 chunks of 32 |
//! | top-k 50 + top-p 0.9 | 66 | 2.9 | 0.8 | 1 | the same, and prefix sums of 50 |
//! | top-p, the nucleus among 96 | 71 | 10.8 | 4.3 | 1 | that of top-k; the weights of the whole row; padding |
//! | top-p by search, after the 96 | 178 | 108.9 | 10.0 | 2 | the same; 10 rounds of 3 thresholds: compare, select, sum |
//!
//! Tests hold launches and work to 16 and 3, 42 and 12, 64 and 3, 80 and 3, 95 and 12, and 180 and 150, for several
//! batches and vocabularies from 50257 to 262144, and memory to 1.25, 6, 1.25, 1.25, 6 and 10. (In shorter rows, 50
//! chunks are a larger part: top-k takes more than 3 units of work at V = 32000.) Logits of 16 bits add up to three
//! launches: the cast and, where the whole row is weighed, one unit of work. A search in them has 4 rounds, as their
//! values lie farther apart, then finds the cut within equal logits with one more read-back: 180 launches in all.
//!
//! A search reuses what was computed for the candidates: weights, total, target, and the range below the last
//! candidate. It ends with its first rounds if these decide every row: the logits that reach the threshold must have
//! the mass, and must not have it without the lightest of them. In 6 of 400 rows of 50257 normal logits they did not (8
//! of 100 of 262144); three more rounds follow, with 52 launches, 33 units of work and one read-back, with which the
//! search alone stays below 180 and 150 too. Rows whose nucleus ends within equal logits are not decided by these
//! either: reading a status and two more rounds, some 90 launches, repeat until all are. A top-k above 128 is searched
//! for in the whole range: 12 rounds (8 for 16 bits) and two read-backs. All penalties and a bias add 16 launches,
//! min-p 4, an adaptive threshold 8 to 10.
//!
//! Every kernel and every upload is a launch; a chunk size that divides the row saves two launches of top-k. Constants
//! are uploaded in the first step of a shape and kept; the memory, the largest of any shape tested, includes them. Not
//! counted: candle on CUDA uploads shape and strides before each reduction, pooling and operation on a view.

mod chunked_cdf;
mod constants;
mod fraction;
mod fused;
mod kept;
mod limbs;
mod ops;
mod penalties;
mod program;
#[cfg(test)]
mod tests;
mod threshold_search;
mod top_k;

use crate::rules::Rules;
use crate::{Distribution, Row, Sampler, SamplingError, SamplingParams, TensorSamplingError, uniform};
use candle_core::{DType, Tensor};
use constants::{NEEDS_SEARCH, NO_TOKEN};
use fused::FusedDraw;
use ops::Ops;
use program::BatchProgram;
use std::cmp::Ordering;

#[doc(hidden)]
pub use ops::DeviceCost;

/// What the draw of a row of a device depends on beside its logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceRow<'a> {
    /// The tokens so far, for the penalties; may be empty if no penalty is on.
    pub history: &'a [u32],
    /// The number of this text in the run.
    pub sequence: u64,
    /// The position of the drawn token in its text.
    pub position: u64,
}

/// Draws tokens on the device of the logits, where [`SamplingParams::draws_on_host`] says nothing else; every row as the first
/// of its text, which only matters to mirostat. See [`device`](crate::device).
#[derive(Debug)]
pub struct DeviceSampler {
    rules: Rules,
    /// The operations on the device of the last logits, with its constants.
    ops: Option<Ops>,
}

/// The answer of each row, or why it has none.
type Rows<T> = Vec<Result<T, SamplingError>>;

impl From<&Sampler> for DeviceSampler {
    /// A sampler with the rules of a sampler of the host, its schedule and adaptive threshold included.
    fn from(host: &Sampler) -> Self {
        Self { rules: host.rules().clone(), ops: None }
    }
}

impl DeviceSampler {
    /// A sampler with these parameters, at a constant temperature.
    ///
    /// # Errors
    /// The first parameter outside its range; see [`SamplingParams::validate`].
    pub fn new(params: SamplingParams) -> Result<Self, SamplingError> {
        params.validate()?;
        Ok(Self { rules: Rules::new(params), ops: None })
    }

    /// The sampling parameters.
    #[must_use]
    pub fn params(&self) -> &SamplingParams {
        &self.rules.params
    }

    /// Draws the next token of each row of `logits`, `(B, V)` in f32, bf16 or f16. The answer of a row that cannot be
    /// drawn from is an error that names its index; it does not affect the other rows.
    ///
    /// # Errors
    /// Logits of another rank or type, or another number of rows than `rows`; an error of a tensor operation.
    pub fn sample(&mut self, logits: &Tensor, rows: &[DeviceRow<'_>]) -> Result<Rows<u32>, TensorSamplingError> {
        self.sample_counted(logits, rows).map(|(tokens, _)| tokens)
    }

    /// [`DeviceSampler::sample`], and what it cost: for tests and benchmarks.
    ///
    /// # Errors
    /// As for [`DeviceSampler::sample`].
    #[doc(hidden)]
    pub fn sample_counted(
        &mut self,
        logits: &Tensor,
        rows: &[DeviceRow<'_>],
    ) -> Result<(Rows<u32>, DeviceCost), TensorSamplingError> {
        let rules = self.rules.clone();
        let Some((ops, logits)) = self.begin(logits, rows)? else {
            return Ok((empty_rows(&rules.params, logits, rows)?, DeviceCost::default()));
        };
        if rules.params.draws_on_host() {
            let logits = HostRows::read(ops, &logits)?;
            return Ok((Sampler::from_rules(rules).sample_batch(&logits.rows(rows)), ops.cost()));
        }
        if let Some(draw) = FusedDraw::of(ops, &logits, &rules, rows)? {
            return Ok((draw.sample()?, ops.cost()));
        }
        let (logits, errors) = penalties::apply_on_device(ops, &logits, &rules.params, rows)?;
        let uniforms: Vec<f64> =
            rows.iter().map(|row| uniform(rules.params.seed, row.sequence, row.position)).collect();
        let mut tokens: Rows<u32> = errors.into_iter().map(|error| error.map_or(Ok(NO_TOKEN), Err)).collect();
        for (params, members) in by_temperature(&rules, rows) {
            let logits_of_members =
                if members.len() == rows.len() { logits.clone() } else { ops.select_rows(&logits, &members)? };
            let adaptive = rules.adaptive;
            let program = BatchProgram { ops, logits: &logits_of_members, params: &params, adaptive, check_nan: true };
            let uniforms_of_members: Vec<f64> = members.iter().map(|&row| uniforms[row]).collect();
            for (row, token) in members.into_iter().zip(draw(&program, &uniforms_of_members)?) {
                if tokens[row].is_err() {
                    continue;
                }
                tokens[row] = match token {
                    NO_TOKEN => match extract_row(ops, &logits, row)? {
                        Ok(alone) => {
                            let program = BatchProgram { logits: &alone, check_nan: false, ..program };
                            match draw(&program, &uniforms[row..=row])?[0] {
                                NO_TOKEN => Err(SamplingError::NothingFinite { row, vocab: logits.dim(1)? }),
                                token => Ok(token),
                            }
                        }
                        Err(error) => Err(error),
                    },
                    token => Ok(token),
                };
            }
        }
        Ok((tokens, ops.cost()))
    }

    /// The distributions that [`DeviceSampler::sample`] draws the rows from. They are selected on the device, but
    /// computed from logits that are read back: for inspection, not for generation.
    ///
    /// # Errors
    /// As for [`DeviceSampler::sample`].
    pub fn distributions(
        &mut self,
        logits: &Tensor,
        rows: &[DeviceRow<'_>],
    ) -> Result<Rows<Distribution>, TensorSamplingError> {
        let rules = self.rules.clone();
        let Some((ops, logits)) = self.begin(logits, rows)? else {
            return empty_rows(&rules.params, logits, rows);
        };
        if rules.params.draws_on_host() {
            let logits = HostRows::read(ops, &logits)?;
            let mut host = Sampler::from_rules(rules);
            let distribution = |(n, row)| host.distribution(row).map_err(|error: SamplingError| error.at_row(n));
            return Ok(logits.rows(rows).iter().enumerate().map(distribution).collect());
        }
        let (logits, errors) = penalties::apply_on_device(ops, &logits, &rules.params, rows)?;
        let mut distributions = Vec::with_capacity(rows.len());
        for (row, error) in errors.into_iter().enumerate() {
            let params = at_temperature(&rules, rows[row].position);
            distributions.push(match (error, extract_row(ops, &logits, row)?) {
                (Some(error), _) | (None, Err(error)) => Err(error),
                (None, Ok(alone)) => {
                    let program = BatchProgram {
                        ops,
                        logits: &alone,
                        params: &params,
                        adaptive: rules.adaptive,
                        check_nan: false,
                    };
                    match program.tokens()? {
                        none if none.is_empty() => Err(SamplingError::NothingFinite { row, vocab: logits.dim(1)? }),
                        tokens => Ok(distribution(tokens, params.temperature, rules.adaptive)),
                    }
                }
            });
        }
        Ok(distributions)
    }

    /// Checks the arguments. Returns the operations on the device and the logits, contiguous; None if the tensor has no
    /// elements.
    fn begin(
        &mut self,
        logits: &Tensor,
        rows: &[DeviceRow<'_>],
    ) -> Result<Option<(&Ops, Tensor)>, TensorSamplingError> {
        let refuse = |field, value, allowed| Err(SamplingError::Parameter { field, value, allowed }.into());
        let &[batch, vocab] = logits.dims() else {
            return refuse("logits", format!("of shape {:?}", logits.dims()), "of two dimensions: rows and vocabulary");
        };
        if !matches!(logits.dtype(), DType::F32 | DType::BF16 | DType::F16) {
            return refuse("logits", format!("of type {:?}", logits.dtype()), "f32, bf16 or f16");
        }
        if rows.len() != batch {
            return refuse("rows", format!("{} for {batch} rows of logits", rows.len()), "one for each row of logits");
        }
        if vocab == 0 || batch == 0 {
            return Ok(None);
        }
        if !self.ops.as_ref().is_some_and(|ops| ops.is_on(logits.device())) {
            self.ops = None;
        }
        let ops = self.ops.get_or_insert_with(|| Ops::new(logits.device()));
        ops.reset_cost();
        let mut logits = logits.detach();
        // Candle's pooling on Metal ignores the offset of a view.
        if !logits.is_contiguous() || (logits.device().is_metal() && logits.layout().start_offset() > 0) {
            logits = ops.copy(&logits)?;
        }
        Ok(Some((ops, logits)))
    }
}

/// Logits that were read back.
struct HostRows {
    logits: Vec<f32>,
    vocab: usize,
}

impl HostRows {
    /// Those of `(B, V)` on a device.
    fn read(ops: &Ops, logits: &Tensor) -> candle_core::Result<Self> {
        Ok(Self { logits: ops.read_f32(&ops.cast(logits, DType::F32)?)?, vocab: logits.dim(1)? })
    }

    fn rows<'a>(&'a self, rows: &[DeviceRow<'a>]) -> Vec<Row<'a>> {
        let row = |(logits, here): (_, &DeviceRow<'a>)| Row {
            logits,
            history: here.history,
            sequence: here.sequence,
            position: here.position,
        };
        self.logits.chunks(self.vocab).zip(rows).map(row).collect()
    }
}

/// The parameters, with the temperature of a position.
fn at_temperature(rules: &Rules, position: u64) -> SamplingParams {
    SamplingParams { temperature: rules.temperature(position), ..rules.params.clone() }
}

/// The indices of the rows of each temperature, with the parameters at it.
fn by_temperature(rules: &Rules, rows: &[DeviceRow<'_>]) -> Vec<(SamplingParams, Vec<usize>)> {
    let mut groups: Vec<(SamplingParams, Vec<usize>)> = Vec::new();
    for (row, here) in rows.iter().enumerate() {
        let temperature = rules.temperature(here.position);
        match groups.iter_mut().find(|(params, _)| params.temperature == temperature) {
            Some((_, members)) => members.push(row),
            None => groups.push((at_temperature(rules, here.position), vec![row])),
        }
    }
    groups
}

/// The answers for logits without elements: an error for each row.
fn empty_rows<T>(
    params: &SamplingParams,
    logits: &Tensor,
    rows: &[DeviceRow<'_>],
) -> Result<Rows<T>, TensorSamplingError> {
    let vocab = logits.dim(1)?;
    let error = |(row, here): (usize, &DeviceRow<'_>)| {
        let unknown = penalties::penalised_tokens(params, here.history, vocab).err();
        Err(unknown.unwrap_or(SamplingError::NothingFinite { row, vocab }).at_row(row))
    };
    Ok(rows.iter().enumerate().map(error).collect())
}

/// The distribution over kept tokens and their logits; over the most probable one alone if its probability exceeds
/// `adaptive`.
fn distribution(mut kept: Vec<(u32, f32)>, temperature: f64, adaptive: Option<f64>) -> Distribution {
    // By falling logit, of equal ones (0 and -0 are equal) the lowest token first.
    kept.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal).then(a.0.cmp(&b.0)));
    let max = kept.first().map_or(0.0, |&(_, logit)| f64::from(logit));
    // A single token may be that of temperature 0.
    let weight = |logit: f32| if kept.len() == 1 { 1.0 } else { ((f64::from(logit) - max) / temperature).exp() };
    let mut weights: Vec<f64> = kept.iter().map(|&(_, logit)| weight(logit)).collect();
    if adaptive.is_some_and(|threshold| weights[0] / weights.iter().sum::<f64>() > threshold) {
        kept.truncate(1);
        weights.truncate(1);
    }
    Distribution::from_weights(kept.iter().map(|&(token, _)| token).collect(), weights)
}

/// The token of each row, or [`NO_TOKEN`].
fn draw(program: &BatchProgram<'_>, uniforms: &[f64]) -> candle_core::Result<Vec<u32>> {
    let ops = program.ops;
    if program.params.is_greedy() {
        return ops.read_u32(&program.greedy()?);
    }
    let kept = program.keep()?;
    let mut tokens = ops.read_u32(&kept.draw(ops, uniforms)?)?;
    let undecided: Vec<usize> = (0..tokens.len()).filter(|&row| tokens[row] == NEEDS_SEARCH).collect();
    if let Some(row_weights) = kept.into_row_weights().filter(|_| !undecided.is_empty()) {
        let uniforms: Vec<f64> = undecided.iter().map(|&row| uniforms[row]).collect();
        for (&row, token) in undecided.iter().zip(program.search_nucleus(row_weights, &undecided, &uniforms)?) {
            tokens[row] = token;
        }
    }
    Ok(tokens)
}

/// A copy of one row, or the error of its first NaN or +inf.
fn extract_row(ops: &Ops, logits: &Tensor, row: usize) -> candle_core::Result<Result<Tensor, SamplingError>> {
    let alone = ops.copy(&logits.narrow(0, row, 1)?)?;
    Ok(match program::find_invalid(ops, &alone)? {
        (Some(index), _) => Err(SamplingError::NotANumber { row, index: index as usize }),
        (None, Some(index)) => Err(SamplingError::PositiveInfinity { row, index: index as usize }),
        (None, None) => Ok(alone),
    })
}
