//! The arguments of `cache`.

use clap::Args;

/// Arguments of `cache`.
#[derive(Debug, Args)]
pub struct CacheArgs {
    /// Delete the files; what a run needs of them is made again.
    #[arg(long)]
    pub clear: bool,
    /// Print the result as one JSON object.
    #[arg(long)]
    pub json: bool,
}
