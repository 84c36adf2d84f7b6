//! The arguments of `report`.

use std::path::PathBuf;

use clap::{
    Args,
    builder::{PathBufValueParser, TypedValueParser},
};

use crate::device::DeviceChoice;

/// Arguments of `report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// A run folder [default: the newest run in runs/].
    #[arg(value_name = "RUN")]
    pub run: Option<PathBuf>,
    /// The page to write (.html), in place of one that is there [default: RUN/report.html].
    #[arg(long, value_name = "FILE", value_parser = page_path())]
    pub out: Option<PathBuf>,
    /// Leave out n-gram models, which are counted on the whole training text.
    #[arg(long)]
    pub no_baselines: bool,
    /// auto, cpu, cuda, cuda:N or metal: where the trained model is evaluated.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// Print where the page is, and its figures, as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// The file of a page: another one, such as a model's weights, is not written over by mistake.
fn page_path() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| match path.extension() {
        Some(extension) if extension.eq_ignore_ascii_case("html") => Ok(path),
        _ => Err(format!("{}: a page is written as .html", path.display())),
    })
}
