//! The arguments of `compare`.

use std::{num::NonZeroUsize, path::PathBuf};

use clap::Args;

use crate::device::DeviceChoice;

/// Arguments of `compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// A run folder, a GPT-2, Qwen3 or Llama folder of Hugging Face, hf:NAME of its hub, an n-gram folder of `baseline
    /// --save`, or `truth`: the grammar of the built-in corpus.
    #[arg(value_name = "A")]
    pub a: PathBuf,
    /// What it is compared with: the same.
    #[arg(value_name = "B")]
    pub b: PathBuf,
    /// The text that gives the contexts: a file, a folder or a glob, as of `eval` [default: A's validation split, or B's
    /// where A is no run].
    #[arg(long, value_name = "PATH")]
    pub data: Option<String>,
    /// The key of .jsonl, or the column of .parquet, that holds the text [default: the run's data.text_key].
    #[arg(long, value_name = "KEY", requires = "data")]
    pub text_key: Option<String>,
    /// The tokens of a window: the most that a prediction sees [default: the smaller block_size].
    #[arg(long, value_name = "C")]
    pub context: Option<usize>,
    /// Compare in this many windows, spread evenly over the text [default: all].
    #[arg(long, value_name = "N")]
    pub windows: Option<NonZeroUsize>,
    /// Write charts of the divergences by position and of the calibration (.svg or .png).
    #[arg(long, value_name = "FILE", value_parser = super::plot_path())]
    pub plot: Option<PathBuf>,
    /// auto, cpu, cuda, cuda:N or metal.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// Print the result as one JSON object.
    #[arg(long)]
    pub json: bool,
}
