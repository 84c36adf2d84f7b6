//! What a page shows, as data.

use serde::Serialize;
use tinygpt_trainer::{
    calibration::Calibration, config::RunConfig, evaluate::Report, metrics::Metrics, run::Best, samples::Sample,
};

use super::generalization::Generalization;
use crate::commands::baseline::Row;

/// A part of the page, or a sentence that says why it is not there.
pub type Part<T> = Result<T, String>;

/// All that is known of a run.
pub struct Figures {
    /// The folder, as the user named it.
    pub run: String,
    pub config: RunConfig,
    pub summary: Summary,
    pub metrics: Vec<Metrics>,
    pub samples: Vec<Sample>,
    pub generalization: Part<Generalization>,
    pub baselines: Part<Vec<Row>>,
    pub attention: Part<Attention>,
    pub calibration: Part<CalibrationPart>,
}

/// A run in a few numbers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    pub parameters: usize,
    pub vocab_size: usize,
    /// Updates made.
    pub steps: u64,
    /// Training tokens seen, each as often as it was.
    pub tokens_seen: u64,
    /// Spent in training.
    pub seconds: f64,
    /// The best evaluation during training, an estimate.
    pub best: Option<Best>,
    /// The best weights on the whole validation split; none without the text.
    pub validation: Option<Report>,
    /// The standard error of its loss, over windows.
    pub stderr: Option<f64>,
}

/// The calibration curve, and of what.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CalibrationPart {
    #[serde(flatten)]
    pub curve: Calibration,
    /// The share of the validation split's tokens that were predicted.
    pub share: f64,
}

/// Where each head looks in a short text.
#[derive(Debug, Clone, PartialEq)]
pub struct Attention {
    /// As people read them.
    pub tokens: Vec<String>,
    /// By layer and head, `[query][key]`.
    pub maps: Vec<Vec<Vec<Vec<f64>>>>,
}
