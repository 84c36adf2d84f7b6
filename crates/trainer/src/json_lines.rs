//! Files of one JSON object a line, to which a run appends while it trains: metrics and samples.

mod indexed;

pub use indexed::{IndexedLines, ReadLines};

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read, Seek, SeekFrom, Write},
    marker::PhantomData,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};
use tinygpt_model::files::{FileError, atomic};

use crate::{Result, TrainError};

/// What a line holds.
pub trait Line: Serialize + DeserializeOwned {
    /// The format of the lines that this program writes, and reads.
    const FORMAT: u64;
    /// What to do about a damaged line, as the end of a message.
    const REMEDY: &'static str;

    /// The format that a line says it has.
    fn format(&self) -> u64;
}

/// A file of lines, open for appending, and its lines so far.
#[derive(Debug)]
pub struct JsonLines<T> {
    path: PathBuf,
    file: File,
    rows: Vec<T>,
}

impl<T: Line> JsonLines<T> {
    /// Writes a file of these lines, in place of the one that is there, and opens it for more.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn create(path: &Path, rows: Vec<T>) -> Result<Self> {
        write(path, &rows)?;
        let file = OpenOptions::new().append(true).open(path).map_err(TrainError::io("write", path))?;
        Ok(Self { path: path.to_owned(), file, rows })
    }

    /// Appends a line.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn append(&mut self, row: T) -> Result<()> {
        let line = to_line(&self.path, &row)?;
        self.file.write_all(line.as_bytes()).map_err(TrainError::io("write", &self.path))?;
        self.rows.push(row);
        Ok(())
    }

    /// Waits until the appended lines are on the disk: what is saved after this has them beside it, whatever happens.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(TrainError::io("write", &self.path))
    }

    /// All lines so far.
    pub fn rows(&self) -> &[T] {
        &self.rows
    }
}

/// Writes a file of these lines, whole or not at all.
///
/// # Errors
/// When the disk is full.
pub fn write<'a, T: Line + 'a>(path: &Path, rows: impl IntoIterator<Item = &'a T>) -> Result<()> {
    let lines: Vec<String> = rows.into_iter().map(|row| to_line(path, row)).collect::<Result<_>>()?;
    Ok(atomic::write(path, lines.concat().as_bytes())?)
}

/// Reads the lines of a file; none where there is no file. A last line that a crash has cut short is dropped.
///
/// # Errors
/// When the file cannot be read, or another line of it is broken or of another format.
pub fn read<T: Line>(path: &Path) -> Result<Vec<T>> {
    read_lines(path, LastLine::MayBeTorn)
}

/// Reads the lines of a file that [`write()`] made; none where there is no file.
///
/// # Errors
/// When the file cannot be read, or a line of it is broken or of another format.
pub fn read_whole<T: Line>(path: &Path) -> Result<Vec<T>> {
    read_lines(path, LastLine::IsWhole)
}

/// What is known of the last line of a file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LastLine {
    MayBeTorn,
    IsWhole,
}

fn read_lines<T: Line>(path: &Path, last: LastLine) -> Result<Vec<T>> {
    match fs::read_to_string(path) {
        Ok(text) => parse(path, &text, 0, last),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(TrainError::io("read", path)(e)),
    }
}

/// Reads a file of lines while another writer appends to it.
#[derive(Debug)]
pub struct Tail<T> {
    path: PathBuf,
    /// What was read of it, in bytes and in lines.
    bytes: u64,
    lines: usize,
    row: PhantomData<T>,
}

impl<T: Line> Tail<T> {
    /// A reader at the start of a file, which need not be there yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path, bytes: 0, lines: 0, row: PhantomData }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The lines that were added since the last call. One that is not written to its end is left for the next.
    ///
    /// # Errors
    /// When the file cannot be read, or a line of it is broken or of another format.
    pub fn read_new(&mut self) -> Result<Vec<T>> {
        let mut new = Vec::new();
        match File::open(&self.path) {
            Ok(mut file) => file
                .seek(SeekFrom::Start(self.bytes))
                .and_then(|_| file.read_to_end(&mut new))
                .map_err(TrainError::io("read", &self.path))?,
            Err(e) if e.kind() == ErrorKind::NotFound => 0,
            Err(e) => return Err(TrainError::io("read", &self.path)(e)),
        };
        new.truncate(new.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1));
        let text = str::from_utf8(&new).map_err(|e| TrainError::bad_file(&self.path, e))?;
        let rows = parse(&self.path, text, self.lines, LastLine::IsWhole)?;
        self.bytes += new.len() as u64;
        self.lines += rows.len();
        Ok(rows)
    }
}

fn to_line(path: &Path, row: &impl Serialize) -> Result<String> {
    Ok(serde_json::to_string(row).map_err(|e| TrainError::bad_file(path, e))? + "\n")
}

/// The lines of a text, which has `before` lines of the file before it.
fn parse<T: Line>(path: &Path, text: &str, before: usize, last: LastLine) -> Result<Vec<T>> {
    let mut rows = Vec::new();
    let lines: Vec<&str> = text.lines().collect();
    for (i, line) in lines.iter().enumerate() {
        match serde_json::from_str::<T>(line) {
            Ok(row) if row.format() == T::FORMAT => rows.push(row),
            Ok(row) => {
                return Err(FileError::FormatVersion {
                    path: path.to_owned(),
                    found: row.format(),
                    expected: T::FORMAT,
                }
                .into());
            }
            Err(_) if i + 1 == lines.len() && last == LastLine::MayBeTorn => {}
            Err(e) => {
                let (line, remedy) = (before + i + 1, T::REMEDY);
                let reason = format!("line {line} is not one of its lines: {e}; {remedy}");
                return Err(TrainError::bad_file(path, reason));
            }
        }
    }
    Ok(rows)
}
