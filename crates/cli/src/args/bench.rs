//! The arguments of `bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Drawing tokens: candle's LogitsProcessor against this program's sampler, and against one read of the logits.
    #[command(
        after_help = "Examples:\n  tinygpt bench sampling --quick\n  tinygpt bench sampling --rows 16 --vocab 50257 --rule top-k+top-p --plot sampling.svg\n\nThe logits are normal, times 3. Rules: temperature 1, k 50, p 0.9. The limit is one SIMD maximum\nover the same rows on the same threads, timed in the same rounds; no sampler can be faster."
    )]
    Sampling(BenchSamplingArgs),
}

/// Arguments of `bench sampling`.
#[derive(Debug, Args)]
pub struct BenchSamplingArgs {
    /// Rows of a batch [default: 1,4,16,64,256; with --quick 1,16].
    #[arg(long, value_name = "B,...", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub rows: Vec<u32>,
    /// Sizes of the vocabulary [default: 50257,128256; with --quick 50257].
    #[arg(long, value_name = "V,...", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=262_144))]
    pub vocab: Vec<u32>,
    /// Rules [default: all].
    #[arg(long, value_name = "RULE,...", value_delimiter = ',', value_enum)]
    pub rule: Vec<Rule>,
    /// Fewer cells and rounds: under 30 seconds.
    #[arg(long)]
    pub quick: bool,
    /// End in one JSON object; nothing else is printed.
    #[arg(long)]
    pub json: bool,
    /// Write a plot of the times.
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
}

/// The sampling rules that are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Rule {
    /// The largest logit.
    #[value(name = "greedy")]
    Greedy,
    /// Every token, at temperature 1.
    #[value(name = "temperature")]
    Temperature,
    /// The 50 largest logits.
    #[value(name = "top-k")]
    TopK,
    /// The nucleus of 0.9.
    #[value(name = "top-p")]
    TopP,
    /// The nucleus of 0.9 of the 50 largest logits.
    #[value(name = "top-k+top-p")]
    TopKTopP,
}
