//! In which formats generation stores weights.

use tinygpt_sampler::simd::{LANES, Simd};

use crate::{GptConfig, network};

/// How generation stores the model's matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WeightFormat {
    /// As they are.
    #[default]
    F32,
    /// Rounded to bf16: half of what a token reads.
    Bf16,
    /// Rounded to integers of 8 bits with a scale for each output: a quarter of what a token reads.
    Int8,
}

impl WeightFormat {
    /// Bytes of a weight.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
            Self::Int8 => 1,
        }
    }

    /// Bytes of weights that one step of generation reads, whatever the number of rows: all but the tables of which it
    /// picks rows.
    pub fn bytes_of_a_step(self, config: &GptConfig) -> usize {
        network(config).params_of_a_step() * self.bytes()
    }
}

/// A stored weight.
pub(crate) trait WeightElement: Copy + Default + Send + Sync {
    fn load<S: Simd>(s: S, from: &[Self; LANES]) -> S::V;
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

impl WeightElement for i8 {
    fn value(self) -> f32 {
        f32::from(self)
    }

    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[Self; LANES]) -> S::V {
        s.load_i8(from)
    }
}

/// The weights behind the last whole vector of a row, and zeros.
#[inline(always)]
pub(crate) fn load_rest<S: Simd, E: WeightElement>(s: S, rest: &[E]) -> S::V {
    let mut lanes = [E::default(); LANES];
    lanes[..rest.len()].copy_from_slice(rest);
    E::load(s, &lanes)
}
