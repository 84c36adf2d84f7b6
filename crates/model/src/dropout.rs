//! Dropout masks as a pure function of (seed, step, site, element).
//!
//! On the CPU a mask comes from Philox. A GPU needs masks of hundreds of millions of elements, too many to upload, so there
//! a mask is a polynomial hash of the element's index, computed in integer tensor operations, which are exact on every
//! device. The coefficients of each block of elements come from Philox on the host.

use candle_core::{DType, Device, Shape, Tensor};
use tinygpt_sampler::{
    RngDomain, philox_at, philox4x32_10, philox4x32_10_batch,
    simd::{Kernel, Simd, SimdLevel},
};

use crate::{
    Result,
    ops::{
        kernels::{elementwise, kernels_for_values},
        launches::count_launch,
        tape,
    },
};

/// The generator of a mask's bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaskSource {
    /// Philox on the host, four elements from each Philox block; the default on the CPU.
    Philox,
    /// A random polynomial of degree 2 over the field of 65521 elements for each block of 16384 elements, in u32 tensor
    /// operations; the default on a GPU. Any three elements of a block are independent.
    Hash,
}

/// The modulus of [`MaskSource::Hash`]: the largest prime for which the product of two residues plus a third is below 2^32,
/// so that a mask takes eleven passes over u32.
const HASH_PRIME: u32 = 65521;
/// The elements that share a polynomial.
const HASH_BLOCK: usize = 1 << 14;

/// A place of the network with dropout. No two sites share a mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropoutSite {
    /// The sum of the embeddings, `(B, T, C)`.
    Embedding,
    /// The attention weights of a layer, `(B, nh, T, T)`.
    Attention(usize),
    /// The output of attention before it is added to the residual stream, `(B, T, C)`.
    AttentionResidual(usize),
    /// The output of the MLP before it is added to the residual stream, `(B, T, C)`.
    MlpResidual(usize),
}

impl DropoutSite {
    /// The number of the site, which the masks depend on.
    pub fn id(self) -> u32 {
        match self {
            Self::Embedding => 0,
            Self::Attention(layer) => 1 + 3 * layer as u32,
            Self::AttentionResidual(layer) => 2 + 3 * layer as u32,
            Self::MlpResidual(layer) => 3 + 3 * layer as u32,
        }
    }
}

/// The dropout of one forward pass.
#[derive(Debug, Clone, PartialEq)]
pub struct Dropout {
    /// The probability with which a value becomes zero, in [0, 1).
    pub p: f64,
    /// The run's seed.
    pub seed: u64,
    /// The number of the forward pass (micro-step) in the run, so that each has its own masks.
    pub step: u64,
    /// The generator of the masks.
    pub source: MaskSource,
}

impl Dropout {
    /// The dropout of one training pass, with the default mask source of the device.
    pub fn new(p: f64, seed: u64, step: u64, device: &Device) -> Self {
        let source = if device.is_cpu() { MaskSource::Philox } else { MaskSource::Hash };
        Self { p, seed, step, source }
    }

    /// Multiplies `x`, of any shape, with the mask of a site ([`DropoutSite::id`]): 0 with probability `p`, otherwise
    /// `1 / (1 - p)`, which preserves the expected value.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn apply(&self, site: u32, x: &Tensor) -> Result<Tensor> {
        if self.p == 0.0 {
            return Ok(x.clone());
        }
        if self.source == MaskSource::Hash
            && let Some((kernels, element)) = kernels_for_values(x)
        {
            let y = elementwise::masked_sum(&kernels, None, (x, element), Some((self, site)))?;
            let dropout = self.clone();
            tape::record("dropout", [x], &y, move |dy| {
                Ok([elementwise::masked_sum_backward(&kernels, element, &dy.contiguous()?, Some((&dropout, site)))?])
            });
            return Ok(y);
        }
        // The mask is kept for the backward pass as one byte per element.
        let keep = self.keep(site, 0, x.shape(), x.device())?;
        let y = count_launch(x.mul(&self.scaled(&keep, x.dtype())?))?;
        let dropout = self.clone();
        tape::record("dropout", [x], &y, move |dy| Ok([count_launch(dy.mul(&dropout.scaled(&keep, dy.dtype())?))?]));
        Ok(y)
    }

    /// The mask of a site, whose elements are 0 or `1 / (1 - p)`.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn mask(&self, site: u32, shape: &Shape, dtype: DType, device: &Device) -> Result<Tensor> {
        Ok(self.scaled(&self.keep(site, 0, shape, device)?, dtype)?)
    }

    /// The elements of a mask from index `first` on, in u8: 1 where an element is kept, else 0.
    pub(crate) fn keep(&self, site: u32, first: u64, shape: &Shape, device: &Device) -> candle_core::Result<Tensor> {
        match self.source {
            MaskSource::Philox => self.philox_keep(site, first, shape, device),
            MaskSource::Hash => self.hash_keep(site, first, shape, device),
        }
    }

    /// The factors of values, 0 or `1 / (1 - p)`, from `keep`, 0 or 1.
    pub(crate) fn scaled(&self, keep: &Tensor, dtype: DType) -> candle_core::Result<Tensor> {
        count_launch(count_launch(keep.to_dtype(dtype))?.affine(1.0 / (1.0 - self.p), 0.0))
    }

    /// The Philox block of this seed, step and site.
    pub(crate) fn site_words(&self, site: u32) -> [u32; 4] {
        philox_at(self.seed, RngDomain::Dropout, self.step, site)
    }

    /// The probability of [`MaskSource::Hash`] as a multiple of 1 / 65521.
    pub(crate) fn hash_threshold(&self) -> u32 {
        (self.p * f64::from(HASH_PRIME)) as u32
    }

    /// The factor of a kept value.
    pub(crate) fn scale(&self) -> f32 {
        (1.0 / (1.0 - self.p)) as f32
    }

    /// [`Dropout::keep`] by Philox: element e is word `e % 4` of block `e / 4` under a key of this (seed, step, site).
    fn philox_keep(&self, site: u32, first: u64, shape: &Shape, device: &Device) -> candle_core::Result<Tensor> {
        let n = shape.elem_count();
        let mut words = vec![0u16; n.div_ceil(16)];
        self.keep_bits(SimdLevel::detect(), site, first, &mut words);
        let keep: Vec<u8> = (0..n).map(|e| (words[e / 16] >> (e % 16) & 1) as u8).collect();
        count_launch(Tensor::from_vec(keep, shape, device))
    }

    /// [`Dropout::keep`] by Philox, in bits: bit `i` of word `w` is set where element `first + 16 w + i` is kept.
    pub(crate) fn keep_bits(&self, level: SimdLevel, site: u32, first: u64, words: &mut [u16]) {
        let [k0, k1, c2, c3] = self.site_words(site);
        // p as a multiple of 2^-32.
        let threshold = (self.p * 4_294_967_296.0) as u32;
        let blocks = |keep| KeepBitsKernel { n: first / 4, words: [c2, c3], key: [k0, k1], threshold, keep };
        let ahead = first % 4;
        if ahead == 0 {
            level.run(blocks(words));
            return;
        }
        // Blocks are aligned to four elements, so each output word spans two words of the aligned bits.
        let mut more = vec![0; words.len() + 1];
        level.run(blocks(&mut more));
        for (word, pair) in words.iter_mut().zip(more.windows(2)) {
            *word = ((u32::from(pair[1]) << 16 | u32::from(pair[0])) >> ahead) as u16;
        }
    }

    /// [`Dropout::keep`] by the hash `(c2 x + c1) x + c0 (mod 65521)` of an element's index `x` in its block. The
    /// coefficients of block `n` are the Philox block that [`MaskSource::Philox`] takes elements `4n..` from.
    fn hash_keep(&self, site: u32, first: u64, shape: &Shape, device: &Device) -> candle_core::Result<Tensor> {
        let constant = |value: u32| count_launch(Tensor::new(value, device));
        let prime = constant(HASH_PRIME)?;
        let modulo = |t: Tensor| {
            // Integer division truncates.
            count_launch(t.broadcast_sub(&count_launch(count_launch(t.broadcast_div(&prime))?.broadcast_mul(&prime))?))
        };
        let (n, block) = (shape.elem_count(), HASH_BLOCK as u64);
        let (from, ahead) = (first / block, (first % block) as usize);
        let rows = (ahead + n).div_ceil(HASH_BLOCK);
        let [k0, k1, w2, w3] = self.site_words(site);
        let polynomials: Vec<[u32; 4]> = (from..from + rows as u64)
            .map(|n| philox4x32_10([n as u32, (n >> 32) as u32, w2, w3], [k0, k1]).map(|word| word % HASH_PRIME))
            .collect();
        let coefficients: Vec<u32> = (0..3).flat_map(|i| polynomials.iter().map(move |c| c[i])).collect();
        let coefficients = count_launch(Tensor::from_vec(coefficients, (3, rows, 1), device))?;
        // A mask within one block computes only the columns that it needs.
        let cols = if rows == 1 { ahead + n } else { HASH_BLOCK };
        let x = count_launch(Tensor::arange(0, cols as u32, device))?.reshape((1, cols))?;

        let linear = count_launch(coefficients.get(2)?.broadcast_mul(&x))?; // (rows, cols)
        let linear = modulo(count_launch(linear.broadcast_add(&coefficients.get(1)?))?)?;
        let hash = count_launch(count_launch(linear.broadcast_mul(&x))?.broadcast_add(&coefficients.get(0)?))?;
        let threshold = constant(self.hash_threshold())?;
        let keep = count_launch(modulo(hash)?.broadcast_ge(&threshold))?;
        keep.flatten_all()?.narrow(0, ahead, n)?.reshape(shape)
    }
}

/// Fills `keep` with the bits of kept elements, four from each Philox block, from block `n` on.
struct KeepBitsKernel<'a> {
    n: u64,
    /// The upper half of the counters.
    words: [u32; 2],
    key: [u32; 2],
    threshold: u32,
    keep: &'a mut [u16],
}

/// The Philox blocks that are computed side by side in vector instructions.
const PHILOX_BATCH: usize = 16;

impl Kernel for KeepBitsKernel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Self { mut n, words: [c2, c3], key, threshold, keep } = self;
        for keep in keep.chunks_mut(PHILOX_BATCH / 4) {
            let mut counters = [[0; PHILOX_BATCH], [0; PHILOX_BATCH], [c2; PHILOX_BATCH], [c3; PHILOX_BATCH]];
            let [low, high, ..] = &mut counters;
            for (n, (low, high)) in (n..).zip(low.iter_mut().zip(high)) {
                (*low, *high) = (n as u32, (n >> 32) as u32);
            }
            let [a, b, c, d] = philox4x32_10_batch(counters, key);
            let mut bits = [0u16; PHILOX_BATCH];
            for (i, words) in [a, b, c, d].iter().enumerate() {
                for (bits, &word) in bits.iter_mut().zip(words) {
                    *bits |= u16::from(word >= threshold) << i;
                }
            }
            for (word, bits) in keep.iter_mut().zip(bits.as_chunks::<4>().0) {
                *word = bits[0] | bits[1] << 4 | bits[2] << 8 | bits[3] << 12;
            }
            n += PHILOX_BATCH as u64;
        }
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
    fn masks_of_philox_equal_their_definition_from_any_element_on_and_on_every_level() {
        let dropout = Dropout { p: 0.3, seed: 9, step: 10, source: MaskSource::Philox };
        let [k0, k1, c2, c3] = dropout.site_words(4);
        let keep = |e: u64| {
            let block = e / 4;
            let lanes = philox4x32_10([block as u32, (block >> 32) as u32, c2, c3], [k0, k1]);
            lanes[(e % 4) as usize] >= (0.3 * 4_294_967_296.0) as u32
        };
        for first in [0, 1, 4, 7, 1000, u64::from(u32::MAX) * 4 - 30, (1 << 50) + 77] {
            for n in [1, 2, 4, 5, 33] {
                let word = |w: u64| (0..16).map(|i| u16::from(keep(first + 16 * w + i)) << i).sum::<u16>();
                let expected: Vec<u16> = (0..n as u64).map(word).collect();
                for level in SimdLevel::available() {
                    let mut words = vec![0; n];
                    dropout.keep_bits(level, 4, first, &mut words);
                    assert_eq!(words, expected, "{n} words from {first}, {level:?}");
                }
            }
        }
    }

    #[test]
    fn the_hash_equals_its_definition_from_any_element_on() {
        let dropout = Dropout { p: 0.3, seed: 9, step: 10, source: MaskSource::Hash };
        let [k0, k1, w2, w3] = dropout.site_words(4);
        let keep = |e: u64| {
            let block = e / HASH_BLOCK as u64;
            let c = philox4x32_10([block as u32, (block >> 32) as u32, w2, w3], [k0, k1]).map(u128::from);
            let (x, prime) = (u128::from(e % HASH_BLOCK as u64), u128::from(HASH_PRIME));
            let hash = (c[2] * x * x + c[1] * x + c[0]) % prime;
            u8::from(hash >= (0.3 * f64::from(HASH_PRIME)) as u128)
        };
        for first in [0, 5, HASH_BLOCK as u64 - 1, 3 * HASH_BLOCK as u64, (1 << 50) + 77] {
            for n in [1, 2, 1000, HASH_BLOCK, 2 * HASH_BLOCK + 3] {
                let got = dropout.keep(4, first, &Shape::from(n), &Device::Cpu).unwrap();
                let expected: Vec<u8> = (first..first + n as u64).map(keep).collect();
                assert!(got.to_vec1::<u8>().unwrap() == expected, "{n} elements from {first}");
            }
        }
    }

    #[test]
    fn a_part_of_a_mask_is_that_part_of_the_whole() {
        for source in SOURCES {
            let dropout = Dropout { p: 0.4, seed: 1, step: 2, source };
            let keep = |first: usize, n: usize| {
                dropout.keep(3, first as u64, &Shape::from(n), &Device::Cpu).unwrap().to_vec1::<u8>().unwrap()
            };
            let whole = keep(0, 40_000);
            for (first, n) in [(1, 1), (3, 17), (16_383, 2), (16_384, 16_384), (20_001, 19_999)] {
                assert!(keep(first, n) == whole[first..first + n], "{source:?}: {n} from {first}");
            }
        }
    }
}
