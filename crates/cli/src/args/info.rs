//! The arguments of `info` and `export`.

use std::path::PathBuf;

use clap::Args;

/// Arguments of `info`.
#[derive(Debug, Args)]
pub struct InfoArgs {
    /// A run folder, or a GPT-2, Qwen3 or Llama folder of Hugging Face.
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// A run folder, or a Qwen3 or Llama folder of Hugging Face.
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// The file to write, in the format GGUF.
    #[arg(long, value_name = "FILE", required_unless_present = "merge")]
    pub gguf: Option<PathBuf>,
    /// Add an adapter in the format of PEFT to the weights: the folder of its adapter_config.json.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Write a model folder with the weights of RUN and its adapter as one.
    #[arg(long, requires = "out", conflicts_with = "gguf")]
    pub merge: bool,
    /// The folder that --merge writes, which must be new or empty.
    #[arg(long, value_name = "DIR", requires = "merge")]
    pub out: Option<PathBuf>,
    /// Replace the file if it exists.
    #[arg(long)]
    pub overwrite: bool,
    /// Print the result as one JSON object.
    #[arg(long)]
    pub json: bool,
}
