//! The k largest of each row by two small sorts, without a sort of the row.
//!
//! The k chunks with the largest maxima, lowest first among equals, contain the k largest elements, lowest first among
//! equals: a chunk is passed over only for k others that each hold an element before all of its own. So a row becomes
//! the elements of k chunks, at the cost of one pass; sorts see the maxima and those elements.
//!
//! Sorts on GPUs are not stable, so a sort by value says only what the k-th largest value is. A second sort, of keys
//! that are all different, takes what is above it and then as many of its equals as are missing, the lowest first.

use super::ops::{Binary, Ops, Order, Pool};
use candle_core::{Result, Tensor};

/// Chunks are of at most this size.
const LARGEST_CHUNK: usize = 64;
/// A row of fewer than so many chunks for each of the k is sorted as it is.
const WORTHWHILE: usize = 4;

/// Elements of each row among which its k largest are.
pub(super) struct Candidates {
    /// Where they are in the row, rising: `(B, m)` u32.
    pub(super) positions: Tensor,
    /// Their values, `(B, m)`; +inf in the place of a NaN.
    pub(super) values: Tensor,
}

impl Candidates {
    /// Of rows `(B, V)`. With `check`, a NaN anywhere in a row puts +inf among its candidates; without, there must be
    /// none.
    pub(super) fn new(ops: &Ops, rows: &Tensor, k: usize, check: bool) -> Result<Self> {
        let (count, vocab) = rows.dims2()?;
        let mut found = if vocab <= ops.sort_limit && chunk_size(vocab, k) < WORTHWHILE {
            Self { positions: ops.ramps(count, 0, vocab)?, values: rows.clone() }
        } else {
            let positions = narrow(ops, rows, k, check)?;
            Self { values: ops.gather(rows, &positions)?, positions }
        };
        if check {
            found.values = without_nan(ops, &found.values, &found.values)?;
        }
        while found.values.dim(1)? > ops.sort_limit {
            let positions = narrow(ops, &found.values, k, false)?;
            found = Self {
                values: ops.gather(&found.values, &positions)?,
                positions: ops.gather(&found.positions, &positions)?,
            };
        }
        Ok(found)
    }

    /// Which of the candidates are the k largest, falling, equals in any order, and their values: `(B, k)`.
    pub(super) fn falling(&self, ops: &Ops, k: usize) -> Result<(Tensor, Tensor)> {
        let order = ops.sort(&self.values, Order::Falling, k)?;
        let values = ops.gather(&self.values, &order)?;
        Ok((order, values))
    }

    /// Positions and values of the candidates that are above `least`, `(B, 1)`, and of those equal to it, in this order
    /// and else by position: the first k of them, `(B, k)`.
    pub(super) fn down_to(&self, ops: &Ops, least: &Tensor, k: usize) -> Result<(Tensor, Tensor)> {
        let indices = down_to(ops, &self.values, least, k)?;
        Ok((ops.gather(&self.positions, &indices)?, ops.gather(&self.values, &indices)?))
    }
}

/// `values` with +inf wherever `suspects`, of the same shape, is NaN.
fn without_nan(ops: &Ops, suspects: &Tensor, values: &Tensor) -> Result<Tensor> {
    ops.choose_or(&ops.binary(Binary::Equal, suspects, suspects)?, values, f64::INFINITY)
}

/// The maxima of the windows of rows, +inf for one that holds a NaN: a maximum may lose a NaN, a sum never does.
pub(super) fn maxima(ops: &Ops, rows: &Tensor, size: usize, stride: usize, check: bool) -> Result<Tensor> {
    let maxima = ops.pool(Pool::Max, rows, size, stride)?;
    if !check {
        return Ok(maxima);
    }
    without_nan(ops, &ops.pool(Pool::Sum, rows, size, stride)?, &maxima)
}

/// The size of the chunks: about that which leaves the fewest maxima and candidates to sort, and one that divides the row
/// if there is one.
fn chunk_size(n: usize, k: usize) -> usize {
    let best = ((n as f64 / k as f64).sqrt().round() as usize).clamp(2, LARGEST_CHUNK);
    let near = best - best / 4..=(best + best / 4).min(LARGEST_CHUNK);
    near.filter(|size| n.is_multiple_of(*size)).min_by_key(|size| size.abs_diff(best)).unwrap_or(best)
}

/// Rising positions in rows `(B, n)` among which those of the k largest are: k chunks, and what is behind the last whole
/// chunk.
fn narrow(ops: &Ops, rows: &Tensor, k: usize, check: bool) -> Result<Tensor> {
    let (count, n) = rows.dims2()?;
    let size = chunk_size(n, k);
    let (chunks, tail) = (n / size, n % size);
    let maxima = maxima(ops, rows, size, size, check)?;
    let best = largest(ops, &maxima, k.min(chunks))?;
    let rising = ops.gather(&best, &ops.sort(&best, Order::Rising, best.dim(1)?)?)?;
    let first = ops.with(Binary::Mul, &rising, size as f64)?.unsqueeze(2)?; // (B, k) -> (B, k, 1)
    let positions = ops.binary(Binary::Add, &first, &ops.ramp(size, 1)?)?;
    let positions = positions.reshape((count, ()))?; // (B, k, size) -> (B, k * size)
    if tail == 0 {
        return Ok(positions);
    }
    ops.concat(&[&positions, &ops.ramps(count, n - tail, tail)?])
}

/// The indices of exactly the k largest elements of `(B, n)`, the lowest first among equals at the boundary: `(B, k)`.
fn largest(ops: &Ops, values: &Tensor, k: usize) -> Result<Tensor> {
    if values.dim(1)? > ops.sort_limit {
        let positions = narrow(ops, values, k, false)?;
        let inner = largest(ops, &ops.gather(values, &positions)?, k)?;
        return ops.gather(&positions, &inner);
    }
    let order = ops.sort(values, Order::Falling, values.dim(1)?)?;
    let kth = ops.gather(values, &ops.copy(&order.narrow(1, k - 1, 1)?)?)?;
    down_to(ops, values, &kth, k)
}

/// The indices of the elements above `least`, `(B, 1)`, in rising order, then of those equal to it: the first k.
fn down_to(ops: &Ops, values: &Tensor, least: &Tensor, k: usize) -> Result<Tensor> {
    let n = values.dim(1)?;
    // In sizes that maxima and candidates share.
    let ramp = ops.ramp((2 * n).next_multiple_of(512), 1)?;
    let above = ops.binary(Binary::Above, values, least)?;
    let reaches = ops.binary(Binary::AtLeast, values, least)?;
    let keys = ops.choose_or(&reaches, &ramp.narrow(1, n, n)?, f64::from(u32::MAX))?;
    let keys = ops.choose(&above, &ramp.narrow(1, 0, n)?, &keys)?;
    ops.sort(&keys, Order::Rising, k)
}
