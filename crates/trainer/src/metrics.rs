//! `metrics.jsonl`: one JSON object a line, for programs and plots.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tinygpt_model::files::{FileError, atomic};

use crate::{Result, TrainError};

/// The format of a line of `metrics.jsonl`.
pub const METRICS_FORMAT: u64 = 1;

/// What a line is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// An update.
    Train,
    /// An evaluation.
    Eval,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// An update or an evaluation.
    pub kind: Kind,
    /// [`METRICS_FORMAT`].
    pub format: u64,
    /// Updates made.
    pub step: u64,
    /// The loss of the update's batches, in nats a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// The validation loss, in nats a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_loss: Option<f64>,
    /// `exp(val_loss)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<f64>,
    /// The validation loss in bits per byte of UTF-8 text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits_per_byte: Option<f64>,
    /// The entropy of the text that the validation loss is of, in nats a token, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<f64>,
    /// The learning rate of the update.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// The norm of the update's gradient before clipping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grad_norm: Option<f64>,
    /// Training tokens a second in this update.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_s: Option<f64>,
    /// Seconds since the start of the run, over all its parts.
    pub seconds: f64,
}

impl Metrics {
    /// A line without figures yet.
    pub fn new(kind: Kind, step: u64) -> Self {
        Self {
            kind,
            format: METRICS_FORMAT,
            step,
            loss: None,
            val_loss: None,
            perplexity: None,
            bits_per_byte: None,
            floor: None,
            lr: None,
            grad_norm: None,
            tokens_per_s: None,
            seconds: 0.0,
        }
    }
}

/// The file, open for appending.
#[derive(Debug)]
pub struct MetricsFile {
    path: PathBuf,
    file: File,
    rows: Vec<Metrics>,
}

impl MetricsFile {
    /// Writes a file of these lines, in place of the one that is there, and opens it for more.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn create(path: &Path, rows: Vec<Metrics>) -> Result<Self> {
        let mut kept = String::new();
        for row in &rows {
            kept += &to_line(path, row)?;
        }
        atomic::write(path, kept.as_bytes())?;
        let file = OpenOptions::new().append(true).open(path).map_err(TrainError::io("write", path))?;
        Ok(Self { path: path.to_owned(), file, rows })
    }

    /// Appends a line.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn append(&mut self, row: Metrics) -> Result<()> {
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
    pub fn rows(&self) -> &[Metrics] {
        &self.rows
    }
}

/// Reads the lines of a file; none where there is no file. A last line that a crash has cut short is dropped.
///
/// # Errors
/// When the file cannot be read, or another line of it is broken or of another format.
pub fn read(path: &Path) -> Result<Vec<Metrics>> {
    match fs::read_to_string(path) {
        Ok(text) => parse(path, &text),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(TrainError::io("read", path)(e)),
    }
}

fn to_line(path: &Path, row: &Metrics) -> Result<String> {
    Ok(serde_json::to_string(row).map_err(|e| TrainError::bad_file(path, e))? + "\n")
}

/// All lines; the last may be torn, the others may not.
fn parse(path: &Path, text: &str) -> Result<Vec<Metrics>> {
    let mut rows = Vec::new();
    let lines: Vec<&str> = text.lines().collect();
    for (i, line) in lines.iter().enumerate() {
        match serde_json::from_str::<Metrics>(line) {
            Ok(row) if row.format == METRICS_FORMAT => rows.push(row),
            Ok(row) => {
                return Err(FileError::FormatVersion {
                    path: path.to_owned(),
                    found: row.format,
                    expected: METRICS_FORMAT,
                }
                .into());
            }
            Err(_) if i + 1 == lines.len() => {}
            Err(e) => return Err(TrainError::bad_file(path, format!("line {} is not one of its lines: {e}", i + 1))),
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(step: u64) -> Metrics {
        Metrics { loss: Some(1.5), lr: Some(1e-3), seconds: step as f64, ..Metrics::new(Kind::Train, step) }
    }

    #[test]
    fn a_file_is_read_without_its_torn_line_and_goes_on_from_the_lines_that_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        assert_eq!(read(&path).unwrap(), []);
        let mut file = MetricsFile::create(&path, Vec::new()).unwrap();
        for step in 1..=5 {
            file.append(row(step)).unwrap();
        }
        fs::write(&path, fs::read_to_string(&path).unwrap() + "{\"kind\":\"tra").unwrap();
        let mut rows = read(&path).unwrap();
        assert_eq!(rows.len(), 5);
        rows.truncate(3);
        let mut file = MetricsFile::create(&path, rows).unwrap();
        file.append(row(4)).unwrap();
        assert_eq!(read(&path).unwrap(), file.rows());
        assert_eq!(file.rows().iter().map(|r| r.step).collect::<Vec<_>>(), [1, 2, 3, 4]);
    }

    #[test]
    fn absent_figures_are_absent_keys() {
        let line = serde_json::to_string(&row(1)).unwrap();
        assert!(line.starts_with("{\"kind\":\"train\",\"format\":1,\"step\":1,\"loss\":1.5,"), "{line}");
        assert!(!line.contains("val_loss"));
    }
}
