//! The arguments of `data`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// What to do with data.
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Write a corpus of stories from the built-in grammar and print its entropy.
    Synth(SynthArgs),
    /// Parse stories, one a line, by the built-in grammar and print the share accepted.
    Accept(AcceptArgs),
    /// Download a public corpus, checked by its SHA-256.
    Fetch(FetchArgs),
}

/// Arguments of `data synth`.
#[derive(Debug, Args)]
pub struct SynthArgs {
    /// The size of the corpus; the last story is finished.
    #[arg(long, value_name = "N")]
    pub bytes: usize,
    /// The seed of the stories.
    #[arg(long, value_name = "S", default_value_t = 1337)]
    pub seed: u64,
    /// The file to write.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Replace the file if it exists.
    #[arg(long)]
    pub overwrite: bool,
    /// Print the result as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `data accept`.
#[derive(Debug, Args)]
pub struct AcceptArgs {
    /// The file of stories, one a line; `-` is standard input.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Print the result as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `data fetch`.
#[derive(Debug, Args)]
pub struct FetchArgs {
    /// The corpus: tinyshakespeare.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// The folder to put it in.
    #[arg(long, value_name = "DIR", default_value = "data")]
    pub dir: PathBuf,
    /// Download from a mirror: the folder's URL.
    #[arg(long, value_name = "URL")]
    pub base_url: Option<String>,
}
