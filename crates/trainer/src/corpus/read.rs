//! Reading a corpus in pieces that never break a character.

use std::{
    collections::VecDeque,
    io::Read,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tinygpt_model::tokenizer::Piece;

use super::{
    CorpusError, CorpusOptions, Documents,
    format::{self, Format},
    json_lines::JsonLines,
    parquet::ParquetTexts,
    split::Splitter,
};
use crate::preparation::Preparation;

/// A corpus in pieces; see [`super::Corpus::pieces`].
pub struct Pieces<'a> {
    chunk_bytes: usize,
    options: &'a CorpusOptions,
    open: Option<Reader<'a>>,
    next: &'a [PathBuf],
    /// What was read and not given yet.
    ready: VecDeque<Piece>,
    /// The number of the document that the next piece is of.
    document: u64,
    position: Arc<AtomicU64>,
    /// Who is told how many bytes of how many were read; and how many there were when they were told last.
    preparation: Preparation,
    of_bytes: u64,
    told: u64,
    /// The bytes of the text that were given.
    given: u64,
}

/// How many bytes are read until that is told again.
const TOLD_EVERY: u64 = 1 << 20;

impl<'a> Pieces<'a> {
    pub(super) fn of_text(text: &'a str, options: &'a CorpusOptions, chunk_bytes: usize) -> Self {
        let open = Some(Reader::text(PathBuf::new(), Box::new(text.as_bytes()), options.documents));
        Self { open, ..Self::of_files(&[], options, chunk_bytes) }
    }

    pub(super) fn of_files(files: &'a [PathBuf], options: &'a CorpusOptions, chunk_bytes: usize) -> Self {
        let (ready, position) = (VecDeque::new(), Arc::default());
        let (preparation, of_bytes, told, given) = (Preparation::default(), 0, 0, 0);
        Self {
            chunk_bytes,
            options,
            open: None,
            next: files,
            ready,
            document: 0,
            position,
            preparation,
            of_bytes,
            told,
            given,
        }
    }

    /// The same, with somebody who is told how many bytes of `of_bytes` were read.
    pub(super) fn followed_by(self, preparation: &Preparation, of_bytes: u64) -> Self {
        Self { preparation: preparation.clone(), of_bytes, ..self }
    }

    /// Tells how far the reading is, now and then. A text in memory has no position; all of it was read that was given.
    fn tell(&mut self, text_bytes: usize) -> Result<(), CorpusError> {
        self.given += text_bytes as u64;
        let done = match self.bytes_read() {
            0 => self.given,
            read => read,
        };
        let is_end = done >= self.of_bytes && self.told < self.of_bytes;
        if done.saturating_sub(self.told) < TOLD_EVERY && !is_end {
            return Ok(());
        }
        self.told = done;
        match self.preparation.at(done, self.of_bytes) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(CorpusError::Stopped),
        }
    }

    /// About how many bytes of the files were read from the disk; of [`super::Corpus::len_bytes`].
    pub fn bytes_read(&self) -> u64 {
        self.position.load(Ordering::Relaxed)
    }

    fn read(&mut self) -> Result<Option<Piece>, CorpusError> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                let is_of_part = self.options.part.has(self.document);
                self.document += u64::from(piece.ends_document);
                if is_of_part {
                    return Ok(Some(piece));
                }
                continue;
            }
            if let Some(reader) = &mut self.open {
                if !reader.read(self.chunk_bytes, &mut self.ready)? {
                    self.open = None;
                }
                continue;
            }
            let Some((path, rest)) = self.next.split_first() else { return Ok(None) };
            self.next = rest;
            self.open = Some(Reader::open(path, self.options, &self.position)?);
        }
    }
}

impl Iterator for Pieces<'_> {
    type Item = Result<Piece, CorpusError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut piece = self.read();
        if let Ok(Some(read)) = &piece
            && let Err(stopped) = self.tell(read.text.len())
        {
            piece = Err(stopped);
        }
        if piece.is_err() {
            (self.open, self.next) = (None, &[]);
        }
        piece.transpose()
    }
}

/// A file that is being read, or a text in memory.
enum Reader<'a> {
    Text { text: Utf8Reader<'a>, splitter: Splitter },
    JsonLines(JsonLines),
    Parquet(Box<ParquetTexts>),
}

impl<'a> Reader<'a> {
    fn text(path: PathBuf, bytes: Box<dyn Read + Send + 'a>, documents: Documents) -> Self {
        Self::Text { text: Utf8Reader::new(path, bytes), splitter: Splitter::new(documents) }
    }

    fn open(path: &Path, options: &CorpusOptions, position: &Arc<AtomicU64>) -> Result<Self, CorpusError> {
        let format = Format::of(path);
        if format == Format::Parquet {
            if format::is_compressed(path) {
                let reason = "the whole file is compressed, so that no part of it can be read: decompress it".into();
                return Err(CorpusError::Parquet { path: path.to_owned(), reason });
            }
            let texts = ParquetTexts::open(path, &options.text_key, Arc::clone(position))?;
            return Ok(Self::Parquet(Box::new(texts)));
        }
        let bytes = format::open(path, Arc::clone(position))?;
        Ok(match format {
            Format::JsonLines => Self::JsonLines(JsonLines::new(path.to_owned(), bytes, &options.text_key)),
            _ => Self::text(path.to_owned(), bytes, options.documents),
        })
    }

    /// Appends what comes next; whether the file goes on.
    fn read(&mut self, chunk_bytes: usize, ready: &mut VecDeque<Piece>) -> Result<bool, CorpusError> {
        let document = match self {
            Self::Text { text, splitter } => {
                let Some(piece) = text.read_piece(chunk_bytes)? else {
                    splitter.finish(ready);
                    return Ok(false);
                };
                splitter.push(piece, ready);
                return Ok(true);
            }
            Self::JsonLines(lines) => lines.next_text()?,
            Self::Parquet(rows) => rows.next_text()?,
        };
        let goes_on = document.is_some();
        ready.extend(document.map(|text| Piece { text, ends_document: true }));
        Ok(goes_on)
    }
}

/// Bytes that must be UTF-8, read in pieces.
struct Utf8Reader<'a> {
    path: PathBuf,
    bytes: Box<dyn Read + Send + 'a>,
    /// The first bytes (at most 3) of a character that the last chunk ended in.
    partial: Vec<u8>,
    /// The offset in the text of the first byte that no piece has contained yet.
    offset: u64,
}

impl<'a> Utf8Reader<'a> {
    fn new(path: PathBuf, bytes: Box<dyn Read + Send + 'a>) -> Self {
        Self { path, bytes, partial: Vec::new(), offset: 0 }
    }

    /// The next characters; `None` at the end. The mark of byte order that some editors begin a file with is left out.
    fn read_piece(&mut self, chunk_bytes: usize) -> Result<Option<String>, CorpusError> {
        let is_first = self.offset == 0;
        match self.read_chars(chunk_bytes)? {
            Some(piece) if is_first && piece.starts_with('\u{feff}') => match &piece['\u{feff}'.len_utf8()..] {
                "" => self.read_chars(chunk_bytes),
                rest => Ok(Some(rest.to_owned())),
            },
            piece => Ok(piece),
        }
    }

    fn read_chars(&mut self, chunk_bytes: usize) -> Result<Option<String>, CorpusError> {
        loop {
            let mut bytes = std::mem::take(&mut self.partial);
            let read = (&mut self.bytes)
                .take(chunk_bytes as u64)
                .read_to_end(&mut bytes)
                .map_err(CorpusError::unreadable(&self.path))?;
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
        CorpusError::NotUtf8 { path: self.path.clone(), offset: self.offset + valid as u64 }
    }
}
