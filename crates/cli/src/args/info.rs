//! The arguments of `info` and `export`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use tinygpt_model::{checkpoint::FloatType, gguf::TensorType};

/// Arguments of `info`.
#[derive(Debug, Args)]
pub struct InfoArgs {
    /// A run folder, a GPT-2, Qwen3 or Llama folder of Hugging Face, hf:NAME of its hub, what `baseline --save` wrote, or a
    /// .gguf or .safetensors file.
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// A run folder, a GPT-2, Qwen3 or Llama folder of Hugging Face, hf:NAME of its hub, or a GGUF file.
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// The file to write, in the format GGUF.
    #[arg(long, value_name = "FILE", required_unless_present_any = ["merge", "out"])]
    pub gguf: Option<PathBuf>,
    /// The model folder to write, in the layout of Hugging Face; it must be new or empty.
    #[arg(long, value_name = "DIR", conflicts_with = "gguf")]
    pub out: Option<PathBuf>,
    /// What matrices are stored in: f32, f16, bf16, or in GGUF blocks of 32 weights of 8 or 4 bits.
    #[arg(long, value_enum, default_value_t = DtypeArg::F32, hide_possible_values = true, value_name = "f32|f16|bf16|q8_0|q4_0")]
    pub dtype: DtypeArg,
    /// Add an adapter in the format of PEFT to the weights: the folder of its adapter_config.json.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Write the weights of RUN and its adapter as one: what --out does, with an adapter.
    #[arg(long, requires = "out", conflicts_with = "gguf")]
    pub merge: bool,
    /// Replace the file if it exists.
    #[arg(long)]
    pub overwrite: bool,
    /// Print the result as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// The type of stored matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DtypeArg {
    F32,
    F16,
    Bf16,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q4_0")]
    Q4_0,
}

impl DtypeArg {
    /// The type of the weights of a model folder, which have no blocks.
    pub fn float_type(self) -> Option<FloatType> {
        match self {
            Self::F32 => Some(FloatType::F32),
            Self::F16 => Some(FloatType::F16),
            Self::Bf16 => Some(FloatType::Bf16),
            Self::Q8_0 | Self::Q4_0 => None,
        }
    }
}

impl From<DtypeArg> for TensorType {
    fn from(arg: DtypeArg) -> Self {
        match arg {
            DtypeArg::F32 => Self::F32,
            DtypeArg::F16 => Self::F16,
            DtypeArg::Bf16 => Self::Bf16,
            DtypeArg::Q8_0 => Self::Q8_0,
            DtypeArg::Q4_0 => Self::Q4_0,
        }
    }
}
