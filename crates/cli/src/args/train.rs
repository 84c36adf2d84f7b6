//! The arguments of `train`.

use std::path::PathBuf;

use clap::Args;

use super::{LogFormat, TOML_MAX, log_format};
use crate::device::DeviceChoice;

/// Arguments of `train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// The configuration: a TOML file, here or in configs/, or a recipe, such as tiny or shakespeare-fast (`tinygpt config --help` names all). Without one, a recipe is chosen by the size of --data, and of --init-from. With --resume it only says whose newest run to resume.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Start from the weights of this model, with its tokenizer and its shape: a run, or a GPT-2, Qwen3 or Llama folder of
    /// Hugging Face. Only model.block_size and model.dropout may be others.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["resume", "inspect"])]
    pub init_from: Option<PathBuf>,
    /// The corpus (or `stories`, the built-in one): files (text, .jsonl, .parquet, .gz and .zst of them, or tokens in .bin), folders or globs; `-` is standard input. Overrides data.corpus.
    #[arg(long, value_name = "PATH", num_args = 1..)]
    pub data: Vec<String>,
    /// The key of .jsonl, or the column of .parquet, that holds the text; overrides data.text_key.
    #[arg(long, value_name = "KEY", conflicts_with = "resume")]
    pub text_key: Option<String>,
    /// Use the tokenizer of a run, of another folder with a tokenizer.json, of hf:NAME of the hub, or such a file; overrides
    /// data.tokenizer_path.
    #[arg(long, value_name = "RUN|FILE", conflicts_with = "resume")]
    pub tokenizer: Option<String>,
    /// The run folder [default: a fresh runs/NAME-N].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// auto, cpu, cuda, cuda:N or metal.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// The seed of everything random; overrides seed.
    #[arg(long, value_name = "S", conflicts_with = "resume", value_parser = clap::value_parser!(u64).range(..=TOML_MAX))]
    pub seed: Option<u64>,
    /// Override a key of the configuration, for example --set train.max_steps=100; repeatable.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Go on with the run in --out (or the newest of the configuration's name, or the newest of all).
    #[arg(long, conflicts_with = "overwrite")]
    pub resume: bool,
    /// Replace the run in --out.
    #[arg(long, requires = "out")]
    pub overwrite: bool,
    /// What to write beside metrics.jsonl while it trains: tensorboard, for event files in RUN/tensorboard. A resumed run goes on with those that it has.
    #[arg(long, value_name = "FORMAT", value_delimiter = ',', value_parser = log_format, conflicts_with = "inspect")]
    pub log: Vec<LogFormat>,
    /// Train nothing and write no run: print how activations, weights and their gradients are spread at the start, by layer.
    #[arg(long, conflicts_with_all = ["resume", "out"])]
    pub inspect: bool,
    /// Print the result as one JSON object.
    #[arg(long)]
    pub json: bool,
}
