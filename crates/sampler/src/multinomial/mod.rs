//! Draws from weights, with the contract and the errors of `torch.multinomial`.
//!
//! With replacement, few draws search the CDF and many draws use an alias table (`alias_table`); without replacement,
//! each drawn weight is removed from a sum tree (`weight_tree`).

mod alias_table;
mod weight_tree;

use crate::rng::{sampling_block, uniform};
use alias_table::AliasTable;
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use weight_tree::WeightTree;

/// The fewest weights for which an alias table is built, if there are as many draws as weights. Part of the results:
/// table and CDF give different indices for the same place.
const MIN_ALIAS_WEIGHTS: usize = 32;

/// How many indices to draw, how, and by which random numbers. The default is one draw of seed, sequence and position
/// 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MultinomialOptions {
    /// The number of draws from each row. At least 1.
    pub num_samples: usize,
    /// Whether a drawn index may be drawn again. Without replacement, each draw is from the weights not drawn yet.
    pub replacement: bool,
    /// The seed of the draws; see [`uniform`].
    pub seed: u64,
    /// The sequence of row 0; row r is at sequence + r.
    pub sequence: u64,
    /// The position of draw 0; draw j of a row is at position + j.
    pub position: u64,
}

impl Default for MultinomialOptions {
    fn default() -> Self {
        Self { num_samples: 1, replacement: false, seed: 0, sequence: 0, position: 0 }
    }
}

/// Why indices could not be drawn from weights.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MultinomialError {
    /// The tensor is neither `[V]` nor `[B, V]`.
    #[error("weights must have rank 1 or 2, but have rank {rank}")]
    Rank {
        /// The tensor's rank.
        rank: usize,
    },
    /// The tensor does not hold floats.
    #[error("weights must be floats, but are {dtype:?}; convert them first")]
    Dtype {
        /// The tensor's type.
        dtype: DType,
    },
    /// `num_samples` is 0.
    #[error("num_samples is 0, but must be at least 1")]
    NoSamples,
    /// More draws without replacement than weights.
    #[error("row {row}: cannot draw {asked} of {vocab} weights without replacement")]
    MoreThanWeights {
        /// The row's index.
        row: usize,
        /// The number of draws.
        asked: usize,
        /// The number of weights.
        vocab: usize,
    },
    /// More draws without replacement than weights above zero.
    #[error("row {row}: cannot draw {asked} without replacement, as only {non_zero} of the weights are not zero")]
    MoreThanNonZero {
        /// The row's index.
        row: usize,
        /// The number of draws.
        asked: usize,
        /// The number of weights above zero.
        non_zero: usize,
    },
    /// A weight is negative, NaN or infinite.
    #[error("row {row}: weight {index} is {value}, but must be a finite number of at least 0")]
    Weight {
        /// The row's index.
        row: usize,
        /// The lowest such index.
        index: usize,
        /// The weight.
        value: f64,
    },
    /// No weight is above zero, or the row is empty.
    #[error("row {row}: the sum of the {vocab} weights is 0, so nothing can be drawn")]
    ZeroSum {
        /// The row's index.
        row: usize,
        /// The number of weights.
        vocab: usize,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// Draws indices from weights `[V]` or `[B, V]` (f16, bf16, f32 or f64, on any device): i64 indices `[n]` or `[B, n]`
/// on the same device. Weights need not sum to 1.
///
/// Draw j of row r is decided by the place `(seed, sequence + r, position + j)` alone. With replacement it is the
/// inverse CDF of [`uniform`] there or, with at least 32 weights and as many draws as weights, a draw from Vose's alias
/// table: the same probabilities, but other indices for the same place. Without replacement the draws are successive,
/// by one uniform number each, so that asking for more draws does not change the first ones.
///
/// # Errors
/// See [`MultinomialError`]; the first bad row is named.
pub fn multinomial(weights: &Tensor, options: MultinomialOptions) -> Result<Tensor, MultinomialError> {
    let rank = weights.rank();
    if rank != 1 && rank != 2 {
        return Err(MultinomialError::Rank { rank });
    }
    let dtype = weights.dtype();
    if !matches!(dtype, DType::F16 | DType::BF16 | DType::F32 | DType::F64) {
        return Err(MultinomialError::Dtype { dtype });
    }
    if options.num_samples == 0 {
        return Err(MultinomialError::NoSamples);
    }
    let rows = if rank == 1 { weights.unsqueeze(0)? } else { weights.clone() };
    let rows: Vec<Vec<f64>> = rows.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec2()?;
    let drawn: Result<Vec<Vec<u32>>, _> =
        rows.par_iter().enumerate().map(|(row, weights)| multinomial_row(weights, row, options)).collect();
    let indices: Vec<i64> = drawn?.into_iter().flatten().map(i64::from).collect();
    let shape = if rank == 1 { vec![options.num_samples] } else { vec![rows.len(), options.num_samples] };
    Ok(Tensor::from_vec(indices, shape, weights.device())?)
}

/// Draws from one row of weights, as [`multinomial`] does; `row` is the index that is added to the sequence and that
/// errors name.
///
/// # Errors
/// See [`MultinomialError`].
pub fn multinomial_row(weights: &[f64], row: usize, options: MultinomialOptions) -> Result<Vec<u32>, MultinomialError> {
    let MultinomialOptions { num_samples, replacement, seed, position, .. } = options;
    let sequence = options.sequence.wrapping_add(row as u64);
    check(weights, row, num_samples, replacement)?;
    let weights = divided_by_max(weights);
    let positions = (0..num_samples as u64).map(|draw| position.wrapping_add(draw));
    if !replacement {
        let mut tree = WeightTree::new(&weights);
        let drawn = positions.map_while(|position| tree.take(uniform(seed, sequence, position)));
        return Ok(drawn.map(|index| index as u32).collect());
    }
    if weights.len() >= MIN_ALIAS_WEIGHTS && num_samples >= weights.len() {
        let table = AliasTable::new(&weights);
        return Ok(positions.map(|position| table.draw(sampling_block(seed, sequence, position))).collect());
    }
    let mut cumulative = 0.0;
    let cdf: Vec<f64> = weights
        .iter()
        .map(|&weight| {
            cumulative += weight;
            cumulative
        })
        .collect();
    // The last index with a weight: rounding of the target must not go beyond it.
    let last = cdf.partition_point(|&c| c < cumulative);
    let draw = |position| {
        let target = uniform(seed, sequence, position) * cumulative;
        cdf.partition_point(|&c| c <= target).min(last) as u32
    };
    Ok(positions.map(draw).collect())
}

/// Refuses weights that cannot be drawn from `asked` times.
fn check(weights: &[f64], row: usize, asked: usize, replacement: bool) -> Result<(), MultinomialError> {
    let vocab = weights.len();
    if asked == 0 {
        return Err(MultinomialError::NoSamples);
    }
    if let Some(index) = weights.iter().position(|w| !(w.is_finite() && *w >= 0.0)) {
        return Err(MultinomialError::Weight { row, index, value: weights[index] });
    }
    let non_zero = weights.iter().filter(|&&w| w > 0.0).count();
    if non_zero == 0 {
        return Err(MultinomialError::ZeroSum { row, vocab });
    }
    if !replacement && asked > vocab {
        return Err(MultinomialError::MoreThanWeights { row, asked, vocab });
    }
    if !replacement && asked > non_zero {
        return Err(MultinomialError::MoreThanNonZero { row, asked, non_zero });
    }
    Ok(())
}

/// The weights divided by the largest, so that no sum overflows; a weight above zero stays above zero.
fn divided_by_max(weights: &[f64]) -> Vec<f64> {
    let max = weights.iter().copied().fold(0.0, f64::max);
    weights.iter().map(|&w| if w > 0.0 { (w / max).max(f64::MIN_POSITIVE) } else { 0.0 }).collect()
}
