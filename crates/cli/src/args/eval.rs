//! The arguments of `eval`.

use std::path::PathBuf;

use clap::Args;

use crate::device::DeviceChoice;

/// Arguments of `eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// A run folder, a GPT-2, Qwen3 or Llama folder of Hugging Face, hf:NAME of its hub, or what `baseline --save` wrote
    /// [default: the newest run in runs/].
    #[arg(value_name = "RUN")]
    pub run: Option<PathBuf>,
    /// Add an adapter in the format of PEFT to the weights: the folder of its adapter_config.json.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Evaluate on this text instead of the run's validation split: a file (text, .jsonl, .parquet, .gz and .zst of them, or
    /// tokens in .bin), a folder or a glob; `-` is standard input, and `stories` what the built-in corpus holds out.
    #[arg(long, value_name = "PATH")]
    pub data: Option<String>,
    /// The key of .jsonl, or the column of .parquet, that holds the text [default: the run's data.text_key].
    #[arg(long, value_name = "KEY", requires = "data")]
    pub text_key: Option<String>,
    /// The tokens of a window: the most that a prediction sees [default: the model's block_size].
    #[arg(long, value_name = "C")]
    pub context: Option<usize>,
    /// How far a window lies behind the one before; every token is counted once [default: the context].
    #[arg(long, value_name = "S")]
    pub stride: Option<usize>,
    /// auto, cpu, cuda, cuda:N or metal.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// Print the result as one JSON object.
    #[arg(long)]
    pub json: bool,
}
