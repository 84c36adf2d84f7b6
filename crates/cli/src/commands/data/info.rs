//! `tinygpt data info`: what a corpus is like.

use std::path::Path;

use serde_json::{Value, json};
use tinygpt_model::Tokenizer;
use tinygpt_trainer::{
    corpus::{Corpus, CorpusStatistics},
    data::{Source, read_tokenizer},
    token_files::{TokenFile, TokenFileFormat},
};

use crate::{
    args::DataInfoArgs,
    output::{print_json, print_stdout},
    progress::in_thousands,
    progress_bar::WorkProgress,
    token_text::visible,
};

/// A character that occurs less often is rare: a model hardly learns it.
const RARE: u64 = 10;
/// How many rare characters are shown.
const SHOWN: usize = 40;

pub fn info(args: &DataInfoArgs) -> anyhow::Result<()> {
    let path = args.paths.join("\n");
    let corpus = match Source::open(&path, &args.corpus.options())? {
        Source::Text(corpus) => corpus,
        Source::Tokens(file) => return info_of_tokens(args, file),
    };
    let tokenizer = args.tokenizer.as_deref().map(|tokenizer| tokenizer_of(tokenizer, &corpus)).transpose()?;
    let mut progress = WorkProgress::new("reading");
    let all = corpus.len_bytes() as usize;
    let figures = CorpusStatistics::of(&corpus, tokenizer.as_ref(), |read| progress.at(read as usize, all))?;
    drop(progress);
    if args.json {
        print_json(&as_json(args, &corpus, tokenizer.as_ref(), &figures))
    } else {
        Ok(print_stdout(&describe(&corpus, tokenizer.as_ref(), &figures))?)
    }
}

/// The tokenizer that a flag names; `char` is that of the characters of the text.
fn tokenizer_of(path: &Path, corpus: &Corpus) -> anyhow::Result<Tokenizer> {
    Ok(match path.to_str() {
        Some("char") if corpus.has_documents() => Tokenizer::train_char_on_documents(corpus.pieces())?,
        Some("char") => Tokenizer::train_char(corpus.texts())?,
        _ => read_tokenizer(path)?,
    })
}

fn as_json(args: &DataInfoArgs, corpus: &Corpus, tokenizer: Option<&Tokenizer>, figures: &CorpusStatistics) -> Value {
    let rare: Vec<_> = figures
        .rare(RARE)
        .into_iter()
        .map(|(ch, count)| json!({ "char": ch, "code": format!("U+{:04X}", u32::from(ch)), "count": count }))
        .collect();
    let documents = corpus.has_documents().then(|| figures.documents());
    json!({
        "paths": args.paths,
        "files": corpus.files().len(),
        "documents": documents,
        "bytes": figures.bytes,
        "characters": figures.len_characters(),
        "distinct_characters": figures.characters.len(),
        "rare_characters": rare,
        "median_document": figures.median_and_max().map(|(median, _)| median),
        "longest_document": figures.median_and_max().map(|(_, max)| max),
        "tokens": figures.tokens,
        "vocab_size": tokenizer.map(Tokenizer::vocab_size),
        "sha256": figures.sha256,
    })
}

fn describe(corpus: &Corpus, tokenizer: Option<&Tokenizer>, figures: &CorpusStatistics) -> String {
    let thousands = |n: u64| in_thousands(n as usize);
    let files = corpus.files().len();
    let mut text = format!("files       {}\n", thousands(files as u64));
    text += &match figures.median_and_max() {
        Some((median, max)) => format!(
            "documents   {}, of {} characters in the median and at most {}\n",
            thousands(figures.documents()),
            thousands(median),
            thousands(max)
        ),
        None => "documents   not cut: --documents file, line or marker\n".into(),
    };
    text += &format!("bytes       {}\n", thousands(figures.bytes));
    text += &format!(
        "characters  {}, {} different\n",
        thousands(figures.len_characters()),
        thousands(figures.characters.len() as u64)
    );
    let rare = figures.rare(RARE);
    if !rare.is_empty() {
        let shown: Vec<String> = rare.iter().take(SHOWN).map(|&(ch, count)| described(ch, count)).collect();
        let more = if rare.len() > SHOWN { format!(", and {} more (--json)", rare.len() - SHOWN) } else { "".into() };
        let (number, shown) = (thousands(rare.len() as u64), shown.join(", "));
        text += &format!("rare        {number} characters occur less than {RARE} times: {shown}{more}\n");
    }
    if let (Some(tokenizer), Some(tokens)) = (tokenizer, figures.tokens) {
        text += &format!(
            "tokens      {}, {:.2} bytes a token, vocabulary {}\n",
            thousands(tokens),
            figures.bytes as f64 / tokens.max(1) as f64,
            thousands(tokenizer.vocab_size() as u64)
        );
    }
    text += &format!("sha256      {}\n", figures.sha256);
    text
}

/// A character with its code and how often it occurs.
fn described(ch: char, count: u64) -> String {
    format!("{} U+{:04X} x{count}", visible(&ch.to_string()), u32::from(ch))
}

/// The same of a file of tokens.
fn info_of_tokens(args: &DataInfoArgs, file: TokenFile) -> anyhow::Result<()> {
    let (tokens, bits, format) = (file.len(), file.bits(), file.format());
    let layout = match format {
        TokenFileFormat::NanoGpt => "nanogpt",
        TokenFileFormat::LlmC => "llm.c",
    };
    let sha256 = file.sha256().to_string();
    let tokenizer = args.tokenizer.as_deref().map(read_tokenizer).transpose()?;
    let vocab_size = tokenizer.as_ref().map(Tokenizer::vocab_size);
    // Tokens of another vocabulary are refused.
    let store = file.into_store(vocab_size.unwrap_or(u32::MAX as usize))?;
    let (mut chunk, mut at, mut largest, mut ends) = (vec![0; 1 << 16], 0, 0, 0);
    let end_of_text = tokenizer.as_ref().and_then(Tokenizer::end_of_text);
    while at < store.len() {
        let n = chunk.len().min(store.len() - at);
        store.read(at, &mut chunk[..n])?;
        largest = chunk[..n].iter().copied().fold(largest, u32::max);
        ends += chunk[..n].iter().filter(|&&id| Some(id) == end_of_text).count();
        at += n;
    }
    let documents = end_of_text.map(|_| ends);
    if args.json {
        return print_json(&json!({
            "paths": args.paths, "format": layout, "bits": bits, "tokens": tokens, "largest_id": largest,
            "documents": documents, "vocab_size": vocab_size, "sha256": sha256,
        }));
    }
    let mut text = format!("tokens      {} of {bits} bits ({layout}), ids up to {largest}\n", in_thousands(tokens));
    if let Some(documents) = documents {
        text += &format!("documents   {} ends of text\n", in_thousands(documents));
    }
    text += &format!("sha256      {sha256}\n");
    Ok(print_stdout(&text)?)
}
