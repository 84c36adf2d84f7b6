//! What a safetensors file holds, from its header alone.

use std::{collections::BTreeMap, fs::File, path::Path};

use safetensors::SafeTensors;
use serde::Serialize;

use crate::files::{FileError, MappedFile};

/// The tensors of a safetensors file and its metadata.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SafetensorsSummary {
    /// In the order in which they lie in the file.
    pub tensors: Vec<TensorSummary>,
    /// What else the header says, by name.
    pub metadata: BTreeMap<String, String>,
}

/// A tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TensorSummary {
    /// Its name.
    pub name: String,
    /// The type of its elements, as the file writes it: `F32`.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its size in the file.
    pub bytes: usize,
}

impl TensorSummary {
    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

impl SafetensorsSummary {
    /// Reads the header of a file, and checks that the tensors it names are what the file goes on with.
    ///
    /// # Errors
    /// When the file is missing, truncated or foreign.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        if !path.exists() {
            return Err(FileError::content(path, "it is missing"));
        }
        let map = File::open(path).and_then(|file| MappedFile::new(&file)).map_err(FileError::io("read", path))?;
        Self::of(&map).map_err(|e| FileError::content(path, format!("truncated, or not a safetensors file: {e}")))
    }

    fn of(bytes: &[u8]) -> Result<Self, safetensors::SafeTensorError> {
        // Checks more than reading the header does: that the tensors fill the file to its end.
        let file = SafeTensors::deserialize(bytes)?;
        let (_, header) = SafeTensors::read_metadata(bytes)?;
        let mut tensors = Vec::with_capacity(file.len());
        for name in header.offset_keys() {
            let tensor = file.tensor(&name)?;
            let (dtype, shape) = (tensor.dtype().to_string(), tensor.shape().to_vec());
            tensors.push(TensorSummary { name, dtype, shape, bytes: tensor.data().len() });
        }
        let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
        Ok(Self { tensors, metadata })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use safetensors::tensor::{Dtype, TensorView, serialize};

    use super::*;

    fn file() -> Vec<u8> {
        let (a, b) = ([0; 24], [0; 4]);
        let views = [
            ("a", TensorView::new(Dtype::F32, vec![2, 3], &a).unwrap()),
            ("b", TensorView::new(Dtype::BF16, vec![2], &b).unwrap()),
        ];
        serialize(views, Some(HashMap::from([("format".to_owned(), "pt".to_owned())]))).unwrap()
    }

    #[test]
    fn tensors_come_in_the_order_of_the_file_with_their_types_and_shapes() {
        let summary = SafetensorsSummary::of(&file()).unwrap();
        let tensor = |name: &str, dtype: &str, shape: &[usize], bytes| TensorSummary {
            name: name.into(),
            dtype: dtype.into(),
            shape: shape.into(),
            bytes,
        };
        assert_eq!(summary.tensors, [tensor("a", "F32", &[2, 3], 24), tensor("b", "BF16", &[2], 4)]);
        assert_eq!(summary.tensors[0].elements(), 6);
        assert_eq!(summary.metadata["format"], "pt");
    }

    #[test]
    fn every_truncation_is_an_error_and_no_flipped_bit_a_panic() {
        let file = file();
        for len in 0..file.len() {
            assert!(SafetensorsSummary::of(&file[..len]).is_err(), "{len} bytes");
        }
        for bit in 0..8 * file.len() {
            let mut flipped = file.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            // An error, or another name, type or shape: nothing is read by it.
            let _ = SafetensorsSummary::of(&flipped);
        }
    }
}
