//! A tokenizer from GGUF's metadata.

use std::collections::HashSet;

use serde_json::{Map, json};

use super::{WORDS, Words, kinds, merges_of_char};
use crate::{
    gguf::Gguf,
    tokenizer::{END_OF_TEXT, Tokenizer, byte_level::byte_of},
};

/// The tokenizer of a file.
///
/// # Errors
/// Which key is missing or of another type, or names a tokenizer that this program does not have.
pub(in crate::gguf) fn parse(gguf: &Gguf<'_>) -> Result<Tokenizer, String> {
    match gguf.text("tokenizer.ggml.model")? {
        Some("gpt2") => {}
        Some("llama") => {
            return Err(
                "its tokenizer is a SentencePiece (\"llama\"), this program reads byte-level BPE (\"gpt2\") only"
                    .into(),
            );
        }
        Some(other) => {
            return Err(format!("its tokenizer is {other:?}, this program reads byte-level BPE (\"gpt2\") only"));
        }
        None => return Err("it has no tokenizer: `tokenizer.ggml.model` is missing".into()),
    }
    let pre = gguf
        .text("tokenizer.ggml.pre")?
        .ok_or("`tokenizer.ggml.pre` is missing: how it cuts text into words is unknown")?;
    let words = WORDS.iter().find(|words| words.names.contains(&pre)).ok_or_else(|| {
        let known: Vec<String> = WORDS.iter().map(|words| format!("{:?}", words.names[0])).collect();
        format!("its tokenizer cuts text into words as {pre:?}, this program knows {}", known.join(", "))
    })?;
    let tokens = gguf.texts("tokenizer.ggml.tokens")?.ok_or("it has no `tokenizer.ggml.tokens`")?;
    let types = match gguf.whole_numbers("tokenizer.ggml.token_type")? {
        Some(types) => types.into_iter().map(i32::try_from).collect::<Result<Vec<_>, _>>(),
        None => Ok(vec![kinds::NORMAL; tokens.len()]),
    };
    let types = types.map_err(|_| "`tokenizer.ggml.token_type` has types that no token is of")?;
    if types.len() != tokens.len() {
        return Err(format!("it has {} tokens, and types of {}", tokens.len(), types.len()));
    }
    let rows = gguf.tensor("token_embd.weight").and_then(|embedding| embedding.shape.first().copied());
    if rows.is_some_and(|rows| rows != tokens.len()) {
        return Err(format!("it has {} tokens, and an embedding of {}", tokens.len(), rows.unwrap_or(0)));
    }
    let merges = gguf.texts("tokenizer.ggml.merges")?.ok_or("it has no `tokenizer.ggml.merges`")?;
    let named =
        |key: &str| -> Result<Option<&str>, String> { Ok(gguf.whole(key)?.and_then(|id| tokens.get(id)).copied()) };
    let (begin, end) = (named("tokenizer.ggml.bos_token_id")?, named("tokenizer.ggml.eos_token_id")?);
    let vocabulary = Vocabulary { tokens, types, merges };
    let tokenizer = match vocabulary.chars() {
        Some((chars, with_end_of_text)) => Ok(Tokenizer::of_chars(chars, with_end_of_text)),
        None => Tokenizer::from_bytes(&vocabulary.bpe(words)?).map_err(|error| format!("its tokenizer: {error}")),
    }?;
    let other_ends = ["eot", "eom"].map(|kind| gguf.whole(&format!("tokenizer.ggml.{kind}_token_id")));
    let [eot, eom] = other_ends.map(|id| Ok::<_, String>(id?.and_then(|id| u32::try_from(id).ok())));
    Ok(tokenizer.with_boundaries(begin, end).with_other_ends(eot?.into_iter().chain(eom?)))
}

/// The tokens by id, and the merges, most frequent first.
struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    types: Vec<i32>,
    merges: Vec<&'a str>,
}

impl Vocabulary<'_> {
    /// The characters by id, where it is a table of characters, as [`describe`](super::describe) writes it; and whether a token
    /// behind them ends a text.
    fn chars(&self) -> Option<(Vec<char>, bool)> {
        let n = self.types.iter().take_while(|&&kind| kind == kinds::NORMAL).count();
        let ends = self.types.get(n) == Some(&kinds::CONTROL) && self.tokens[n] == END_OF_TEXT;
        let rest_is_unused = self.types[n + usize::from(ends)..].iter().all(|&kind| kind == kinds::UNUSED);
        let chars: Vec<char> = self.tokens[..n].iter().map(|token| only_char(token)).collect::<Option<_>>()?;
        let distinct = chars.iter().collect::<HashSet<_>>().len() == n;
        let expected: HashSet<String> = chars.iter().flat_map(|&char| merges_of_char(char)).collect();
        let same_merges =
            self.merges.len() == expected.len() && self.merges.iter().all(|&merge| expected.contains(merge));
        (n > 0 && rest_is_unused && distinct && same_merges).then_some((chars, ends))
    }

    /// The `tokenizer.json` of a byte-level BPE, byte for byte as the `tokenizers` library writes it.
    fn bpe(&self, words: &Words) -> Result<Vec<u8>, String> {
        let mut vocab = Map::new();
        let mut added = Vec::new();
        for (id, (token, &kind)) in self.tokens.iter().zip(&self.types).enumerate() {
            let special = [kinds::UNKNOWN, kinds::CONTROL].contains(&kind);
            if kind == kinds::UNUSED {
                continue;
            }
            if special || kind == kinds::USER_DEFINED {
                added.push(json!({
                    "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                    "special": special,
                }));
            } else if kind != kinds::NORMAL {
                return Err(format!("its token {id} is of the type {kind}, which byte-level BPE does not have"));
            }
            if vocab.insert((*token).to_owned(), id.into()).is_some() {
                return Err(format!("it has the token {token:?} twice"));
            }
        }
        let mut merges = Vec::new();
        for merge in &self.merges {
            let (left, right) =
                merge.split_once(' ').ok_or_else(|| format!("its merge {merge:?} is not two tokens"))?;
            merges.push(json!([left, right]));
        }
        let byte_level = |space: bool, regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": space, "trim_offsets": true, "use_regex": regex });
        let pre_tokenizer = match words.pattern {
            None => byte_level(false, true),
            Some(pattern) => json!({ "type": "Sequence", "pretokenizers": [
                { "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false },
                byte_level(false, false),
            ] }),
        };
        let tokenizer = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": null,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": null,
            "decoder": byte_level(false, true),
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": null,
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": false,
                "byte_fallback": false,
                "ignore_merges": words.ignores_merges,
                "vocab": vocab,
                "merges": merges,
            },
        });
        Ok(format!("{tokenizer:#}").into_bytes())
    }
}

/// The character whose bytes a token of byte-level BPE has, where it is one.
fn only_char(token: &str) -> Option<char> {
    let bytes: Vec<u8> = token.chars().map(byte_of).collect::<Option<_>>()?;
    let mut chars = std::str::from_utf8(&bytes).ok()?.chars();
    chars.next().filter(|_| chars.next().is_none())
}
