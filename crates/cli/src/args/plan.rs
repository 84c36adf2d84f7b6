//! The arguments of `plan`.

use std::path::PathBuf;

use clap::Args;

use crate::device::DeviceChoice;

/// Arguments of `plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// The time that training may take, in minutes, evaluations included.
    #[arg(long, value_name = "M", allow_negative_numbers = true)]
    pub minutes: f64,
    /// The corpus: a UTF-8 file, a folder or a glob, `stories`, the built-in one, or `tinyshakespeare` once it was fetched.
    #[arg(long, value_name = "PATH")]
    pub data: String,
    /// Write the best size's configuration to a TOML file, for `train --config`.
    #[arg(long, value_name = "FILE")]
    pub write: Option<PathBuf>,
    /// Replace the file if it exists.
    #[arg(long, requires = "write")]
    pub overwrite: bool,
    /// auto, cpu, cuda, cuda:N or metal.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}
