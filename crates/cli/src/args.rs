//! The command line.

mod baseline;
mod bench;
mod cache;
mod compare;
mod corpus;
mod data;
mod devices;
mod eval;
mod generate;
mod info;
mod lab;
mod log;
mod plan;
mod report;
mod rules;
mod runs;
mod sample;
mod score;
#[cfg(feature = "serve")]
mod serve;
mod shell;
mod sweep;
mod train;

use std::{num::NonZeroUsize, path::PathBuf};

use clap::{
    Args, Parser, Subcommand,
    builder::{PathBufValueParser, TypedValueParser},
};
use tinygpt_trainer::chart;

#[cfg(all(test, feature = "serve"))]
pub use self::generate::WindowArg;
pub use self::{
    baseline::{BaselineArgs, SmoothingArg},
    bench::{BenchCommand, BenchDecodeArgs, BenchLimitsArgs, BenchSamplingArgs, BenchTrainArgs, Rule},
    cache::CacheArgs,
    compare::CompareArgs,
    corpus::CorpusArgs,
    data::{AcceptArgs, DataCommand, DataInfoArgs, DataTokensArgs, FetchArgs, SynthArgs, TokensFormat},
    devices::{DevicesArgs, SelftestArgs},
    eval::EvalArgs,
    generate::{ChatArgs, GenerateArgs, GrammarArgs, KvCacheArg, OpeningArgs, ScheduleArg, TextArgs, WeightsArg},
};
pub use self::{
    info::{ExportArgs, InfoArgs},
    lab::LabArgs,
    log::{LogArgs, LogFormat, log_format},
    plan::PlanArgs,
    report::ReportArgs,
    rules::RuleArgs,
    runs::RunsArgs,
    sample::{DrawMethod, InputKind, SampleArgs, SamplePath},
    score::ScoreArgs,
    shell::{CompletionsArgs, ManArgs},
    sweep::SweepArgs,
    train::TrainArgs,
};

#[cfg(feature = "serve")]
pub use self::serve::ServeArgs;

/// The largest whole number that a TOML file can hold.
pub const TOML_MAX: u64 = i64::MAX as u64;

/// The file of a plot, refused before anything is computed where its format is unknown or its folder is not there.
fn plot_path() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path: PathBuf| {
        chart::check_path(&path).map_err(|error| error.to_string())?;
        match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() && !folder.is_dir() => {
                Err(format!("there is no folder {} to write {} to", folder.display(), path.display()))
            }
            _ => Ok(path),
        }
    })
}

/// Train a small GPT from text and generate from it.
#[derive(Debug, Parser)]
#[command(
    name = "tinygpt",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    args_override_self = true
)]
#[command(
    after_help = "Start here:\n  tinygpt train --config tiny\n  tinygpt train --data my.txt\n  tinygpt generate --prompt \"Once\" --top-p 0.9 --seed 42\n\nExit codes: 0 done, 1 failed, 2 usage, 130 interrupted."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Threads to use, at most as many as cores [default: all cores]. The results do not depend on it.
    #[arg(long, global = true, value_name = "N", display_order = 900)]
    pub threads: Option<NonZeroUsize>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a model and write a run folder.
    #[command(
        after_help = "Examples:\n  tinygpt train --config tiny\n  tinygpt train --data my.txt\n  tinygpt train --config tiny --data my.txt --set train.max_steps=500\n  tinygpt train --resume --out runs/tiny-1 --set train.max_steps=5000\n  tinygpt train --config tiny --set model.init=he --inspect\n  tinygpt train --init-from hf:openai-community/gpt2 --data my.txt"
    )]
    Train(TrainArgs),
    /// Generate text from a trained model.
    #[command(
        after_help = "Examples:\n  tinygpt generate --prompt \"Once\" --top-p 0.9 --seed 42\n  tinygpt generate --checkpoint runs/tiny-1 -p '- ' -n 50 --num-samples 5 --stop '\\n' --separator ''\n  tinygpt generate --prompt-lines prompts.txt --no-echo --json\n\nThe same seed gives the same text, for one sample or as one of many: sample 4 of --num-samples 8 is\n--first-sample 4 --num-samples 1."
    )]
    Generate(Box<GenerateArgs>),
    /// Continue one prompt after the other, with a model that stays loaded.
    #[command(
        after_help = "Examples:\n  tinygpt chat\n  tinygpt chat runs/tiny-1 --temperature 0.8 --stop '\\n'\n  printf 'Once\\n/again\\n' | tinygpt chat --seed 42\n\nA line is a prompt; one that ends in \\ goes on in the next line, and an empty one starts a text from nothing. A line\nthat begins with / is a command: /help lists them, /temperature 0.7 sets the flag of that name for what follows, /again\ndraws another text, /more goes on. Sample I of a prompt is that of tinygpt generate --first-sample I. The model is no\nassistant unless it was trained to be one: it goes on with the text that it is given."
    )]
    Chat(Box<ChatArgs>),
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
    /// The runs below a folder: how far each is, its best loss, size and state, the one that was saved last first.
    #[command(
        after_help = "Examples:\n  tinygpt runs | head\n  tinygpt runs sweeps --json\n\nThe state of a run is running, finished, interrupted (`train --resume --out RUN` goes on) or damaged, with the reason.\nWhat is read of weights are the heads of their files."
    )]
    Runs(RunsArgs),
    /// Write what a run has logged as files that other programs show.
    #[command(
        after_help = "Example:\n  tinygpt log tensorboard runs/tiny-1\n  tensorboard --logdir runs\n\nWhile a run trains, `train --log tensorboard` writes the same."
    )]
    Log(LogArgs),
    /// What a model is: its shape, its size, what it takes to train and to generate, and what else opens it.
    #[command(
        after_help = "Examples:\n  tinygpt info runs/tiny-1\n  tinygpt info runs/tiny-1 --json\n  tinygpt info runs/tiny-1/model.safetensors\n\nA folder that opens in transformers is loaded there with\nAutoModelForCausalLM.from_pretrained(\"runs/tiny-1\"). Of one that opens here alone, the keys of [model] that stand in\nthe way are named."
    )]
    Info(InfoArgs),
    /// Write a trained model as a file that other programs open.
    #[command(
        after_help = "Examples:\n  tinygpt export runs/tiny-1 --gguf tiny.gguf\n  tinygpt export runs/tiny-1 --gguf tiny-q8.gguf --dtype q8_0\n  tinygpt generate --checkpoint tiny-q8.gguf --prompt \"Once\"\n  tinygpt export gpt2 --adapter runs/lora-1/adapter --merge --out merged\n\nGGUF is what llama.cpp opens, and every command here that takes a folder. A model can be written that is a GPT-2, a\nQwen3 or a Llama (`tinygpt info RUN` says what it is), with a tokenizer of characters or a byte-level BPE. Biases,\nnorms and learned positions are f32 always. Text ends there at <|endoftext|> or, where the tokenizer has none, at a\nline break; --ignore-eos goes on."
    )]
    Export(ExportArgs),
    /// Serve models over HTTP: an API that clients of OpenAI's know, and a page to look at them with.
    #[cfg(feature = "serve")]
    #[command(
        after_help = "Examples:\n  tinygpt serve\n  tinygpt serve runs/tiny-1 hf:openai-community/gpt2 --port 8080\n  curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' -d '{\"prompt\": \"Once\", \"max_tokens\": 50, \"seed\": 42}'\n\nRequests are computed side by side. The text of a request with a seed is that of tinygpt generate with this seed,\nwhatever else is served at the time. Ctrl-C lets running requests finish for up to 5 s; a second one ends them. Exit codes: 0 where all had finished, 130\nwhere some were cut off."
    )]
    Serve(ServeArgs),
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
    /// Make, look at, convert and fetch corpora.
    Data {
        /// What to do with data.
        #[command(subcommand)]
        command: DataCommand,
    },
    /// What is kept of texts that were prepared: tokens, tokenizers, the built-in corpus; or delete it.
    #[command(
        after_help = "Examples:\n  tinygpt cache\n  tinygpt cache --clear\n\nThe folder is TINYGPT_CACHE, or tinygpt in XDG_CACHE_HOME or ~/.cache. Nothing in it is needed: what is missing\nis made again."
    )]
    Cache(CacheArgs),
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
    /// Print what completes this program's commands and flags in a shell.
    #[command(
        after_help = "Examples:\n  tinygpt completions bash > ~/.local/share/bash-completion/completions/tinygpt\n  tinygpt completions zsh > ~/.zfunc/_tinygpt\n  tinygpt completions fish > ~/.config/fish/completions/tinygpt.fish"
    )]
    Completions(CompletionsArgs),
    /// Print the manual page of the program, or write those of all commands.
    #[command(after_help = "Examples:\n  tinygpt man | man -l -\n  tinygpt man --dir ~/.local/share/man/man1")]
    Man(ManArgs),
}

/// Arguments of `config`.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// A recipe: tiny, shakespeare-small-fast, shakespeare-fast (-5min, -10min), shakespeare-small, shakespeare-baby,
    /// shakespeare-baby-fast or finetune-gpt2 [default: every key with its meaning and default].
    #[arg(value_name = "RECIPE")]
    pub recipe: Option<String>,
}
