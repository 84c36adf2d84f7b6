//! The arguments of `bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use tinygpt_model::Precision;

use super::{KvCacheArg, WeightsArg};
use crate::device::DeviceChoice;

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// The limits of this machine: arithmetic and reading of memory, on one thread and on all.
    #[command(
        after_help = "Each thread repeats its work for 10 ms; the best of twenty rounds counts. Instructions are chosen at run\ntime, as everywhere in this program."
    )]
    Limits(BenchLimitsArgs),
    /// Whole updates of a model, and on the CPU their share of the arithmetic peak.
    #[command(
        after_help = "Examples:\n  tinygpt bench train small\n  tinygpt bench train baby --iters 3 --json\n  tinygpt bench train my.toml --batch 8\n\nThe weights are random and so are the tokens, from the recipe's seed. An update is what training does:\nbatches, losses, gradients, clipping, AdamW. The share of the peak counts the operations of its matrix\nproducts alone, and of attention only those of positions that a query sees; the peak is that of f32\nmultiply-adds on the same threads, measured before the updates and after them\nuntil two measurements agree: without that, as where something else runs on the machine, no share is given."
    )]
    Train(BenchTrainArgs),
    /// Tokens of a model, drawn one after the other, and on the CPU their share of the rate of reading memory.
    #[command(
        after_help = "Examples:\n  tinygpt bench decode gpt2 --weights int8\n  tinygpt bench decode gpt2 --weights int4\n  tinygpt bench decode runs/tiny-1 --rows 16 --json\n\nEach row starts at position 0, at temperature 0.8 with top-k 50; the draw is part of a step. A step reads\nevery weight once for all rows: its share of the bandwidth is those bytes over what all threads read of a\nlong stretch of memory in the same time, measured before and after each stretch of steps; where the two do not agree, the\nstretch does not count, and where too few do, no share is given. It is above 100% where the weights fit\nthe caches. Of rounded weights the loss of a text is given that the weights as they are drew."
    )]
    Decode(BenchDecodeArgs),
    /// Drawing tokens: this program's sampler against one read of the logits, and against candle's LogitsProcessor.
    #[command(
        after_help = "Examples:\n  tinygpt bench sampling --quick\n  tinygpt bench sampling --rows 16 --vocab 50257 --rule top-k+top-p --plot sampling.svg\n\nThe logits are normal, times 3. Rules: temperature 1, k 50, p 0.9. The limit is one SIMD maximum\nover the same rows on the same threads, timed in the same rounds; no sampler can be faster.\ncandle is measured where the program was built with `--features bench-candle`."
    )]
    Sampling(BenchSamplingArgs),
}

/// Arguments of `bench limits`.
#[derive(Debug, Args)]
pub struct BenchLimitsArgs {
    /// End in one JSON object; nothing else is printed.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `bench train`.
#[derive(Debug, Args)]
pub struct BenchTrainArgs {
    /// What to train: small (the recipe shakespeare-small), baby (shakespeare-baby), gpt2 (124 million parameters, 16 windows of 1024 tokens), or a configuration as `train` takes it.
    #[arg(value_name = "small|baby|gpt2|CONFIG")]
    pub work: PathBuf,
    /// Updates to time [default: as many as ten seconds hold, at least three].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub iters: Option<u32>,
    /// Windows in a batch [default: the recipe's].
    #[arg(long, value_name = "B", value_parser = clap::value_parser!(u32).range(1..))]
    pub batch: Option<u32>,
    /// What the operands of the matrix products are rounded to [default: the recipe's].
    #[arg(long, value_enum)]
    pub precision: Option<PrecisionArg>,
    /// auto, cpu, cuda, cuda:N or metal.
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub device: DeviceChoice,
    /// End in one JSON object; nothing else is printed.
    #[arg(long)]
    pub json: bool,
}

/// The precisions of training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PrecisionArg {
    /// Not rounded.
    F32,
    /// 11 bits of precision in the products of f32, on CUDA alone.
    Tf32,
    /// 16 bits, 8 of them of precision.
    Bf16,
    /// 16 bits, 11 of them of precision, with a scaled loss; for GPUs without bf16.
    F16,
}

impl From<PrecisionArg> for Precision {
    fn from(precision: PrecisionArg) -> Self {
        match precision {
            PrecisionArg::F32 => Self::F32,
            PrecisionArg::Tf32 => Self::Tf32,
            PrecisionArg::Bf16 => Self::Bf16,
            PrecisionArg::F16 => Self::F16,
        }
    }
}

/// Arguments of `bench decode`.
#[derive(Debug, Args)]
pub struct BenchDecodeArgs {
    /// The model: the shape small (of shakespeare-small), baby (of shakespeare-baby) or gpt2 (124 million parameters), each with random weights, or a run folder.
    #[arg(value_name = "small|baby|gpt2|RUN")]
    pub work: PathBuf,
    /// Texts side by side.
    #[arg(long, value_name = "R", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub rows: u32,
    /// Tokens of each, at most the context [default: 128].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub tokens: Option<u32>,
    /// How the weights are kept in memory.
    #[arg(long, value_enum, default_value_t = WeightsArg::F32)]
    pub weights: WeightsArg,
    /// How the keys and values of attention are kept in memory.
    #[arg(long, value_enum, default_value_t = KvCacheArg::F32)]
    pub kv_cache: KvCacheArg,
    /// auto, cpu, cuda, cuda:N or metal.
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub device: DeviceChoice,
    /// End in one JSON object; nothing else is printed.
    #[arg(long)]
    pub json: bool,
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
    #[arg(long, value_name = "FILE.svg|FILE.png", value_parser = super::plot_path())]
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
