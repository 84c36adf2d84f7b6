//! Drawing tokens where the logits are: candle's tensor operations alone, no copy of the logits to the host.
//!
//! [`DeviceSampler`] gives the tokens of [`Sampler`] for the same (seed, sequence, position), except
//! where a boundary of the definition is nearer than `2^-20` and another rounding of `exp` decides otherwise.
//!
//! - **Weights** are integers, `trunc(2^40 exp((x - max) / T))`. Sums of integers are the same in every order, so given
//!   the same weights the draw is the same on every device; a token 20 nats down still weighs 2266.
//! - **The draw** is the first token whose cumulative weight exceeds the total times u (`share`, `tree`).
//! - **Top-k** up to 128 is selected by small sorts of chunk maxima and of what is in the best chunks (`select`).
//! - **Top-p** after it needs nothing more than those k. Top-p alone looks for the nucleus among the 96 largest logits;
//!   for rows where it is not there, a flag comes back in the place of the token, and these are searched.
//! - **A search** (`search`), for them and for a larger top-k, raises a threshold until what is above weighs enough,
//!   snaps to a value of the data, and of those equal to it keeps as many of the first as it takes.
//! - **Bad rows** (NaN, +inf, nothing finite) come back as another flag; a flagged row alone is then looked at again, on
//!   the device, for the place of its fault.
//! - **Penalties and biases** change the few logits that they touch in f64, as the definition does, and write them into a
//!   copy (`adjust`). Only on Metal, which has no f64, are these few read back.
//! - **Schedules** give each row the temperature of its position; rows of one temperature, which those of one step are,
//!   are one batch. **Adaptive** takes the first of the largest where the total says that it is probable enough.
//!
//! # What a step costs
//! Counted by [`DeviceSampler::sample_counted`]. The work is in units of B x V elements, each operation counting all that
//! it touches. The memory is beside the logits and in units of them, f32.
//!
//! | rules | launches | work | memory | read back | the work is |
//! |---|---|---|---|---|---|
//! | greedy | 15 | 2.2 | 0.2 | 1 | maxima and sums of chunks; then one chunk |
//! | temperature | 36 | 10.1 | 4.1 | 1 | those two; subtract, scale, exp, scale, cast; sums; padding; the tree |
//! | top-k 50 | 48 | 2.8 | 0.8 | 1 | maxima and sums; 10 operations on 50 chunks of 32 |
//! | top-k 50 + top-p 0.9 | 66 | 2.9 | 0.8 | 1 | the same, and prefix sums of 50 |
//! | top-p, the nucleus in 96 | 71 | 10.8 | 4.3 | 1 | top-k's; the weights of the whole row; padding |
//! | top-p by search, with the look before it | 178 | 108.9 | 10.0 | 2 | that; 10 rounds of 3 thresholds: compare, choose, sum |
//!
//! The tests hold the first two numbers to 16 and 3, 42 and 12, 64 and 3, 80 and 3, 95 and 12, and 180 and 150, for
//! several vocabularies from 50257 to 262144 and batches, and the memory to 1.25, 6, 1.25, 1.25, 6 and 10. (With fewer
//! logits, 50 chunks are more of the row: above 3 units of work for top-k at V = 32000.) Logits of 16 bits add up to three
//! launches, the cast and, where the whole row is weighed, one unit; a search in them is of 4 rounds, for their values lie
//! farther apart, and then of the place among equals where it cuts, with one more read-back: 180 launches in all.
//!
//! A search takes over what the look at the candidates has computed: weights, total, target, and the range below the last
//! of them. It ends with its first rounds if these decide every row: what reaches the threshold must have the mass, and
//! must not without its lightest. In 6 of 400 rows of 50257 normal logits they did not (8 of 100 of 262144): three more
//! rounds follow, 52 launches, 33 units of work and one read-back, with which the search alone stays below 180 and 150 as
//! well. Where the nucleus ends within equal logits these do not decide either: then follow a look and two more rounds until
//! all is decided, some 90 launches. A top-k above 128 is searched for from nothing: 12 rounds (8 for 16 bits), two
//! read-backs. All penalties and a bias add 16 launches, min-p 4, an adaptive threshold 8 to 10.
//!
//! A launch is every kernel and every upload; a chunk that divides the row saves two of those of top-k. Constants are
//! uploaded in the first step of a shape and kept; the memory, the most of any shape tested, includes them. Not counted:
//! candle on CUDA sends shape and strides ahead of each reduction, pooling and operation on a view.

mod adjust;
mod kept;
mod ops;
mod program;
mod search;
mod select;
mod share;
#[cfg(test)]
mod tests;
mod tree;

use crate::host::Rules;
use crate::{Distribution, Sampler, SamplingError, SamplingParams, TensorSamplingError, uniform};
use candle_core::{DType, Tensor};
use ops::Ops;
use program::Program;
use std::cmp::Ordering;

pub use ops::Cost;

/// The weight of the largest logit.
const ONE: f64 = 1_099_511_627_776.0;
/// In the place of a token: nothing can be drawn from the row.
const BAD: u32 = u32::MAX;
/// In the place of a token: the candidates do not hold the nucleus, which has to be searched for.
const MORE: u32 = u32::MAX - 1;

/// What the draw of a row depends on, beside its logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceRow<'a> {
    /// The tokens so far, for the penalties; may be empty if there are none.
    pub history: &'a [u32],
    /// Which text of the run this is.
    pub sequence: u64,
    /// Which token of that text this is.
    pub position: u64,
}

/// Draws tokens on the device of the logits; see [`device`](crate::device).
#[derive(Debug)]
pub struct DeviceSampler {
    rules: Rules,
    /// Of the device of the last logits, with its constants.
    ops: Option<Ops>,
}

/// One answer for each row, or why it has none.
type Rows<T> = Vec<Result<T, SamplingError>>;

impl From<&Sampler> for DeviceSampler {
    /// With the rules of a sampler of the host, its schedule and its threshold included.
    fn from(host: &Sampler) -> Self {
        Self { rules: host.rules().clone(), ops: None }
    }
}

impl DeviceSampler {
    /// A sampler with these rules.
    ///
    /// # Errors
    /// The first parameter outside its range.
    pub fn new(params: SamplingParams) -> Result<Self, SamplingError> {
        params.validate()?;
        Ok(Self { rules: Rules::new(params), ops: None })
    }

    /// The rules.
    #[must_use]
    pub fn params(&self) -> &SamplingParams {
        &self.rules.params
    }

    /// Draws the next token of each row of `logits`, `(B, V)` in f32, bf16 or f16. A bad row is an error in its place
    /// that names it, and leaves the others as they are.
    ///
    /// # Errors
    /// Logits of another rank or type, or not as many rows as `rows`; an error of the tensor library.
    pub fn sample(&mut self, logits: &Tensor, rows: &[DeviceRow<'_>]) -> Result<Rows<u32>, TensorSamplingError> {
        self.sample_counted(logits, rows).map(|(tokens, _)| tokens)
    }

    /// [`DeviceSampler::sample`], and what it cost.
    ///
    /// # Errors
    /// As for [`DeviceSampler::sample`].
    pub fn sample_counted(
        &mut self,
        logits: &Tensor,
        rows: &[DeviceRow<'_>],
    ) -> Result<(Rows<u32>, Cost), TensorSamplingError> {
        let rules = self.rules.clone();
        let Some((ops, logits, errors)) = self.begin(logits, rows)? else {
            return Ok((nothing(&rules.params, logits, rows)?, Cost::default()));
        };
        let uniforms: Vec<f64> =
            rows.iter().map(|row| uniform(rules.params.seed, row.sequence, row.position)).collect();
        let mut tokens: Rows<u32> = errors.into_iter().map(|error| error.map_or(Ok(BAD), Err)).collect();
        for (params, members) in by_temperature(&rules, rows) {
            let part = if members.len() == rows.len() { logits.clone() } else { ops.rows(&logits, &members)? };
            let adaptive = rules.adaptive;
            let program = Program { ops, logits: &part, params: &params, adaptive, check: true };
            let of_members: Vec<f64> = members.iter().map(|&row| uniforms[row]).collect();
            for (row, token) in members.into_iter().zip(draw(&program, &of_members)?) {
                if tokens[row].is_err() {
                    continue;
                }
                tokens[row] = match token {
                    BAD => match look_again(ops, &logits, row)? {
                        Ok(alone) => {
                            let program = Program { logits: &alone, check: false, ..program };
                            match draw(&program, &uniforms[row..=row])?[0] {
                                BAD => Err(SamplingError::NothingFinite { row, vocab: logits.dim(1)? }),
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

    /// The distributions that the draws of the rows are made from, as these rules select on the device. Their logits are
    /// read back: this is for inspection, not for a step.
    ///
    /// # Errors
    /// As for [`DeviceSampler::sample`].
    pub fn distributions(
        &mut self,
        logits: &Tensor,
        rows: &[DeviceRow<'_>],
    ) -> Result<Rows<Distribution>, TensorSamplingError> {
        let rules = self.rules.clone();
        let Some((ops, logits, errors)) = self.begin(logits, rows)? else {
            return nothing(&rules.params, logits, rows);
        };
        let mut distributions = Vec::with_capacity(rows.len());
        for (row, error) in errors.into_iter().enumerate() {
            let params = at_temperature(&rules, rows[row].position);
            distributions.push(match (error, look_again(ops, &logits, row)?) {
                (Some(error), _) | (None, Err(error)) => Err(error),
                (None, Ok(alone)) => {
                    let program =
                        Program { ops, logits: &alone, params: &params, adaptive: rules.adaptive, check: false };
                    match program.tokens()? {
                        none if none.is_empty() => Err(SamplingError::NothingFinite { row, vocab: logits.dim(1)? }),
                        tokens => Ok(distribution(tokens, params.temperature, rules.adaptive)),
                    }
                }
            });
        }
        Ok(distributions)
    }

    /// The operations of the logits' device, the logits after their penalties, and the errors of these; none if there is
    /// nothing to draw from.
    #[allow(clippy::type_complexity)]
    fn begin(
        &mut self,
        logits: &Tensor,
        rows: &[DeviceRow<'_>],
    ) -> Result<Option<(&Ops, Tensor, Vec<Option<SamplingError>>)>, TensorSamplingError> {
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
        // Candle's pooling on Metal forgets where a view begins.
        if !logits.is_contiguous() || (logits.device().is_metal() && logits.layout().start_offset() > 0) {
            logits = ops.copy(&logits)?;
        }
        let (logits, errors) = adjust::adjusted(ops, &logits, &self.rules.params, rows)?;
        Ok(Some((ops, logits, errors)))
    }
}

/// The rules at the temperature of a position.
fn at_temperature(rules: &Rules, position: u64) -> SamplingParams {
    SamplingParams { temperature: rules.temperature(position), ..rules.params.clone() }
}

/// The rows of each temperature, with the rules at it.
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

/// The answers for logits without rows or without a vocabulary.
fn nothing<T>(
    params: &SamplingParams,
    logits: &Tensor,
    rows: &[DeviceRow<'_>],
) -> Result<Rows<T>, TensorSamplingError> {
    let vocab = logits.dim(1)?;
    let error = |(row, here): (usize, &DeviceRow<'_>)| {
        let unknown = adjust::touched(params, here.history, vocab).err();
        Err(unknown.unwrap_or(SamplingError::NothingFinite { row, vocab }).at_row(row))
    };
    Ok(rows.iter().enumerate().map(error).collect())
}

/// Of the kept tokens and their logits: of the first alone, where its probability exceeds `adaptive`.
fn distribution(mut kept: Vec<(u32, f32)>, temperature: f64, adaptive: Option<f64>) -> Distribution {
    // Most probable first, the lowest first among equals; 0 and -0 are equal.
    kept.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal).then(a.0.cmp(&b.0)));
    let max = kept.first().map_or(0.0, |&(_, logit)| f64::from(logit));
    // A single token is greedy's, whose temperature may be 0.
    let weight = |logit: f32| if kept.len() == 1 { 1.0 } else { ((f64::from(logit) - max) / temperature).exp() };
    let mut weights: Vec<f64> = kept.iter().map(|&(_, logit)| weight(logit)).collect();
    if adaptive.is_some_and(|threshold| weights[0] / weights.iter().sum::<f64>() > threshold) {
        kept.truncate(1);
        weights.truncate(1);
    }
    Distribution::from_weights(kept.iter().map(|&(token, _)| token).collect(), weights)
}

/// A token for each row, or [`BAD`].
fn draw(program: &Program<'_>, uniforms: &[f64]) -> candle_core::Result<Vec<u32>> {
    let ops = program.ops;
    if program.params.is_greedy() {
        return ops.read(&program.greedy()?);
    }
    let kept = program.kept()?;
    let mut tokens = ops.read(&kept.draw(ops, uniforms)?)?;
    let more: Vec<usize> = (0..tokens.len()).filter(|&row| tokens[row] == MORE).collect();
    if let Some(whole) = kept.into_whole().filter(|_| !more.is_empty()) {
        let uniforms: Vec<f64> = more.iter().map(|&row| uniforms[row]).collect();
        for (&row, token) in more.iter().zip(program.search_on(whole, &more, &uniforms)?) {
            tokens[row] = token;
        }
    }
    Ok(tokens)
}

/// A row alone, or what is wrong with it.
fn look_again(ops: &Ops, logits: &Tensor, row: usize) -> candle_core::Result<Result<Tensor, SamplingError>> {
    let alone = ops.copy(&logits.narrow(0, row, 1)?)?;
    Ok(match program::faults(ops, &alone)? {
        (Some(index), _) => Err(SamplingError::NotANumber { row, index: index as usize }),
        (None, Some(index)) => Err(SamplingError::PositiveInfinity { row, index: index as usize }),
        (None, None) => Ok(alone),
    })
}
