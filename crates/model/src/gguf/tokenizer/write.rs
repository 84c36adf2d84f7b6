//! A tokenizer as GGUF's metadata.

use std::collections::HashSet;

use serde_json::Value;

use super::{WORDS, Words, kinds, merges_of_char};
use crate::{
    ModelError, Result, Tokenizer,
    gguf::writer::GgufValue,
    tokenizer::{TokenizerError, TokenizerFamily, byte_level::char_of},
};

/// The vocabulary by id, and the merges, most frequent first, of byte-level BPE.
#[derive(Debug, PartialEq)]
struct Vocabulary {
    tokens: Vec<String>,
    types: Vec<i32>,
    merges: Vec<String>,
}

/// The keys `tokenizer.ggml.*`, for a model of `vocab_size` tokens. Ids that the tokenizer lacks are unused tokens.
///
/// # Errors
/// [`ModelError::NoGguf`] for a tokenizer of another kind, or one of more tokens than the model has.
pub(in crate::gguf) fn describe(tokenizer: &Tokenizer, vocab_size: usize) -> Result<Vec<(String, GgufValue)>> {
    let no_gguf = |reason: &str| ModelError::NoGguf { reason: reason.into() };
    if tokenizer.vocab_size() > vocab_size {
        return Err(no_gguf("its tokenizer has more tokens than its embedding has rows"));
    }
    let json: Value = serde_json::from_slice(tokenizer.json())
        .map_err(|e| TokenizerError::Malformed { origin: "tokenizer.json".into(), reason: e.to_string() })?;
    let (words, vocabulary) = if tokenizer.kind() == TokenizerFamily::Char {
        (&WORDS[0], of_chars(&json, vocab_size))
    } else {
        let words = words_of(&json).ok_or_else(|| {
            no_gguf(
                "its tokenizer is neither one of characters nor a byte-level BPE that cuts text into words as GPT-2, Llama 3 or \
                 Qwen does",
            )
        })?;
        (words, of_bpe(&json, vocab_size))
    };
    let Vocabulary { tokens, types, merges } =
        vocabulary.ok_or_else(|| no_gguf("its tokenizer.json has tokens or merges that are not understood"))?;
    let [begin, end] =
        [tokenizer.begin_of_text(), tokenizer.end_of_text()].map(|id| id.unwrap_or_else(|| tokenizer.start_token()));
    let keys = [
        ("model", GgufValue::String("gpt2".into())),
        ("pre", GgufValue::String(words.names[0].into())),
        ("tokens", GgufValue::Strings(tokens)),
        ("token_type", GgufValue::I32s(types)),
        ("merges", GgufValue::Strings(merges)),
        ("bos_token_id", GgufValue::U32(begin)),
        ("eos_token_id", GgufValue::U32(end)),
        ("add_bos_token", GgufValue::Bool(false)),
    ];
    // llama.cpp has places for two more tokens that end what is generated: the end of a turn, and of a message.
    let other_ends = ["eot_token_id", "eom_token_id"].into_iter().zip(tokenizer.other_ends());
    let keys = keys.into_iter().chain(other_ends.map(|(key, &id)| (key, GgufValue::U32(id))));
    Ok(keys.map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).collect())
}

/// How a `tokenizer.json` of a byte-level BPE cuts text into words, where llama.cpp knows that way, and does the same behind it.
fn words_of(json: &Value) -> Option<&'static Words> {
    let is = |value: &Value, key: &str, expected: bool| value[key].as_bool().unwrap_or(!expected) == expected;
    let is_byte_level = |value: &Value| value["type"] == "ByteLevel" && is(value, "add_prefix_space", false);
    let pre_tokenizer = &json["pre_tokenizer"];
    let pattern = match pre_tokenizer["pretokenizers"].as_array().map(Vec::as_slice) {
        None if is_byte_level(pre_tokenizer) && pre_tokenizer["use_regex"] != false => None,
        Some([split, level])
            if pre_tokenizer["type"] == "Sequence"
                && split["type"] == "Split"
                && split["behavior"] == "Isolated"
                && split["invert"] != true
                && is_byte_level(level)
                && is(level, "use_regex", false) =>
        {
            Some(split["pattern"]["Regex"].as_str()?)
        }
        _ => return None,
    };
    let words = WORDS.iter().find(|words| words.pattern == pattern)?;
    let model = &json["model"];
    let absent = |key: &str| model[key].as_str().unwrap_or_default().is_empty();
    let same_merges = (model["ignore_merges"] == true) == words.ignores_merges;
    let plain = model["dropout"].as_f64().unwrap_or(0.0) == 0.0
        && model["byte_fallback"] != true
        && ["continuing_subword_prefix", "end_of_word_suffix"].into_iter().all(absent);
    // llama.cpp leaves out the normalizer of Qwen, which composes characters (NFC).
    let normalizer = json["normalizer"].is_null() || pattern.is_some() && json["normalizer"]["type"] == "NFC";
    let strips = |token: &Value| ["lstrip", "rstrip", "single_word"].iter().any(|key| token[key] == true);
    let added_alone = !json["added_tokens"].as_array().into_iter().flatten().any(strips);
    let decoder = json["decoder"]["type"] == "ByteLevel";
    (model["type"] == "BPE" && same_merges && plain && normalizer && added_alone && decoder).then_some(words)
}

impl Vocabulary {
    fn unused(vocab_size: usize) -> Self {
        let tokens = (0..vocab_size).map(|id| format!("[PAD{id}]")).collect();
        Self { tokens, types: vec![kinds::UNUSED; vocab_size], merges: Vec::new() }
    }

    fn set(&mut self, id: &Value, token: String, kind: i32) -> Option<()> {
        let id = usize::try_from(id.as_u64()?).ok()?;
        *self.tokens.get_mut(id)? = token;
        *self.types.get_mut(id)? = kind;
        Some(())
    }

    /// Sets the tokens that are found before a text is cut into words.
    fn set_added(&mut self, json: &Value) -> Option<()> {
        for added in json["added_tokens"].as_array().into_iter().flatten() {
            let kind = if added["special"] == true { kinds::CONTROL } else { kinds::USER_DEFINED };
            self.set(&added["id"], added["content"].as_str()?.to_owned(), kind)?;
        }
        Some(())
    }
}

/// A byte-level BPE: its tokens and merges are those of the file.
fn of_bpe(json: &Value, vocab_size: usize) -> Option<Vocabulary> {
    let mut vocabulary = Vocabulary::unused(vocab_size);
    for (token, id) in json["model"]["vocab"].as_object()? {
        vocabulary.set(id, token.clone(), kinds::NORMAL)?;
    }
    vocabulary.set_added(json)?;
    for merge in json["model"]["merges"].as_array()? {
        // "a b", or ["a", "b"] in newer files.
        vocabulary.merges.push(match merge {
            Value::String(pair) => pair.clone(),
            pair => format!("{} {}", pair[0].as_str()?, pair[1].as_str()?),
        });
    }
    Some(vocabulary)
}

/// A table of characters. The beginning of a character is no token itself, which llama.cpp does not ask for.
fn of_chars(json: &Value, vocab_size: usize) -> Option<Vocabulary> {
    let mut vocabulary = Vocabulary::unused(vocab_size);
    let mut known = HashSet::new();
    for (text, id) in json["model"]["vocab"].as_object()? {
        for char in text.chars() {
            vocabulary.merges.extend(merges_of_char(char).into_iter().filter(|merge| known.insert(merge.clone())));
        }
        vocabulary.set(id, text.bytes().map(char_of).collect(), kinds::NORMAL)?;
    }
    vocabulary.set_added(json)?;
    Some(vocabulary)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::Piece;

    fn value<'a>(keys: &'a [(String, GgufValue)], key: &str) -> &'a GgufValue {
        &keys.iter().find(|(name, _)| name == &format!("tokenizer.ggml.{key}")).unwrap().1
    }

    fn strings(texts: &[&str]) -> GgufValue {
        GgufValue::Strings(texts.iter().map(|&text| text.into()).collect())
    }

    #[test]
    fn characters_are_their_bytes_merged_and_text_begins_and_ends_at_a_line_break() {
        let tokenizer = Tokenizer::train_char([Ok::<_, TokenizerError>("a €ä\n")]).unwrap();
        let keys = describe(&tokenizer, 6).unwrap();
        assert_eq!(value(&keys, "tokens"), &strings(&["Ċ", "Ġ", "a", "Ã¤", "âĤ¬", "[PAD5]"]));
        assert_eq!(value(&keys, "token_type"), &GgufValue::I32s(vec![1, 1, 1, 1, 1, 5]));
        assert_eq!(value(&keys, "merges"), &strings(&["Ã ¤", "â Ĥ", "âĤ ¬"]));
        assert_eq!(value(&keys, "eos_token_id"), &GgufValue::U32(0));
        let message = describe(&tokenizer, 4).unwrap_err().to_string();
        assert!(message.contains("more tokens than its embedding has rows"), "{message}");
    }

    #[test]
    fn characters_of_documents_begin_and_end_at_their_token() {
        let pieces = [Ok::<_, TokenizerError>(Piece { text: "ab", ends_document: true })];
        let keys = describe(&Tokenizer::train_char_on_documents(pieces).unwrap(), 3).unwrap();
        assert_eq!(value(&keys, "tokens"), &strings(&["a", "b", "<|endoftext|>"]));
        assert_eq!(value(&keys, "token_type"), &GgufValue::I32s(vec![1, 1, 3]));
        assert_eq!(value(&keys, "eos_token_id"), &GgufValue::U32(2));
    }

    #[test]
    fn a_bpe_has_its_tokens_and_merges_and_special_tokens_are_no_text() {
        let text = "low lower lowest low low lower";
        let trained = Tokenizer::train_bpe([Ok::<_, TokenizerError>(text)], 260).unwrap();
        let mut json: Value = serde_json::from_slice(trained.json()).unwrap();
        let id = trained.vocab_size();
        json["added_tokens"] = serde_json::json!([{
            "id": id, "content": "<|endoftext|>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true
        }]);
        let tokenizer = Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap();
        let keys = describe(&tokenizer, tokenizer.vocab_size()).unwrap();
        let (GgufValue::Strings(tokens), GgufValue::Strings(merges)) = (value(&keys, "tokens"), value(&keys, "merges"))
        else {
            panic!("not lists of texts")
        };
        assert_eq!((tokens.len(), tokens[id].as_str()), (id + 1, "<|endoftext|>"));
        assert_eq!(merges.len(), id - 256);
        assert!(merges.contains(&"l o".to_owned()), "{merges:?}");
        let GgufValue::I32s(types) = value(&keys, "token_type") else { panic!("not numbers") };
        assert_eq!((types[0], types[id]), (1, 3));
        assert_eq!(value(&keys, "eos_token_id"), &GgufValue::U32(id as u32));
    }

    #[test]
    fn another_tokenizer_is_refused_by_name() {
        let json = br#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
            "pre_tokenizer":null,"post_processor":null,"decoder":null,
            "model":{"type":"WordLevel","vocab":{"one":0,"two":1},"unk_token":"one"}}"#;
        let message = describe(&Tokenizer::from_bytes(json).unwrap(), 2).unwrap_err().to_string();
        assert!(message.contains("its tokenizer is neither one of characters nor a byte-level BPE"), "{message}");
    }
}
