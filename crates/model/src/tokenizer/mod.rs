//! Tokenizers: text to ids and back.
//!
//! A [`Tokenizer`] is always a standard `tokenizer.json`, which Python's `tokenizers` loads and which gives the same
//! ids there. Three [`TokenizerFamily`]s are told apart because they are run differently: characters by a table of our own,
//! byte-level BPE through the `tokenizers` crate with a corpus cut into segments, anything else through the crate as is.

use std::path::{Path, PathBuf};

mod boundaries;
mod bpe;
pub(crate) mod byte_level;
mod char;
mod encode;
mod folder;
mod library;
mod segment;
mod stop;
mod stream;
#[cfg(test)]
mod tests;

pub use encode::CorpusEncoder;
pub use stop::{StopStrings, StopStringsError};
pub use stream::TextStream;

use self::{boundaries::Boundaries, char::CharTable, library::Library};

/// The name of the tokenizer's file in a run or model folder.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// The names of GPT-2's vocabulary and merges, where a folder has these in the place of [`TOKENIZER_FILE`].
pub const GPT2_FILES: [&str; 2] = ["vocab.json", "merges.txt"];

/// The name of the file that says which tokens begin and end a text.
pub const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";

/// The token that ends a text in GPT-2's vocabulary.
pub(crate) const END_OF_TEXT: &str = "<|endoftext|>";

/// A piece of a text that comes in pieces, and may be cut into documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece<S = String> {
    /// The text.
    pub text: S,
    /// Whether a document ends behind it.
    pub ends_document: bool,
}

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
         characters this tokenizer was trained on; remove it, or train a new model with data.tokenizer = \"bpe\", which knows every \
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
    /// A byte-level vocabulary cannot be smaller than the number of bytes, and the token that ends a text.
    #[error(
        "data.vocab_size = {vocab_size} is too small for a byte-level BPE: each of the 256 bytes is a token{}, so it must be at least {least}", if *.least > 256 { ", and <|endoftext|> is one" } else { "" }
    )]
    VocabTooSmall {
        /// What was asked for.
        vocab_size: usize,
        /// The smallest vocabulary.
        least: usize,
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
    /// A file beside a tokenizer is not JSON, or not an object.
    #[error("{path}: not the JSON it should be: {reason}")]
    NotJson {
        /// The file.
        path: PathBuf,
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
    boundaries: Boundaries,
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
        Ok(Self::of_table(CharTable::train(pieces.into_iter().map(undivided), false)?))
    }

    /// As [`Tokenizer::train_char`], of a text of documents: one more token, the last, ends a text.
    ///
    /// # Errors
    /// The first error of a piece.
    pub fn train_char_on_documents<S: AsRef<str>, E>(
        pieces: impl IntoIterator<Item = std::result::Result<Piece<S>, E>>,
    ) -> std::result::Result<Self, E> {
        Ok(Self::of_table(CharTable::train(pieces, true)?))
    }

    fn of_table(table: CharTable) -> Self {
        let json = table.to_json();
        Self::new(Inner::Char(Box::new(table)), json)
    }

    /// A tokenizer of these characters, in the order of their ids, and maybe of a token that ends a text; none may be there
    /// twice.
    pub(crate) fn of_chars(chars: Vec<char>, with_end_of_text: bool) -> Self {
        Self::of_table(CharTable::new(chars, with_end_of_text))
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
        Ok(Self::of_library(bpe::train(pieces.into_iter().map(undivided), vocab_size, false)?)?)
    }

    /// As [`Tokenizer::train_bpe`], of a text of documents: the last of the at most `vocab_size` tokens ends a text.
    ///
    /// # Errors
    /// When `vocab_size` is below 257, or the first error of a piece.
    pub fn train_bpe_on_documents<S: AsRef<str>, E: From<TokenizerError>>(
        pieces: impl IntoIterator<Item = std::result::Result<Piece<S>, E>>,
        vocab_size: usize,
    ) -> std::result::Result<Self, E> {
        Ok(Self::of_library(bpe::train(pieces, vocab_size, true)?)?)
    }

    fn of_library(trained: tokenizers::Tokenizer) -> Result<Self> {
        let library = Library::new(trained)?;
        let json = library.to_json()?;
        Ok(Self::new(Inner::Library(Box::new(library)), json))
    }

    /// Reads the tokenizer of a folder: `tokenizer.json`, or else GPT-2's `vocab.json` and `merges.txt`. Which tokens begin and
    /// end a text is what `tokenizer_config.json` says, or `special_tokens_map.json`.
    ///
    /// # Errors
    /// When a file is missing or broken.
    pub fn from_folder(folder: impl AsRef<Path>) -> Result<Self> {
        folder::read(folder.as_ref())
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
        let boundaries = Boundaries::ending(inner.special_id(END_OF_TEXT));
        Self { inner, json, boundaries }
    }

    /// The content of `tokenizer.json`: what was loaded, or what training made.
    pub fn json(&self) -> &[u8] {
        &self.json
    }

    /// Whether another tokenizer has the same tokens under the same ids and cuts texts alike, however its file lists those that
    /// stand beside the vocabulary: some put them into it, too.
    pub fn is_same(&self, other: &Self) -> bool {
        let with_added = |json: &[u8]| -> Option<serde_json::Value> {
            let mut value: serde_json::Value = serde_json::from_slice(json).ok()?;
            for added in value["added_tokens"].as_array().cloned().into_iter().flatten() {
                let content = added["content"].as_str()?.to_owned();
                value["model"]["vocab"].as_object_mut()?.insert(content, added["id"].clone());
            }
            Some(value)
        };
        self.json == other.json || with_added(&self.json).is_some_and(|own| Some(own) == with_added(&other.json))
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

    /// The ids of a text. No special token is added to it; one that it spells out, as `<|endoftext|>`, is that token, but for
    /// characters, where it is text.
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

    /// As [`Tokenizer::encode`], but special tokens that the text spells out are text: what a corpus of others' words is
    /// encoded by.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_ordinary(&self, text: &str) -> Result<Vec<u32>> {
        match &self.inner {
            Inner::Char(_) => self.encode(text),
            Inner::Library(library) => library.ordinary().encode(text),
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
            Inner::Char(table) => {
                let mut text = String::with_capacity(ids.len());
                ids.iter().try_for_each(|&id| table.decode_into(id, &mut text))?;
                Ok(text)
            }
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
            Inner::Char(table) => table.bytes_of(id),
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
            Inner::Char(_) => self.decode(&[id]),
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
            Inner::Char(table) if text == END_OF_TEXT => table.end_of_text(),
            Inner::Char(table) => {
                let mut chars = text.chars();
                let only = chars.next().filter(|_| chars.next().is_none())?;
                table.id_of(only)
            }
            Inner::Library(library) => library.id_of(text),
        }
    }

    /// The tokens of a prompt; of an empty one, [`Tokenizer::start_token`].
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_prompt(&self, prompt: &str) -> Result<Vec<u32>> {
        if prompt.is_empty() { Ok(vec![self.start_token()]) } else { self.encode(prompt) }
    }

    /// The content of the `tokenizer_config.json` that lets `transformers.AutoTokenizer` load the folder.
    ///
    /// `model_max_length` is the model's block size. The begin and end tokens are those that exist, or null; batches are padded
    /// by the end token, which the attention mask hides.
    pub fn tokenizer_config(&self, model_max_length: usize) -> serde_json::Value {
        let text = |id: Option<u32>| id.and_then(|id| self.token_text(id).ok());
        serde_json::json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": model_max_length,
            "clean_up_tokenization_spaces": false,
            "bos_token": text(self.begin_of_text()),
            "eos_token": text(self.end_of_text()),
            "pad_token": text(self.end_of_text()),
            "unk_token": null,
        })
    }
}

/// A piece of a text that is not cut into documents.
fn undivided<S, E>(piece: std::result::Result<S, E>) -> std::result::Result<Piece<S>, E> {
    piece.map(|text| Piece { text, ends_document: false })
}

impl Inner {
    fn special_id(&self, token: &str) -> Option<u32> {
        match self {
            Self::Char(table) => table.end_of_text().filter(|_| token == END_OF_TEXT),
            Self::Library(library) => library.special_id(token),
        }
    }
}
