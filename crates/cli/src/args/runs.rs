//! The arguments of `runs`.

use std::path::PathBuf;

use clap::Args;
use tinygpt_trainer::run::RUNS;

/// Arguments of `runs`.
#[derive(Debug, Args)]
pub struct RunsArgs {
    /// The folder to look below.
    #[arg(value_name = "DIR", default_value = RUNS)]
    pub dir: PathBuf,
    /// Print the runs as one JSON object.
    #[arg(long)]
    pub json: bool,
}
