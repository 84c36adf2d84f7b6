//! The arguments of `sweep`.

use std::{num::NonZeroUsize, path::PathBuf};

use clap::Args;

use crate::device::DeviceChoice;

/// Arguments of `sweep`.
#[derive(Debug, Args)]
pub struct SweepArgs {
    /// The configuration that all runs share: a TOML file, here or in configs/, or a recipe, such as tiny.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// A key and the values to try, for example --set train.lr=1e-3,3e-3; repeatable: every combination is trained.
    #[arg(long = "set", value_name = "KEY=V,V")]
    pub settings: Vec<String>,
    /// Seeds a combination: the configuration's, and those after it.
    #[arg(long, value_name = "N", default_value = "1")]
    pub seeds: NonZeroUsize,
    /// Runs at a time; they share the cores, and their results do not depend on it.
    #[arg(long, value_name = "N", default_value = "1")]
    pub jobs: NonZeroUsize,
    /// The corpus (or `stories`, the built-in one): files, folders or globs, as of `train`; overrides data.corpus.
    #[arg(long, value_name = "PATH", num_args = 1..)]
    pub data: Vec<String>,
    /// The folder of the sweep; where it holds runs of it, these are not trained again [default: sweeps/NAME].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Where the plot goes, .svg or .png [default: sweep.svg in the folder].
    #[arg(long, value_name = "FILE", value_parser = super::plot_path())]
    pub plot: Option<PathBuf>,
    /// auto, cpu, cuda, cuda:N or metal.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// Print the result as one JSON object.
    #[arg(long)]
    pub json: bool,
}
