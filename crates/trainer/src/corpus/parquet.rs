//! Documents in a column of a Parquet file.

use std::{
    cell::Cell,
    collections::VecDeque,
    fs::File,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parquet::{
    basic::Type,
    column::reader::{ColumnReader, ColumnReaderImpl},
    data_type::{ByteArray, ByteArrayType},
    errors::ParquetError,
    file::reader::{FileReader, SerializedFileReader},
};

use super::{CorpusError, Place};

/// How many rows are read at a time.
const BATCH_ROWS: usize = 256;

/// How many columns of a file without the right one are named.
const NAMED_COLUMNS: usize = 12;

/// The texts of a column of a Parquet file. A page of the column is in memory at a time, which is a megabyte in most files.
pub(super) struct ParquetTexts {
    path: PathBuf,
    file: SerializedFileReader<File>,
    column: usize,
    /// The definition level of a row that is not null.
    present: i16,
    next_group: usize,
    group: Option<ColumnReaderImpl<ByteArrayType>>,
    /// Rows that were read but not given yet; `None` is null.
    rows: VecDeque<Option<ByteArray>>,
    /// The number of the last row that was given, from 1.
    row: u64,
    position: Arc<AtomicU64>,
}

impl ParquetTexts {
    pub(super) fn open(path: &Path, text_key: &str, position: Arc<AtomicU64>) -> Result<Self, CorpusError> {
        let file = File::open(path).map_err(CorpusError::unreadable(path))?;
        let file = guarded(path, || SerializedFileReader::new(file))?;
        let schema = file.metadata().file_metadata().schema_descr_ptr();
        let bad = |reason: String| CorpusError::Parquet { path: path.to_owned(), reason };
        let Some(column) = schema.columns().iter().position(|column| column.path().string() == text_key) else {
            let named: Vec<String> = schema
                .columns()
                .iter()
                .take(NAMED_COLUMNS)
                .map(|column| format!("\"{}\"", column.path().string()))
                .collect();
            return Err(bad(format!(
                "it has no column \"{text_key}\", but {}; name the column of the text by --text-key (data.text_key)",
                named.join(", ")
            )));
        };
        let descriptor = schema.column(column);
        if descriptor.physical_type() != Type::BYTE_ARRAY || descriptor.max_rep_level() > 0 {
            let kind =
                if descriptor.max_rep_level() > 0 { "lists".into() } else { descriptor.physical_type().to_string() };
            return Err(bad(format!("its column \"{text_key}\" holds {kind}, not text")));
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            column,
            present: descriptor.max_def_level(),
            next_group: 0,
            group: None,
            rows: VecDeque::new(),
            row: 0,
            position,
        })
    }

    /// The text of the next row that has one; `None` at the end of the file.
    pub(super) fn next_text(&mut self) -> Result<Option<String>, CorpusError> {
        loop {
            while let Some(row) = self.rows.pop_front() {
                self.row += 1;
                let Some(value) = row.filter(|value| !value.is_empty()) else { continue };
                return match std::str::from_utf8(value.data()) {
                    Ok(text) => Ok(Some(text.to_owned())),
                    Err(error) => Err(CorpusError::BadRecord {
                        path: self.path.clone(),
                        place: Place::Row(self.row),
                        reason: format!("its text is not UTF-8 ({error})"),
                    }),
                };
            }
            if !self.read_rows()? {
                return Ok(None);
            }
        }
    }

    /// Reads some rows; whether there was anything left to read.
    fn read_rows(&mut self) -> Result<bool, CorpusError> {
        let Some(group) = &mut self.group else {
            let metadata = self.file.metadata();
            if self.next_group == metadata.num_row_groups() {
                return Ok(false);
            }
            let read = metadata.row_group(self.next_group).compressed_size();
            let (file, place, column) = (&self.file, self.next_group, self.column);
            let reader = guarded(&self.path, || file.get_row_group(place)?.get_column_reader(column))?;
            let ColumnReader::ByteArrayColumnReader(reader) = reader else {
                return Err(CorpusError::Parquet {
                    path: self.path.clone(),
                    reason: "a group of its rows has another type than the file".into(),
                });
            };
            self.group = Some(reader);
            self.next_group += 1;
            self.position.fetch_add(u64::try_from(read).unwrap_or(0), Ordering::Relaxed);
            return Ok(true);
        };
        let (mut values, mut levels) = (Vec::new(), Vec::new());
        let with_levels = self.present > 0;
        let (rows, _, _) = guarded(&self.path, || {
            group.read_records(BATCH_ROWS, with_levels.then_some(&mut levels), None, &mut values)
        })?;
        if rows == 0 {
            self.group = None;
            return Ok(true);
        }
        if with_levels {
            let mut values = values.into_iter();
            self.rows.extend(levels.iter().map(|&level| if level == self.present { values.next() } else { None }));
        } else {
            self.rows.extend(values.into_iter().map(Some));
        }
        Ok(true)
    }
}

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic of this thread is caught and told as an error, so that a program's panic hook has nothing to say about it.
pub fn panics_are_told_as_errors() -> bool {
    GUARDED.get()
}

/// Runs a part of the library, whose assertions a damaged file may fail.
fn guarded<T>(path: &Path, work: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, CorpusError> {
    let bad = |reason: String| CorpusError::Parquet { path: path.to_owned(), reason };
    GUARDED.set(true);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    GUARDED.set(false);
    match result {
        Ok(result) => result.map_err(|error| bad(format!("it cannot be read as Parquet ({error})"))),
        Err(_) => Err(bad("it is damaged".into())),
    }
}
