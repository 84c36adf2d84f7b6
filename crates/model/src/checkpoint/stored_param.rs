//! A parameter that lies in a file in another way than in memory.

use std::{ops::Range, sync::OnceLock};

use safetensors::tensor::Dtype;

use super::{config_json::QueryScale, layout::StoredTensor};
use crate::gguf::{TensorType, separate_pairs};

/// A parameter whose numbers are of another type than f32 in its file, or in another order, or scaled. It is converted when
/// somebody asks for its values: all of them at once, or some rows at a time where it lies row after row.
#[derive(Debug)]
pub(crate) struct StoredParam {
    /// The number of its elements.
    pub(super) len: usize,
    /// The tensors of the file that it is made of.
    pub(super) pieces: Vec<Piece>,
    /// What its queries are multiplied by.
    pub(super) scale: Option<QueryScale>,
    /// All of its values, once somebody wanted them for good.
    pub(super) kept: OnceLock<Vec<f32>>,
}

/// A tensor of a file.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    pub(crate) tensor: StoredTensor,
    pub(crate) numbers: NumberType,
    /// The number of its file among those of the model.
    pub(crate) file: usize,
    /// Its bytes in the file.
    pub(crate) bytes: Range<usize>,
    /// The size of the heads whose rotated pairs lie interleaved, as GGUF has those of a Llama.
    pub(crate) interleaved: Option<usize>,
}

/// How the numbers of a tensor are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NumberType {
    /// As in GGUF, which has most of them in common with safetensors.
    Gguf(TensorType),
    F64,
}

impl NumberType {
    /// The type of a tensor of safetensors.
    ///
    /// # Errors
    /// When it is of integers, or floats of another kind: those are the numbers of a quantized model, which mean something else.
    pub(super) fn of(dtype: Dtype) -> Result<Self, String> {
        Ok(match dtype {
            Dtype::F32 => Self::Gguf(TensorType::F32),
            Dtype::F16 => Self::Gguf(TensorType::F16),
            Dtype::BF16 => Self::Gguf(TensorType::Bf16),
            Dtype::F64 => Self::F64,
            _ => return Err(format!("is of type {dtype:?}; this program reads F32, F16, BF16 and F64")),
        })
    }

    /// The bytes of a row of this many numbers; `None` where blocks do not fit it.
    fn row_bytes(self, cols: usize) -> Option<usize> {
        match self {
            Self::Gguf(kind) => kind.bytes(1, cols),
            Self::F64 => cols.checked_mul(8),
        }
    }

    /// The numbers of some bytes, rounded to f32.
    pub(super) fn decode(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::Gguf(kind) => kind.decode(bytes),
            Self::F64 => bytes.as_chunks().0.iter().map(|&bytes| f64::from_le_bytes(bytes) as f32).collect(),
        }
    }
}

impl StoredParam {
    pub(super) fn new(len: usize, pieces: Vec<Piece>, scale: Option<QueryScale>) -> Self {
        Self { len, pieces, scale, kept: OnceLock::new() }
    }

    /// All values. `bytes` has those of a piece.
    pub(super) fn values<'b>(&self, bytes: impl Fn(&Piece) -> &'b [u8]) -> Vec<f32> {
        let mut values = converted(self.len, &self.pieces, bytes);
        if let Some(scale) = self.scale {
            scale.apply(&mut values);
        }
        values
    }

    /// The one tensor in which the parameter lies row after row, and the bytes of a row of `cols` elements; `None` where it is
    /// put together in another way.
    pub(super) fn by_rows(&self, cols: usize) -> Option<(&Piece, usize)> {
        let [piece] = &self.pieces[..] else { return None };
        let as_in_memory = piece.tensor.columns.is_none() && piece.interleaved.is_none() && self.scale.is_none();
        let row_bytes = piece.numbers.row_bytes(cols)?;
        (as_in_memory && piece.bytes.len() == self.len / cols * row_bytes).then_some((piece, row_bytes))
    }
}

/// The `len` values of the parameter that these tensors are. `bytes` has those of a piece.
pub(crate) fn converted<'b>(len: usize, pieces: &[Piece], bytes: impl Fn(&Piece) -> &'b [u8]) -> Vec<f32> {
    let of_piece = |piece: &Piece| {
        let values = piece.numbers.decode(bytes(piece));
        match (piece.interleaved, &piece.tensor.shape[..]) {
            (Some(head_size), &[_, n_in]) => separate_pairs(&values, n_in, head_size),
            _ => values,
        }
    };
    if let [piece] = pieces
        && piece.tensor.columns.is_none()
    {
        return of_piece(piece);
    }
    let mut values = vec![0.0; len];
    for piece in pieces {
        piece.tensor.put_into(&of_piece(piece), &mut values);
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_a_quantized_model_are_refused_and_doubles_are_rounded() {
        let decode = |dtype, bytes: &[u8]| NumberType::of(dtype).map(|numbers| numbers.decode(bytes));
        assert_eq!(decode(Dtype::F64, &0.1f64.to_le_bytes()).unwrap(), [0.1f32]);
        assert_eq!(decode(Dtype::F16, &[0, 0x3c]).unwrap(), [1.0]);
        let message = decode(Dtype::I8, &[1, 2]).unwrap_err();
        assert_eq!(message, "is of type I8; this program reads F32, F16, BF16 and F64");
    }
}
