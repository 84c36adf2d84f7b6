//! The arguments of `data`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::CorpusArgs;

/// What to do with data.
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Write a corpus of stories from the built-in grammar and print its entropy.
    Synth(SynthArgs),
    /// Parse stories, one a line, by the built-in grammar and print the share accepted.
    Accept(AcceptArgs),
    /// Download a public corpus, checked by its SHA-256.
    #[command(
        after_help = "Corpora: tinyshakespeare (1 MB), tinystories (2.2 GB) and tinystories-valid (22 MB), whose stories\ndata.documents = \"marker\" tells apart, and enwik8 (100 MB).\n\nWhat came before a connection broke is kept, and the same command asks for the rest."
    )]
    Fetch(FetchArgs),
    /// What a corpus is like: documents, bytes, characters and the rare ones, tokens.
    #[command(
        after_help = "Examples:\n  tinygpt data info my.txt\n  tinygpt data info texts/*.jsonl.gz --text-key content\n  tinygpt data info stories.txt --documents line --tokenizer runs/tiny-1"
    )]
    Info(DataInfoArgs),
    /// Write the tokens of a text as nanoGPT or llm.c reads them.
    #[command(
        after_help = "Examples:\n  tinygpt data tokens my.txt --tokenizer runs/tiny-1 --out train.bin\n  tinygpt data tokens texts/*.jsonl --tokenizer gpt2/ --out train.bin --format llm.c\n\nBehind each document comes <|endoftext|>, where the tokenizer has it. `tinygpt train --data train.bin --tokenizer gpt2/`\ntrains on such a file."
    )]
    Tokens(DataTokensArgs),
}

/// Arguments of `data info`.
#[derive(Debug, Args)]
pub struct DataInfoArgs {
    /// Files (text, .jsonl, .parquet, .gz and .zst of them, or tokens in .bin), folders or globs; `-` is standard input.
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<String>,
    #[command(flatten)]
    pub corpus: CorpusArgs,
    /// Count tokens: a run, another folder with a tokenizer.json, hf:NAME of the hub, such a file, or `char`, the characters of the text.
    #[arg(long, value_name = "RUN|FILE|char")]
    pub tokenizer: Option<PathBuf>,
    /// Print the result as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `data tokens`.
#[derive(Debug, Args)]
pub struct DataTokensArgs {
    /// Files (text, .jsonl, .parquet, .gz and .zst of them), folders or globs; `-` is standard input.
    #[arg(value_name = "TEXT", required = true)]
    pub paths: Vec<String>,
    #[command(flatten)]
    pub corpus: CorpusArgs,
    /// Whose tokens: a run, another folder with a tokenizer.json, hf:NAME of the hub, or such a file.
    #[arg(long, value_name = "RUN|FILE")]
    pub tokenizer: PathBuf,
    /// The file to write.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Whose layout.
    #[arg(long, value_name = "FORMAT", default_value = "nanogpt")]
    pub format: TokensFormat,
    /// Replace the file if it exists.
    #[arg(long)]
    pub overwrite: bool,
    /// Print the result as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Whose layout a file of tokens has.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum TokensFormat {
    /// Ids of 16 bits and nothing else.
    Nanogpt,
    /// A header, and ids of 16 bits (32 where the vocabulary needs them).
    #[value(name = "llm.c")]
    LlmC,
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

/// Arguments of `data fetch`.
#[derive(Debug, Args)]
pub struct FetchArgs {
    /// The corpus: tinyshakespeare, tinystories, tinystories-valid or enwik8.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// The folder to put it in.
    #[arg(long, value_name = "DIR", default_value = "data")]
    pub dir: PathBuf,
    /// Download from a mirror: the folder's URL; repeatable, and the next is asked where one fails.
    #[arg(long = "base-url", value_name = "URL")]
    pub base_urls: Vec<String>,
}
