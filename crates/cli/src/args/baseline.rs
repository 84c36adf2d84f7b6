//! The arguments of `baseline`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use tinygpt_model::ngram::MAX_ORDER;

use crate::device::DeviceChoice;

/// Arguments of `baseline`.
#[derive(Debug, Args)]
pub struct BaselineArgs {
    /// A run folder [default: the newest run in runs/].
    #[arg(value_name = "RUN")]
    pub run: Option<PathBuf>,
    /// The greatest order: the length of the longest n-grams.
    #[arg(long, value_name = "N", default_value_t = MAX_ORDER, value_parser = order)]
    pub order: usize,
    /// Write the n-gram model of order N to this folder, for `generate --checkpoint DIR` and `eval DIR --data FILE`.
    #[arg(long, value_name = "DIR")]
    pub save: Option<PathBuf>,
    /// Which of the two of order N is written.
    #[arg(long, value_enum, default_value_t = SmoothingArg::KneserNey, requires = "save")]
    pub smoothing: SmoothingArg,
    /// auto, cpu, cuda, cuda:N or metal: where the trained model is evaluated.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// Print the result as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `--order`.
fn order(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(order @ 1..=MAX_ORDER) => Ok(order),
        _ => Err(format!("must be a whole number from 1 (unigrams) to {MAX_ORDER}")),
    }
}

/// `--smoothing`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SmoothingArg {
    /// Add-k.
    AddK,
    /// Interpolated Kneser-Ney.
    KneserNey,
}
