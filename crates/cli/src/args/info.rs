//! The arguments of `info` and `export`.

use std::path::PathBuf;

use clap::Args;

/// Arguments of `info`.
#[derive(Debug, Args)]
pub struct InfoArgs {
    /// A run folder, a GPT-2, Qwen3 or Llama folder of Hugging Face, a folder of `baseline --save`, or a .safetensors file.
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
    #[arg(long, value_name = "FILE")]
    pub gguf: PathBuf,
    /// Replace the file if it exists.
    #[arg(long)]
    pub overwrite: bool,
    /// Print the result as one JSON object.
    #[arg(long)]
    pub json: bool,
}
