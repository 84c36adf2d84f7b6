//! `tinygpt data tokens`: tokens of a text for other programs.

use serde_json::json;
use tinygpt_trainer::{
    corpus::Corpus,
    data::read_tokenizer,
    token_files::{self, TokenFileFormat},
};

use crate::{
    args::{DataTokensArgs, TokensFormat},
    output::{new_or_replaced, print_json, print_stdout},
};

pub fn tokens(args: &DataTokensArgs) -> anyhow::Result<()> {
    let out = new_or_replaced(&args.out, args.overwrite, "--out")?;
    let tokenizer = read_tokenizer(&args.tokenizer)?;
    let corpus = Corpus::open_with(args.paths.join("\n"), args.corpus.options())?;
    let format = match args.format {
        TokensFormat::Nanogpt => TokenFileFormat::NanoGpt,
        TokensFormat::LlmC => TokenFileFormat::LlmC,
    };
    let tokens = token_files::write(&out, format, &tokenizer, &corpus)?;
    let vocab_size = tokenizer.vocab_size();
    if args.json {
        return print_json(&json!({ "out": args.out, "tokens": tokens, "vocab_size": vocab_size }));
    }
    Ok(print_stdout(&format!("{}: {tokens} tokens of a vocabulary of {vocab_size}\n", args.out.display()))?)
}
