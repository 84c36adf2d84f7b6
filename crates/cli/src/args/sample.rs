//! The arguments of `sample`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::rules::RuleArgs;
use crate::device::DeviceChoice;

/// The most draws of one row: 400 MB of them.
const MOST_SAMPLES: u64 = 100_000_000;

/// Arguments of `sample`.
#[derive(Debug, Args)]
pub struct SampleArgs {
    /// `{"rows": [[...], ...]}` with numbers, "inf", "-inf" or "nan", or a safetensors file; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    pub input: PathBuf,
    /// The tensor of a safetensors file: one row, or rows. Its only one needs no name.
    #[arg(long, value_name = "NAME")]
    pub tensor: Option<String>,
    /// What the numbers are.
    #[arg(long, value_enum, default_value_t = InputKind::Logits)]
    pub kind: InputKind,
    /// Divides the logits; 0 is greedy.
    #[arg(long, value_name = "T", default_value_t = 1.0, allow_negative_numbers = true)]
    pub temperature: f64,
    /// Keep the K largest logits; 0 is off.
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub top_k: usize,
    /// Keep the smallest set of tokens of probability P; 1 is off.
    #[arg(long, value_name = "P", default_value_t = 1.0, allow_negative_numbers = true)]
    pub top_p: f64,
    #[command(flatten)]
    pub rules: RuleArgs,
    /// The tokens so far of every row, which the penalties are about.
    #[arg(long, value_name = "ID,...", value_delimiter = ',')]
    pub history: Vec<u32>,
    /// Draws of each row.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(..=MOST_SAMPLES))]
    pub num_samples: u64,
    /// How tokens are drawn from what the rules leave; the law is the same.
    #[arg(long, value_enum, default_value_t = DrawMethod::Inverse)]
    pub method: DrawMethod,
    /// Draw from weights with replacement. Draws from logits always are.
    #[arg(long)]
    pub replacement: bool,
    /// The seed of the draws.
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
    /// The sequence of row 0; row r draws as sequence Q + r.
    #[arg(long, value_name = "Q", default_value_t = 0)]
    pub sequence: u64,
    /// The position of the first draw; draw j is at position P + j.
    #[arg(long, value_name = "P", default_value_t = 0)]
    pub position: u64,
    /// Which implementation draws from logits.
    #[arg(long, value_enum, default_value_t = SamplePath::Host)]
    pub path: SamplePath,
    /// Where --path device draws: auto, cpu, cuda, cuda:N or metal [default: cpu].
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceChoice>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
    /// Write a plot of the first good row: expected and observed frequencies, linear and softmax weighting.
    #[arg(long, value_name = "FILE.svg|FILE.png", value_parser = super::plot_path())]
    pub plot: Option<PathBuf>,
}

/// What the numbers of `sample` are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum InputKind {
    /// The logarithms of weights, for the sampling rules.
    Logits,
    /// Weights, for torch.multinomial's contract.
    Weights,
}

/// The ways in which `sample` draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DrawMethod {
    /// The inverse of the cumulative distribution, at one uniform number a draw.
    Inverse,
    /// The largest of the log-probabilities with Gumbel noise, a number a token; without replacement the largest N.
    Gumbel,
}

/// The implementations of `sample`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SamplePath {
    /// The definition: f64 and a full sort.
    Oracle,
    /// The fast path on the CPU.
    Host,
    /// Tensor operations alone, on --device.
    Device,
}
