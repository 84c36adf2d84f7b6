//! The k largest elements of each row by two small sorts, without a sort of the row.
//!
//! The k chunks with the largest maxima (of equal ones the first) contain the k largest elements (of equal ones the
//! first): a chunk is left out only for k others that each hold an element before all of its own. So one pass over the
//! row leaves the elements of k chunks, and only the maxima and these elements are sorted.
//!
//! GPU sorts are not stable, so a sort by value tells no more than the k-th largest value. A second sort, by keys that
//! all differ, takes the elements above it, then the first of those equal to it.

use super::ops::{Binary, Ops, Order, Pool};
use candle_core::{Result, Tensor};

/// The largest size of a chunk.
const MAX_CHUNK_SIZE: usize = 64;
/// The smallest size of a chunk that saves work; rows that would need smaller ones are sorted whole.
const MIN_CHUNK_SIZE: usize = 4;

/// Elements of each row that include its k largest.
pub(super) struct Candidates {
    /// Their positions in the row, ascending, `(B, m)` u32.
    pub(super) positions: Tensor,
    /// Their values, `(B, m)`, with +inf for a NaN.
    pub(super) values: Tensor,
}

impl Candidates {
    /// The candidates of rows `(B, V)`. With `check_nan`, a row with a NaN anywhere has a candidate +inf; without, no
    /// row may have a NaN.
    pub(super) fn new(ops: &Ops, rows: &Tensor, k: usize, check_nan: bool) -> Result<Self> {
        let (count, vocab) = rows.dims2()?;
        let mut found = if vocab <= ops.max_sort_columns && chunk_size(vocab, k) < MIN_CHUNK_SIZE {
            Self { positions: ops.arange_rows(count, 0, vocab)?, values: rows.clone() }
        } else {
            let positions = candidate_positions(ops, rows, k, check_nan)?;
            Self { values: ops.gather(rows, &positions)?, positions }
        };
        if check_nan {
            found.values = infinity_for_nan(ops, &found.values, &found.values)?;
        }
        while found.values.dim(1)? > ops.max_sort_columns {
            let positions = candidate_positions(ops, &found.values, k, false)?;
            found = Self {
                values: ops.gather(&found.values, &positions)?,
                positions: ops.gather(&found.positions, &positions)?,
            };
        }
        Ok(found)
    }

    /// The indices of the k largest candidates and their values, `(B, k)`, falling; equal ones come in any order.
    pub(super) fn falling(&self, ops: &Ops, k: usize) -> Result<(Tensor, Tensor)> {
        let order = ops.argsort(&self.values, Order::Descending, k)?;
        let values = ops.gather(&self.values, &order)?;
        Ok((order, values))
    }

    /// The positions and values, `(B, k)`, of the first k candidates in this order: those above `threshold`, `(B, 1)`,
    /// by position, then those equal to it, by position.
    pub(super) fn first_k_from(&self, ops: &Ops, threshold: &Tensor, k: usize) -> Result<(Tensor, Tensor)> {
        let indices = first_k_from(ops, &self.values, threshold, k)?;
        Ok((ops.gather(&self.positions, &indices)?, ops.gather(&self.values, &indices)?))
    }
}

/// `values` with +inf where `suspects`, of the same shape, is NaN.
fn infinity_for_nan(ops: &Ops, suspects: &Tensor, values: &Tensor) -> Result<Tensor> {
    ops.where_or(&ops.binary(Binary::Eq, suspects, suspects)?, values, f64::INFINITY)
}

/// The maxima of the pooling windows of rows. With `check_nan`, that of a window with a NaN is +inf; the NaN is found
/// by the sum of the window, since a maximum may lose it.
pub(super) fn window_maxima(ops: &Ops, rows: &Tensor, size: usize, stride: usize, check_nan: bool) -> Result<Tensor> {
    let maxima = ops.pool(Pool::Max, rows, size, stride)?;
    if !check_nan {
        return Ok(maxima);
    }
    infinity_for_nan(ops, &ops.pool(Pool::Sum, rows, size, stride)?, &maxima)
}

/// The size of the chunks: close to `sqrt(n / k)`, which leaves the fewest maxima and candidates to sort, and a divisor
/// of n if there is one nearby.
fn chunk_size(n: usize, k: usize) -> usize {
    let best = ((n as f64 / k as f64).sqrt().round() as usize).clamp(2, MAX_CHUNK_SIZE);
    let near = best - best / 4..=(best + best / 4).min(MAX_CHUNK_SIZE);
    near.filter(|size| n.is_multiple_of(*size)).min_by_key(|size| size.abs_diff(best)).unwrap_or(best)
}

/// Ascending positions in rows `(B, n)` that include those of the k largest elements: k chunks, and the tail after the
/// last whole chunk.
fn candidate_positions(ops: &Ops, rows: &Tensor, k: usize, check_nan: bool) -> Result<Tensor> {
    let (count, n) = rows.dims2()?;
    let size = chunk_size(n, k);
    let (chunks, tail) = (n / size, n % size);
    let maxima = window_maxima(ops, rows, size, size, check_nan)?;
    let best = top_k_indices(ops, &maxima, k.min(chunks))?;
    let rising = ops.gather(&best, &ops.argsort(&best, Order::Ascending, best.dim(1)?)?)?;
    let first = ops.binary_scalar(Binary::Mul, &rising, size as f64)?.unsqueeze(2)?; // (B, k) -> (B, k, 1)
    let positions = ops.binary(Binary::Add, &first, &ops.arange(size, 1)?)?;
    let positions = positions.reshape((count, ()))?; // (B, k, size) -> (B, k * size)
    if tail == 0 {
        return Ok(positions);
    }
    ops.concat(&[&positions, &ops.arange_rows(count, n - tail, tail)?])
}

/// The indices of exactly the k largest elements of `(B, n)`, of those equal to the k-th the first: `(B, k)`.
fn top_k_indices(ops: &Ops, values: &Tensor, k: usize) -> Result<Tensor> {
    if values.dim(1)? > ops.max_sort_columns {
        let positions = candidate_positions(ops, values, k, false)?;
        let inner = top_k_indices(ops, &ops.gather(values, &positions)?, k)?;
        return ops.gather(&positions, &inner);
    }
    let order = ops.argsort(values, Order::Descending, values.dim(1)?)?;
    let kth = ops.gather(values, &ops.copy(&order.narrow(1, k - 1, 1)?)?)?;
    first_k_from(ops, values, &kth, k)
}

/// The first k indices, `(B, k)`, in this order: those of the elements above `threshold`, `(B, 1)`, ascending, then
/// those of the elements equal to it, ascending.
fn first_k_from(ops: &Ops, values: &Tensor, threshold: &Tensor, k: usize) -> Result<Tensor> {
    let n = values.dim(1)?;
    // Rounded up, so that maxima and candidates share a constant.
    let arange = ops.arange((2 * n).next_multiple_of(512), 1)?;
    let above = ops.binary(Binary::Gt, values, threshold)?;
    let reaches = ops.binary(Binary::Ge, values, threshold)?;
    let keys = ops.where_or(&reaches, &arange.narrow(1, n, n)?, f64::from(u32::MAX))?;
    let keys = ops.where_cond(&above, &arange.narrow(1, 0, n)?, &keys)?;
    ops.argsort(&keys, Order::Ascending, k)
}
