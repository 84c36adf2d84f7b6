//! The types in which a tensor's numbers are stored, and the way there and back.

use half::{bf16, f16};

use crate::q4_0::{self, Q4Block};

/// The weights of a block of [`TensorType::Q8_0`] and [`TensorType::Q4_0`], which share a scale.
pub(super) const BLOCK: usize = q4_0::BLOCK;
/// The bytes of a block of 8 bits: an f16 and an i8 for each weight.
const Q8_BYTES: usize = 2 + BLOCK;
/// The bytes of a block of 4 bits: an f16, and the first half of the weights in the lower halves of the bytes.
const Q4_BYTES: usize = q4_0::BLOCK_BYTES;

/// A type in which GGUF stores numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum TensorType {
    /// f32.
    #[default]
    F32,
    /// IEEE's half precision.
    F16,
    /// The upper half of f32.
    Bf16,
    /// Blocks of 32 weights of 8 bits along a row, with a scale in f16 for each: its largest absolute weight over 127.
    Q8_0,
    /// Blocks of 32 weights of 4 bits along a row, with a scale in f16 for each: the weight furthest from 0 over -8.
    Q4_0,
}

impl TensorType {
    /// Every type.
    pub const ALL: [Self; 5] = [Self::F32, Self::F16, Self::Bf16, Self::Q8_0, Self::Q4_0];

    /// The name, as flags write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
        }
    }

    /// The number of `ggml_type`.
    pub(super) fn number(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Bf16 => 30,
            Self::Q8_0 => 8,
            Self::Q4_0 => 2,
        }
    }

    /// The type of a number of `ggml_type`, where it is one of these.
    pub(super) fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }

    /// `general.file_type` of a file whose matrices are of this type: llama.cpp's `llama_ftype`.
    pub(super) fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Bf16 => 32,
            Self::Q8_0 => 7,
            Self::Q4_0 => 2,
        }
    }

    /// Whether its weights are in blocks, which rows must consist of.
    pub(super) fn has_blocks(self) -> bool {
        matches!(self, Self::Q8_0 | Self::Q4_0)
    }

    /// The bytes of a tensor of `rows` rows of `cols` elements; `None` where blocks do not fit a row, or nothing has that
    /// size.
    pub(crate) fn bytes(self, rows: usize, cols: usize) -> Option<usize> {
        let row = match self {
            Self::F32 => cols.checked_mul(4)?,
            Self::F16 | Self::Bf16 => cols.checked_mul(2)?,
            Self::Q8_0 | Self::Q4_0 if !cols.is_multiple_of(BLOCK) => return None,
            Self::Q8_0 => (cols / BLOCK).checked_mul(Q8_BYTES)?,
            Self::Q4_0 => (cols / BLOCK).checked_mul(Q4_BYTES)?,
        };
        row.checked_mul(rows)
    }

    /// Appends the bytes of some numbers: whole blocks, where the type has blocks. Rounding is to nearest, ties to even in 16
    /// bits, away from zero in 8, and towards the positive integer in 4, as in ggml's reference.
    ///
    /// # Errors
    /// The first number that the type cannot hold.
    pub(crate) fn encode(self, values: &[f32], out: &mut Vec<u8>) -> Result<(), f32> {
        match self {
            Self::F32 => values.iter().for_each(|value| out.extend(value.to_le_bytes())),
            Self::F16 => {
                for &value in values {
                    let half = f16::from_f32(value);
                    out.extend(finite(half.is_infinite(), half.to_le_bytes(), value)?);
                }
            }
            Self::Bf16 => {
                for &value in values {
                    let half = bf16::from_f32(value);
                    out.extend(finite(half.is_infinite(), half.to_le_bytes(), value)?);
                }
            }
            Self::Q8_0 => values.chunks(BLOCK).try_for_each(|block| encode_q8(block, out))?,
            Self::Q4_0 => values.as_chunks().0.iter().try_for_each(|block| encode_q4(block, out))?,
        }
        Ok(())
    }

    /// The numbers of some bytes: of whole blocks, where the type has blocks.
    pub(crate) fn decode(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F32 => bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
            Self::F16 => bytes.as_chunks().0.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f32()).collect(),
            Self::Bf16 => bytes.as_chunks().0.iter().map(|&bytes| bf16::from_le_bytes(bytes).to_f32()).collect(),
            Self::Q8_0 => {
                let (blocks, _) = bytes.as_chunks::<Q8_BYTES>();
                let block = |block: &[u8; Q8_BYTES]| {
                    let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
                    let weights: [u8; BLOCK] = std::array::from_fn(|i| block[2 + i]);
                    weights.map(|weight| f32::from(weight.cast_signed()) * scale)
                };
                blocks.iter().flat_map(block).collect()
            }
            Self::Q4_0 => {
                let (blocks, _) = bytes.as_chunks::<Q4_BYTES>();
                let block = |block: &[u8; Q4_BYTES]| {
                    let scale = f16::from_le_bytes([block[0], block[1]]);
                    let integer = |i: usize| block[2 + i % (BLOCK / 2)] >> (i / (BLOCK / 2) * 4) & 15;
                    Q4Block { scale, integers: std::array::from_fn(integer) }.values()
                };
                blocks.iter().flat_map(block).collect()
            }
        }
    }
}

/// The bytes of a rounded value, unless it became infinite by rounding.
fn finite<T>(infinite: bool, bytes: T, value: f32) -> Result<T, f32> {
    if infinite && value.is_finite() { Err(value) } else { Ok(bytes) }
}

/// The largest absolute value of a block.
fn largest_of(block: &[f32]) -> Result<f32, f32> {
    match block.iter().find(|value| !value.is_finite()) {
        Some(&value) => Err(value),
        None => Ok(block.iter().fold(0f32, |largest, value| largest.max(value.abs()))),
    }
}

fn encode_q4(block: &[f32; BLOCK], out: &mut Vec<u8>) -> Result<(), f32> {
    let largest = largest_of(block)?;
    let Q4Block { scale, integers } = Q4Block::round(block);
    out.extend(finite(scale.is_infinite(), scale.to_le_bytes(), largest)?);
    let (first, second) = integers.split_at(BLOCK / 2);
    out.extend(first.iter().zip(second).map(|(first, second)| first | second << 4));
    Ok(())
}

fn encode_q8(block: &[f32], out: &mut Vec<u8>) -> Result<(), f32> {
    let largest = largest_of(block)?;
    let scale = largest / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let half = f16::from_f32(scale);
    out.extend(finite(half.is_infinite(), half.to_le_bytes(), largest)?);
    // A cast saturates, should the inverse of a denormal scale be infinite.
    out.extend(block.iter().map(|value| ((value * inverse).round() as i8).cast_unsigned()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(kind: TensorType, values: &[f32]) -> Vec<u8> {
        let mut out = Vec::new();
        kind.encode(values, &mut out).unwrap();
        assert_eq!(Some(out.len()), kind.bytes(1, values.len()));
        out
    }

    #[test]
    fn numbers_come_back_within_half_a_step_of_their_type() {
        let values: Vec<f32> = (0..64).map(|i| (i as f32 - 20.5) * 0.037 * if i < 32 { 1.0 } else { 100.0 }).collect();
        for (kind, relative) in
            [(TensorType::F32, 0.0), (TensorType::F16, 2f32.powi(-11)), (TensorType::Bf16, 2f32.powi(-8))]
        {
            for (&value, back) in values.iter().zip(kind.decode(&encoded(kind, &values))) {
                assert!((value - back).abs() <= relative * value.abs(), "{kind:?}: {value} is {back}");
            }
        }
        let back = TensorType::Q8_0.decode(&encoded(TensorType::Q8_0, &values));
        for (block, back) in values.chunks(BLOCK).zip(back.chunks(BLOCK)) {
            let largest = block.iter().fold(0f32, |largest, x| largest.max(x.abs()));
            // Half a step, and the rounding of the scale to f16.
            let bound = largest * (0.5 / 127.0 + 2f32.powi(-11)) * 1.001;
            assert!(block.iter().zip(back).all(|(x, back)| (x - back).abs() <= bound), "{block:?}: {back:?}");
        }
    }

    #[test]
    fn blocks_are_rounded_as_by_ggml() {
        // d = 127 / 127 = 1, so that halves are ties, which go away from zero.
        let mut values = [0.0; BLOCK];
        values[..6].copy_from_slice(&[127.0, 0.5, -0.5, 1.5, 2.4, -127.0]);
        let bytes = encoded(TensorType::Q8_0, &values);
        assert_eq!(bytes[..8], [0x00, 0x3c, 127, 1, 255, 2, 2, 129]);
        assert_eq!(encoded(TensorType::Q8_0, &[0.0; BLOCK]), [0; Q8_BYTES]);
        // d = -4 / -8 = 0.5; the second half of the weights is in the upper halves of the bytes.
        let mut values = [0.0; BLOCK];
        (values[0], values[1], values[16], values[17]) = (-4.0, 3.4, 0.26, 4.0);
        let bytes = encoded(TensorType::Q4_0, &values);
        assert_eq!(bytes[..5], [0x00, 0x38, 0x90, 0xff, 0x88]);
        assert_eq!(TensorType::Q4_0.decode(&bytes)[..2], [-4.0, 3.5]);
    }

    #[test]
    fn what_a_type_cannot_hold_is_refused() {
        let mut out = Vec::new();
        assert_eq!(TensorType::F16.encode(&[1.0, 70_000.0], &mut out), Err(70_000.0));
        assert_eq!(TensorType::F16.encode(&[f32::INFINITY], &mut out), Ok(()));
        assert_eq!(TensorType::Bf16.encode(&[f32::MAX], &mut out), Err(f32::MAX));
        assert_eq!(TensorType::Q8_0.encode(&[-1e30; BLOCK], &mut out), Err(1e30));
        assert!(TensorType::Q8_0.encode(&[f32::NAN; BLOCK], &mut out).is_err_and(f32::is_nan));
        assert_eq!(TensorType::Q4_0.encode(&[-1e30; BLOCK], &mut out), Err(1e30));
        assert!(TensorType::Q4_0.encode(&[f32::NAN; BLOCK], &mut out).is_err_and(f32::is_nan));
        assert_eq!((TensorType::Q8_0.bytes(3, 31), TensorType::Q4_0.bytes(3, 31)), (None, None));
        assert_eq!(TensorType::F32.bytes(usize::MAX / 4, 2), None);
    }
}
