//! Files of tokens that other programs read and write: nanoGPT's and llm.c's `.bin`.
//!
//! | file | content, little-endian |
//! | --- | --- |
//! | nanoGPT | ids of 16 bits, and nothing else |
//! | llm.c, GPT-2 | 256 numbers of 32 bits (20240520, 1, the number of ids, zeros), then ids of 16 bits |
//! | llm.c, Llama 3 | 256 numbers of 32 bits (20240801, 7, the number of ids, zeros), then ids of 32 bits |
//!
//! A file is one of llm.c's where it begins with such a number. In one of nanoGPT's the first id would be 55,496 or 55,713,
//! which GPT-2 does not have.

use std::{
    fs::File,
    io::{BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use tinygpt_model::{
    Tokenizer, TokenizerError,
    files::{MappedFile, atomic},
};

use crate::{
    corpus::{Corpus, CorpusError},
    digest::Digest,
    token_cache::{TokenCacheError, TokenStore, Width, encode, write_ids},
};

#[cfg(test)]
mod tests;

/// The header of llm.c's files.
const HEADER_BYTES: usize = 256 * 4;

/// The first number of llm.c's files of 16-bit and of 32-bit ids, and the second, their version.
const LLM_C_U16: (i32, i32) = (20_240_520, 1);
const LLM_C_U32: (i32, i32) = (20_240_801, 7);

/// The first numbers of what else llm.c writes: models of two kinds, multiple-choice questions, a training state.
const LLM_C_OTHERS: [i32; 4] = [20_240_326, 20_240_327, 20_240_522, 20_240_527];

/// What other files that end in `.bin` begin with, and what they are.
const FOREIGN: [(&[u8], &str); 5] = [
    (b"TGPTOKEN", "a file of this program's token cache"),
    (b"PK\x03\x04", "a PyTorch pickle or another zip archive"),
    (b"\x93NUMPY", "a NumPy array; write it by `.tofile`"),
    (b"GGUF", "a GGUF model"),
    (b"\x80\x02", "a Python pickle"),
];

/// What can go wrong with a file of tokens.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenFileError {
    /// The file cannot be read.
    #[error("cannot read `{path}`: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// It does not hold tokens.
    #[error("`{path}` is no token file of nanoGPT or llm.c: {reason}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of tokens among other files.
    #[error("`{path}` holds tokens: name such a file alone, and another one, to validate with, by data.val")]
    NotAlone {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be written.
    #[error(transparent)]
    Unwritable(#[from] tinygpt_model::files::FileError),
    /// The corpus to write cannot be read.
    #[error(transparent)]
    Corpus(#[from] CorpusError),
    /// The corpus to write cannot be encoded.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A vocabulary that nanoGPT's file has no room for.
    #[error(
        "the vocabulary of {vocab_size} does not fit the 16 bits of an id in nanoGPT's files; --format llm.c writes 32"
    )]
    VocabTooLarge {
        /// Its size.
        vocab_size: usize,
    },
    /// More tokens than the header of llm.c can count.
    #[error("the text has more than 2,147,483,647 tokens, the most of a file of llm.c: write some files")]
    TooManyTokens,
}

type Result<T> = std::result::Result<T, TokenFileError>;

/// How a file of tokens is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenFileFormat {
    /// nanoGPT's `train.bin`.
    NanoGpt,
    /// llm.c's, of 16 bits an id where the vocabulary fits.
    LlmC,
}

/// A file of tokens, mapped into memory.
#[derive(Debug)]
pub struct TokenFile {
    pub(crate) path: PathBuf,
    pub(crate) map: MappedFile,
    /// Where the ids begin, in bytes.
    pub(crate) start: usize,
    /// The number of ids.
    pub(crate) len: usize,
    pub(crate) width: Width,
    /// What ids must be below.
    pub(crate) vocab_size: usize,
}

impl TokenFile {
    /// Whether a path is that of a token file: a file that ends in `.bin`.
    pub fn is_named_by(path: &Path) -> bool {
        path.extension().is_some_and(|extension| extension == "bin") && path.is_file()
    }

    /// Opens a file of nanoGPT or llm.c. Nothing is read but the header, and nothing allocated by what it says.
    ///
    /// # Errors
    /// When the file cannot be read, has a foreign header or a foreign version, is empty, or is not as long as it says.
    pub fn open(path: &Path) -> Result<Self> {
        let unreadable = |source| TokenFileError::Unreadable { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(unreadable)?;
        let bytes = file.metadata().map_err(unreadable)?.len();
        let mut header = Vec::with_capacity(HEADER_BYTES);
        (&mut file).take(HEADER_BYTES as u64).read_to_end(&mut header).map_err(unreadable)?;
        let (start, len, width) =
            layout(&header, bytes).map_err(|reason| TokenFileError::Content { path: path.to_owned(), reason })?;
        let map = MappedFile::new(&file).map_err(unreadable)?;
        if map.len() as u64 != bytes {
            let reason = "it changed while it was opened".into();
            return Err(TokenFileError::Content { path: path.to_owned(), reason });
        }
        Ok(Self { path: path.to_owned(), map, start, len, width, vocab_size: u32::MAX as usize })
    }

    /// The number of tokens.
    #[expect(clippy::len_without_is_empty, reason = "an empty file is refused")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The bits of an id.
    pub fn bits(&self) -> usize {
        8 * self.width.bytes()
    }

    /// Whose layout it has.
    pub fn format(&self) -> TokenFileFormat {
        if self.start == 0 { TokenFileFormat::NanoGpt } else { TokenFileFormat::LlmC }
    }

    /// The SHA-256 of the file.
    pub fn sha256(&self) -> Digest {
        Digest::of(&self.map)
    }

    /// The tokens, each of which is checked to be of a vocabulary of this size.
    ///
    /// # Errors
    /// [`TokenCacheError::UnknownId`].
    pub fn into_store(self, vocab_size: usize) -> std::result::Result<TokenStore, TokenCacheError> {
        let store = TokenStore::from(Self { vocab_size, ..self });
        let mut chunk = vec![0; 1 << 16];
        let mut at = 0;
        while at < store.len() {
            let n = chunk.len().min(store.len() - at);
            store.read(at, &mut chunk[..n])?;
            at += n;
        }
        Ok(store)
    }
}

/// Where the ids of a file begin, their number and width, or why it is none, by its first bytes and its length.
fn layout(header: &[u8], bytes: u64) -> std::result::Result<(usize, usize, Width), String> {
    if let Some((_, what)) = FOREIGN.iter().find(|(first, _)| header.starts_with(first)) {
        return Err(format!("it is {what}"));
    }
    let number = |place: usize| header.get(4 * place..)?.first_chunk().map(|bytes| i32::from_le_bytes(*bytes));
    let width = match number(0) {
        Some(magic) if LLM_C_OTHERS.contains(&magic) => {
            return Err(format!("it is another file of llm.c, with the magic number {magic}"));
        }
        Some(magic) if magic == LLM_C_U16.0 => Some((Width::U16, LLM_C_U16.1)),
        Some(magic) if magic == LLM_C_U32.0 => Some((Width::U32, LLM_C_U32.1)),
        _ => None,
    };
    let Some((width, version)) = width else {
        if bytes == 0 {
            return Err("it is empty".into());
        }
        if !bytes.is_multiple_of(2) {
            return Err(format!("its {bytes} bytes are no whole number of ids of 2 bytes"));
        }
        return Ok((0, (bytes / 2) as usize, Width::U16));
    };
    let (Some(found), Some(count)) = (number(1), number(2)) else {
        return Err("it ends inside of its header".into());
    };
    if header.len() < HEADER_BYTES {
        return Err("it ends inside of its header".into());
    }
    if found != version {
        return Err(format!("its header has version {found}, and this program knows {version}"));
    }
    let payload = bytes - HEADER_BYTES as u64;
    // Neither can overflow: the count has 31 bits.
    match u64::try_from(count) {
        Ok(count) if count > 0 && count * width.bytes() as u64 == payload => Ok((HEADER_BYTES, count as usize, width)),
        _ => Err(format!(
            "its header counts {count} ids of {} bytes, but {payload} bytes follow it: it was cut short, or the header is \
             damaged",
            width.bytes()
        )),
    }
}

/// Encodes a corpus into a file, which is complete or absent; gives the number of tokens.
///
/// # Errors
/// When the corpus cannot be read or encoded, the vocabulary does not fit the format, or the file cannot be written.
pub fn write(path: &Path, format: TokenFileFormat, tokenizer: &Tokenizer, corpus: &Corpus) -> Result<u64> {
    let (width, vocab_size) = (Width::of(tokenizer.vocab_size()), tokenizer.vocab_size());
    if format == TokenFileFormat::NanoGpt && width != Width::U16 {
        return Err(TokenFileError::VocabTooLarge { vocab_size });
    }
    let mut count = 0;
    // An error of the corpus ends the writing of the file, and is what the caller hears of.
    let mut failed = None;
    let written = atomic::write_with(path, |file| {
        let mut file = BufWriter::with_capacity(1 << 18, file);
        if format == TokenFileFormat::LlmC {
            file.write_all(&[0; HEADER_BYTES])?;
        }
        let encoded = encode(tokenizer, corpus, |ids| {
            count += ids.len() as u64;
            if format == TokenFileFormat::LlmC && count > i32::MAX as u64 {
                return Err(Stopped::By(TokenFileError::TooManyTokens));
            }
            Ok(write_ids(&mut file, width, ids)?)
        });
        match encoded {
            Ok(_) => {}
            Err(Stopped::Writing(error)) => return Err(error),
            Err(Stopped::By(error)) => {
                failed = Some(error);
                return Err(std::io::Error::other("the corpus cannot be encoded"));
            }
        }
        if format == TokenFileFormat::LlmC {
            let (magic, version) = if width == Width::U16 { LLM_C_U16 } else { LLM_C_U32 };
            file.seek(SeekFrom::Start(0))?;
            for number in [magic, version, count as i32] {
                file.write_all(&number.to_le_bytes())?;
            }
        }
        file.flush()
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(written.map(|()| count)?),
    }
}

/// Why encoding into a file ended early.
enum Stopped {
    Writing(std::io::Error),
    By(TokenFileError),
}

impl From<std::io::Error> for Stopped {
    fn from(error: std::io::Error) -> Self {
        Self::Writing(error)
    }
}

impl From<CorpusError> for Stopped {
    fn from(error: CorpusError) -> Self {
        Self::By(error.into())
    }
}

impl From<TokenizerError> for Stopped {
    fn from(error: TokenizerError) -> Self {
        Self::By(error.into())
    }
}
