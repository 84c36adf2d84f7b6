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
    rope::ROPE_FACTORS,
    tokenizer,
};
use crate::{
    GptConfig, ParamSpec, Result,
    checkpoint::{
        Weights,
        layout::{Layout, StoredTensor, stored_tensors},
        stored_param::{NumberType, Piece, converted},
    },
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

    fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(map) => map,
            Bytes::Given(bytes) => bytes,
        }
    }

    /// What the header says, through `read`.
    fn read<T>(&self, read: impl FnOnce(&Gguf<'_>) -> Result<T, String>) -> Result<T> {
        let read = Gguf::parse(self.bytes()).and_then(|gguf| read(&gguf));
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
        self.read(|gguf| {
            let bytes = self.bytes();
            let pieces = pieces(gguf, bytes, config)?;
            let param = |(pieces, spec): (&Vec<Piece>, &ParamSpec)| {
                converted(spec.len(), pieces, |piece| &bytes[piece.bytes.clone()])
            };
            Ok(pieces.iter().zip(&param_specs(config)).map(param).collect())
        })
    }

    /// The parameters of the model of this shape, which are converted when they are asked for.
    ///
    /// # Errors
    /// As [`GgufFile::params`].
    pub(crate) fn into_weights(self, config: &GptConfig) -> Result<Weights> {
        let pieces = self.read(|gguf| pieces(gguf, self.bytes(), config))?;
        match self.bytes {
            Bytes::Mapped(map) => Ok(Weights::of_file(map, pieces, &param_specs(config))),
            Bytes::Given(_) => Ok(Weights::of_values(self.params(config)?)),
        }
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// When the file is truncated or foreign, or its tokenizer is none that this program has.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        self.read(tokenizer::parse)
    }

    /// How messages become a prompt: a template of Jinja, where the file has one. Of several it is the one without a name.
    ///
    /// # Errors
    /// When the file is truncated or foreign, or its template is no text.
    pub fn chat_template(&self) -> Result<Option<String>> {
        self.read(|gguf| Ok(gguf.text("tokenizer.chat_template")?.map(str::to_owned)))
    }
}

/// The tensors that each parameter is made of, in a file of these bytes.
fn pieces(gguf: &Gguf<'_>, file: &[u8], config: &GptConfig) -> Result<Vec<Vec<Piece>>, String> {
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
    if architecture == Architecture::Llama {
        used.insert(ROPE_FACTORS.to_owned()); // no parameter: the configuration says what it has
    }
    let mut unused: Vec<&str> = gguf.tensor_names().filter(|name| !used.contains(*name)).collect();
    unused.sort_unstable();
    if let Some(name) = unused.first() {
        return Err(format!("its tensor {name} is none that this program has a use for ({} such)", unused.len()));
    }
    let piece = |stored: StoredTensor| {
        let found = tensor(gguf, &stored)?;
        let start = found.bytes.as_ptr().addr() - file.as_ptr().addr();
        Ok(Piece {
            numbers: NumberType::Gguf(found.kind),
            file: 0,
            bytes: start..start + found.bytes.len(),
            interleaved: interleaved_heads(&stored, architecture, config),
            tensor: stored,
        })
    };
    specs.iter().map(|spec| stored_tensors(spec, layout).into_iter().map(piece).collect()).collect()
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
