//! `tinygpt info`.

mod history;
mod network;
mod ngrams;
mod safetensors;

use serde_json::{Value, json};
use tinygpt_model::{Architecture, GptConfig, Tokenizer, ngram::is_ngram_folder, tokenizer::TokenizerFamily};

use crate::{args::InfoArgs, hub};

pub fn run(args: &InfoArgs) -> anyhow::Result<()> {
    let path = &*hub::folder(&args.run)?;
    match path.extension() {
        Some(extension) if path.is_file() && extension.eq_ignore_ascii_case("safetensors") => {
            safetensors::run(path, args.json)
        }
        _ if is_ngram_folder(path) => ngrams::run(path, args.json),
        _ => network::run(path, args.json),
    }
}

/// Whether a model opens in `transformers` too, and as what; or which keys keep it from that.
pub fn where_it_opens(config: &GptConfig) -> String {
    match config.architecture().as_ref().map(|architecture| Architecture::class(*architecture)) {
        Ok(class) => format!("opens in transformers as {class}"),
        Err(blame) => format!("opens here alone: {blame}"),
    }
}

fn family(tokenizer: &Tokenizer) -> &'static str {
    match tokenizer.kind() {
        TokenizerFamily::Char => "char",
        TokenizerFamily::Bpe => "bpe",
        TokenizerFamily::Other => "other",
    }
}

/// The token that ends a text, and the one that a text without a prompt starts behind.
fn special_tokens(tokenizer: &Tokenizer) -> anyhow::Result<(Value, Value)> {
    let token = |id: u32| Ok::<_, anyhow::Error>(json!({ "id": id, "text": tokenizer.token_text(id)? }));
    Ok((tokenizer.end_of_text().map(token).transpose()?.into(), token(tokenizer.start_token())?))
}

/// The lines about a tokenizer.
fn describe_tokenizer(tokenizer: &Tokenizer) -> anyhow::Result<String> {
    let (end, start) = special_tokens(tokenizer)?;
    let token = |token: &Value| format!("{} ({})", token["text"], token["id"]);
    let end = if end.is_null() { "none".into() } else { token(&end) };
    let start = token(&start);
    Ok(format!(
        "tokenizer\n  kind         {}\n  vocabulary   {} tokens\n  end of text  {end}\n  start        {start}\n",
        family(tokenizer),
        tokenizer.vocab_size()
    ))
}
