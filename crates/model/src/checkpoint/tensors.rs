//! Safetensors files: tensors by name, written atomically.

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
};

use candle_core::{DType, Device};
use safetensors::tensor::{TensorView, serialize};
use serde_json::Value;

use super::FloatType;
use crate::{
    GptConfig, Result,
    files::{FileError, atomic},
    param_specs,
};

/// Writes f32 tensors as safetensors, atomically. `metadata` is an object of strings.
///
/// # Errors
/// When the disk is full.
pub fn write_tensors<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (String, (Vec<usize>, &'a [f32]))>,
    metadata: Value,
) -> Result<(), FileError> {
    write_tensors_as(FloatType::F32, path, tensors, metadata)
}

/// [`write_tensors`], rounded to another type.
///
/// # Errors
/// When a number is too large for the type, or the disk is full.
pub(super) fn write_tensors_as<'a>(
    kind: FloatType,
    path: &Path,
    tensors: impl IntoIterator<Item = (String, (Vec<usize>, &'a [f32]))>,
    metadata: Value,
) -> Result<(), FileError> {
    let bad = |e: safetensors::SafeTensorError| FileError::content(path, e);
    let encode = |(name, (shape, values)): (String, (Vec<usize>, &[f32]))| match kind.encode(values) {
        Ok(bytes) => Ok((name, shape, bytes)),
        Err(value) => {
            let reason = format!("{name} has the number {value}, which {} cannot hold: write it in f32", kind.name());
            Err(FileError::content(path, reason))
        }
    };
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = tensors.into_iter().map(encode).collect::<Result<_, _>>()?;
    let views = bytes
        .iter()
        .map(|(name, shape, bytes)| Ok((name, TensorView::new(kind.dtype(), shape.clone(), bytes)?)))
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(bad)?;
    atomic::write(path, &with_metadata(&serialize(views, None).map_err(bad)?, &metadata))
}

/// Where the tensors of a file begin: on a cache line, as vector loads from the mapped file like it.
const ALIGNMENT: usize = 64;

/// A safetensors file with metadata. `serialize` would write them in another order, and so other bytes, each time.
fn with_metadata(file: &[u8], metadata: &Value) -> Vec<u8> {
    // The file: the length of the header (8 bytes), the header (a JSON object, padded), the tensors.
    let (words, _) = file.as_chunks::<8>();
    let tensors_at = 8 + u64::from_le_bytes(words[0]) as usize;
    let entries = &file[9..tensors_at];
    let separator = if entries.trim_ascii_start().starts_with(b"}") { "" } else { "," };
    let mut header = format!("{{\"__metadata__\":{metadata}{separator}").into_bytes();
    header.extend_from_slice(entries);
    header.resize((8 + header.len()).next_multiple_of(ALIGNMENT) - 8, b' ');
    [&(header.len() as u64).to_le_bytes(), &header[..], &file[tensors_at..]].concat()
}

/// Reads all parameters of a model, in parameter order, from a safetensors file that has them as they are in memory, under
/// their own names: that of the last update of a run.
///
/// # Errors
/// When the file is missing, truncated or foreign, or a tensor is missing or has another shape.
pub fn read_weights(path: &Path, config: &GptConfig) -> Result<Vec<Vec<f32>>> {
    let tensors = Tensors::read(path)?;
    param_specs(config).iter().map(|spec| tensors.get(&spec.name, &spec.shape)).collect()
}

/// The tensors of a safetensors file.
#[derive(Debug)]
pub struct Tensors {
    path: PathBuf,
    tensors: HashMap<String, candle_core::Tensor>,
}

impl Tensors {
    /// Reads all of them into memory.
    ///
    /// # Errors
    /// When the file is missing, truncated or foreign.
    pub fn read(path: &Path) -> Result<Self> {
        if !path.exists() {
            return Err(FileError::content(path, "it is missing").into());
        }
        let tensors = candle_core::safetensors::load(path, &Device::Cpu)
            .map_err(|e| FileError::content(path, format!("truncated, or not a safetensors file: {e}")))?;
        Ok(Self { path: path.to_owned(), tensors })
    }

    /// What stands before the first `/` of names that have one, in alphabetical order: the slots of an optimizer.
    pub fn prefixes(&self) -> BTreeSet<String> {
        self.tensors.keys().filter_map(|name| Some(name.split_once('/')?.0.to_owned())).collect()
    }

    /// The names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The values of a tensor as f32.
    ///
    /// # Errors
    /// When there is none of this name and shape.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let bad = |reason: String| FileError::content(&self.path, reason);
        let tensor = self.tensors.get(name).ok_or_else(|| bad(format!("it has no tensor {name}")))?;
        if tensor.dims() != shape {
            return Err(bad(format!("{name} has shape {:?}, the model needs {shape:?}", tensor.dims())).into());
        }
        if !tensor.dtype().is_float() {
            return Err(
                bad(format!("{name} has numbers of the type {:?}, the model needs floats", tensor.dtype())).into()
            );
        }
        Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::{SafeTensors, tensor::Dtype};

    #[test]
    fn the_data_of_a_file_begins_on_a_cache_line_whatever_the_metadata() {
        let data = [1, 2, 3, 4];
        let view = TensorView::new(Dtype::F32, vec![1], &data).unwrap();
        let plain = serialize([("x", view)], None).unwrap();
        for n in 0..ALIGNMENT {
            let file = with_metadata(&plain, &serde_json::json!({ "note": "n".repeat(n) }));
            assert_eq!(file.len() % ALIGNMENT, data.len());
            assert_eq!(SafeTensors::deserialize(&file).unwrap().tensor("x").unwrap().data(), data);
            let (_, header) = SafeTensors::read_metadata(&file).unwrap();
            assert_eq!(header.metadata().as_ref().unwrap()["note"].len(), n);
        }
    }
}
