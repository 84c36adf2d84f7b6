//! The formats in which generation stores weights.

use tinygpt_sampler::simd::{LANES, Simd};

use crate::{GptConfig, network};

/// The format in which generation stores the model's matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WeightFormat {
    /// f32, unchanged and not copied.
    #[default]
    F32,
    /// Rounded to bf16: a token reads half as many bytes.
    Bf16,
    /// Rounded to 8-bit integers with one f32 scale for each output channel: a token reads a quarter as many bytes.
    Int8,
}

impl WeightFormat {
    /// The size of a weight, in bytes.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
            Self::Int8 => 1,
        }
    }

    /// The bytes of weights that one step of generation reads, whatever the number of sequences: all parameters but the
    /// embedding tables, of which it reads single rows.
    pub fn bytes_of_a_step(self, config: &GptConfig) -> usize {
        network(config).params_of_a_step() * self.bytes()
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
