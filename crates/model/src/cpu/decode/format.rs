//! The formats in which generation stores weights, keys and values.

use tinygpt_sampler::simd::{LANES, Simd};

use crate::{GptConfig, network, q4_0};

/// The format in which generation stores the model's matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WeightFormat {
    /// f32, unchanged and not copied.
    #[default]
    F32,
    /// Rounded to bf16: a token reads half as many bytes.
    Bf16,
    /// Rounded to 8-bit integers with one f32 scale for each output channel: a token reads a quarter as many bytes. Activations
    /// are rounded to 8 bits too where they are multiplied with weights, in groups of 32.
    Int8,
    /// Rounded to 4-bit integers with one f16 scale for 32 weights along the inputs, the blocks of GGUF's `q4_0`: a token reads
    /// 4.5 bits a weight. Activations are as in [`WeightFormat::Int8`].
    Int4,
}

impl WeightFormat {
    /// The size of this many weights, in bytes: with the scales of int4, without those of int8, which are a few.
    pub fn bytes_of(self, weights: usize) -> usize {
        match self {
            Self::F32 => 4 * weights,
            Self::Bf16 => 2 * weights,
            Self::Int8 => weights,
            Self::Int4 => weights.div_ceil(q4_0::BLOCK) * q4_0::BLOCK_BYTES,
        }
    }

    /// The bytes of weights that one step of generation reads, whatever the number of sequences: all parameters but the
    /// embedding tables, of which it reads single rows.
    pub fn bytes_of_a_step(self, config: &GptConfig) -> usize {
        self.bytes_of(network(config).params_of_a_step())
    }
}

/// The format in which generation keeps the keys and values of attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvCacheFormat {
    /// f32, unchanged.
    #[default]
    F32,
    /// Rounded to bf16: a cache takes half the memory, and so does a token read half of it. The positions of a prompt attend to
    /// each other before they are rounded.
    Bf16,
}

/// The formats of what generation holds in memory. A [`WeightFormat`] alone is one with a cache in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DecodeFormats {
    /// The format of the model's matrices.
    pub weights: WeightFormat,
    /// The format of the key-value caches.
    pub kv_cache: KvCacheFormat,
}

impl From<WeightFormat> for DecodeFormats {
    fn from(weights: WeightFormat) -> Self {
        Self { weights, kv_cache: KvCacheFormat::F32 }
    }
}

/// The element type of weights that are numbers: f32, or bf16 as u16.
pub(crate) trait WeightElement: Copy + Default + Send + Sync {
    /// Loads sixteen weights as f32.
    fn load<S: Simd>(s: S, from: &[Self; LANES]) -> S::V;

    /// Converts a weight to f32.
    fn value(self) -> f32;
}

impl WeightElement for f32 {
    fn value(self) -> f32 {
        self
    }

    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[Self; LANES]) -> S::V {
        s.load(from)
    }
}

impl WeightElement for u16 {
    fn value(self) -> f32 {
        f32::from_bits(u32::from(self) << 16)
    }

    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[Self; LANES]) -> S::V {
        s.load_bf16(from)
    }
}

/// Loads the weights after the last whole vector of a row, padded with zeros.
#[inline(always)]
pub(crate) fn load_rest<S: Simd, E: WeightElement>(s: S, rest: &[E]) -> S::V {
    let mut lanes = [E::default(); LANES];
    lanes[..rest.len()].copy_from_slice(rest);
    E::load(s, &lanes)
}
