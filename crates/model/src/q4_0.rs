//! Weights of 4 bits: the blocks of ggml's `q4_0`, which are those of GGUF files and of generation in int4.

use half::f16;

/// The weights of a block, which share a scale.
pub(crate) const BLOCK: usize = 32;
/// The bytes of a block: its scale, and two integers in each byte.
pub(crate) const BLOCK_BYTES: usize = size_of::<f16>() + BLOCK / 2;
/// The integer that stands for 0.
pub(crate) const ZERO_POINT: u8 = 8;

/// A block of weights `(integer - ZERO_POINT) * scale`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Q4Block {
    /// The weight that is furthest from 0, with its sign, over -8, so that it is the integer 0.
    pub(crate) scale: f16,
    /// From 0 to 15.
    pub(crate) integers: [u8; BLOCK],
}

impl Q4Block {
    /// Rounds some weights as ggml's reference does. Numbers that come from such a block are the same block again. The scale is
    /// infinite or NaN where f16 cannot hold it, or a weight is not finite.
    pub(crate) fn round(values: &[f32; BLOCK]) -> Self {
        let extreme = values.iter().fold(0f32, |extreme, &x| if x.abs() <= extreme.abs() { extreme } else { x });
        let scale = extreme / -8.0;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        // The cast cuts off what is behind the point, and saturates.
        let integers = values.map(|x| ((x * inverse + 8.5) as u8).min(15));
        let is_finite = values.iter().all(|x| x.is_finite());
        Self { scale: if is_finite { f16::from_f32(scale) } else { f16::NAN }, integers }
    }

    /// The weights.
    pub(crate) fn values(&self) -> [f32; BLOCK] {
        let scale = self.scale.to_f32();
        self.integers.map(|x| f32::from(x.cast_signed() - ZERO_POINT.cast_signed()) * scale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extreme_keeps_its_sign_and_the_others_are_rounded_to_sixteen_steps() {
        let mut values = [0.0; BLOCK];
        values[..6].copy_from_slice(&[-4.0, 4.0, 3.4, 0.2, 0.26, -0.24]);
        let block = Q4Block::round(&values);
        assert_eq!((block.scale, &block.integers[..7]), (f16::from_f32(0.5), &[0, 15, 15, 8, 9, 8, 8][..]));
        let opposite = Q4Block::round(&values.map(|x| -x));
        assert_eq!((opposite.scale, opposite.integers[0]), (f16::from_f32(-0.5), 0));
        assert_eq!(Q4Block::round(&[0.0; BLOCK]).values(), [0.0; BLOCK]);
    }

    #[test]
    fn a_block_comes_back_from_its_numbers() {
        for seed in 0..200 {
            let values: [f32; BLOCK] = std::array::from_fn(|i| ((seed * 37 + i * 101) % 997) as f32 * 0.013 - 6.5);
            let block = Q4Block::round(&values);
            assert_eq!(Q4Block::round(&block.values()), block);
            let scale = block.scale.to_f32().abs();
            for (x, back) in values.iter().zip(block.values()) {
                // Half a step, a whole one opposite of the extreme; and the rounding of the scale, of up to eight steps.
                assert!((x - back).abs() <= scale * (1.0 + 8.0 * 2f32.powi(-11)), "{x} is {back}");
            }
        }
    }

    #[test]
    fn a_block_that_cannot_be_held_shows_in_its_scale() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = [1.0; BLOCK];
            values[31] = bad;
            assert!(Q4Block::round(&values).scale.is_nan());
        }
        assert!(Q4Block::round(&[1e6; BLOCK]).scale.is_infinite());
    }
}
