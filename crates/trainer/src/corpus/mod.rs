//! A corpus: UTF-8 text from files, read in pieces so that it need not fit into memory, and what of it is a document.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;
use tinygpt_model::tokenizer::Piece;

mod find;
mod format;
mod json_lines;
mod parquet;
mod part;
mod read;
mod split;
mod statistics;
#[cfg(test)]
mod tests;

pub use parquet::panics_are_told_as_errors;
pub use part::Part;
pub use read::Pieces;
pub use statistics::CorpusStatistics;

use self::format::Format;
use crate::{
    digest::{Digest, Hasher},
    fetch::DATASETS,
    preparation::Preparation,
};

/// How many bytes of a file are read at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// The path that stands for standard input.
pub const STANDARD_INPUT: &str = "-";

/// What separates documents in the text of [`Documents::Marker`].
const DOCUMENT_MARKER: &str = "<|endoftext|>";

/// A byte of no UTF-8 text, which ends a document in what a corpus' digest is of.
const DOCUMENT_END: u8 = 0xff;

/// What of a text is a document. Each line of JSON and each row of a table is one in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Documents {
    /// Text is not cut into documents.
    #[default]
    None,
    /// A file.
    File,
    /// A line, without its line break.
    Line,
    /// What stands between two `<|endoftext|>` that the text spells out.
    Marker,
}

/// How files become documents.
#[derive(Debug, Clone, PartialEq)]
pub struct CorpusOptions {
    /// What of a text is a document.
    pub documents: Documents,
    /// The key of JSON lines, or the column of a table, that holds the text.
    pub text_key: String,
    /// Which of the documents are read.
    pub part: Part,
}

impl Default for CorpusOptions {
    fn default() -> Self {
        Self { documents: Documents::None, text_key: "text".into(), part: Part::Whole }
    }
}

/// Where a record stands in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A line, from 1.
    Line(u64),
    /// A row of a table, from 1.
    Row(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => write!(f, "line {line}"),
            Self::Row(row) => write!(f, "row {row}"),
        }
    }
}

/// What can go wrong with a corpus.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CorpusError {
    /// Nothing has the given name.
    #[error("there is no corpus at `{path}`: no file or folder of that name (looked in {folder}); {}", remedy(path))]
    Missing {
        /// What was given.
        path: PathBuf,
        /// The folder that a relative path starts from.
        folder: PathBuf,
    },
    /// A glob or a folder holds no file to read.
    #[error("no file matches `{path}`: {looked_for}")]
    NoFiles {
        /// The glob or the folder.
        path: PathBuf,
        /// What would have matched.
        looked_for: &'static str,
    },
    /// A glob has a syntax error.
    #[error("`{pattern}` is no file, and as a glob it is broken: {reason}")]
    BadGlob {
        /// The glob.
        pattern: String,
        /// Where and why.
        reason: String,
    },
    /// A device, a pipe or a socket: a corpus is read more than once.
    #[error(
        "`{path}` is neither a regular file nor a folder; a corpus is read more than once: save it to a file first"
    )]
    NotAFile {
        /// What was given.
        path: PathBuf,
    },
    /// There is no text at all.
    #[error("the corpus `{path}` is empty: there is no text in it")]
    Empty {
        /// What was given.
        path: PathBuf,
    },
    /// A file is not UTF-8.
    #[error(
        "`{path}` is not UTF-8 text: the byte at offset {offset} (counting from 0) does not belong to a character; \
         convert the file, for example with `iconv -f latin1 -t utf-8`"
    )]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// The offset in this file of the first byte that is no part of a character.
        offset: u64,
    },
    /// A record has no text.
    #[error("{place} of `{path}`: {reason}")]
    BadRecord {
        /// The file.
        path: PathBuf,
        /// Where in it.
        place: Place,
        /// What is wrong.
        reason: String,
    },
    /// A table has no column of texts, or is damaged.
    #[error("`{path}`: {reason}")]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Standard input cannot be read, or there is no room to keep it.
    #[error("cannot keep standard input in a temporary file: {source}; set TMPDIR to a folder that has room")]
    StandardInput {
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// Whoever follows the reading has ended it.
    #[error("interrupted")]
    Stopped,
    /// A file or a folder cannot be read.
    #[error("cannot read `{path}`: {source}")]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
}

fn remedy(path: &Path) -> String {
    match DATASETS.iter().find(|dataset| path.file_name().is_some_and(|name| name == dataset.file)) {
        Some(dataset) => format!("`tinygpt data fetch {}` downloads it to data/", dataset.name),
        None => "give a file (UTF-8 text, .jsonl or .parquet, or a .gz or .zst of them), a folder of such files, or a \
                 glob such as 'texts/*.txt'"
            .into(),
    }
}

impl CorpusError {
    fn unreadable(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Unreadable { path, source }
    }
}

/// A text source: files that are read one after the other, or a text in memory.
#[derive(Debug, Clone)]
pub struct Corpus {
    source: Source,
    bytes: u64,
    options: CorpusOptions,
    preparation: Preparation,
}

#[derive(Debug, Clone)]
enum Source {
    Text(String),
    Files(Vec<PathBuf>),
    /// The file that standard input was copied to, which is deleted with the last of these.
    Copied(Arc<CopiedText>),
}

/// A temporary file and its path.
type CopiedText = (NamedTempFile, [PathBuf; 1]);

impl Corpus {
    /// [`Corpus::open_with`] of the default options: text is not cut into documents.
    ///
    /// # Errors
    /// As [`Corpus::open_with`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, CorpusError> {
        Self::open_with(path, CorpusOptions::default())
    }

    /// Finds the files of a corpus; none is read yet, but for standard input, which is copied to a temporary file.
    ///
    /// `path` is one of
    /// - a file, whatever its name;
    /// - a folder: every regular file below it whose extension is `.txt`, `.md`, `.jsonl`, `.ndjson` or `.parquet` (in any
    ///   case), or `.gz` or `.zst` behind one of these but the last, in the order of their paths. Links to files are
    ///   followed, links to folders are not;
    /// - a glob (`*`, `?`, `[...]`, `**`), if nothing has exactly that name: every regular file it matches, whatever
    ///   its extension, in the order of their paths;
    /// - some of these, a line each, in their order;
    /// - `-`, standard input: text.
    ///
    /// Files that end in `.gz` or `.zst` are decompressed. Of `.jsonl` and `.ndjson`, each line is an object whose value
    /// `text_key` is a document; of `.parquet`, each row of the column `text_key`; texts that are null or empty are left
    /// out. All other files are text, of which a mark of byte order at the start is left out. The text of the corpus is
    /// that of these files, joined with nothing between them.
    ///
    /// # Errors
    /// When nothing is found, when all that is found is empty, or when a folder cannot be read.
    pub fn open_with(path: impl AsRef<Path>, options: CorpusOptions) -> Result<Self, CorpusError> {
        let path = path.as_ref();
        if path == Path::new(STANDARD_INPUT) {
            return Self::of_standard_input(options);
        }
        let files = find::files(path)?;
        let mut bytes = 0;
        for file in &files {
            bytes += std::fs::metadata(file).map_err(CorpusError::unreadable(file))?.len();
        }
        if bytes == 0 {
            return Err(CorpusError::Empty { path: path.to_owned() });
        }
        Ok(Self { source: Source::Files(files), bytes, options, preparation: Preparation::default() })
    }

    /// Standard input, which can be read once: while a corpus of it is there, others are of the same copy.
    fn of_standard_input(options: CorpusOptions) -> Result<Self, CorpusError> {
        static COPY: Mutex<Weak<CopiedText>> = Mutex::new(Weak::new());
        let mut copy = COPY.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(copied) = copy.upgrade() {
            let file = copied.0.as_file().metadata().map_err(|source| CorpusError::StandardInput { source })?;
            let (bytes, source) = (file.len(), Source::Copied(copied));
            return Ok(Self { source, bytes, options, preparation: Preparation::default() });
        }
        let corpus = Self::copied(std::io::stdin().lock(), options)?;
        if let Source::Copied(copied) = &corpus.source {
            *copy = Arc::downgrade(copied);
        }
        Ok(corpus)
    }

    /// A corpus that is copied to a temporary file, since it is read more than once.
    ///
    /// # Errors
    /// When it cannot be read or is empty, or there is no room for it.
    pub fn copied(mut text: impl std::io::Read, options: CorpusOptions) -> Result<Self, CorpusError> {
        let failed = |source| CorpusError::StandardInput { source };
        let mut file = NamedTempFile::new().map_err(failed)?;
        let bytes = std::io::copy(&mut text, &mut file).map_err(failed)?;
        if bytes == 0 {
            return Err(CorpusError::Empty { path: STANDARD_INPUT.into() });
        }
        let path = file.path().to_owned();
        let source = Source::Copied(Arc::new((file, [path])));
        Ok(Self { source, bytes, options, preparation: Preparation::default() })
    }

    /// A corpus in memory.
    ///
    /// # Errors
    /// When `text` is empty.
    pub fn from_text(text: impl Into<String>) -> Result<Self, CorpusError> {
        Self::from_text_with(text, CorpusOptions::default())
    }

    /// [`Corpus::from_text`], cut into documents as the options say.
    ///
    /// # Errors
    /// When `text` is empty.
    pub fn from_text_with(text: impl Into<String>, options: CorpusOptions) -> Result<Self, CorpusError> {
        let text = text.into();
        if text.is_empty() {
            return Err(CorpusError::Empty { path: PathBuf::from("(text in memory)") });
        }
        let (bytes, source) = (text.len() as u64, Source::Text(text));
        Ok(Self { bytes, source, options, preparation: Preparation::default() })
    }

    /// The same, of which `preparation` is told how far it was read, each time it is.
    pub fn followed_by(self, preparation: &Preparation) -> Self {
        Self { preparation: preparation.clone(), ..self }
    }

    /// Who is told how far it was read.
    pub(crate) fn preparation(&self) -> &Preparation {
        &self.preparation
    }

    /// The same, of which some documents are read.
    pub fn with_part(mut self, part: Part) -> Self {
        self.options.part = part;
        self
    }

    /// The files in the order in which they are read; none for a text in memory.
    pub fn files(&self) -> &[PathBuf] {
        match &self.source {
            Source::Text(_) => &[],
            Source::Files(files) => files,
            Source::Copied(copied) => &copied.1,
        }
    }

    /// Whether anything of the corpus is cut into documents.
    pub fn has_documents(&self) -> bool {
        let has_records = self.files().iter().any(|file| Format::of(file) != Format::Text);
        has_records || self.options.documents != Documents::None
    }

    /// The length of the files, or of the text in memory, in bytes, as it was when the corpus was opened.
    pub fn len_bytes(&self) -> u64 {
        self.bytes
    }

    /// The corpus in pieces of at most about 1 MiB of text (of records, one record), each a whole number of characters. The
    /// first error ends the iteration.
    pub fn pieces(&self) -> Pieces<'_> {
        self.pieces_of(CHUNK_BYTES)
    }

    /// As [`Corpus::pieces`], with another size of the reads.
    fn pieces_of(&self, chunk_bytes: usize) -> Pieces<'_> {
        let pieces = match &self.source {
            Source::Text(text) => Pieces::of_text(text, &self.options, chunk_bytes),
            Source::Files(_) | Source::Copied(_) => Pieces::of_files(self.files(), &self.options, chunk_bytes),
        };
        pieces.followed_by(&self.preparation, self.bytes)
    }

    /// The text of [`Corpus::pieces`], which does not tell where documents end.
    pub fn texts(&self) -> impl Iterator<Item = Result<String, CorpusError>> {
        self.pieces().map(|piece| piece.map(|Piece { text, .. }| text))
    }

    /// The whole text, for corpora that are known to be small.
    ///
    /// # Errors
    /// When a file cannot be read or is not UTF-8.
    pub fn read_to_string(&self) -> Result<String, CorpusError> {
        self.texts().collect()
    }

    /// The SHA-256 of the text: of the content only, not of the names of the files or of how it is spread over them. Where
    /// documents end is content.
    ///
    /// # Errors
    /// When a file cannot be read or is not UTF-8.
    pub fn sha256(&self) -> Result<Digest, CorpusError> {
        let mut hasher = Hasher::default();
        for piece in self.pieces() {
            hash(&mut hasher, &piece?);
        }
        Ok(hasher.finish())
    }
}

/// Adds a piece of a corpus to what [`Corpus::sha256`] is of.
pub(crate) fn hash(hasher: &mut Hasher, piece: &Piece) {
    hasher.update(piece.text.as_bytes());
    if piece.ends_document {
        hasher.update(&[DOCUMENT_END]);
    }
}
