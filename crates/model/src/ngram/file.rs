//! An n-gram model on disk: `ngram.json` says what it is, `ngram.safetensors` has its tables.
//!
//! The tables are tensors of u32, three for each length `n` of n-grams: `n.tokens`, `n.counts` and, below the order,
//! `n.first_child` (see [`NgramCounts`]). `ngram.json` has the format, `vocab_size`, `order`, the smoothing with its
//! parameters, the number of `distinct` n-grams of each length, and the SHA-256 of the tables. It is written last.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use safetensors::{SafeTensors, tensor::Dtype};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{NgramCounts, NgramError, NgramModel, Smoothing, counts::Level};
use crate::{
    ModelError, Result,
    checkpoint::FORMAT_KEY,
    files::{FileError, MappedFile, atomic, read_json},
    tokenizer::{TOKENIZER_FILE, Tokenizer},
};

/// The format of the two files.
pub const NGRAM_FORMAT: u64 = 1;
/// The file that says what the model is; a folder that has it holds an n-gram model.
pub const NGRAM_FILE: &str = "ngram.json";
/// The file of the tables.
pub const NGRAM_TABLES: &str = "ngram.safetensors";

/// `ngram.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    format: u64,
    vocab_size: usize,
    order: usize,
    smoothing: Smoothing,
    /// The number of distinct n-grams of each length.
    distinct: Vec<usize>,
    /// SHA-256 of [`NGRAM_TABLES`] in hexadecimal digits.
    tables_sha256: String,
}

impl NgramModel {
    /// Writes the model to a folder that exists.
    ///
    /// # Errors
    /// When the disk is full or the folder cannot be written to.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let mut hash = Sha256::new();
        atomic::write_with(&folder.join(NGRAM_TABLES), |file| {
            let mut out = BufWriter::with_capacity(1 << 18, Hashed { file, hash: &mut hash });
            write_tables(&self.counts, &mut out)?;
            out.flush()
        })?;
        let description = Description {
            format: NGRAM_FORMAT,
            vocab_size: self.vocab_size(),
            order: self.order(),
            smoothing: self.smoothing.clone(),
            distinct: (1..=self.order()).map(|n| self.counts.distinct(n)).collect(),
            tables_sha256: hex(&hash.finalize()),
        };
        let path = folder.join(NGRAM_FILE);
        let text = serde_json::to_string_pretty(&description).map_err(|e| FileError::content(&path, e))?;
        Ok(atomic::write(&path, (text + "\n").as_bytes())?)
    }

    /// Reads the model of a folder, and checks all of it: what it says of itself, and that its counts are those of a text.
    ///
    /// # Errors
    /// When a file is missing, truncated, foreign or of another format, or contradicts itself or the other.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(NGRAM_FILE);
        let value: Value = read_json(&path)?;
        match value["format"].as_u64() {
            None => return Err(FileError::content(&path, "it has no format: it is not of an n-gram model").into()),
            Some(NGRAM_FORMAT) => {}
            Some(found) => return Err(FileError::FormatVersion { path, found, expected: NGRAM_FORMAT }.into()),
        }
        let description: Description = serde_json::from_value(value).map_err(|e| FileError::content(&path, e))?;
        let tables = folder.join(NGRAM_TABLES);
        if !tables.exists() {
            return Err(FileError::content(&tables, "it is missing").into());
        }
        let map =
            File::open(&tables).and_then(|file| MappedFile::new(&file)).map_err(FileError::io("read", &tables))?;
        let levels = read_tables(&map, &description).map_err(|reason| FileError::content(&tables, reason))?;
        if hex(&Sha256::digest(&*map)) != description.tables_sha256 {
            let reason =
                format!("its SHA-256 is not the one in {NGRAM_FILE}: one of the two is damaged, or of another model");
            return Err(FileError::content(&tables, reason).into());
        }
        let model = NgramCounts::from_levels(description.vocab_size, levels)
            .and_then(|counts| Self::new(counts, description.smoothing))
            .map_err(|error| match error {
                ModelError::Ngram(error @ NgramError::Contradiction(_)) => FileError::content(&tables, error).into(),
                ModelError::Ngram(error) => FileError::content(&path, error).into(),
                error => error,
            })?;
        match model.smoothing {
            Smoothing::AddK { .. } => model.counts.check_occurrences(),
            Smoothing::KneserNey { .. } => model.counts.check_continuation(),
        }
        .map_err(|reason| FileError::content(&tables, NgramError::Contradiction(reason)))?;
        Ok(model)
    }
}

/// Whether a folder holds an n-gram model.
pub fn is_ngram_folder(folder: &Path) -> bool {
    folder.join(NGRAM_FILE).is_file()
}

/// Writes a model and its tokenizer to a folder that exists.
///
/// # Errors
/// As [`NgramModel::save`].
pub fn save_with_tokenizer(folder: &Path, model: &NgramModel, tokenizer: &Tokenizer) -> Result<()> {
    atomic::write(&folder.join(TOKENIZER_FILE), tokenizer.json())?;
    model.save(folder)
}

/// Reads a model and its tokenizer.
///
/// # Errors
/// As [`NgramModel::open`]; when there is no tokenizer, or it has another vocabulary than the model.
pub fn open_with_tokenizer(folder: &Path) -> Result<(NgramModel, Tokenizer)> {
    let path = folder.join(TOKENIZER_FILE);
    let (model, tokenizer) = (NgramModel::open(folder)?, Tokenizer::from_file(&path)?);
    if tokenizer.vocab_size() != model.vocab_size() {
        let reason = format!("it has {} tokens, and the n-gram model {}", tokenizer.vocab_size(), model.vocab_size());
        return Err(FileError::content(&path, reason).into());
    }
    Ok((model, tokenizer))
}

/// The tables of a file, of the lengths that the description has.
fn read_tables(bytes: &[u8], description: &Description) -> std::result::Result<Vec<Level>, String> {
    super::counts::check_shape(description.vocab_size, description.order).map_err(|e| e.to_string())?;
    if description.distinct.len() != description.order {
        return Err(format!(
            "{NGRAM_FILE} has n-grams of {} lengths, not {}",
            description.distinct.len(),
            description.order
        ));
    }
    let tensors = SafeTensors::deserialize(bytes).map_err(|e| format!("truncated, or not a safetensors file: {e}"))?;
    let array = |name: String, len: usize| {
        let tensor = tensors.tensor(&name).map_err(|_| format!("it has no tensor {name}"))?;
        if (tensor.dtype(), tensor.shape()) != (Dtype::U32, &[len][..]) {
            let (dtype, shape) = (tensor.dtype(), tensor.shape());
            return Err(format!("{name} is {dtype:?} {shape:?}, and should be U32 [{len}]"));
        }
        // Assembled from bytes, so neither alignment nor the byte order of the machine matters.
        let (words, _) = tensor.data().as_chunks::<4>();
        Ok(std::sync::Arc::new(words.iter().map(|&word| u32::from_le_bytes(word)).collect()))
    };
    (1..)
        .zip(&description.distinct)
        .map(|(n, &len)| {
            let first_child = match n < description.order {
                true => array(format!("{n}.first_child"), len.saturating_add(1))?,
                false => Default::default(),
            };
            Ok(Level {
                tokens: array(format!("{n}.tokens"), len)?,
                counts: array(format!("{n}.counts"), len)?,
                first_child,
            })
        })
        .collect()
}

/// Writes the tables as they lie in memory, one after the other: a copy of them may not fit.
fn write_tables(counts: &NgramCounts, out: &mut impl Write) -> io::Result<()> {
    let mut tensors: Vec<(String, &[u32])> = Vec::new();
    for n in 1..=counts.order() {
        let Level { tokens, counts: numbers, first_child } = counts.level(n);
        tensors.push((format!("{n}.tokens"), tokens));
        tensors.push((format!("{n}.counts"), numbers));
        if n < counts.order() {
            tensors.push((format!("{n}.first_child"), first_child));
        }
    }
    // The file: the length of the header (8 bytes), the header (a JSON object, padded), the tensors.
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), json!({ FORMAT_KEY: NGRAM_FORMAT.to_string() }));
    let mut at = 0;
    for (name, values) in &tensors {
        let end = at + size_of_val(*values);
        header.insert(name.clone(), json!({ "dtype": "U32", "shape": [values.len()], "data_offsets": [at, end] }));
        at = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    tensors.iter().flat_map(|(_, values)| *values).try_for_each(|value| out.write_all(&value.to_le_bytes()))
}

/// A file, and the hash of what is written to it.
struct Hashed<'a, W: Write> {
    file: W,
    hash: &'a mut Sha256,
}

impl<W: Write> Write for Hashed<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

pub(super) fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
