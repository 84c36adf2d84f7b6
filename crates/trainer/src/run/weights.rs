//! The weights of a model folder, used where they lie in the file.

use std::{fs::File, ops::Range, path::Path};

use memmap2::Mmap;
use safetensors::{SafeTensors, tensor::Dtype};
use tinygpt_model::{GptConfig, ParamSpec, param_specs};

use super::model_folder::{named, read_weights};
use crate::{Result, TrainError};

/// All parameters of a model, in parameter order.
#[derive(Debug)]
pub struct Weights(Source);

#[derive(Debug)]
enum Source {
    /// The bytes of each parameter in the file.
    Mapped {
        map: Mmap,
        ranges: Vec<Range<usize>>,
    },
    Read(Vec<Vec<f32>>),
}

impl Weights {
    /// Maps a safetensors file with Hugging Face's GPT-2 names; reads it where its numbers are not f32 as this processor
    /// has them.
    pub(super) fn open(path: &Path, config: &GptConfig) -> Result<Self> {
        if !path.exists() {
            return Err(TrainError::bad_file(path, "it is missing"));
        }
        let file = File::open(path).map_err(TrainError::io("read", path))?;
        let map = map_file(&file).map_err(TrainError::io("read", path))?;
        match in_place(&map, config).map_err(|reason| TrainError::bad_file(path, reason))? {
            Some(ranges) => Ok(Self(Source::Mapped { map, ranges })),
            None => Ok(Self(Source::Read(read_weights(path, config)?))),
        }
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
fn in_place(map: &Mmap, config: &GptConfig) -> std::result::Result<Option<Vec<Range<usize>>>, String> {
    let tensors = SafeTensors::deserialize(map).map_err(|e| format!("truncated, or not a safetensors file: {e}"))?;
    let mut ranges = Vec::new();
    for ParamSpec { name, shape, .. } in param_specs(config) {
        let tensor = named(&name, &shape, |name| tensors.tensor(name).ok(), |tensor| tensor.shape())?;
        let usable = tensor.dtype() == Dtype::F32
            && cfg!(target_endian = "little")
            && bytemuck::try_cast_slice::<u8, f32>(tensor.data()).is_ok();
        if !usable {
            return Ok(None);
        }
        let start = tensor.data().as_ptr() as usize - map.as_ptr() as usize;
        ranges.push(start..start + tensor.data().len());
    }
    Ok(Some(ranges))
}

#[allow(unsafe_code)]
fn map_file(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the bytes of a mapped file must not change. This program and the libraries of Hugging Face place weights
    // complete, by a rename or in a new file: training that goes on replaces the directory entry and leaves this file's
    // content as it is. Who overwrites the file of a model in place while text is generated from it breaks this, as
    // with every program that maps its weights. Any bytes are valid floats.
    unsafe { Mmap::map(file) }
}
