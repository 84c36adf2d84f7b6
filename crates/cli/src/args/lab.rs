//! The flags of `lab`.

use std::path::PathBuf;

use clap::Args;

use crate::device::DeviceChoice;

/// Arguments of `lab`.
#[derive(Debug, Args)]
pub struct LabArgs {
    /// A run folder, a GPT-2, Qwen3 or Llama folder of Hugging Face, or hf:NAME of its hub [default: the newest run in
    /// runs/].
    #[arg(value_name = "RUN")]
    pub run: Option<PathBuf>,
    /// The strategies, a TOML file [default: what --print-config prints].
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the strategies that are compared by default, as a file to start from, and do nothing else.
    #[arg(long, exclusive = true)]
    pub print_config: bool,
    /// A text to complete; repeatable [default: an empty one, which starts as generate does].
    #[arg(long = "prompt", value_name = "TEXT")]
    pub prompts: Vec<String>,
    /// Completions of each prompt by each strategy.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub samples: u32,
    /// Tokens of a completion.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub max_new_tokens: u32,
    /// The seed of the draws.
    #[arg(long, value_name = "S", default_value_t = 1337)]
    pub seed: u64,
    /// Write a chart: bars of diversity, and diversity against acceptance or perplexity.
    #[arg(long, value_name = "FILE.svg|FILE.png", value_parser = super::plot_path())]
    pub plot: Option<PathBuf>,
    /// auto, cpu, cuda, cuda:N or metal.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// Print one JSON object with all numbers and all completions.
    #[arg(long)]
    pub json: bool,
}
