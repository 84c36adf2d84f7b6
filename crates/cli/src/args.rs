//! The command line.

mod bench;
mod compare;
mod lab;
mod plan;
mod report;
mod rules;
mod sample;
mod score;
mod sweep;

use std::{num::NonZeroUsize, path::PathBuf};

use clap::{
    Args, Parser, Subcommand, ValueEnum,
    builder::{PathBufValueParser, TypedValueParser},
};
use tinygpt_model::{ContextPolicy, cpu::WeightFormat, ngram::MAX_ORDER};
use tinygpt_trainer::chart;

pub use self::{
    bench::{BenchCommand, BenchDecodeArgs, BenchLimitsArgs, BenchSamplingArgs, BenchTrainArgs, Rule},
    compare::CompareArgs,
    lab::LabArgs,
    plan::PlanArgs,
    report::ReportArgs,
    rules::RuleArgs,
    sample::{DrawMethod, InputKind, SampleArgs, SamplePath},
    score::ScoreArgs,
    sweep::SweepArgs,
};
use crate::device::DeviceChoice;

/// The largest whole number that a TOML file can hold.
const TOML_MAX: u64 = i64::MAX as u64;

/// The file of a plot, refused before anything is computed where its format is unknown.
fn plot_path() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| chart::check_path(&path).map(|()| path))
}

/// Train a small GPT from text and generate from it.
#[derive(Debug, Parser)]
#[command(name = "tinygpt", version, propagate_version = true, arg_required_else_help = true)]
#[command(
    after_help = "Start here:\n  tinygpt train --config tiny\n  tinygpt generate --prompt \"Once\" --top-p 0.9 --seed 42\n\nExit codes: 0 done, 1 failed, 2 usage, 130 interrupted."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Threads to use [default: all cores]. The results do not depend on it.
    #[arg(long, global = true, value_name = "N", display_order = 900)]
    pub threads: Option<NonZeroUsize>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a model and write a run folder.
    #[command(
        after_help = "Examples:\n  tinygpt train --config tiny\n  tinygpt train --config tiny --data my.txt --set train.max_steps=500\n  tinygpt train --resume --out runs/tiny-1 --set train.max_steps=5000\n  tinygpt train --config tiny --set model.init=he --inspect"
    )]
    Train(TrainArgs),
    /// Generate text from a trained model.
    #[command(
        after_help = "Examples:\n  tinygpt generate --prompt \"Once\" --top-p 0.9 --seed 42\n  tinygpt generate --checkpoint runs/tiny-1 --num-samples 5 --stop '\\n' --separator ''\n\nThe same seed gives the same text, for one sample or as one of many: sample 4 of --num-samples 8 is\n--first-sample 4 --num-samples 1."
    )]
    Generate(GenerateArgs),
    /// The loss of a trained model on held-out text, or on any text.
    #[command(
        after_help = "Examples:\n  tinygpt eval\n  tinygpt eval runs/tiny-1 --data other.txt\n  tinygpt eval runs/tiny-1 --stride 1\n\nEvery token but the first is predicted once, from the tokens before it in a window of --context tokens. With\n--stride S each window counts its last S predictions, so that all see at least context - S tokens: the smaller\nS, the lower the loss and the longer it takes. Without it windows do not overlap, as in training's report."
    )]
    Eval(EvalArgs),
    /// The probability of a text, token by token: its surprisal, its rank, what was expected instead.
    #[command(
        override_usage = "tinygpt score [OPTIONS] [RUN] <TEXT>\n       tinygpt score [OPTIONS] [RUN] --file <FILE>",
        after_help = "Examples:\n  tinygpt score \"Once there was a fox.\"\n  tinygpt score runs/tiny-1 \"Once there was a fox.\" --plot fox.html\n  tinygpt score --file story.txt --compare\n  echo \"Once there was a fox.\" | tinygpt score runs/tiny-1 - --json\n\nThe probability of a text is the product of those of its tokens, each given all before it: the chain\nrule. The first token is predicted from the one that a text starts behind: <|endoftext|>, or a line\nbreak. A text longer than --context is read in windows, of which each counts its last --stride\npredictions."
    )]
    Score(ScoreArgs),
    /// How far two models are from each other, or from the truth about the built-in corpus: entropies and divergences.
    #[command(
        after_help = "Examples:\n  tinygpt compare runs/tiny-1 truth\n  tinygpt compare runs/tiny-1 runs/tiny-2 --plot compare.svg\n  tinygpt compare runs/a runs/b --data other.txt --windows 50 --json\n\nThe distributions of the next token are compared in every context of the text, in windows that do not\noverlap, and by position in them. `truth` is the exact distribution of the grammar given the story so\nfar. The calibration says whether what is predicted happens as often."
    )]
    Compare(CompareArgs),
    /// Compare sampling strategies side by side: diversity, loops, perplexity, acceptance.
    #[command(
        after_help = "Examples:\n  tinygpt lab\n  tinygpt lab runs/tiny-1 --prompt \"Once\" --samples 50 --plot lab.svg\n  tinygpt lab --print-config > lab.toml\n  tinygpt lab --config lab.toml --json\n\nCompletion i of a strategy is the text of tinygpt generate --first-sample i with the same seed and rules, which --json\nnames as flags. Beam search, of which greedy is the one of width 1, is here alone: it shows what the most probable\ntext is like."
    )]
    Lab(LabArgs),
    /// Beside a trained model, what n-gram models of its own training text reach.
    #[command(
        after_help = "Examples:\n  tinygpt baseline runs/tiny-1\n  tinygpt baseline runs/tiny-1 --order 3 --save trigram\n  tinygpt generate --checkpoint trigram --prompt \"Once\"\n\nUnigrams to N-grams with add-k smoothing, with k from a held-out tenth of the training split, and interpolated\nKneser-Ney of order N. All are counted on the training split and evaluated on the validation split."
    )]
    Baseline(BaselineArgs),
    /// One page with all that is known of a run: curves, samples, baselines, attention, calibration.
    #[command(
        after_help = "Examples:\n  tinygpt report\n  tinygpt report runs/tiny-1 --out tiny.html\n  tinygpt train --config tiny --set train.sample_every=200 && tinygpt report\n\nThe page is one file that needs no network and follows the light or dark setting of the browser. What needs the\ntext of the run is left out where that is gone."
    )]
    Report(ReportArgs),
    /// What a model is: its shape, its size, and what else opens it.
    #[command(
        after_help = "Examples:\n  tinygpt info runs/tiny-1\n  tinygpt info runs/tiny-1 --json\n\nA folder that opens in transformers is loaded there with\nAutoModelForCausalLM.from_pretrained(\"runs/tiny-1\"). Of one that opens here alone, the keys of [model] that stand in\nthe way are named."
    )]
    Info(InfoArgs),
    /// Write a trained model as a file that other programs open.
    #[command(
        after_help = "Example:\n  tinygpt train --config tiny --out runs/tiny\n  tinygpt export runs/tiny --gguf tiny.gguf\n\nGGUF is what llama.cpp opens. A model can be written that is a Qwen3 or a Llama (`tinygpt info RUN` says what it\nis), with a tokenizer of characters or a byte-level BPE. Weights are f32; llama.cpp's llama-quantize makes them smaller.\nText ends there at <|endoftext|> or, where the tokenizer has none, at a line break; --ignore-eos goes on."
    )]
    Export(ExportArgs),
    /// Draw from numbers: logits with every sampling rule, or weights.
    #[command(
        after_help = "Examples:\n  echo '{\"rows\": [[1, 2, 3, \"-inf\"]]}' | tinygpt sample --input - --top-p 0.9 --num-samples 1000\n  echo '{\"rows\": [[1, 2, 3]]}' | tinygpt sample --input - --kind weights --num-samples 2 --json\n\nA draw depends on the row, the rules and (seed, sequence, position) alone. A bad row is an error\nin its place; the others are drawn from, and the exit code is 1."
    )]
    Sample(SampleArgs),
    /// Measure what this program is made of.
    Bench {
        /// What to measure.
        #[command(subcommand)]
        command: BenchCommand,
    },
    /// The devices of this machine: what --device can take here, and what the others need.
    Devices(DevicesArgs),
    /// Check that a device computes what the CPU does: losses, gradients, updates, draws and text.
    #[command(
        after_help = "Trains and samples two small models on the device, by tensor operations, and beside it on the CPU, by code\nwritten for it, and compares. On --device cpu it is the same tensor operations that run, without the GPU.\nTakes seconds. The exit code is 1 if anything is further off than its tolerance."
    )]
    Selftest(SelftestArgs),
    /// Make, check and fetch corpora.
    Data {
        /// What to do with data.
        #[command(subcommand)]
        command: DataCommand,
    },
    /// Print every configuration key with its meaning and default, or a recipe: a TOML file to start from.
    Config(ConfigArgs),
    /// Propose a configuration for a time and a text: the size that is expected to end with the least loss.
    #[command(
        after_help = "Example:\n  tinygpt plan --minutes 5 --data my.txt --write my.toml\n  tinygpt train --config my.toml\n\nTimes some updates of three sizes on this machine, and takes the expected loss from a law that was fitted to\nruns on tinyshakespeare by characters. For any other text it is an estimate."
    )]
    Plan(PlanArgs),
    /// Train every combination of some values, and compare.
    #[command(
        after_help = "Examples:\n  tinygpt sweep --config tiny --set train.max_steps=300 --set train.lr=1e-3,3e-3,1e-2 --seeds 3\n  tinygpt sweep --config tiny --set model.n_layer=1,2,4 --set model.dropout=0,0.1 --jobs 2\n\nEach run is a run folder like any other, below --out, named by its values. Ctrl-C saves, and the same command goes\non; what has ended is not trained again, also when values are added. A run that diverges is a result."
    )]
    Sweep(SweepArgs),
}

/// Arguments of `train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// The configuration: a TOML file, here or in configs/, or a recipe, such as tiny or shakespeare-fast (`tinygpt config --help` names all). With --resume it only says whose newest run to resume.
    #[arg(long, value_name = "FILE", required_unless_present = "resume")]
    pub config: Option<PathBuf>,
    /// The corpus: a UTF-8 file, a folder or a glob (or `stories`, the built-in one); overrides data.corpus.
    #[arg(long, value_name = "PATH")]
    pub data: Option<String>,
    /// The run folder [default: a fresh runs/NAME-N].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// auto, cpu, cuda, cuda:N or metal.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// The seed of everything random; overrides seed.
    #[arg(long, value_name = "S", conflicts_with = "resume", value_parser = clap::value_parser!(u64).range(..=TOML_MAX))]
    pub seed: Option<u64>,
    /// Override a key of the configuration, for example --set train.max_steps=100; repeatable.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Go on with the run in --out (or the newest of the configuration's name, or the newest of all).
    #[arg(long, conflicts_with = "overwrite")]
    pub resume: bool,
    /// Replace the run in --out.
    #[arg(long, requires = "out")]
    pub overwrite: bool,
    /// Train nothing and write no run: print how activations, weights and their gradients are spread at the start, by layer.
    #[arg(long, conflicts_with_all = ["resume", "out"])]
    pub inspect: bool,
    /// Print the result as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// A run folder, a GPT-2, Qwen3 or Llama folder of Hugging Face, or what `baseline --save` wrote [default: the newest run in
    /// runs/].
    #[arg(long, value_name = "DIR")]
    pub checkpoint: Option<PathBuf>,
    /// The text to continue; it is printed too [default: a line break, not printed].
    #[arg(long, value_name = "TEXT", conflicts_with = "prompt_file")]
    pub prompt: Option<String>,
    /// Read the prompt from a file.
    #[arg(long, value_name = "F")]
    pub prompt_file: Option<PathBuf>,
    /// Tokens to generate after the prompt [default: the run's].
    #[arg(long, value_name = "N")]
    pub max_new_tokens: Option<usize>,
    /// Divides the logits; 0 is greedy [default: the run's].
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub temperature: Option<f64>,
    /// Keep the K most probable tokens; 0 is off [default: the run's].
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Keep the smallest set of tokens of probability P; 1 is off [default: the run's].
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f64>,
    #[command(flatten)]
    pub rules: RuleArgs,
    /// Move the temperature, from the first new token to the last of --max-new-tokens, to this one.
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub temperature_end: Option<f64>,
    /// How it moves there.
    #[arg(long, value_enum, default_value_t = ScheduleArg::Linear, requires = "temperature_end")]
    pub temperature_schedule: ScheduleArg,
    /// The seed of the draws [default: a fresh one, printed to standard error].
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
    /// How many samples to draw.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub num_samples: u64,
    /// The number of the first sample, counted from 0.
    #[arg(long, value_name = "I", default_value_t = 0)]
    pub first_sample: u64,
    /// End a sample before this text (`\n`, `\t` and `\\` are understood); repeatable.
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// The line between two samples; an empty one is left out.
    #[arg(long, value_name = "TEXT", default_value = "---")]
    pub separator: String,
    /// What to do beyond block_size tokens.
    #[arg(long, value_enum, default_value_t = WindowArg::Slide)]
    pub window: WindowArg,
    /// How the weights are kept in memory: rounded, a large model is faster. int8 is for the CPU.
    #[arg(long, value_enum, default_value_t = WeightsArg::F32)]
    pub weights: WeightsArg,
    /// auto, cpu, cuda, cuda:N or metal.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// Print one JSON object with prompt, seed and samples instead of text.
    #[arg(long)]
    pub json: bool,
}

/// The temperature schedules of `generate`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ScheduleArg {
    /// In equal differences.
    Linear,
    /// In equal ratios; neither end may be 0.
    Exponential,
}

/// The windows of `generate`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum WindowArg {
    /// Condition on the last block_size tokens, as nanoGPT: every token beyond block_size costs a whole forward pass.
    Slide,
    /// Keep the last half of the context and go on with the cache: cheap, with a context of half to all of block_size.
    Half,
}

impl From<WindowArg> for ContextPolicy {
    fn from(window: WindowArg) -> Self {
        match window {
            WindowArg::Slide => Self::Slide,
            WindowArg::Half => Self::Half,
        }
    }
}

/// Arguments of `eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// A run folder, a GPT-2, Qwen3 or Llama folder of Hugging Face, or what `baseline --save` wrote [default: the newest run in
    /// runs/].
    #[arg(value_name = "RUN")]
    pub run: Option<PathBuf>,
    /// Evaluate on this text instead of the run's validation split: a UTF-8 file, a folder or a glob.
    #[arg(long, value_name = "PATH")]
    pub data: Option<String>,
    /// The tokens of a window: the most that a prediction sees [default: the model's block_size].
    #[arg(long, value_name = "C")]
    pub context: Option<usize>,
    /// How far a window lies behind the one before; every token is counted once [default: the context].
    #[arg(long, value_name = "S")]
    pub stride: Option<usize>,
    /// auto, cpu, cuda, cuda:N or metal.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// Print the result as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `baseline`.
#[derive(Debug, Args)]
pub struct BaselineArgs {
    /// A run folder [default: the newest run in runs/].
    #[arg(value_name = "RUN")]
    pub run: Option<PathBuf>,
    /// The greatest order: the length of the longest n-grams.
    #[arg(long, value_name = "N", default_value_t = MAX_ORDER, value_parser = order)]
    pub order: usize,
    /// Write the n-gram model of order N to this folder, for `generate --checkpoint DIR` and `eval DIR --data FILE`.
    #[arg(long, value_name = "DIR")]
    pub save: Option<PathBuf>,
    /// Which of the two of order N is written.
    #[arg(long, value_enum, default_value_t = SmoothingArg::KneserNey, requires = "save")]
    pub smoothing: SmoothingArg,
    /// auto, cpu, cuda, cuda:N or metal: where the trained model is evaluated.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// Print the result as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `--order`.
fn order(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(order @ 1..=MAX_ORDER) => Ok(order),
        _ => Err(format!("must be a whole number from 1 (unigrams) to {MAX_ORDER}")),
    }
}

/// `--smoothing`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SmoothingArg {
    /// Add-k.
    AddK,
    /// Interpolated Kneser-Ney.
    KneserNey,
}

/// Arguments of `info`.
#[derive(Debug, Args)]
pub struct InfoArgs {
    /// A run folder, or a GPT-2, Qwen3 or Llama folder of Hugging Face.
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// A run folder, or a Qwen3 or Llama folder of Hugging Face.
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// The file to write, in the format GGUF.
    #[arg(long, value_name = "FILE")]
    pub gguf: PathBuf,
    /// Replace the file if it exists.
    #[arg(long)]
    pub overwrite: bool,
    /// Print the result as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `devices`.
#[derive(Debug, Args)]
pub struct DevicesArgs {
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `selftest`.
#[derive(Debug, Args)]
pub struct SelftestArgs {
    /// auto, cpu, cuda, cuda:N or metal.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// What to do with data.
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Write a corpus of stories from the built-in grammar and print its entropy.
    Synth(SynthArgs),
    /// Parse stories, one a line, by the built-in grammar and print the share accepted.
    Accept(AcceptArgs),
    /// Download a public corpus, checked by its SHA-256.
    Fetch(FetchArgs),
}

/// Arguments of `data synth`.
#[derive(Debug, Args)]
pub struct SynthArgs {
    /// The size of the corpus; the last story is finished.
    #[arg(long, value_name = "N")]
    pub bytes: usize,
    /// The seed of the stories.
    #[arg(long, value_name = "S", default_value_t = 1337)]
    pub seed: u64,
    /// The file to write.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Replace the file if it exists.
    #[arg(long)]
    pub overwrite: bool,
    /// Print the result as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `data accept`.
#[derive(Debug, Args)]
pub struct AcceptArgs {
    /// The file of stories, one a line; `-` is standard input.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Print the result as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `config`.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// A recipe: tiny, shakespeare-small-fast, shakespeare-fast (-5min, -10min), shakespeare-small, shakespeare-baby or
    /// shakespeare-baby-fast [default: every key with its meaning and default].
    #[arg(value_name = "RECIPE")]
    pub recipe: Option<String>,
}

/// Arguments of `data fetch`.
#[derive(Debug, Args)]
pub struct FetchArgs {
    /// The corpus: tinyshakespeare.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// The folder to put it in.
    #[arg(long, value_name = "DIR", default_value = "data")]
    pub dir: PathBuf,
    /// Download from a mirror: the folder's URL.
    #[arg(long, value_name = "URL")]
    pub base_url: Option<String>,
}

/// `--weights`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WeightsArg {
    /// As they are.
    F32,
    /// 16 bits.
    Bf16,
    /// 8 bits, and a scale for each output.
    Int8,
}

impl From<WeightsArg> for WeightFormat {
    fn from(weights: WeightsArg) -> Self {
        match weights {
            WeightsArg::F32 => Self::F32,
            WeightsArg::Bf16 => Self::Bf16,
            WeightsArg::Int8 => Self::Int8,
        }
    }
}
