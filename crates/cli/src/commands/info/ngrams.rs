//! What there is to know of an n-gram model.

use std::path::Path;

use serde_json::json;
use tinygpt_model::ngram::{Smoothing, open_with_tokenizer};

use super::{describe_tokenizer, family, special_tokens};
use crate::{
    output::{print_json, print_stdout},
    progress::in_thousands,
};

pub fn run(path: &Path, as_json: bool) -> anyhow::Result<()> {
    let (model, tokenizer) = open_with_tokenizer(path)?;
    let distinct: Vec<usize> = (1..=model.order()).map(|n| model.counts().distinct(n)).collect();
    if as_json {
        let (end_of_text, start_token) = special_tokens(&tokenizer)?;
        return print_json(&json!({
            "run": path.display().to_string(),
            "ngram": { "name": model.name(), "order": model.order(), "smoothing": model.smoothing(), "distinct": distinct },
            "parameters": model.parameters(),
            "vocab_size": model.vocab_size(),
            "tokenizer": family(&tokenizer),
            "end_of_text": end_of_text,
            "start_token": start_token,
        }));
    }
    let mut text = format!(
        "{}: {}, {} parameters, vocabulary {} ({})\n\ndistinct n-grams\n",
        path.display(),
        model.name(),
        model.parameters(),
        model.vocab_size(),
        family(&tokenizer)
    );
    for (n, distinct) in (1..).zip(distinct) {
        text += &format!("  length {n}   {:>14}\n", in_thousands(distinct));
    }
    text += "\nsmoothing\n";
    match model.smoothing() {
        Smoothing::AddK { k } => text += &format!("  add-k, k = {k}\n"),
        Smoothing::KneserNey { discounts } => {
            for (n, discounts) in (1..).zip(discounts) {
                let [one, two, more] = discounts;
                text += &format!("  Kneser-Ney, length {n}: discounts {one:.3}, {two:.3}, {more:.3}\n");
            }
        }
        other => text += &format!("  {other:?}\n"),
    }
    Ok(print_stdout(&(text + "\n" + &describe_tokenizer(&tokenizer)?))?)
}
