//! The arguments of `log`, and the formats that it and `train --log` write.

use std::path::PathBuf;

use clap::Args;

/// A format that other programs show a run from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// TensorBoard's event files.
    Tensorboard,
}

/// Reads a format. The one that is not written has a message of its own, with what does instead.
pub fn log_format(name: &str) -> Result<LogFormat, String> {
    match name {
        "tensorboard" => Ok(LogFormat::Tensorboard),
        "wandb" | "wandb-offline" => Err(
            "the .wandb files of an offline run are private to the wandb client and change with it; give tensorboard, \
             and then `wandb sync RUN/tensorboard`, which takes event files"
                .into(),
        ),
        _ => Err("the formats are: tensorboard".into()),
    }
}

/// Arguments of `log`.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// tensorboard: event files.
    #[arg(value_name = "FORMAT", value_parser = log_format)]
    pub format: LogFormat,
    /// A run folder [default: the newest run in runs/].
    #[arg(value_name = "RUN")]
    pub run: Option<PathBuf>,
    /// The folder of the files; those that an earlier call has left there are replaced [default: RUN/tensorboard].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Print where the files are as one JSON object.
    #[arg(long)]
    pub json: bool,
}
