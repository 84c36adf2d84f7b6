//! The arguments of `generate`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use tinygpt_model::{
    ContextPolicy,
    cpu::{DecodeFormats, KvCacheFormat, WeightFormat},
};

use super::RuleArgs;
use crate::device::DeviceChoice;

/// Arguments of `generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// A run folder, a GPT-2, Qwen3 or Llama folder of Hugging Face, hf:NAME of its hub, or what `baseline --save` wrote
    /// [default: the newest run in runs/].
    #[arg(long, value_name = "DIR")]
    pub checkpoint: Option<PathBuf>,
    /// Add an adapter in the format of PEFT to the weights of --checkpoint: the folder of its adapter_config.json.
    #[arg(long, value_name = "DIR", requires = "checkpoint")]
    pub adapter: Option<PathBuf>,
    /// The text to continue; it is printed too [default: a line break, not printed].
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// Read the prompt from a file; `-` is standard input.
    #[arg(long, value_name = "F", conflicts_with = "prompt")]
    pub prompt_file: Option<PathBuf>,
    /// Continue every line of a file, as a prompt of its own; `-` is standard input.
    #[arg(long, value_name = "F", conflicts_with_all = ["prompt", "prompt_file"])]
    pub prompt_lines: Option<PathBuf>,
    #[command(flatten)]
    pub text: TextArgs,
    /// How many samples to draw.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub num_samples: u64,
    /// The number of the first sample, counted from 0.
    #[arg(long, value_name = "I", default_value_t = 0)]
    pub first_sample: u64,
    /// The line between two samples (`\n`, `\t` and `\\` are understood); an empty one is left out.
    #[arg(long, value_name = "TEXT", default_value = "---", allow_hyphen_values = true)]
    pub separator: String,
    #[command(flatten)]
    pub opening: OpeningArgs,
    /// Print one JSON object with prompt, seed and samples instead of text; of --prompt-lines, one a line.
    #[arg(long, conflicts_with_all = ["echo", "no_echo"])]
    pub json: bool,
    /// Tell, of every token, its log-probability in the model's own distribution, before any rule, and the N most probable.
    #[arg(long, value_name = "N", requires = "json")]
    pub logprobs: Option<usize>,
}

/// Arguments of `chat`.
#[derive(Debug, Args)]
pub struct ChatArgs {
    /// A run folder, a GPT-2, Qwen3 or Llama folder of Hugging Face, hf:NAME of its hub, or what `baseline --save` wrote
    /// [default: the newest run in runs/].
    #[arg(value_name = "RUN")]
    pub run: Option<PathBuf>,
    /// Add an adapter in the format of PEFT to the weights of RUN: the folder of its adapter_config.json.
    #[arg(long, value_name = "DIR", requires = "run")]
    pub adapter: Option<PathBuf>,
    #[command(flatten)]
    pub text: TextArgs,
    #[command(flatten)]
    pub opening: OpeningArgs,
}

/// How a text is drawn and told: what may change from one text to the next.
#[derive(Debug, Clone, Args)]
pub struct TextArgs {
    /// Tokens to generate after the prompt [default: the run's].
    #[arg(short = 'n', long, value_name = "N")]
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
    /// A text that no repetition of DRY reaches across (`\n`, `\t` and `\\` are understood); repeatable; an empty one is none
    /// [default: \n : " *].
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub dry_breaker: Vec<String>,
    #[command(flatten)]
    pub grammar: GrammarArgs,
    /// Move the temperature, from the first new token to the last of --max-new-tokens, to this one.
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub temperature_end: Option<f64>,
    /// How it moves there.
    #[arg(long, value_enum, default_value_t = ScheduleArg::Linear, requires = "temperature_end")]
    pub temperature_schedule: ScheduleArg,
    /// The seed of the draws [default: a fresh one, printed to standard error].
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
    /// End a sample before this text (`\n`, `\t` and `\\` are understood); repeatable.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub stop: Vec<String>,
    /// Understand `\n`, `\t` and `\\` in prompts too.
    #[arg(short, long)]
    pub escapes: bool,
    /// Print the prompt before each sample; the default.
    #[arg(long, overrides_with = "no_echo")]
    pub echo: bool,
    /// Print the samples without the prompt.
    #[arg(long, overrides_with = "echo")]
    pub no_echo: bool,
}

/// How a model is opened.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct OpeningArgs {
    /// What to do beyond block_size tokens.
    #[arg(long, value_enum, default_value_t = WindowArg::Slide)]
    pub window: WindowArg,
    /// How the weights are kept in memory: rounded while they are read, they take less of it, and a large model is faster. int8
    /// and int4 are for the CPU.
    #[arg(long, value_enum, default_value_t = WeightsArg::F32)]
    pub weights: WeightsArg,
    /// How the keys and values of attention are kept in memory. bf16 is for the CPU: half the memory of each text, and long texts
    /// beside each other are faster.
    #[arg(long, value_enum, default_value_t = KvCacheArg::F32)]
    pub kv_cache: KvCacheArg,
    /// auto, cpu, cuda, cuda:N or metal.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
}

impl OpeningArgs {
    /// The formats of weights and caches.
    pub fn formats(&self) -> DecodeFormats {
        DecodeFormats { weights: self.weights.into(), kv_cache: self.kv_cache.into() }
    }
}

/// What the generated text must be; one of them.
#[derive(Debug, Clone, Args)]
#[group(multiple = false)]
pub struct GrammarArgs {
    /// Generate a text that matches this regular expression as a whole.
    #[arg(long, value_name = "RE", allow_hyphen_values = true)]
    pub regex: Option<String>,
    /// Generate a text of the grammar in this file, in llguidance's variant of Lark.
    #[arg(long, value_name = "FILE")]
    pub grammar: Option<PathBuf>,
    /// Generate JSON of the schema in this file.
    #[arg(long, value_name = "FILE")]
    pub json_schema: Option<PathBuf>,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
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

/// `--weights`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WeightsArg {
    /// As they are.
    F32,
    /// 16 bits.
    Bf16,
    /// 8 bits, and a scale for each output; activations in 8 bits.
    Int8,
    /// 4 bits, and a scale for 32 weights; activations in 8 bits.
    Int4,
}

impl From<WeightsArg> for WeightFormat {
    fn from(weights: WeightsArg) -> Self {
        match weights {
            WeightsArg::F32 => Self::F32,
            WeightsArg::Bf16 => Self::Bf16,
            WeightsArg::Int8 => Self::Int8,
            WeightsArg::Int4 => Self::Int4,
        }
    }
}

/// `--kv-cache`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KvCacheArg {
    /// As they are.
    F32,
    /// 16 bits.
    Bf16,
}

impl From<KvCacheArg> for KvCacheFormat {
    fn from(format: KvCacheArg) -> Self {
        match format {
            KvCacheArg::F32 => Self::F32,
            KvCacheArg::Bf16 => Self::Bf16,
        }
    }
}
