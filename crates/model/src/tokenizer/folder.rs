//! The tokenizer of a folder: `tokenizer.json`, or GPT-2's `vocab.json` with `merges.txt`; and which of its tokens begin and
//! end a text, which stands in `tokenizer_config.json` or, in older folders, in `special_tokens_map.json`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{END_OF_TEXT, GPT2_FILES, Result, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, Tokenizer, TokenizerError};

/// There where special tokens stood before `tokenizer_config.json` had them.
const SPECIAL_TOKENS_FILE: &str = "special_tokens_map.json";
/// There where tokens beside the vocabulary stood before `tokenizer_config.json` had them.
const ADDED_TOKENS_FILE: &str = "added_tokens.json";

/// Reads the tokenizer of a folder.
pub(super) fn read(folder: &Path) -> Result<Tokenizer> {
    let roles = Roles::read(folder)?;
    let path = folder.join(TOKENIZER_FILE);
    let [vocabulary, merges] = GPT2_FILES.map(|name| folder.join(name));
    let tokenizer = if !path.exists() && vocabulary.exists() {
        let known = read_json(&vocabulary)?.unwrap_or_default();
        let json = gpt2_json(known, &read_text(&merges)?, &roles)
            .map_err(|reason| TokenizerError::Malformed { origin: format!("`{}`", vocabulary.display()), reason })?;
        Tokenizer::parse(json.to_string().into_bytes(), || {
            let [vocabulary, merges] = GPT2_FILES;
            format!("`{}` with {merges}", folder.join(vocabulary).display())
        })?
    } else {
        Tokenizer::from_file(path)?
    };
    Ok(tokenizer.with_boundaries(roles.name("bos_token"), roles.name("eos_token")))
}

/// What the files beside a tokenizer say of its tokens.
#[derive(Debug, Default)]
struct Roles {
    /// A special token by its role: `eos_token`.
    special: BTreeMap<String, AddedToken>,
    /// Those without a role of their own.
    more: Vec<AddedToken>,
    /// All tokens beside the vocabulary, by id.
    added: BTreeMap<u32, AddedToken>,
    add_prefix_space: bool,
}

/// A token that is found in a text before it is cut into words.
#[derive(Debug, Clone, Deserialize)]
struct AddedToken {
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

impl AddedToken {
    fn plain(content: &str, special: bool) -> Self {
        let (single_word, lstrip, rstrip, normalized) = (false, false, false, false);
        Self { content: content.into(), single_word, lstrip, rstrip, normalized, special }
    }

    /// The token of a role: its text, or an object.
    fn of_role(value: &Value) -> Option<Self> {
        match value {
            Value::String(content) => Some(Self::plain(content, true)),
            Value::Object(_) => Some(Self { special: true, ..Self::deserialize(value).ok()? }),
            _ => None,
        }
    }

    fn json(&self, id: u32) -> Value {
        json!({
            "id": id, "content": self.content, "single_word": self.single_word, "lstrip": self.lstrip, "rstrip": self.rstrip,
            "normalized": self.normalized, "special": self.special,
        })
    }
}

impl Roles {
    fn read(folder: &Path) -> Result<Self> {
        let mut roles = Self::default();
        // What comes later overrides.
        for name in [ADDED_TOKENS_FILE, SPECIAL_TOKENS_FILE, TOKENIZER_CONFIG_FILE] {
            let Some(file) = read_json(&folder.join(name))? else { continue };
            let added = if name == ADDED_TOKENS_FILE { roles.add_ids(&file) } else { roles.add(&file) };
            added.map_err(|reason| TokenizerError::NotJson { path: folder.join(name), reason })?;
        }
        Ok(roles)
    }

    /// Adds `added_tokens.json`: ids by text.
    fn add_ids(&mut self, file: &Map<String, Value>) -> std::result::Result<(), String> {
        for (content, id) in file {
            let known = id.as_u64().and_then(|id| u32::try_from(id).ok());
            let id = known.ok_or_else(|| format!("the token {content:?} has the id {id}"))?;
            self.added.insert(id, AddedToken::plain(content, false));
        }
        Ok(())
    }

    fn add(&mut self, file: &Map<String, Value>) -> std::result::Result<(), String> {
        for (key, value) in file {
            if key.ends_with("_token")
                && let Some(token) = AddedToken::of_role(value)
            {
                self.special.insert(key.clone(), token);
            }
        }
        let more =
            ["additional_special_tokens", "extra_special_tokens"].map(|key| file.get(key).and_then(Value::as_array));
        self.more.extend(more.into_iter().flatten().flatten().filter_map(AddedToken::of_role));
        for (id, token) in file.get("added_tokens_decoder").and_then(Value::as_object).into_iter().flatten() {
            let number = id.parse().map_err(|_| format!("`added_tokens_decoder` has the id {id:?}"))?;
            let token = AddedToken::deserialize(token).map_err(|e| format!("`added_tokens_decoder`, {id}: {e}"))?;
            self.added.insert(number, token);
        }
        if let Some(prefix) = file.get("add_prefix_space").and_then(Value::as_bool) {
            self.add_prefix_space = prefix;
        }
        Ok(())
    }

    fn name(&self, role: &str) -> Option<&str> {
        self.special.get(role).map(|token| token.content.as_str())
    }
}

/// The `tokenizer.json` of a GPT-2 whose vocabulary and merges are in files of their own. The library checks both.
fn gpt2_json(mut vocabulary: Map<String, Value>, merges: &str, roles: &Roles) -> std::result::Result<Value, String> {
    let id_of = |content: &str| vocabulary.get(content)?.as_u64().and_then(|id| u32::try_from(id).ok());
    // Without a word on special tokens, the class of `transformers` has this one.
    let default = AddedToken::plain(END_OF_TEXT, true);
    let special = roles.special.values().chain(&roles.more);
    let special: Vec<&AddedToken> =
        if roles.special.is_empty() { special.chain([&default]).collect() } else { special.collect() };
    let mut added: BTreeMap<u32, AddedToken> = roles.added.clone();
    for token in special {
        let known = roles.added.iter().find(|(_, added)| added.content == token.content).map(|(&id, _)| id);
        if let Some(id) = known.or_else(|| id_of(&token.content)) {
            added.entry(id).or_insert_with(|| token.clone()).special = true;
        }
    }
    // The library gives an added token that is not in the vocabulary the next id that is free, whatever the file says.
    for (&id, AddedToken { content, .. }) in &added {
        let known = vocabulary.entry(content.clone()).or_insert_with(|| id.into());
        if *known != id {
            return Err(format!("the token {content:?} has two ids, {known} and {id}"));
        }
    }
    let byte_level = |add_prefix_space: bool| json!({ "type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": true });
    // The first line may be the version of the format.
    let pairs = merges.lines().filter(|line| !line.starts_with("#version") && !line.is_empty());
    let merges: Vec<&str> = pairs.collect();
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added.iter().map(|(&id, token)| token.json(id)).collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": byte_level(roles.add_prefix_space),
        "post_processor": null,
        "decoder": byte_level(true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": merges,
        },
    }))
}

/// The object of a JSON file; `None` where there is no file.
fn read_json(path: &Path) -> Result<Option<Map<String, Value>>> {
    if !path.exists() {
        return Ok(None);
    }
    let text = read_text(path)?;
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|e| TokenizerError::NotJson { path: path.into(), reason: e.to_string() })
}

fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|source| TokenizerError::Unreadable { path: PathBuf::from(path), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with these files.
    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, content)| fs::write(dir.path().join(name), content).unwrap());
        dir
    }

    const VOCABULARY: (&str, &str) = ("vocab.json", r#"{"a":0,"b":1,"Ġ":2,"ab":3,"<|endoftext|>":4}"#);
    const MERGES: (&str, &str) = ("merges.txt", "#version: 0.2\na b\n");

    #[test]
    fn a_vocabulary_and_merges_are_gpt2s_tokenizer() {
        let tokenizer = read(folder(&[VOCABULARY, MERGES]).path()).unwrap();
        assert_eq!(tokenizer.kind(), super::super::TokenizerFamily::Bpe);
        assert_eq!(tokenizer.encode("ab ba<|endoftext|>a").unwrap(), [3, 2, 1, 0, 4, 0]);
        assert_eq!(tokenizer.decode(&[3, 2, 1]).unwrap(), "ab b");
        assert_eq!((tokenizer.end_of_text(), tokenizer.start_token()), (Some(4), 4));
        // What is written of it reads the same.
        let again = Tokenizer::from_bytes(tokenizer.json()).unwrap();
        assert_eq!(again.encode("ab ba<|endoftext|>a").unwrap(), [3, 2, 1, 0, 4, 0]);
    }

    #[test]
    fn added_tokens_have_the_ids_of_the_files_beside() {
        let config = r#"{"add_prefix_space": true, "eos_token": {"content": "<end>"}, "bos_token": "<s>", "pad_token": null,
            "added_tokens_decoder": {"5": {"content": "<end>", "special": true}}, "model_max_length": 1e30}"#;
        let map = r#"{"additional_special_tokens": ["ab"], "eos_token": "<other>"}"#;
        let dir = folder(&[
            VOCABULARY,
            MERGES,
            ("tokenizer_config.json", config),
            ("special_tokens_map.json", map),
            ("added_tokens.json", r#"{"<s>": 6}"#),
        ]);
        let tokenizer = read(dir.path()).unwrap();
        assert_eq!(tokenizer.vocab_size(), 7);
        assert_eq!(tokenizer.encode("b<s>ab<end>").unwrap(), [2, 1, 6, 3, 5]);
        assert_eq!((tokenizer.end_of_text(), tokenizer.start_token()), (Some(5), 6));
        assert_eq!(tokenizer.tokenizer_config(8)["eos_token"], "<end>");
        assert_eq!(tokenizer.tokenizer_config(8)["bos_token"], "<s>");
    }

    #[test]
    fn boundaries_that_are_no_special_tokens_are_none() {
        let dir = folder(&[VOCABULARY, MERGES]);
        let json = read(dir.path()).unwrap().json().to_owned();
        fs::write(dir.path().join("tokenizer.json"), json).unwrap();
        for config in [r#"{"eos_token": "a"}"#, r#"{"eos_token": "nowhere"}"#, r#"{"eos_token": 3}"#, "{}"] {
            fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
            assert_eq!(read(dir.path()).unwrap().end_of_text(), Some(4), "{config}");
        }
    }

    #[test]
    fn a_broken_file_is_named() {
        for (files, named, reason) in [
            (vec![VOCABULARY], "merges.txt", "cannot read"),
            (vec![VOCABULARY, ("merges.txt", "a x\n")], "vocab.json` with merges.txt", "x"),
            (vec![VOCABULARY, ("merges.txt", "one\n")], "vocab.json` with merges.txt", ""),
            (vec![("vocab.json", "[1]"), MERGES], "vocab.json", "invalid type"),
            (vec![("vocab.json", "{\"a\": -1}"), MERGES], "vocab.json", ""),
            (vec![VOCABULARY, MERGES, ("tokenizer_config.json", "{")], "tokenizer_config.json", "EOF"),
            (vec![], "tokenizer.json", "cannot read"),
        ] {
            let message = read(folder(&files).path()).unwrap_err().to_string();
            assert!(message.contains(named) && message.contains(reason), "{named}: {message}");
        }
    }
}
