//! Charts in one style, as SVG and PNG: light and dark, legible to the colour-blind.
//!
//! A chart is data. A [`Figure`] is a grid of [`Panel`]s; a panel has two [`Axis`]es and [`Mark`]s in the order in which they
//! are drawn; [`write()`] makes a file of it.
//!
//! ```
//! use tinygpt_trainer::chart::{self, Axis, Color, Figure, Mark, Panel};
//!
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("sweep.svg");
//! let loss = Panel::new("validation loss", Axis::log("learning rate"), Axis::linear("nats per token"))
//!     // The mean over seeds, and its spread in the same colour. Marks without a name are not in the legend.
//!     .mark(Mark::band("", vec![(1e-4, 1.9, 2.1), (1e-3, 1.5, 1.6), (1e-2, 2.4, 3.0)]).color(Color::Series(0)))
//!     .mark(Mark::line("1 layer", vec![(1e-4, 2.0), (1e-3, 1.55), (1e-2, 2.7)]).color(Color::Series(0)))
//!     .mark(Mark::line("2 layers", vec![(1e-4, 1.8), (1e-3, 1.4), (1e-2, 3.1)]).color(Color::Series(1)))
//!     .mark(Mark::reference("floor", 1.2));
//! let diversity = Panel::new("distinct-n", Axis::categories("", ["greedy", "top-k", "top-p"]), Axis::linear("share"))
//!     .mark(Mark::bars("distinct-1", vec![0.2, 0.6, 0.7]))
//!     .mark(Mark::bars("distinct-2", vec![0.3, 0.8, 0.9]).spread(vec![0.0, 0.05, 0.04]));
//! let trade_off = Panel::new("trade-off", Axis::linear("distinct-2"), Axis::linear("accepted").range(0.0, 1.0))
//!     .mark(Mark::points("", vec![(0.3, 1.0), (0.8, 0.7)]).labels(["greedy", "top-k"]));
//! let attention = Panel::new("layer 0, head 0", Axis::categories("key", ["a", "b"]), Axis::categories("query", ["a", "b"]))
//!     .mark(Mark::heat_map(vec![vec![1.0, 0.0], vec![0.4, 0.6]]));
//! let calibration = Panel::new("calibration", Axis::linear("predicted").range(0.0, 1.0), Axis::linear("observed").range(0.0, 1.0))
//!     .mark(Mark::diagonal("perfect"))
//!     .mark(Mark::error_bars("", vec![(0.1, 0.08, 0.14), (0.9, 0.8, 0.92)]).color(Color::Series(0)))
//!     .mark(Mark::line("model", vec![(0.1, 0.11), (0.9, 0.86)]).color(Color::Series(0)));
//!
//! let figure = Figure::new(vec![loss, diversity, trade_off, attention, calibration]).columns(2).panel_size(560, 400);
//! chart::write(&path, &figure)?; // `.svg` or `.png`
//! assert!(figure.svg()?.ends_with("</svg>\n"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What holds for all of them:
//!
//! - **Numbers.** A value that is NaN or infinite, or not positive on a logarithmic axis, is left out: a line has a gap there. What
//!   lies outside an axis' range is cut off. A panel without anything to draw is an empty frame that says `no data`; a figure
//!   without panels is [`ChartError::Empty`].
//! - **Colours.** [`Color::Auto`] takes the next of [`Color::COUNT`] colours, which people with any kind of colour blindness tell
//!   apart; dashes and the shapes of points differ as well. Lines of at most 32 points
//!   have their points marked, but those that are [`Color::Faint`].
//! - **Text** may be anything: it is escaped, control characters are shown as `\n` or `\x1b`, and too long a text ends in `…`.
//!   White space at the ends of an SVG's text is lost, so tokens such as ` the` are better shown as `␣the`.
//! - **Bytes.** The same figure gives the same bytes, with whatever fonts the machine has.
//! - **Dark settings.** An SVG follows `prefers-color-scheme`; in a page with `data-theme="light"` or `"dark"` on an element around
//!   it, it follows that. Several can be inlined in one page: there are no ids, and all rules are for `svg.tinygpt-chart`. A PNG
//!   has a light background, and two pixels for each of the figure's.

mod canvas;
mod clip;
mod draw;
mod figure;
mod legend;
mod loss;
mod marks;
mod png;
mod scale;
mod svg;
mod text;
mod theme;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use tinygpt_model::files::{FileError, atomic};

pub use figure::{Axis, Color, Figure, Mark, Panel};
pub use loss::loss_curve;

/// The result of drawing a chart.
pub type Result<T> = std::result::Result<T, ChartError>;

/// A chart that cannot be drawn or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChartError {
    /// There is no panel.
    #[error("there is nothing to draw: the figure has no panels")]
    Empty,
    /// The range of an axis is no interval, or a logarithmic axis shall begin at zero or below.
    #[error("the axis `{label}` cannot go from {min} to {max}")]
    Range {
        /// The axis' label.
        label: String,
        /// Its lower end.
        min: f64,
        /// Its upper end.
        max: f64,
    },
    /// The rows of a heat map have different lengths.
    #[error("row {row} of a heat map has {got} columns, and the first {expected}")]
    Ragged {
        /// The first row that differs.
        row: usize,
        /// Its length.
        got: usize,
        /// That of the first row.
        expected: usize,
    },
    /// The file's name tells no format.
    #[error("{path}: a plot is written as .svg or .png; give the file one of these endings")]
    Extension {
        /// The file.
        path: PathBuf,
    },
    /// The library that draws failed.
    #[error("cannot draw the plot: {0}")]
    Backend(String),
    /// The file could not be written.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Draws a figure and writes it to `path`, as SVG or PNG by the name's ending, whole or not at all.
///
/// # Errors
/// Those of [`check_path`] and of [`Figure::svg`], and when the file cannot be written.
pub fn write(path: &Path, figure: &Figure) -> Result<()> {
    let bytes = match format(path)? {
        Format::Svg => figure.svg()?.into_bytes(),
        Format::Png => figure.png()?,
    };
    Ok(atomic::write(path, &bytes)?)
}

/// Refuses a name of which [`write()`] does not know the format, for commands that measure before they draw.
///
/// # Errors
/// [`ChartError::Extension`].
pub fn check_path(path: &Path) -> Result<()> {
    format(path).map(drop)
}

enum Format {
    Svg,
    Png,
}

fn format(path: &Path) -> Result<Format> {
    let extension = path.extension().map(|extension| extension.to_ascii_lowercase());
    match extension.as_deref().and_then(|extension| extension.to_str()) {
        Some("svg") => Ok(Format::Svg),
        Some("png") => Ok(Format::Png),
        _ => Err(ChartError::Extension { path: path.to_owned() }),
    }
}
