//! Embedding lookup on candle tensors, and the gradient of the table.
//!
//! candle's own gradient is `index_add`, which on CUDA runs one thread for each channel over all tokens. Here it is matrix
//! products with one-hot matrices, which add in a fixed order.

use candle_core::{D, Device, Tensor};

use crate::{
    Dropout, ModelError, Result,
    ops::{
        kernels::{
            Element,
            elementwise::masked_sum_backward,
            embedding::{embed, positions_backward},
        },
        launches::count_launch,
        tape,
    },
};

/// The largest vocabulary whose gradient is one product with a one-hot matrix `(V, N)`, which takes `V` multiply-adds for
/// each element of `dy`. Larger ones use a [`SegmentedSum`], which takes 128 for each of its two or three levels.
#[doc(hidden)]
pub const DIRECT_VOCAB: usize = 256;

/// The most bytes of a one-hot matrix.
pub const ONE_HOT_BYTES: usize = 64 << 20;

/// The rows of a tile of [`SegmentedSum`], a whole tile of a matrix product on a GPU.
const REDUCTION_TILE: usize = 128;

/// A batch of tokens on a device.
#[derive(Debug, Clone)]
pub struct Tokens {
    /// `(B, T)`.
    pub(crate) ids: Tensor,
    segmented_sum: Option<SegmentedSum>,
}

impl Tokens {
    /// Uploads tokens `(rows, cols)` and, where the vocabulary is larger than [`DIRECT_VOCAB`], the indices by which the
    /// gradient of the embeddings is summed.
    ///
    /// # Errors
    /// [`ModelError::TokenOutOfRange`]; when the device is out of memory.
    pub fn new(ids: &[u32], rows: usize, cols: usize, vocab_size: usize, device: &Device) -> Result<Self> {
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(ModelError::TokenOutOfRange { id, vocab_size });
        }
        let segmented_sum =
            (vocab_size > DIRECT_VOCAB).then(|| SegmentedSum::new(ids, vocab_size, device)).transpose()?;
        Ok(Self { ids: count_launch(Tensor::from_slice(ids, (rows, cols), device))?, segmented_sum })
    }

    /// The gradient of a table `(v, C)` from that of its rows, `dy (B, T, C)`.
    fn table_gradient(&self, dy: &Tensor, v: usize) -> candle_core::Result<Tensor> {
        let dy = dy.reshape(((), dy.dim(D::Minus1)?))?; // (B, T, C) to (N, C)
        match &self.segmented_sum {
            Some(segmented_sum) => segmented_sum.sum(&dy),
            None => one_hot_product(&self.ids.flatten_all()?, &dy, v, ONE_HOT_BYTES),
        }
    }

    /// Wraps tokens `(B, T)` that are on the device already. The gradient uses one-hot matrices, however large the
    /// vocabulary. Who has them answers for each being of the vocabulary: on a GPU nothing looks.
    pub fn on_device(ids: &Tensor) -> Self {
        Self { ids: ids.clone(), segmented_sum: None }
    }
}

/// The rows `(B, T, C)` of a table `(V, C)` for tokens `(B, T)`.
///
/// # Errors
/// When the device is out of memory.
#[expect(clippy::disallowed_methods, reason = "ids were checked on the host, and the gradient is another")]
pub fn embedding(table: &Tensor, tokens: &Tokens) -> Result<Tensor> {
    let (v, c) = table.dims2()?;
    let (b, t) = tokens.ids.dims2()?;
    let ids = tokens.ids.flatten_all()?;
    let y = count_launch(table.index_select(&ids, 0))?.reshape((b, t, c))?; // (B * T, C) to (B, T, C)
    let tokens = tokens.clone();
    tape::record("embedding", [table], &y, move |dy| Ok([tokens.table_gradient(dy, v)?]));
    Ok(y)
}

/// [`embedding`], plus the first rows of `positions (>= T, C)`, with the dropout of a site, by one kernel. Nothing where there is none
/// for it.
pub(crate) fn embedding_sum(
    table: &Tensor,
    tokens: &Tokens,
    positions: Option<&Tensor>,
    dropout: Option<(&Dropout, u32)>,
) -> Result<Option<Tensor>> {
    let Some((kernels, y)) = embed(table, &tokens.ids, positions, dropout)? else { return Ok(None) };
    let (tokens, v, rows) = (tokens.clone(), table.dim(0)?, positions.map_or(Ok(0), |positions| positions.dim(0))?);
    let owned = dropout.map(|(dropout, site)| (dropout.clone(), site));
    let inputs: Vec<&Tensor> = [table].into_iter().chain(positions).collect();
    tape::record_all("embedding", &inputs, &y, move |dy| {
        let dy = dy.contiguous()?;
        let d_sum = match &owned {
            Some((dropout, site)) => masked_sum_backward(&kernels, Element::F32, &dy, Some((dropout, *site)))?,
            None => dy,
        };
        let mut grads = vec![tokens.table_gradient(&d_sum, v)?];
        if rows > 0 {
            grads.push(positions_backward(&kernels, &d_sum, rows)?);
        }
        Ok(grads)
    });
    Ok(Some(y))
}

/// The sums `(V, C)` over the rows of `dy (N, C)` of each id in `ids (N)`, by products with one-hot matrices of at most
/// `bytes` bytes.
pub(super) fn one_hot_product(ids: &Tensor, dy: &Tensor, v: usize, bytes: usize) -> candle_core::Result<Tensor> {
    let n = dy.dim(0)?;
    let at_once = (bytes / (v * dy.dtype().size_in_bytes())).clamp(1, n);
    let tokens = count_launch(Tensor::arange(0, v as u32, dy.device()))?.reshape((v, 1))?;
    let mut sum: Option<Tensor> = None;
    for from in (0..n).step_by(at_once) {
        let len = at_once.min(n - from);
        let ids = ids.narrow(0, from, len)?.reshape((1, len))?;
        let ones = count_launch(count_launch(tokens.broadcast_eq(&ids))?.to_dtype(dy.dtype()))?; // (V, n)
        let part = count_launch(ones.matmul(&dy.narrow(0, from, len)?))?; // (V, C)
        sum = Some(match sum {
            Some(sum) => count_launch(sum + part)?,
            None => part,
        });
    }
    sum.map_or_else(|| Tensor::zeros((v, dy.dim(1)?), dy.dtype(), dy.device()), Ok)
}

/// A segmented sum over the rows of equal tokens, as a tree. A level gathers its rows into tiles, sorted by token, and sums
/// the rows of each token within a tile. A token that spans several tiles has one sum for each, which the next level adds.
#[derive(Debug, Clone)]
pub(super) struct SegmentedSum {
    levels: Vec<ReductionLevel>,
    /// The row of each token among the sums of the last level, `(V)`.
    sum_of_token: Tensor,
}

/// The indices of one level of a [`SegmentedSum`].
#[derive(Debug, Clone)]
struct ReductionLevel {
    /// The row of the level's input at each place of the tiles, `(tiles * REDUCTION_TILE)`.
    order: Tensor,
    /// The sum of the tile that each place is added to, `(tiles, 1, REDUCTION_TILE)`.
    slot: Tensor,
}

impl SegmentedSum {
    /// Sorts the tokens and uploads the indices of all levels.
    pub(super) fn new(ids: &[u32], vocab_size: usize, device: &Device) -> Result<Self> {
        let mut rows: Vec<(u32, u32)> = (0u32..).zip(ids).map(|(row, &id)| (id, row)).collect();
        rows.sort_unstable();
        let mut levels = Vec::new();
        loop {
            let layout = TileLayout::new(&rows);
            let tiles = layout.order.len() / REDUCTION_TILE;
            levels.push(ReductionLevel {
                order: count_launch(Tensor::from_vec(layout.order, tiles * REDUCTION_TILE, device))?,
                slot: count_launch(Tensor::from_vec(layout.slot, (tiles, 1, REDUCTION_TILE), device))?,
            });
            rows = layout.sums;
            if rows.windows(2).all(|pair| pair[0].0 != pair[1].0) {
                break;
            }
        }
        let mut last = vec![ZERO_SUM; vocab_size];
        for (id, row) in rows {
            last[id as usize] = row;
        }
        Ok(Self { levels, sum_of_token: count_launch(Tensor::from_vec(last, vocab_size, device))? })
    }

    /// The sums `(V, C)` over the rows of `dy (N, C)` of each token.
    #[expect(clippy::disallowed_methods, reason = "indices were made in range, and no gradient is wanted")]
    pub(super) fn sum(&self, dy: &Tensor) -> candle_core::Result<Tensor> {
        let (c, dtype) = (dy.dim(1)?, dy.dtype());
        let slots =
            count_launch(Tensor::arange(0, REDUCTION_TILE as u32, dy.device()))?.reshape((REDUCTION_TILE, 1))?;
        let mut rows = dy.clone();
        for ReductionLevel { order, slot } in &self.levels {
            let tiles = slot.dim(0)?;
            let gathered = count_launch(rows.index_select(order, 0))?.reshape((tiles, REDUCTION_TILE, c))?; // (tiles * REDUCTION_TILE, C)
            let ones = count_launch(count_launch(slot.broadcast_eq(&slots))?.to_dtype(dtype))?; // (tiles, REDUCTION_TILE, REDUCTION_TILE)
            rows = count_launch(ones.matmul(&gathered))?.reshape((tiles * REDUCTION_TILE, c))?; // (tiles, REDUCTION_TILE, C)
        }
        count_launch(rows.index_select(&self.sum_of_token, 0))
    }
}

/// [`ReductionLevel`] on the host.
struct TileLayout {
    order: Vec<u32>,
    slot: Vec<u32>,
    /// The sums of this level, as (token, row) pairs: the rows of the next level's input, sorted.
    sums: Vec<(u32, u32)>,
}

/// The index of a sum of no rows, which is zero: the last one of the first tile, since a tile has at most
/// `REDUCTION_TILE - 1` sums.
const ZERO_SUM: u32 = REDUCTION_TILE as u32 - 1;
/// The slot of a place that holds no row.
const NO_SLOT: u32 = REDUCTION_TILE as u32;

impl TileLayout {
    /// Fills tiles with the rows of a level's input, given as sorted (token, row) pairs.
    fn new(rows: &[(u32, u32)]) -> Self {
        let mut layout = Self { order: Vec::new(), slot: Vec::new(), sums: Vec::new() };
        // The places and sums in use of the last tile.
        let (mut places, mut sums) = (REDUCTION_TILE, 0);
        let mut rest = rows;
        while let Some(&(id, _)) = rest.first() {
            let (part, behind) = rest.split_at(rest.iter().take(REDUCTION_TILE).take_while(|row| row.0 == id).count());
            rest = behind;
            if places + part.len() > REDUCTION_TILE || sums + 1 == REDUCTION_TILE {
                let tiles = layout.order.len() / REDUCTION_TILE + 1;
                layout.order.resize(tiles * REDUCTION_TILE, 0);
                layout.slot.resize(tiles * REDUCTION_TILE, NO_SLOT);
                (places, sums) = (0, 0);
            }
            let tile = layout.order.len() - REDUCTION_TILE;
            for (place, &(_, row)) in (tile + places..).zip(part) {
                layout.order[place] = row;
                layout.slot[place] = sums as u32;
            }
            layout.sums.push((id, (tile + sums) as u32));
            places += part.len();
            sums += 1;
        }
        layout
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;
    use proptest::prelude::*;

    use super::*;

    /// Compares both gradients with `index_add`, on integers, whose sums are exact in any order.
    #[expect(clippy::disallowed_methods, reason = "the definition, on the CPU")]
    fn check(ids: &[u32], v: usize) {
        let c = 3;
        let dy: Vec<f64> = (0..ids.len() * c).map(|i| ((i * 7919) % 1009) as f64 - 500.0).collect();
        let dy = Tensor::from_vec(dy, (ids.len(), c), &Device::Cpu).unwrap();
        let at = Tensor::new(ids, &Device::Cpu).unwrap();
        let zeros = Tensor::zeros((v, c), DType::F64, &Device::Cpu).unwrap();
        let expected = zeros.index_add(&at, &dy, 0).unwrap().to_vec2::<f64>().unwrap();
        let sorted = SegmentedSum::new(ids, v, &Device::Cpu).unwrap().sum(&dy).unwrap();
        assert!(sorted.to_vec2::<f64>().unwrap() == expected, "sorted, {v}: {ids:?}");
        // A product for each row of a large batch takes long.
        let small = if ids.len() < 1000 { vec![0, 8 * v * 5] } else { vec![8 * v * (ids.len() / 3)] };
        for bytes in small.into_iter().chain([usize::MAX]) {
            let sum = one_hot_product(&at, &dy, v, bytes).unwrap();
            assert!(sum.to_vec2::<f64>().unwrap() == expected, "one-hot, {bytes} bytes, {v}: {ids:?}");
        }
    }

    #[test]
    fn sums_are_those_of_index_add_at_the_edges() {
        for n in [1, 2, 127, 128, 129, 1000, REDUCTION_TILE * REDUCTION_TILE + 1] {
            check(&vec![0; n], 1);
            check(&vec![6; n], 9);
            check(&(0..n as u32).map(|i| i % 2).collect::<Vec<_>>(), 2);
        }
        for n in [1, 2, 127, 128, 129, 1000] {
            check(&(0..n).collect::<Vec<_>>(), n as usize);
            check(&(0..n).rev().collect::<Vec<_>>(), n as usize + 3);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

        /// The cube of a uniform number: few tokens are frequent and many are rare, as in text.
        #[test]
        fn sums_are_those_of_index_add_on_random_tokens(
            v in 1usize..700,
            unit in prop::collection::vec(0.0f64..1.0, 1..900),
        ) {
            let ids: Vec<u32> = unit.iter().map(|x| (x * x * x * v as f64) as u32).collect();
            check(&ids, v);
        }
    }

    #[test]
    fn a_token_outside_the_vocabulary_is_refused_before_it_reaches_a_device() {
        let error = Tokens::new(&[1, 7], 1, 2, 7, &Device::Cpu).unwrap_err();
        assert!(matches!(error, ModelError::TokenOutOfRange { id: 7, vocab_size: 7 }));
    }
}
