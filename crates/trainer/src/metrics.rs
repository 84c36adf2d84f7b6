//! `metrics.jsonl`: one JSON object a line, for programs and plots.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{
    Result,
    json_lines::{self, JsonLines, Line},
    statistics::mean,
};

/// The format of a line of `metrics.jsonl`.
pub const METRICS_FORMAT: u64 = 1;

/// What a line of `metrics.jsonl` is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowKind {
    /// An update.
    Train,
    /// An evaluation.
    Eval,
}

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Whether the line is about an update or an evaluation.
    pub kind: RowKind,
    /// [`METRICS_FORMAT`].
    pub format: u64,
    /// The number of updates made.
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
    /// The norm of the last update before the evaluation over the norm of the parameters that it changed, both over all
    /// parameters: how far one step went. Absent before the first update, and in the files of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_ratio: Option<f64>,
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
    /// A line without any figures yet.
    pub fn new(kind: RowKind, step: u64) -> Self {
        Self {
            kind,
            format: METRICS_FORMAT,
            step,
            loss: None,
            val_loss: None,
            perplexity: None,
            bits_per_byte: None,
            floor: None,
            update_ratio: None,
            lr: None,
            grad_norm: None,
            tokens_per_s: None,
            seconds: 0.0,
        }
    }
}

impl Line for Metrics {
    const FORMAT: u64 = METRICS_FORMAT;
    const REMEDY: &'static str = "delete that line, on which nothing but plots and logs depends";

    fn format(&self) -> u64 {
        self.format
    }
}

/// `metrics.jsonl`, open for appending, and its lines so far.
pub type MetricsFile = JsonLines<Metrics>;

/// Reads the lines of a file; none where there is no file. A last line that a crash has cut short is dropped.
///
/// # Errors
/// When the file cannot be read, or another line of it is broken or of another format.
pub fn read(path: &Path) -> Result<Vec<Metrics>> {
    json_lines::read(path)
}

/// The mean loss of the last tenth of the logged updates, at least one; none without any.
pub fn last_training_loss<'r>(rows: impl IntoIterator<Item = &'r Metrics>) -> Option<f64> {
    let losses: Vec<f64> = rows.into_iter().filter_map(|row| row.loss).collect();
    mean(&losses[losses.len() - losses.len().div_ceil(10)..])
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn row(step: u64) -> Metrics {
        Metrics { loss: Some(1.5), lr: Some(1e-3), seconds: step as f64, ..Metrics::new(RowKind::Train, step) }
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
