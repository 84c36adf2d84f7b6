//! How quantized weights lie in memory: in groups of 32 inputs of a panel of 32 columns.

use half::f16;
use tinygpt_sampler::simd::{LANES, Simd, VECTOR_BYTES};

use super::activations::{GROUP, QUAD, QUADS, nearest_i8};
use crate::q4_0::{self, Q4Block};

// The blocks of q4_0 are the groups of activations.
const _: () = assert!(q4_0::BLOCK == GROUP);

/// The columns of a panel.
pub(in super::super) const PANEL: usize = 32;
/// The vectors of the columns of a panel.
pub(super) const HALVES: usize = PANEL / LANES;

/// The weights of a group's inputs, `(in, columns)`.
pub(in super::super) type Block = [[f32; PANEL]; GROUP];

/// The weights of 32 inputs of 32 columns. They are stored as unsigned integers, as the instruction wants one of its operands:
/// a weight is `(integer - ZERO_POINT) * scale`.
pub(in super::super) trait WeightGroup: Clone + Send + Sync {
    /// The integer that stands for 0.
    const ZERO_POINT: i32;
    /// A group of zeros.
    const ZEROS: Self;

    /// The scales of columns, given their weights: of input l by `weights(l)`.
    fn column_scales(n_in: usize, weights: impl Fn(usize) -> [f32; PANEL]) -> [f32; PANEL];

    /// Rounds the weights of a group, whose columns have these scales.
    fn quantize(block: &Block, scales: &[f32; PANEL]) -> Self;

    /// The integers of a quad of inputs, of the sixteen columns of a half: four a lane.
    fn load<S: Simd>(&self, s: S, quad: usize, half: usize) -> S::I;

    /// What the sum of a group's products is multiplied by: the scale of the activations times that of the group's weights.
    fn scaled<S: Simd>(&self, s: S, half: usize, activations: S::V) -> S::V;
}

/// Weights of 8 bits. A column has one scale, by which its output is multiplied in the end.
#[derive(Debug, Clone)]
#[repr(align(64))]
pub(crate) struct Int8Group {
    /// `(quads, halves, LANES, QUAD)`.
    integers: [[u8; VECTOR_BYTES]; QUADS * HALVES],
}

impl WeightGroup for Int8Group {
    const ZERO_POINT: i32 = 128;
    const ZEROS: Self = Self { integers: [[128; VECTOR_BYTES]; QUADS * HALVES] };

    /// The largest absolute weight divided by 127. A NaN makes the scale NaN, and with it the output.
    fn column_scales(n_in: usize, weights: impl Fn(usize) -> [f32; PANEL]) -> [f32; PANEL] {
        let mut largest = [0f32; PANEL];
        for l in 0..n_in {
            for (largest, x) in largest.iter_mut().zip(weights(l)) {
                // A comparison with NaN is false, so that it stays.
                *largest = if x.abs() <= *largest || largest.is_nan() { *largest } else { x.abs() };
            }
        }
        largest.map(|largest| largest / 127.0)
    }

    fn quantize(block: &Block, scales: &[f32; PANEL]) -> Self {
        let mut group = Self::ZEROS;
        for (l, row) in block.iter().enumerate() {
            let halves = &mut group.integers[l / QUAD * HALVES..][..HALVES];
            let to = halves.as_flattened_mut().iter_mut().skip(l % QUAD).step_by(QUAD);
            for (to, (x, scale)) in to.zip(row.iter().zip(scales)) {
                // With a scale of 0, or of a subnormal number, the ratio may be anything.
                let integer = nearest_i8((x / scale).clamp(-127.0, 127.0));
                *to = integer.cast_unsigned() ^ 0x80;
            }
        }
        group
    }

    #[inline(always)]
    fn load<S: Simd>(&self, s: S, quad: usize, half: usize) -> S::I {
        s.load_bytes(&self.integers[quad * HALVES + half])
    }

    #[inline(always)]
    fn scaled<S: Simd>(&self, _: S, _: usize, activations: S::V) -> S::V {
        activations
    }
}

/// Weights of 4 bits, in the blocks of [`Q4Block`] along the inputs. A block has its scale; columns have none.
#[derive(Debug, Clone)]
#[repr(align(64))]
pub(crate) struct Int4Group {
    /// `(quads, LANES, QUAD)`: the lower half of a byte is of a column of the panel's first half, the upper one of the column
    /// sixteen further on.
    integers: [[u8; VECTOR_BYTES]; QUADS],
    /// The bits of f16.
    scales: [[u16; LANES]; HALVES],
}

impl WeightGroup for Int4Group {
    const ZERO_POINT: i32 = q4_0::ZERO_POINT as i32;
    const ZEROS: Self = Self { integers: [[0x88; VECTOR_BYTES]; QUADS], scales: [[0; LANES]; HALVES] };

    fn column_scales(_: usize, _: impl Fn(usize) -> [f32; PANEL]) -> [f32; PANEL] {
        [1.0; PANEL]
    }

    fn quantize(block: &Block, _: &[f32; PANEL]) -> Self {
        let mut group = Self { integers: [[0; VECTOR_BYTES]; QUADS], scales: [[0; LANES]; HALVES] };
        for (j, group_scale) in group.scales.as_flattened_mut().iter_mut().enumerate() {
            let Q4Block { scale, integers } = Q4Block::round(&std::array::from_fn(|l| block[l][j]));
            let (half, lane) = (j / LANES, j % LANES);
            // An infinite scale would give infinite outputs, or, of a sum of 0, NaN.
            *group_scale = if scale.is_finite() { scale } else { f16::NAN }.to_bits();
            let (quads, _) = integers.as_chunks::<QUAD>();
            for (bytes, quad) in group.integers.iter_mut().zip(quads) {
                let bytes = &mut bytes[lane * QUAD..][..QUAD];
                bytes.iter_mut().zip(quad).for_each(|(byte, integer)| *byte |= integer << (4 * half));
            }
        }
        group
    }

    #[inline(always)]
    fn load<S: Simd>(&self, s: S, quad: usize, half: usize) -> S::I {
        s.nibbles(s.load_bytes(&self.integers[quad]))[half]
    }

    #[inline(always)]
    fn scaled<S: Simd>(&self, s: S, half: usize, activations: S::V) -> S::V {
        s.mul(activations, s.load_f16(&self.scales[half]))
    }
}
