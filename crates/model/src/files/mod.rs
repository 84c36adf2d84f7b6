//! Files: written whole or not at all, mapped into memory, and the errors of both.

pub mod atomic;

use std::{
    fs::{self, File},
    ops::{Deref, Range},
    path::{Path, PathBuf},
};

use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;
use serde::de::DeserializeOwned;

/// A file that cannot be read or written, or does not hold what it should.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// Reading or writing it failed.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// `read`, `write`, ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// It does not hold what it should.
    #[error("{path}: {reason}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// It was written by a version of the program with another format.
    #[error(
        "{path} has format {found}, this program reads format {expected}: use the version of tinygpt that wrote it"
    )]
    FormatVersion {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// Ours.
        expected: u64,
    },
}

impl FileError {
    /// A closure for `map_err` that adds the action and the path to an I/O error.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// The error of a file that does not hold what it should.
    pub fn content(path: &Path, reason: impl ToString) -> Self {
        Self::Content { path: path.to_owned(), reason: reason.to_string() }
    }
}

/// Reads a file of JSON.
///
/// # Errors
/// When the file is missing or unreadable, or its JSON is not of this type.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, FileError> {
    let bytes = fs::read(path).map_err(FileError::io("read", path))?;
    serde_json::from_slice(&bytes).map_err(|e| FileError::content(path, format!("not the JSON it should be: {e}")))
}

/// The bytes of a file, mapped into memory.
#[derive(Debug)]
pub struct MappedFile(Mmap);

impl MappedFile {
    /// Maps a file whose content does not change while it is mapped; see the comment on `unsafe` in here.
    ///
    /// # Errors
    /// When the operating system cannot map it.
    #[allow(unsafe_code)]
    pub fn new(file: &File) -> std::io::Result<Self> {
        // SAFETY: the bytes of a mapped file must not change. What is mapped here are weights and tokens. This
        // program, and of weights the libraries of Hugging Face, place such files complete, by a rename or in a new
        // file: a later one replaces the directory entry and leaves this file's content as it is. Who overwrites the
        // file of a model in place while text is generated from it breaks this, or a file of tokens while it is trained on, as
        // with every program that maps its input; nobody else has business in the cache folder. Any bytes are valid floats and valid integers.
        Ok(Self(unsafe { Mmap::map(file) }?))
    }

    /// Tells the system that these bytes are of no use for now. The process gives up their memory, and has them read from the
    /// file again where it looks at them once more. It is a hint: where it fails, the memory stays.
    #[cfg(unix)]
    #[allow(unsafe_code)]
    pub fn release(&self, bytes: Range<usize>) {
        if bytes.is_empty() || bytes.end > self.len() {
            return;
        }
        // SAFETY: advice can change what a map holds where it was written to. This one is read only, so that the pages which are
        // dropped are those of the file, and come back with the same bytes.
        let _hint = unsafe { self.0.unchecked_advise_range(UncheckedAdvice::DontNeed, bytes.start, bytes.len()) };
    }

    /// Does nothing here: the system has no such advice.
    #[cfg(not(unix))]
    pub fn release(&self, _bytes: Range<usize>) {}
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn bytes_that_were_released_come_back_as_they_were() {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
        file.write_all(&bytes).unwrap();
        let map = MappedFile::new(&file).unwrap();
        for range in [0..0, 0..100_000, 5_000..70_001, 99_999..100_000, 7..200_000] {
            map.release(range);
            assert_eq!(&*map, bytes);
        }
    }
}
