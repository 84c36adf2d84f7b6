//! Tokenizers: text to ids and back.
//!
//! A [`Tokenizer`] is always a standard `tokenizer.json`, which Python's `tokenizers` loads and which gives the same
//! ids there. Three [`TokenizerFamily`]s are told apart because they are run differently: characters by a table of our own,
//! byte-level BPE through the `tokenizers` crate with a corpus cut into segments, anything else through the crate as is.

use std::path::{Path, PathBuf};

mod bpe;
mod byte_level;
mod char;
mod encode;
mod library;
mod segment;
mod stop;
mod stream;
#[cfg(test)]
mod tests;

pub use encode::CorpusEncoder;
pub use stop::{StopStrings, StopStringsError};
pub use stream::TextStream;

use self::{char::CharTable, library::Library};

/// The name of the tokenizer's file in a run or model folder.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// The token that ends a text in GPT-2's vocabulary.
const END_OF_TEXT: &str = "<|endoftext|>";

/// How a tokenizer works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenizerFamily {
    /// One token for each distinct character of the training text.
    Char,
    /// Byte-level BPE, as GPT-2's: every text can be encoded.
    Bpe,
    /// Any other tokenizer that the `tokenizers` library can run.
    Other,
}

/// What can go wrong with a tokenizer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A character that a char tokenizer was not trained on.
    #[error(
        "character {ch:?} (U+{code:04X}) at character index {index} (counting from 0) is not among the {vocab_size} \
         characters this tokenizer was trained on; remove it, or train with data.tokenizer = \"bpe\", which knows every \
         text", code = u32::from(*ch)
    )]
    UnknownChar {
        /// The character.
        ch: char,
        /// How many characters of the text come before it.
        index: u64,
        /// How many characters are known.
        vocab_size: usize,
    },
    /// A token id that the vocabulary does not have.
    #[error(
        "token id {id} is not in the tokenizer's vocabulary of {vocab_size}; the model and its tokenizer do not belong together"
    )]
    UnknownId {
        /// The id.
        id: u32,
        /// The vocabulary's size.
        vocab_size: usize,
    },
    /// A byte-level vocabulary cannot be smaller than the number of bytes.
    #[error(
        "data.vocab_size = {vocab_size} is too small for a byte-level BPE: each of the 256 bytes is a token, so it must be at least 256"
    )]
    VocabTooSmall {
        /// What was asked for.
        vocab_size: usize,
    },
    /// A tokenizer's file could not be read.
    #[error("cannot read the tokenizer `{path}`: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A tokenizer's file does not hold a tokenizer.
    #[error("{origin} is not a tokenizer.json that the `tokenizers` library can load: {reason}")]
    Malformed {
        /// The file, or where the bytes came from.
        origin: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The `tokenizers` library refused a text or a training run.
    #[error("the tokenizers library failed: {0}")]
    Library(String),
}

impl TokenizerError {
    fn library(error: impl std::fmt::Display) -> Self {
        Self::Library(error.to_string())
    }
}

/// The result of a tokenizer operation.
pub type Result<T> = std::result::Result<T, TokenizerError>;

/// A tokenizer, together with the bytes of its `tokenizer.json`.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Inner,
    json: Vec<u8>,
}

#[derive(Clone)]
enum Inner {
    Char(Box<CharTable>),
    Library(Box<Library>),
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("kind", &self.kind())
            .field("vocab_size", &self.vocab_size())
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// A tokenizer of the distinct characters of a text that comes in pieces; their ids follow their code points, as in
    /// nanoGPT.
    ///
    /// # Errors
    /// The first error of a piece.
    pub fn train_char<S: AsRef<str>, E>(
        pieces: impl IntoIterator<Item = std::result::Result<S, E>>,
    ) -> std::result::Result<Self, E> {
        let table = CharTable::train(pieces)?;
        let json = table.to_json();
        Ok(Self::new(Inner::Char(Box::new(table)), json))
    }

    /// A byte-level BPE of at most `vocab_size` tokens, trained on a text that comes in pieces: the 256 bytes, then
    /// merges, most frequent pair first. Where the pieces are cut does not matter.
    ///
    /// Pairs that occur only once are not merged, so a small text gives fewer tokens than were asked for:
    /// [`Tokenizer::vocab_size`] says how many. Training twice gives the same tokenizer, byte for byte.
    ///
    /// # Errors
    /// When `vocab_size` is below 256, or the first error of a piece.
    pub fn train_bpe<S: AsRef<str>, E: From<TokenizerError>>(
        pieces: impl IntoIterator<Item = std::result::Result<S, E>>,
        vocab_size: usize,
    ) -> std::result::Result<Self, E> {
        let library = Library::new(bpe::train(pieces, vocab_size)?)?;
        let json = library.to_json()?;
        Ok(Self::new(Inner::Library(Box::new(library)), json))
    }

    /// Reads a `tokenizer.json`: one of ours, or any other that the `tokenizers` library can run.
    ///
    /// # Errors
    /// When the file cannot be read or is not a tokenizer.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let json =
            std::fs::read(path).map_err(|source| TokenizerError::Unreadable { path: path.to_owned(), source })?;
        Self::parse(json, || format!("`{}`", path.display()))
    }

    /// As [`Tokenizer::from_file`], from the content of the file.
    ///
    /// # Errors
    /// When the bytes are not a tokenizer.
    pub fn from_bytes(json: &[u8]) -> Result<Self> {
        Self::parse(json.to_owned(), || "this".to_owned())
    }

    fn parse(json: Vec<u8>, origin: impl Fn() -> String) -> Result<Self> {
        let malformed = |reason: String| TokenizerError::Malformed { origin: origin(), reason };
        let value: serde_json::Value = serde_json::from_slice(&json).map_err(|e| malformed(e.to_string()))?;
        let inner = match CharTable::from_json(&value) {
            Some(table) => Inner::Char(Box::new(table)),
            None => {
                let loaded = tokenizers::Tokenizer::from_bytes(&json).map_err(|e| malformed(e.to_string()))?;
                Inner::Library(Box::new(Library::new(loaded)?))
            }
        };
        Ok(Self::new(inner, json))
    }

    fn new(inner: Inner, json: Vec<u8>) -> Self {
        Self { inner, json }
    }

    /// The content of `tokenizer.json`: what was loaded, or what training made.
    pub fn json(&self) -> &[u8] {
        &self.json
    }

    /// How the tokenizer works.
    pub fn kind(&self) -> TokenizerFamily {
        match &self.inner {
            Inner::Char(_) => TokenizerFamily::Char,
            Inner::Library(library) if library.is_byte_level() => TokenizerFamily::Bpe,
            Inner::Library(_) => TokenizerFamily::Other,
        }
    }

    /// One more than the largest id: what a model's `vocab_size` must be at least.
    pub fn vocab_size(&self) -> usize {
        match &self.inner {
            Inner::Char(table) => table.len(),
            Inner::Library(library) => library.vocab_size(),
        }
    }

    /// The ids of a text. No special token is added to it.
    ///
    /// # Errors
    /// When a char tokenizer meets a character that it does not know.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match &self.inner {
            Inner::Char(table) => {
                let mut ids = Vec::with_capacity(text.len());
                table.encode_into(text, 0, &mut ids)?;
                Ok(ids)
            }
            Inner::Library(library) => library.encode(text),
        }
    }

    /// Encodes a text that comes in pieces and need not fit into memory.
    pub fn corpus_encoder(&self) -> CorpusEncoder<'_> {
        CorpusEncoder::new(self)
    }

    /// The text of the ids, special tokens included. Bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// When an id is not in the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        match &self.inner {
            Inner::Char(table) => ids.iter().map(|&id| table.char_of(id)).collect(),
            Inner::Library(library) => library.decode(ids),
        }
    }

    /// A decoder for ids that come one at a time.
    pub fn text_stream(&self) -> TextStream<'_> {
        TextStream::new(self)
    }

    /// How many bytes of UTF-8 text the token stands for: the denominator of bits per byte.
    ///
    /// A token of a byte-level BPE can be a part of a character, so this counts bytes, not the length of the decoded
    /// token. For [`TokenizerFamily::Other`] it is what the token adds to a text that already has tokens.
    ///
    /// # Errors
    /// When the id is not in the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Result<usize> {
        match &self.inner {
            Inner::Char(table) => Ok(table.char_of(id)?.len_utf8()),
            Inner::Library(library) => library.token_bytes(id),
        }
    }

    /// The text that a token adds to a text that already has tokens. Bytes that are no UTF-8 by themselves, which a token of a
    /// byte-level BPE that is a part of a character has, are written as `\xE2`.
    ///
    /// # Errors
    /// When the id is not in the vocabulary.
    pub fn token_text(&self, id: u32) -> Result<String> {
        match &self.inner {
            Inner::Char(table) => table.char_of(id).map(String::from),
            Inner::Library(library) => library.token_text(id),
        }
    }

    /// The bytes that a token adds to a text that already has tokens. None for a special token, which no text contains, and for
    /// an id that is not in the vocabulary.
    pub fn token_content(&self, id: u32) -> Option<Vec<u8>> {
        match &self.inner {
            Inner::Char(table) => Some(table.char_of(id).ok()?.to_string().into_bytes()),
            Inner::Library(library) => library.token_content(id),
        }
    }

    /// How tokens write `text`, as sequences: each token that has all of it, and each that ends with its beginning, followed by
    /// the tokens of the rest.
    ///
    /// # Errors
    /// When a char tokenizer meets a character that it does not know.
    pub fn sequences_with(&self, text: &str) -> Result<Vec<Vec<u32>>> {
        let mut sequences = Vec::new();
        for id in 0..self.vocab_size() as u32 {
            let Some(token) = self.token_content(id) else { continue };
            if token.windows(text.len().max(1)).any(|part| part == text.as_bytes()) {
                sequences.push(vec![id]);
                continue;
            }
            let begins = |&cut: &usize| text.is_char_boundary(cut) && token.ends_with(&text.as_bytes()[..cut]);
            for cut in (1..text.len()).filter(begins) {
                let mut sequence = vec![id];
                sequence.extend(self.encode(&text[cut..])?);
                sequences.push(sequence);
            }
        }
        Ok(sequences)
    }

    /// The id of a special token or of a text that is exactly one token.
    pub fn id_of(&self, text: &str) -> Option<u32> {
        match &self.inner {
            Inner::Char(table) => {
                let mut chars = text.chars();
                let only = chars.next().filter(|_| chars.next().is_none())?;
                table.id_of(only)
            }
            Inner::Library(library) => library.id_of(text),
        }
    }

    /// The id of the special token that ends a text (GPT-2's `<|endoftext|>`), if the tokenizer has one; those that
    /// are trained here have none.
    pub fn end_of_text(&self) -> Option<u32> {
        match &self.inner {
            Inner::Char(_) => None,
            Inner::Library(library) => library.special_id(END_OF_TEXT),
        }
    }

    /// The token that a text starts behind where there is no prompt: the end of another text, or a line break; in a
    /// vocabulary without either, its first token.
    pub fn start_token(&self) -> u32 {
        self.end_of_text().or_else(|| self.id_of("\n")).unwrap_or(0)
    }

    /// The content of the `tokenizer_config.json` that lets `transformers.AutoTokenizer` load the folder.
    ///
    /// `model_max_length` is the model's block size. The begin and end tokens are those that exist, or null.
    pub fn tokenizer_config(&self, model_max_length: usize) -> serde_json::Value {
        let end_of_text = self.end_of_text().map(|_| END_OF_TEXT);
        serde_json::json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": model_max_length,
            "clean_up_tokenization_spaces": false,
            "bos_token": end_of_text,
            "eos_token": end_of_text,
            "unk_token": null,
        })
    }
}
