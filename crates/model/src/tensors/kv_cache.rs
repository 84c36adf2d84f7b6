//! The key-value cache on candle tensors, in preallocated storage.

use candle_core::{DType, Device, Tensor};

use crate::{GptConfig, ModelError, Result, ops};

/// The cached keys and values of one layer, `(B, nkv, block_size, hs)` each.
#[derive(Debug)]
struct LayerKeyValues {
    k: Tensor,
    v: Tensor,
}

/// The keys and values of every layer, for a batch of sequences of equal length.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<LayerKeyValues>,
    rows: usize,
    len: usize,
    block_size: usize,
    /// The last mask with its `(new, past)`; a sliding context needs the same one for every token.
    mask: Option<((usize, usize), Tensor)>,
}

impl KvCache {
    /// Allocates an empty cache for `rows` sequences of up to `block_size` positions.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn new(config: &GptConfig, rows: usize, dtype: DType, device: &Device) -> Result<Self> {
        let shape = (rows, config.kv_heads(), config.block_size, config.head_size());
        let layers = (0..config.n_layer)
            .map(|_| {
                Ok(LayerKeyValues { k: Tensor::zeros(shape, dtype, device)?, v: Tensor::zeros(shape, dtype, device)? })
            })
            .collect::<Result<_>>()?;
        Ok(Self { layers, rows, len: 0, block_size: config.block_size, mask: None })
    }

    /// The number of filled positions.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no position is filled.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The number of sequences.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Empties the cache, and keeps its storage.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Checks that `n` more positions fit.
    pub(crate) fn check_room(&self, n: usize) -> Result<()> {
        let positions = self.len + n;
        if positions > self.block_size {
            return Err(ModelError::ContextFull { positions, block_size: self.block_size });
        }
        Ok(())
    }

    /// Writes the keys and values `(B, nkv, T, hs)` of `T` new positions of one layer after the filled ones, and returns
    /// those of all positions, `(B, nkv, len + T, hs)`. [`KvCache::advance`] is called after the last layer.
    pub(crate) fn append(&mut self, layer: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let new = k.dim(2)?;
        let cache = &self.layers[layer];
        cache.k.slice_set(&k.contiguous()?, 2, self.len)?;
        cache.v.slice_set(&v.contiguous()?, 2, self.len)?;
        Ok((cache.k.narrow(2, 0, self.len + new)?, cache.v.narrow(2, 0, self.len + new)?))
    }

    /// The keys and values of a layer, `(B, nkv, block_size, hs)` each, for a kernel that reads the filled positions and writes
    /// the next. [`KvCache::advance`] is called after the last layer.
    pub(crate) fn layer(&self, layer: usize) -> [&Tensor; 2] {
        let LayerKeyValues { k, v } = &self.layers[layer];
        [k, v]
    }

    /// The causal mask of `n` new positions after the filled ones, `(n, len + n)`; a single one needs none.
    pub(crate) fn mask(&mut self, n: usize, dtype: DType, device: &Device) -> Result<Option<Tensor>> {
        if n == 1 {
            return Ok(None);
        }
        let wanted = (n, self.len);
        if self.mask.as_ref().is_none_or(|(known, _)| *known != wanted) {
            self.mask = Some((wanted, ops::causal_mask(n, self.len, dtype, device)?));
        }
        Ok(self.mask.as_ref().map(|(_, mask)| mask.clone()))
    }

    /// Counts `n` positions as filled, once every layer has appended them.
    pub(crate) fn advance(&mut self, n: usize) {
        self.len += n;
    }

    /// A cache of `rows` copies of the single sequence in this one.
    ///
    /// # Errors
    /// When this cache does not hold exactly one row, or the device is out of memory.
    pub fn repeat(&self, rows: usize) -> Result<Self> {
        let widen = |t: &Tensor| -> candle_core::Result<Tensor> {
            let (_, nh, block_size, hs) = t.dims4()?;
            // The reshape refuses a cache that has not exactly one row, which `broadcast_as` alone would accept. Copied even
            // for one row, since the new cache is written in place and must not share storage with this one.
            t.reshape((1, nh, block_size, hs))?.broadcast_as((rows, nh, block_size, hs))?.force_contiguous()
        };
        let layers = self
            .layers
            .iter()
            .map(|l| Ok(LayerKeyValues { k: widen(&l.k)?, v: widen(&l.v)? }))
            .collect::<Result<_>>()?;
        Ok(Self { layers, rows, len: self.len, block_size: self.block_size, mask: self.mask.clone() })
    }
}
