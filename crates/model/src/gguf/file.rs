//! A model in a GGUF file, read.

use std::{
    collections::{BTreeSet, HashSet},
    fs::File,
    path::{Path, PathBuf},
};

use super::{
    Gguf, TensorType, interleaved_heads,
    keys::{self, OUTPUT},
    reader::Tensor,
    separate_pairs, tokenizer,
};
use crate::{
    GptConfig, ParamSpec, Result,
    checkpoint::layout::{Layout, StoredTensor, stored_tensors},
    config::Architecture,
    files::{FileError, MappedFile},
    param_specs,
    plan::Role,
    tokenizer::Tokenizer,
};

/// A GGUF file with a GPT-2, a Llama or a Qwen3 in f32, f16, bf16 or q8_0: one that [`write_gguf`](super::write_gguf) or another
/// program wrote.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    Mapped(MappedFile),
    Given(Vec<u8>),
}

impl GgufFile {
    /// A file of these bytes; nothing of it is looked at yet.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self { path: "GGUF".into(), bytes: Bytes::Given(bytes) }
    }

    /// Maps the file; nothing of it is looked at yet.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let map = File::open(path).and_then(|file| MappedFile::new(&file)).map_err(FileError::io("read", path))?;
        Ok(Self { path: path.to_owned(), bytes: Bytes::Mapped(map) })
    }

    /// What the header says, through `read`.
    fn read<T>(&self, read: impl FnOnce(&Gguf<'_>) -> Result<T, String>) -> Result<T> {
        let bytes = match &self.bytes {
            Bytes::Mapped(map) => map,
            Bytes::Given(bytes) => &bytes[..],
        };
        let read = Gguf::parse(bytes).and_then(|gguf| read(&gguf));
        read.map_err(|reason| FileError::content(&self.path, reason).into())
    }

    /// The shape of the model.
    ///
    /// # Errors
    /// When the file is truncated or foreign, or asks for what this program does not compute.
    pub fn config(&self) -> Result<GptConfig> {
        self.read(keys::parse)
    }

    /// The types of its tensors.
    ///
    /// # Errors
    /// When the file is truncated or foreign.
    pub fn tensor_types(&self) -> Result<BTreeSet<TensorType>> {
        self.read(|gguf| Ok(gguf.tensor_types().collect()))
    }

    /// The parameters of the model of this shape, in f32 and in parameter order.
    ///
    /// # Errors
    /// When the file is truncated or foreign; when a tensor is missing, has another shape, or is none that the model has.
    pub fn params(&self, config: &GptConfig) -> Result<Vec<Vec<f32>>> {
        self.read(|gguf| params(gguf, config))
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// When the file is truncated or foreign, or its tokenizer is none that this program has.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        self.read(tokenizer::parse)
    }
}

fn params(gguf: &Gguf<'_>, config: &GptConfig) -> Result<Vec<Vec<f32>>, String> {
    let architecture = keys::architecture(gguf)?;
    let layout = Layout::of_gguf(architecture);
    let specs = param_specs(config);
    let mut used: HashSet<String> =
        specs.iter().flat_map(|spec| stored_tensors(spec, layout)).map(|t| t.name).collect();
    if architecture == Architecture::Gpt2 && !config.bias {
        used.extend(zero_biases(gguf, config, layout)?);
    }
    if config.tie_embeddings {
        used.insert(OUTPUT.to_owned()); // a copy of the embedding, if it is there
    }
    let mut unused: Vec<&str> = gguf.tensor_names().filter(|name| !used.contains(*name)).collect();
    unused.sort_unstable();
    if let Some(name) = unused.first() {
        return Err(format!("its tensor {name} is none that this program has a use for ({} such)", unused.len()));
    }
    let param = |spec: &ParamSpec| {
        let mut param = vec![0.0; spec.len()];
        for stored in stored_tensors(spec, layout) {
            let mut values = tensor(gguf, &stored)?.values();
            if let (Some(head_size), &[_, n_in]) = (interleaved_heads(&stored, architecture, config), &stored.shape[..])
            {
                values = separate_pairs(&values, n_in, head_size);
            }
            stored.put_into(&values, &mut param);
        }
        Ok(param)
    };
    // All are there before the first is converted.
    for stored in specs.iter().flat_map(|spec| stored_tensors(spec, layout)) {
        tensor(gguf, &stored)?;
    }
    specs.iter().map(param).collect()
}

/// The tensor of the file that is this one.
fn tensor<'g, 'a>(gguf: &'g Gguf<'a>, stored: &StoredTensor) -> Result<&'g Tensor<'a>, String> {
    let StoredTensor { name, shape, .. } = stored;
    let tensor = gguf.tensor(name).ok_or_else(|| format!("it has no tensor {name}"))?;
    if tensor.shape != *shape {
        return Err(format!("{name} has shape {:?}, the model needs {shape:?}", tensor.shape));
    }
    Ok(tensor)
}

/// The names of the biases of a GPT-2 that has none.
fn zero_biases(gguf: &Gguf<'_>, config: &GptConfig, layout: Layout) -> Result<Vec<String>, String> {
    let with_biases = param_specs(&GptConfig { bias: true, ..config.clone() });
    let biases = with_biases.iter().filter(|spec| spec.role == Role::Bias);
    let names: Vec<String> = biases.flat_map(|spec| stored_tensors(spec, layout)).map(|stored| stored.name).collect();
    let not_zero = |name: &&String| gguf.tensor(name).is_some_and(|bias| bias.values().iter().any(|&x| x != 0.0));
    match names.iter().find(not_zero) {
        Some(name) => Err(format!("`{}` is false, and {name} is not zero", keys::OWN_BIAS)),
        None => Ok(names),
    }
}

impl Tensor<'_> {
    /// The values of the tensor.
    fn values(&self) -> Vec<f32> {
        self.kind.decode(self.bytes)
    }
}
