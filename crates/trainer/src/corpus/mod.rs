//! A corpus: UTF-8 text from files, read in pieces so that it need not fit into memory.

use std::path::{Path, PathBuf};

mod find;
mod read;
#[cfg(test)]
mod tests;

pub use read::Pieces;

use crate::{
    digest::{Digest, Hasher},
    fetch::DATASETS,
};

/// How many bytes of a file are read at a time.
const CHUNK_BYTES: usize = 1 << 20;

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
    #[error("the corpus `{path}` is empty: there is nothing to train on")]
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
        None => "give a UTF-8 text file, a folder with .txt or .md files, or a glob such as 'texts/*.txt'".into(),
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
}

#[derive(Debug, Clone)]
enum Source {
    Text(String),
    Files(Vec<PathBuf>),
}

impl Corpus {
    /// Finds the files of a corpus; none is read yet.
    ///
    /// `path` is one of
    /// - a file, whatever its name;
    /// - a folder: every regular file below it whose extension is `.txt` or `.md` (in any case), in the order of
    ///   their paths. Links to files are followed, links to folders are not;
    /// - a glob (`*`, `?`, `[...]`, `**`), if nothing has exactly that name: every regular file it matches, whatever
    ///   its extension, in the order of their paths.
    ///
    /// The text is the content of these files, joined with nothing between them.
    ///
    /// # Errors
    /// When nothing is found, when all that is found is empty, or when a folder cannot be read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, CorpusError> {
        let path = path.as_ref();
        let files = find::files(path)?;
        let mut bytes = 0;
        for file in &files {
            bytes += std::fs::metadata(file).map_err(CorpusError::unreadable(file))?.len();
        }
        if bytes == 0 {
            return Err(CorpusError::Empty { path: path.to_owned() });
        }
        Ok(Self { source: Source::Files(files), bytes })
    }

    /// A corpus in memory.
    ///
    /// # Errors
    /// When `text` is empty.
    pub fn from_text(text: impl Into<String>) -> Result<Self, CorpusError> {
        let text = text.into();
        if text.is_empty() {
            return Err(CorpusError::Empty { path: PathBuf::from("(text in memory)") });
        }
        Ok(Self { bytes: text.len() as u64, source: Source::Text(text) })
    }

    /// The files in the order in which they are read; none for a text in memory.
    pub fn files(&self) -> &[PathBuf] {
        match &self.source {
            Source::Text(_) => &[],
            Source::Files(files) => files,
        }
    }

    /// The length of the text in bytes, as it was when the corpus was opened.
    pub fn len_bytes(&self) -> u64 {
        self.bytes
    }

    /// The text in pieces of about 1 MiB, each a whole number of characters. The first error ends the iteration.
    pub fn pieces(&self) -> Pieces<'_> {
        self.pieces_of(CHUNK_BYTES)
    }

    /// As [`Corpus::pieces`], with another size of the reads.
    fn pieces_of(&self, chunk_bytes: usize) -> Pieces<'_> {
        match &self.source {
            Source::Text(text) => Pieces::of_text(text, chunk_bytes),
            Source::Files(files) => Pieces::of_files(files, chunk_bytes),
        }
    }

    /// The whole text, for corpora that are known to be small.
    ///
    /// # Errors
    /// When a file cannot be read or is not UTF-8.
    pub fn read_to_string(&self) -> Result<String, CorpusError> {
        self.pieces().collect()
    }

    /// The SHA-256 of the text: of the content only, not of the names of the files or of how it is spread over them.
    ///
    /// # Errors
    /// When a file cannot be read or is not UTF-8.
    pub fn sha256(&self) -> Result<Digest, CorpusError> {
        let mut hasher = Hasher::default();
        for piece in self.pieces() {
            hasher.update(piece?.as_bytes());
        }
        Ok(hasher.finish())
    }
}
