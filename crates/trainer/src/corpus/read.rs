//! Reading text in pieces that never break a character.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use super::CorpusError;

/// The text of a corpus in pieces; see [`super::Corpus::pieces`].
#[derive(Debug)]
pub struct Pieces<'a> {
    chunk_bytes: usize,
    rest: Rest<'a>,
}

#[derive(Debug)]
enum Rest<'a> {
    Text(&'a str),
    Files { open: Option<Utf8File<'a>>, next: &'a [PathBuf] },
}

impl<'a> Pieces<'a> {
    pub(super) fn of_text(text: &'a str, chunk_bytes: usize) -> Self {
        Self { chunk_bytes, rest: Rest::Text(text) }
    }

    pub(super) fn of_files(files: &'a [PathBuf], chunk_bytes: usize) -> Self {
        Self { chunk_bytes, rest: Rest::Files { open: None, next: files } }
    }
}

impl Iterator for Pieces<'_> {
    type Item = Result<String, CorpusError>;

    fn next(&mut self) -> Option<Self::Item> {
        let chunk_bytes = self.chunk_bytes;
        let piece = match &mut self.rest {
            Rest::Text(text) => Ok(next_of_text(text, chunk_bytes)),
            Rest::Files { open, next } => next_of_files(open, next, chunk_bytes),
        };
        if piece.is_err() {
            self.rest = Rest::Text("");
        }
        piece.transpose()
    }
}

fn next_of_text(text: &mut &str, chunk_bytes: usize) -> Option<String> {
    if text.is_empty() {
        return None;
    }
    // The first border at or after the chunk's end, so that a piece has at least one character.
    let end = (chunk_bytes..text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(text.len());
    let (piece, rest) = text.split_at(end);
    *text = rest;
    Some(piece.to_owned())
}

fn next_of_files<'a>(
    open: &mut Option<Utf8File<'a>>,
    next: &mut &'a [PathBuf],
    chunk_bytes: usize,
) -> Result<Option<String>, CorpusError> {
    loop {
        if let Some(file) = open {
            if let Some(piece) = file.read_piece(chunk_bytes)? {
                return Ok(Some(piece));
            }
            *open = None;
        }
        let Some((path, rest)) = next.split_first() else { return Ok(None) };
        *next = rest;
        *open = Some(Utf8File::open(path)?);
    }
}

#[derive(Debug)]
struct Utf8File<'a> {
    path: &'a Path,
    file: File,
    /// The first bytes (at most 3) of a character that the last chunk ended in.
    partial: Vec<u8>,
    /// The offset in the file of the first byte that no piece has contained yet.
    offset: u64,
}

impl<'a> Utf8File<'a> {
    fn open(path: &'a Path) -> Result<Self, CorpusError> {
        let file = File::open(path).map_err(CorpusError::unreadable(path))?;
        Ok(Self { path, file, partial: Vec::new(), offset: 0 })
    }

    /// The next characters of the file; `None` at its end.
    fn read_piece(&mut self, chunk_bytes: usize) -> Result<Option<String>, CorpusError> {
        loop {
            let mut bytes = std::mem::take(&mut self.partial);
            let read = (&mut self.file)
                .take(chunk_bytes as u64)
                .read_to_end(&mut bytes)
                .map_err(CorpusError::unreadable(self.path))?;
            if read == 0 {
                // A character that was begun but never ended is as broken as any other.
                return if bytes.is_empty() { Ok(None) } else { Err(self.not_utf8(0)) };
            }
            match String::from_utf8(bytes) {
                Ok(piece) => {
                    self.offset += piece.len() as u64;
                    return Ok(Some(piece));
                }
                Err(error) => {
                    let valid = error.utf8_error().valid_up_to();
                    if error.utf8_error().error_len().is_some() {
                        return Err(self.not_utf8(valid));
                    }
                    let mut bytes = error.into_bytes();
                    self.partial = bytes.split_off(valid);
                    self.offset += valid as u64;
                    if let Ok(piece) = String::from_utf8(bytes)
                        && !piece.is_empty()
                    {
                        return Ok(Some(piece));
                    }
                }
            }
        }
    }

    fn not_utf8(&self, valid: usize) -> CorpusError {
        CorpusError::NotUtf8 { path: self.path.to_owned(), offset: self.offset + valid as u64 }
    }
}
