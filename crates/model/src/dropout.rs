//! Dropout masks that are a pure function of (seed, step, site, element): the same bits on every device.
//!
//! On the CPU a mask comes from Philox. A GPU needs masks of hundreds of millions of elements, too many to send from the
//! host, so there a mask is a polynomial hash of the element's index with coefficients drawn on the host, in integer
//! tensor operations that no device rounds.

use candle_core::{DType, Device, Shape, Tensor};
use tinygpt_sampler::{Stream, philox_at, philox4x32_10};

use crate::{
    Result,
    ops::closed::{run, with_gradient},
};

/// Where the bits of a mask come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaskSource {
    /// Philox on the host, four elements a block: the choice on the CPU.
    Philox,
    /// A polynomial of degree 3 over the field of 2^31 - 1 elements, in i64 tensor operations: the choice on a GPU.
    /// Its values at any four elements are independent.
    Hash,
}

/// The modulus of [`MaskSource::Hash`], a Mersenne prime. A product of two residues stays below 2^62.
const HASH_PRIME: i64 = (1 << 31) - 1;

/// Drops values with probability `p` in one forward pass.
#[derive(Debug, Clone, PartialEq)]
pub struct Dropout {
    /// The probability with which a value becomes zero, in [0, 1).
    pub p: f64,
    /// The run's seed.
    pub seed: u64,
    /// Counts forward passes of training (micro-batches), so that each has masks of its own.
    pub step: u64,
    /// Where the bits come from.
    pub source: MaskSource,
}

impl Dropout {
    /// The dropout of one training pass, with the mask source that suits the device.
    pub fn new(p: f64, seed: u64, step: u64, device: &Device) -> Self {
        let source = if device.is_cpu() { MaskSource::Philox } else { MaskSource::Hash };
        Self { p, seed, step, source }
    }

    /// Multiplies `x` by the mask of a site: zeros with probability `p`, elsewhere `1 / (1 - p)`, so that the expected
    /// value stays. A site is a place in the network; no two places share one.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn apply(&self, site: u32, x: &Tensor) -> Result<Tensor> {
        if self.p == 0.0 {
            return Ok(x.clone());
        }
        // A byte an element is all that waits for the backward pass.
        let keep = self.keep(site, 0, x.shape(), x.device())?;
        let y = run(x.detach().mul(&self.scaled(&keep, x.dtype())?))?;
        let dropout = self.clone();
        Ok(with_gradient("dropout", x, y, move |x, _, dy| run(dy.mul(&dropout.scaled(&keep, x.dtype())?)))?)
    }

    /// The mask itself: 0 or `1 / (1 - p)`.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn mask(&self, site: u32, shape: &Shape, dtype: DType, device: &Device) -> Result<Tensor> {
        Ok(self.scaled(&self.keep(site, 0, shape, device)?, dtype)?)
    }

    /// 1 where an element is kept, else 0, for the elements of a mask from number `first` on.
    pub(crate) fn keep(&self, site: u32, first: u64, shape: &Shape, device: &Device) -> candle_core::Result<Tensor> {
        match self.source {
            MaskSource::Philox => self.philox_keep(site, first, shape, device),
            MaskSource::Hash => self.hash_keep(site, first, shape, device),
        }
    }

    /// What values are multiplied with, by whether they are kept.
    pub(crate) fn scaled(&self, keep: &Tensor, dtype: DType) -> candle_core::Result<Tensor> {
        run(run(keep.to_dtype(dtype))?.affine(1.0 / (1.0 - self.p), 0.0))
    }

    /// Four words that belong to this seed, step and site alone.
    fn words(&self, site: u32) -> [u32; 4] {
        philox_at(self.seed, Stream::Dropout, self.step, site)
    }

    /// What a kept value is multiplied with.
    pub(crate) fn scale(&self) -> f32 {
        (1.0 / (1.0 - self.p)) as f32
    }

    /// 1 where an element is kept, by Philox: lane `e % 4` of block `e / 4` under a key of this (seed, step, site).
    fn philox_keep(&self, site: u32, first: u64, shape: &Shape, device: &Device) -> candle_core::Result<Tensor> {
        let n = shape.elem_count();
        let mut words = vec![0u16; n.div_ceil(16)];
        self.keep_bits(site, first, &mut words);
        let keep: Vec<u8> = (0..n).map(|e| (words[e / 16] >> (e % 16) & 1) as u8).collect();
        run(Tensor::from_vec(keep, shape, device))
    }

    /// Bit `i` of word `w` is set where element `first + 16 w + i` of a site's mask is kept ([`MaskSource::Philox`]).
    pub(crate) fn keep_bits(&self, site: u32, first: u64, words: &mut [u16]) {
        let [k0, k1, c2, c3] = self.words(site);
        // p in steps of 2^-32.
        let threshold = (self.p * 4_294_967_296.0) as u32;
        let block = |n: u64| {
            let lanes = philox4x32_10([n as u32, (n >> 32) as u32, c2, c3], [k0, k1]);
            lanes.into_iter().enumerate().fold(0u32, |bits, (i, lane)| bits | u32::from(lane >= threshold) << i)
        };
        let ahead = first % 4;
        for (w, word) in words.iter_mut().enumerate() {
            let from = (first + 16 * w as u64) / 4;
            let blocks = if ahead == 0 { 4 } else { 5 };
            let bits = (0..blocks).fold(0u32, |bits, i| bits | block(from + i) << (4 * i));
            *word = (bits >> ahead) as u16;
        }
    }

    /// 1 where an element is kept, by the hash `((c3 e + c2) e + c1) e + c0 (mod 2^31 - 1)` of its index `e`.
    fn hash_keep(&self, site: u32, first: u64, shape: &Shape, device: &Device) -> candle_core::Result<Tensor> {
        let constant = |value: i64| run(Tensor::new(value, device));
        let prime = constant(HASH_PRIME)?;
        let modulo = |t: Tensor| {
            // Integer division truncates, and every value is non-negative.
            run(t.broadcast_sub(&run(run(t.broadcast_div(&prime))?.broadcast_mul(&prime))?))
        };
        // The indices from two short ranges, so that only those are uploaded: e = first + row * cols + col.
        let n = shape.elem_count();
        let cols = n.min(1 << 12);
        let rows = n.div_ceil(cols.max(1));
        let start: Vec<i64> = (0..rows as i64).map(|row| first as i64 + row * cols as i64).collect();
        let start = run(Tensor::from_vec(start, (rows, 1), device))?;
        let col = run(Tensor::arange(0, cols as i64, device))?.reshape((1, cols))?; // (1, cols)
        let index = modulo(run(start.broadcast_add(&col))?)?; // (rows, cols)

        let [c0, c1, c2, c3] = self.words(site).map(|w| i64::from(w) % HASH_PRIME);
        let mut hash = run(run(index.broadcast_mul(&constant(c3)?))?.broadcast_add(&constant(c2)?))?;
        for c in [c1, c0] {
            hash = run(run(modulo(hash)?.mul(&index))?.broadcast_add(&constant(c)?))?;
        }
        let threshold = constant((self.p * HASH_PRIME as f64) as i64)?;
        let keep = run(modulo(hash)?.broadcast_ge(&threshold))?;
        keep.flatten_all()?.narrow(0, 0, n)?.reshape(shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keep(source: MaskSource, p: f64, seed: u64, step: u64, site: u32, n: usize) -> Vec<u8> {
        let mask = Dropout { p, seed, step, source }.mask(site, &Shape::from(n), DType::F32, &Device::Cpu).unwrap();
        let scale = (1.0 / (1.0 - p)) as f32;
        let values = mask.to_vec1::<f32>().unwrap();
        values
            .into_iter()
            .map(|x| {
                assert!(x == 0.0 || (x - scale).abs() < 1e-6, "a mask holds 0 and 1/(1-p) only, not {x}");
                u8::from(x != 0.0)
            })
            .collect()
    }

    const SOURCES: [MaskSource; 2] = [MaskSource::Philox, MaskSource::Hash];

    #[test]
    fn the_share_of_kept_values_is_one_minus_p() {
        let n = 200_003;
        for source in SOURCES {
            for p in [0.1, 0.2, 0.5, 0.9] {
                let kept = keep(source, p, 1, 2, 3, n).iter().map(|&k| f64::from(k)).sum::<f64>();
                let sigma = (n as f64 * p * (1.0 - p)).sqrt();
                assert!((kept - n as f64 * (1.0 - p)).abs() < 5.0 * sigma, "{source:?} p {p}: {kept} of {n}");
            }
        }
    }

    #[test]
    fn masks_differ_by_seed_step_and_site_and_are_uncorrelated() {
        let n = 100_000;
        for source in SOURCES {
            let base = keep(source, 0.5, 1, 1, 1, n);
            assert_eq!(base, keep(source, 0.5, 1, 1, 1, n), "the same place gives the same mask");
            for (seed, step, site) in [(2, 1, 1), (1, 2, 1), (1, 1, 2)] {
                let other = keep(source, 0.5, seed, step, site, n);
                let equal = base.iter().zip(&other).filter(|(a, b)| a == b).count() as f64;
                assert!(
                    (equal - n as f64 / 2.0).abs() < 5.0 * (n as f64 / 4.0).sqrt(),
                    "{source:?}: {equal} equal of {n}"
                );
            }
            for lag in [1, 2, 64, 128, 4096] {
                let equal = base.iter().zip(&base[lag..]).filter(|(a, b)| a == b).count() as f64;
                let pairs = (n - lag) as f64;
                assert!((equal - pairs / 2.0).abs() < 5.0 * (pairs / 4.0).sqrt(), "{source:?} lag {lag}: {equal}");
            }
        }
    }

    #[test]
    fn an_element_does_not_depend_on_the_size_of_the_tensor() {
        for source in SOURCES {
            let long = keep(source, 0.2, 5, 6, 7, 5000);
            for n in [1, 3, 4, 4095, 4096, 4097] {
                assert_eq!(keep(source, 0.2, 5, 6, 7, n), long[..n], "{source:?} n {n}");
            }
        }
    }

    #[test]
    fn the_hash_equals_its_definition_in_128_bit_integers() {
        let dropout = Dropout { p: 0.3, seed: 9, step: 10, source: MaskSource::Hash };
        let prime = HASH_PRIME as i128;
        let c = dropout.words(4).map(|w| i128::from(w) % prime);
        let expected: Vec<u8> = (0..10_000i128)
            .map(|e| {
                let hash = (((c[3] * e + c[2]) * e + c[1]) * e + c[0]) % prime;
                u8::from(hash >= (0.3 * HASH_PRIME as f64) as i128)
            })
            .collect();
        assert_eq!(keep(MaskSource::Hash, 0.3, 9, 10, 4, 10_000), expected);
    }
}
