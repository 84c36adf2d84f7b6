//! The arguments of `score`.

use std::path::PathBuf;

use clap::Args;
use tinygpt_trainer::score;

use crate::device::DeviceChoice;

/// Arguments of `score`.
#[derive(Debug, Args)]
pub struct ScoreArgs {
    /// A run folder, a GPT-2, Qwen3 or Llama folder of Hugging Face, or hf:NAME of its hub (without it, the newest run in
    /// runs/), and the text; `-` is standard input.
    #[arg(value_names = ["RUN", "TEXT"], num_args = 0..=2)]
    pub run_and_text: Vec<String>,
    /// Add an adapter in the format of PEFT to the weights: the folder of its adapter_config.json.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Read the text from a file.
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Score the text's words in random order, and random characters, beside it.
    #[arg(long)]
    pub compare: bool,
    /// The seed of what --compare adds.
    #[arg(long, value_name = "S", default_value_t = 0, requires = "compare")]
    pub seed: u64,
    /// The tokens of a window: the most that a prediction sees [default: the model's block_size].
    #[arg(long, value_name = "C")]
    pub context: Option<usize>,
    /// How far a window lies behind the one before, for a text of several [default: half the context].
    #[arg(long, value_name = "S")]
    pub stride: Option<usize>,
    /// How many of the most probable tokens are shown of each prediction.
    #[arg(long, value_name = "N", default_value_t = score::TOP)]
    pub top: usize,
    /// Write a page with the coloured text (.html), or a chart of the surprisal of each token (.svg or .png).
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
    /// auto, cpu, cuda, cuda:N or metal.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// Print the result as one JSON object.
    #[arg(long)]
    pub json: bool,
}
