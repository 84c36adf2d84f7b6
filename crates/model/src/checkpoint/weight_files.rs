//! The files of a folder's weights, mapped: `model.safetensors`, or the shards that `model.safetensors.index.json` lists.
//! What a file says of its lengths is believed only where its bytes bear it out.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    ops::Range,
    path::{Component, Path, PathBuf},
};

use safetensors::{SafeTensors, tensor::Dtype};
use serde::Deserialize;

use super::WEIGHTS_FILE;
use crate::{
    Result,
    files::{FileError, MappedFile},
};

/// There where Hugging Face's weights are in several files.
pub(super) const WEIGHTS_INDEX: &str = "model.safetensors.index.json";

/// Where a tensor lies, and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TensorEntry {
    /// The number of the file among those of the folder.
    pub(super) file: usize,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Its bytes in the file.
    pub(super) bytes: Range<usize>,
}

/// The tensors of a folder, by their names in its files.
#[derive(Debug)]
pub(super) struct WeightFiles {
    /// The file that names all tensors: the only one, or the index.
    path: PathBuf,
    pub(super) files: Vec<MappedFile>,
    pub(super) tensors: HashMap<String, TensorEntry>,
}

impl WeightFiles {
    /// Maps the one file of the folder, or where that is missing the shards of its index.
    ///
    /// # Errors
    /// When a file is missing, truncated or foreign, or the index and the shards contradict each other.
    pub(super) fn open(folder: &Path) -> Result<Self, FileError> {
        let (whole, index) = (folder.join(WEIGHTS_FILE), folder.join(WEIGHTS_INDEX));
        if !whole.exists() && index.exists() {
            return Self::open_shards(folder, index);
        }
        let (file, table) = open_file(&whole)?;
        Ok(Self { path: whole, files: vec![file], tensors: table.into_iter().collect() })
    }

    fn open_shards(folder: &Path, path: PathBuf) -> Result<Self, FileError> {
        let json = fs::read(&path).map_err(FileError::io("read", &path))?;
        let index = ShardIndex::parse(&json).map_err(|reason| FileError::content(&path, reason))?;
        let (mut files, mut tensors) = (Vec::new(), HashMap::new());
        for name in index.shards() {
            let (file, table) = open_file(&folder.join(name))?;
            for (tensor, entry) in table {
                index.check(&tensor, name).map_err(|reason| FileError::content(&path, reason))?;
                tensors.insert(tensor, TensorEntry { file: files.len(), ..entry });
            }
            files.push(file);
        }
        if let Some((tensor, shard)) = index.weight_map.iter().find(|(tensor, _)| !tensors.contains_key(*tensor)) {
            return Err(FileError::content(&path, format!("{tensor} should be in {shard}, which has no such tensor")));
        }
        Ok(Self { path, files, tensors })
    }

    /// The error of what these files hold.
    pub(super) fn error(&self, reason: impl ToString) -> FileError {
        FileError::content(&self.path, reason)
    }

    /// The bytes of a tensor.
    pub(super) fn bytes(&self, entry: &TensorEntry) -> &[u8] {
        &self.files[entry.file][entry.bytes.clone()]
    }
}

/// The files of a folder's weights: the only one, or each shard that the index names.
///
/// # Errors
/// When the index is broken.
pub(super) fn paths(folder: &Path) -> Result<Vec<PathBuf>, FileError> {
    let (whole, path) = (folder.join(WEIGHTS_FILE), folder.join(WEIGHTS_INDEX));
    if whole.exists() || !path.exists() {
        return Ok(vec![whole]);
    }
    let json = fs::read(&path).map_err(FileError::io("read", &path))?;
    let index = ShardIndex::parse(&json).map_err(|reason| FileError::content(&path, reason))?;
    Ok(index.shards().into_iter().map(|name| folder.join(name)).collect())
}

fn open_file(path: &Path) -> Result<(MappedFile, Vec<(String, TensorEntry)>), FileError> {
    if !path.exists() {
        return Err(FileError::content(path, "it is missing"));
    }
    let map = File::open(path).and_then(|file| MappedFile::new(&file)).map_err(FileError::io("read", path))?;
    let table = tensor_table(&map).map_err(|reason| FileError::content(path, reason))?;
    Ok((map, table))
}

/// The tensors of a safetensors file.
///
/// # Errors
/// When it is truncated or foreign: afterwards every range lies in the file, and has the bytes of its shape.
pub(super) fn tensor_table(file: &[u8]) -> Result<Vec<(String, TensorEntry)>, String> {
    let (header, metadata) =
        SafeTensors::read_metadata(file).map_err(|e| format!("truncated, or not a safetensors file: {e}"))?;
    let data = 8 + header; // behind the length of the header, and the header
    let entry = |info: &safetensors::tensor::TensorInfo| {
        let (start, end) = info.data_offsets;
        TensorEntry { file: 0, dtype: info.dtype, shape: info.shape.clone(), bytes: data + start..data + end }
    };
    Ok(metadata.tensors().into_iter().map(|(name, info)| (name, entry(info))).collect())
}

/// The index of a model whose weights are in several files.
#[derive(Debug, Deserialize)]
pub(super) struct ShardIndex {
    /// The shard that each tensor is in.
    weight_map: HashMap<String, String>,
}

impl ShardIndex {
    /// Reads the index.
    ///
    /// # Errors
    /// When it is broken, or names a shard that is no file of the same folder.
    pub(super) fn parse(json: &[u8]) -> Result<Self, String> {
        let index: Self = serde_json::from_slice(json).map_err(|e| format!("not an index of shards: {e}"))?;
        if index.weight_map.is_empty() {
            return Err("its weight_map is empty".into());
        }
        let is_file_name = |name: &str| {
            let mut parts = Path::new(name).components();
            // Nor is it one where backslashes separate folders.
            matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name)
                && !name.contains('\\')
        };
        match index.weight_map.values().find(|name| !is_file_name(name)) {
            Some(name) => Err(format!("{name:?} is not the name of a file in the same folder")),
            None => Ok(index),
        }
    }

    /// The names of the shards, in alphabetical order.
    fn shards(&self) -> Vec<&str> {
        let mut names: Vec<&str> =
            self.weight_map.values().map(String::as_str).collect::<HashSet<_>>().into_iter().collect();
        names.sort_unstable();
        names
    }

    /// Refuses a tensor of a shard that the index has not, or has elsewhere.
    fn check(&self, tensor: &str, shard: &str) -> Result<(), String> {
        match self.weight_map.get(tensor) {
            Some(expected) if expected == shard => Ok(()),
            Some(expected) => Err(format!("{tensor} should be in {expected}, but is in {shard}")),
            None => Err(format!("{shard} has {tensor}, which is not listed")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_a_file_of_the_same_folder() {
        let parse =
            |name: &str| ShardIndex::parse(serde_json::json!({ "weight_map": { "x": name } }).to_string().as_bytes());
        for name in ["model-00001-of-00002.safetensors", "a", "..a"] {
            assert_eq!(parse(name).unwrap().shards(), [name]);
        }
        for name in ["", ".", "..", "../x", "a/b", "/etc/passwd", "a/", "./a", "a\\b", "a/../b"] {
            let message = parse(name).unwrap_err();
            assert!(message.contains("is not the name of a file in the same folder"), "{name}: {message}");
        }
    }

    #[test]
    fn an_index_without_tensors_is_refused() {
        for (json, reason) in [
            ("{\"weight_map\": {}}", "its weight_map is empty"),
            ("{}", "missing field `weight_map`"),
            ("{\"weight_map\": [1]}", "not an index of shards"),
            ("", "not an index of shards"),
        ] {
            let message = ShardIndex::parse(json.as_bytes()).unwrap_err();
            assert!(message.contains(reason), "{json}: {message}");
        }
    }
}
