//! Tokens on disk: a corpus is encoded once and then mapped into memory, by every run that uses it.
//!
//! A cache file is a header of 128 bytes and the ids. Everything is little-endian.
//!
//! | bytes | content |
//! | --- | --- |
//! | 0..8 | the magic `TGPTOKEN` |
//! | 8..12 | format version (u32) |
//! | 12..16 | bytes per id (u32): 2 if the vocabulary has at most 65,536 tokens, else 4 |
//! | 16..24 | number of ids (u64) |
//! | 24..56 | SHA-256 of the corpus |
//! | 56..88 | SHA-256 of `tokenizer.json` |
//! | 88..92 | how text was encoded (u32): 0, or 1 where the tokenizer has special tokens, which text cannot spell out |
//! | 92..128 | zero |

use std::{
    ffi::OsString,
    fs::File,
    io::{BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use tinygpt_model::{
    files::{
        MappedFile,
        atomic::{NewFile, sync_folder},
    },
    tokenizer::{Tokenizer, TokenizerError},
};

use crate::{
    cache::{PARTIAL, TOKENS, remove_abandoned},
    corpus::{self, Corpus, CorpusError},
    digest::{Digest, Hasher},
    token_files::TokenFile,
};

#[cfg(test)]
mod tests;

const MAGIC: &[u8; 8] = b"TGPTOKEN";
const FORMAT_VERSION: u32 = 1;
const HEADER_BYTES: usize = 128;

/// About how many tokens are written at a time.
const SINK_TOKENS: usize = 1 << 16;

/// What can go wrong with the tokens of a corpus.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenCacheError {
    /// The corpus could not be read.
    #[error(transparent)]
    Corpus(#[from] CorpusError),
    /// The corpus could not be encoded.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The corpus is not the one whose digest was taken.
    #[error("the corpus changed while it was read: start again when nothing writes to it")]
    SourceChanged,
    /// The cache folder cannot be written to, or its disk is full.
    #[error(
        "cannot write the token cache in `{folder}`: {source}; make room there, or set the environment variable \
         TINYGPT_CACHE to a folder that can be written to"
    )]
    Unwritable {
        /// The cache folder.
        folder: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A cache file that was just written cannot be read.
    #[error("cannot read the token cache `{path}`: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A range reaches beyond the tokens.
    #[error("tokens {start}..{end} were asked for, but there are only {len}")]
    OutOfRange {
        /// The first index.
        start: usize,
        /// One more than the last index.
        end: usize,
        /// How many tokens there are.
        len: usize,
    },
    /// An id in a token file of somebody else is not in the vocabulary.
    #[error(
        "`{path}`: id {id} at index {index} is not in the vocabulary of {vocab_size}; it was made with another tokenizer"
    )]
    UnknownId {
        /// The file.
        path: PathBuf,
        /// The id.
        id: u32,
        /// Its index.
        index: usize,
        /// The size of the vocabulary.
        vocab_size: usize,
    },
    /// An id in the file is not in the vocabulary.
    #[error(
        "the token cache `{path}` is damaged: id {id} at index {index} is not in the vocabulary of {vocab_size}; delete this file, it will be made again"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The id.
        id: u32,
        /// Its index.
        index: usize,
        /// The size of the vocabulary.
        vocab_size: usize,
    },
}

type Result<T> = std::result::Result<T, TokenCacheError>;

/// The tokens of a corpus, in memory or mapped from a cache file.
#[derive(Debug)]
pub struct TokenStore {
    tokens: Tokens,
}

#[derive(Debug)]
enum Tokens {
    Memory(Vec<u32>),
    Mapped { path: PathBuf, map: MappedFile, start: usize, len: usize, width: Width, vocab_size: usize, is_cache: bool },
}

/// The size of an id in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Width {
    U16,
    U32,
}

impl Width {
    pub(crate) fn of(vocab_size: usize) -> Self {
        if vocab_size <= 1 << 16 { Self::U16 } else { Self::U32 }
    }

    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::U16 => 2,
            Self::U32 => 4,
        }
    }
}

impl From<Vec<u32>> for TokenStore {
    fn from(tokens: Vec<u32>) -> Self {
        Self { tokens: Tokens::Memory(tokens) }
    }
}

impl From<TokenFile> for TokenStore {
    fn from(file: TokenFile) -> Self {
        let TokenFile { path, map, start, len, width, vocab_size } = file;
        Self { tokens: Tokens::Mapped { path, map, start, len, width, vocab_size, is_cache: false } }
    }
}

impl TokenStore {
    /// Opens the tokens of a corpus in `cache_dir`, or makes them: the folder too, if it is missing.
    ///
    /// `source_hash` is [`Corpus::sha256`] of `corpus`. A file that is truncated, has another header or comes from
    /// another version is made again. Two processes can do this at once: each writes a file of its own and renames it
    /// when it is complete.
    ///
    /// # Errors
    /// When the corpus cannot be read or encoded, or when the folder cannot be written to.
    pub fn open_or_build(
        cache_dir: &Path,
        source_hash: Digest,
        tokenizer: &Tokenizer,
        corpus: &Corpus,
    ) -> Result<Self> {
        let of = Origin {
            source_hash,
            tokenizer_hash: Digest::of(tokenizer.json()),
            has_end_of_text: tokenizer.end_of_text().is_some(),
        };
        let path = cache_dir.join(of.file_name());
        if let Ok(Some(store)) = Self::open(&path, of, tokenizer) {
            return Ok(store);
        }
        build(cache_dir, &path, of, tokenizer, corpus)?;
        let unreadable = |source| TokenCacheError::Unreadable { path: path.clone(), source };
        Self::open(&path, of, tokenizer)
            .map_err(unreadable)?
            .ok_or_else(|| unreadable(std::io::Error::other("it is not what was just written")))
    }

    /// Maps a cache file; `None` if it is not a complete one for this corpus and tokenizer.
    fn open(path: &Path, of: Origin, tokenizer: &Tokenizer) -> std::io::Result<Option<Self>> {
        let mut file = File::open(path)?;
        let mut found = [0; HEADER_BYTES];
        if let Err(error) = file.read_exact(&mut found) {
            return if error.kind() == std::io::ErrorKind::UnexpectedEof { Ok(None) } else { Err(error) };
        }
        let vocab_size = tokenizer.vocab_size();
        let width = Width::of(vocab_size);
        let payload = file.metadata()?.len().saturating_sub(HEADER_BYTES as u64);
        let count = payload / width.bytes() as u64;
        // All of the header is known beforehand, given the length of the file.
        let is_whole = payload.is_multiple_of(width.bytes() as u64);
        if !is_whole || found != of.header(width, count) {
            return Ok(None);
        }
        let map = MappedFile::new(&file)?;
        let len = map.len().saturating_sub(HEADER_BYTES) / width.bytes();
        let (path, start) = (path.to_owned(), HEADER_BYTES);
        Ok(Some(Self { tokens: Tokens::Mapped { path, map, start, len, width, vocab_size, is_cache: true } }))
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        match &self.tokens {
            Tokens::Memory(tokens) => tokens.len(),
            Tokens::Mapped { len, .. } => *len,
        }
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies the tokens from index `start` on into `out`, as many as it holds.
    ///
    /// # Errors
    /// When there are not that many, or when an id in a file is not in the vocabulary.
    pub fn read(&self, start: usize, out: &mut [u32]) -> Result<()> {
        let end = start.saturating_add(out.len());
        if end > self.len() {
            return Err(TokenCacheError::OutOfRange { start, end, len: self.len() });
        }
        match &self.tokens {
            Tokens::Memory(tokens) => out.copy_from_slice(&tokens[start..end]),
            Tokens::Mapped { path, map, start: first, width, vocab_size, is_cache, .. } => {
                let bytes = &map[first + start * width.bytes()..first + end * width.bytes()];
                // Assembled from bytes, so neither alignment nor the byte order of the machine matters.
                match width {
                    Width::U16 => {
                        let (ids, _) = bytes.as_chunks::<2>();
                        out.iter_mut().zip(ids).for_each(|(to, id)| *to = u16::from_le_bytes(*id).into());
                    }
                    Width::U32 => {
                        let (ids, _) = bytes.as_chunks::<4>();
                        out.iter_mut().zip(ids).for_each(|(to, id)| *to = u32::from_le_bytes(*id));
                    }
                }
                if let Some(at) = out.iter().position(|&id| id as usize >= *vocab_size) {
                    let (path, id, index, vocab_size) = (path.clone(), out[at], start + at, *vocab_size);
                    return Err(if *is_cache {
                        TokenCacheError::Damaged { path, id, index, vocab_size }
                    } else {
                        TokenCacheError::UnknownId { path, id, index, vocab_size }
                    });
                }
            }
        }
        Ok(())
    }
}

/// The folder of the token cache: `$TINYGPT_CACHE`, else `$XDG_CACHE_HOME/tinygpt`, else `$HOME/.cache/tinygpt`, else
/// `.tinygpt-cache` in the current folder.
pub fn default_cache_dir() -> PathBuf {
    cache_dir_from(|name| std::env::var_os(name))
}

fn cache_dir_from(variable: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    let folder = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    folder("TINYGPT_CACHE")
        .or_else(|| folder("XDG_CACHE_HOME").map(|cache| cache.join("tinygpt")))
        .or_else(|| folder("HOME").map(|home| home.join(".cache").join("tinygpt")))
        .unwrap_or_else(|| PathBuf::from(".tinygpt-cache"))
}

/// What a cache file is made from.
#[derive(Debug, Clone, Copy)]
struct Origin {
    source_hash: Digest,
    tokenizer_hash: Digest,
    has_end_of_text: bool,
}

impl Origin {
    fn file_name(&self) -> String {
        format!("{TOKENS}v{FORMAT_VERSION}-{:.16}-{:.16}.bin", self.source_hash, self.tokenizer_hash)
    }

    fn header(&self, width: Width, count: u64) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        header[12..16].copy_from_slice(&(width.bytes() as u32).to_le_bytes());
        header[16..24].copy_from_slice(&count.to_le_bytes());
        header[24..56].copy_from_slice(self.source_hash.as_bytes());
        header[56..88].copy_from_slice(self.tokenizer_hash.as_bytes());
        header[88..92].copy_from_slice(&u32::from(self.has_end_of_text).to_le_bytes());
        header
    }
}

/// Encodes the whole corpus, block by block, and gives its digest. Behind each document comes the token that ends a text, where
/// the tokenizer has one.
pub(crate) fn encode<E: From<CorpusError> + From<TokenizerError>>(
    tokenizer: &Tokenizer,
    corpus: &Corpus,
    mut sink: impl FnMut(&[u32]) -> std::result::Result<(), E>,
) -> std::result::Result<Digest, E> {
    let mut encoder = tokenizer.corpus_encoder();
    let mut hasher = Hasher::default();
    let mut ids = Vec::new();
    for piece in corpus.pieces() {
        let piece = piece?;
        corpus::hash(&mut hasher, &piece);
        encoder.push(&piece.text, &mut ids)?;
        if piece.ends_document {
            encoder.end_document(&mut ids)?;
        }
        // Short documents are written together.
        if ids.len() >= SINK_TOKENS {
            sink(&ids)?;
            ids.clear();
        }
    }
    encoder.finish(&mut ids)?;
    sink(&ids)?;
    Ok(hasher.finish())
}

fn build(folder: &Path, path: &Path, of: Origin, tokenizer: &Tokenizer, corpus: &Corpus) -> Result<()> {
    let unwritable = |source| TokenCacheError::Unwritable { folder: folder.to_owned(), source };
    std::fs::create_dir_all(folder).map_err(unwritable)?;
    remove_abandoned(folder);

    // Dropped on every way out but the last, which removes the file.
    let mut file = NewFile::in_folder(folder, TOKENS, PARTIAL).map_err(unwritable)?;
    let width = Width::of(tokenizer.vocab_size());
    let mut writer = BufWriter::with_capacity(1 << 18, file.file());
    writer.write_all(&[0; HEADER_BYTES]).map_err(unwritable)?;
    let mut count = 0;
    let found_hash = encode(tokenizer, corpus, |ids| {
        count += ids.len() as u64;
        write_ids(&mut writer, width, ids).map_err(unwritable)
    })?;
    if found_hash != of.source_hash {
        return Err(TokenCacheError::SourceChanged);
    }
    // The header comes last: until then the file begins with zeros and would be trusted by nobody.
    writer.seek(SeekFrom::Start(0)).map_err(unwritable)?;
    writer.write_all(&of.header(width, count)).map_err(unwritable)?;
    writer.flush().map_err(unwritable)?;
    drop(writer);
    file.persist(path).map_err(unwritable)?;
    sync_folder(folder).map_err(unwritable)
}

pub(crate) fn write_ids(writer: &mut impl Write, width: Width, ids: &[u32]) -> std::io::Result<()> {
    match width {
        // Each id is below the vocabulary's size, which chose the width.
        Width::U16 => ids.iter().try_for_each(|&id| writer.write_all(&(id as u16).to_le_bytes())),
        Width::U32 => ids.iter().try_for_each(|&id| writer.write_all(&id.to_le_bytes())),
    }
}
