//! The weights of a model folder, used where they lie in the file.

use std::{fs::File, ops::Range, path::Path};

use safetensors::{SafeTensors, tensor::Dtype};

use super::{
    layout::{Layout, stored_tensors},
    tensors::{named, read_params},
};
use crate::{
    GptConfig, Result,
    files::{FileError, MappedFile},
    param_specs,
};

/// All parameters of a model, in parameter order.
#[derive(Debug)]
pub struct Weights(Source);

#[derive(Debug)]
enum Source {
    /// The bytes of each parameter in the file.
    Mapped {
        map: MappedFile,
        ranges: Vec<Range<usize>>,
    },
    Read(Vec<Vec<f32>>),
}

impl Weights {
    /// Maps the weights of a folder; reads them where they do not lie in the file as in memory: where its numbers are not
    /// f32 as this processor has them, or its matrices are `(out, in)`, as Llama's and Qwen3's.
    ///
    /// # Errors
    /// When the file is missing, truncated or foreign, or a tensor is missing or has another shape.
    pub fn open(path: &Path, config: &GptConfig) -> Result<Self> {
        if !path.exists() {
            return Err(FileError::content(path, "it is missing").into());
        }
        let map = File::open(path).and_then(|file| MappedFile::new(&file)).map_err(FileError::io("read", path))?;
        match in_place(&map, config).map_err(|reason| FileError::content(path, reason))? {
            Some(ranges) => Ok(Self(Source::Mapped { map, ranges })),
            None => Ok(Self(Source::Read(read_params(path, config, Layout::of_folder(config))?))),
        }
    }

    /// Weights that were read, in parameter order.
    pub(crate) fn of_values(values: Vec<Vec<f32>>) -> Self {
        Self(Source::Read(values))
    }

    /// The values of each parameter.
    pub fn slices(&self) -> Vec<&[f32]> {
        match &self.0 {
            // `in_place` has seen that they can be cast.
            Source::Mapped { map, ranges } => ranges.iter().map(|r| bytemuck::cast_slice(&map[r.clone()])).collect(),
            Source::Read(values) => values.iter().map(Vec::as_slice).collect(),
        }
    }
}

/// Where each parameter lies in the file, or `None` if it must be converted.
fn in_place(map: &[u8], config: &GptConfig) -> std::result::Result<Option<Vec<Range<usize>>>, String> {
    let tensors = SafeTensors::deserialize(map).map_err(|e| format!("truncated, or not a safetensors file: {e}"))?;
    let mut ranges = Vec::new();
    let mut all_usable = true;
    // Every tensor is looked at, so that one that is missing is told before anything is read.
    for spec in param_specs(config) {
        for stored in stored_tensors(&spec, Layout::of_folder(config)) {
            let get = |name: &str| tensors.tensor(name).ok();
            let tensor = named(&stored.name, &stored.shape, get, |tensor| tensor.shape())?;
            all_usable &= stored.columns.is_none()
                && tensor.dtype() == Dtype::F32
                && cfg!(target_endian = "little")
                && bytemuck::try_cast_slice::<u8, f32>(tensor.data()).is_ok();
            let start = tensor.data().as_ptr() as usize - map.as_ptr() as usize;
            ranges.push(start..start + tensor.data().len());
        }
    }
    Ok(all_usable.then_some(ranges))
}
