//! The char tokenizer: a table of characters.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::{Result, TokenizerError};

/// The regular expression that matches one character, whichever it is (`.` would leave out line ends).
const ANY_CHAR: &str = r"[\s\S]";

/// `WordLevel` demands the name of an unknown token. As it has more than one character it is never in the vocabulary,
/// so that Python's library refuses an unknown character too.
const UNKNOWN: &str = "<unk>";

/// The characters by id and the ids by character.
#[derive(Debug, Clone)]
pub(super) struct CharTable {
    chars: Vec<char>,
    ids: HashMap<char, u32>,
    /// The same for ASCII, where nearly all lookups go: `u32::MAX` is no id.
    ascii_ids: [u32; 128],
}

impl CharTable {
    pub(super) fn train<S: AsRef<str>, E>(
        pieces: impl IntoIterator<Item = std::result::Result<S, E>>,
    ) -> std::result::Result<Self, E> {
        let mut seen = vec![false; char::MAX as usize + 1];
        for piece in pieces {
            for ch in piece?.as_ref().chars() {
                seen[ch as usize] = true;
            }
        }
        Ok(Self::new(('\0'..=char::MAX).filter(|&ch| seen[ch as usize]).collect()))
    }

    pub(super) fn new(chars: Vec<char>) -> Self {
        let ids: HashMap<char, u32> = chars.iter().copied().zip(0..).collect();
        let mut ascii_ids = [u32::MAX; 128];
        for (slot, ch) in ascii_ids.iter_mut().zip('\0'..) {
            *slot = ids.get(&ch).copied().unwrap_or(u32::MAX);
        }
        Self { chars, ids, ascii_ids }
    }

    pub(super) fn len(&self) -> usize {
        self.chars.len()
    }

    pub(super) fn id_of(&self, ch: char) -> Option<u32> {
        match self.ascii_ids.get(ch as usize) {
            Some(&id) => (id != u32::MAX).then_some(id),
            None => self.ids.get(&ch).copied(),
        }
    }

    pub(super) fn char_of(&self, id: u32) -> Result<char> {
        let vocab_size = self.len();
        self.chars.get(id as usize).copied().ok_or(TokenizerError::UnknownId { id, vocab_size })
    }

    /// Appends the ids of `text`, whose first character has the index `first_index`; gives the index after the last.
    pub(super) fn encode_into(&self, text: &str, first_index: u64, ids: &mut Vec<u32>) -> Result<u64> {
        let mut index = first_index;
        for ch in text.chars() {
            let id = self.id_of(ch).ok_or(TokenizerError::UnknownChar { ch, index, vocab_size: self.len() })?;
            ids.push(id);
            index += 1;
        }
        Ok(index)
    }

    /// The table as a standard `tokenizer.json`.
    pub(super) fn to_json(&self) -> Vec<u8> {
        let vocab: serde_json::Map<String, Value> =
            self.chars.iter().zip(0u32..).map(|(ch, id)| (ch.to_string(), id.into())).collect();
        let mut shape = Self::shape();
        shape["model"]["vocab"] = Value::Object(vocab);
        format!("{shape:#}\n").into_bytes()
    }

    /// The table in a `tokenizer.json`, if it is one that [`CharTable::to_json`] could have written.
    pub(super) fn from_json(value: &Value) -> Option<Self> {
        // Everything but the vocabulary must be exactly ours: a normalizer, say, would change the text.
        let mut emptied = value.clone();
        let vocab = emptied.get_mut("model")?.get_mut("vocab")?.take();
        let mut shape = Self::shape();
        shape["model"]["vocab"] = Value::Null;
        if emptied != shape {
            return None;
        }
        let vocab = vocab.as_object()?;
        let mut by_id: Vec<Option<char>> = vec![None; vocab.len()];
        for (text, id) in vocab {
            let mut chars = text.chars();
            let ch = chars.next().filter(|_| chars.next().is_none())?;
            *by_id.get_mut(usize::try_from(id.as_u64()?).ok()?)? = Some(ch);
        }
        // As many ids as characters and no id missing: none is given twice.
        Some(Self::new(by_id.into_iter().collect::<Option<_>>()?))
    }

    fn shape() -> Value {
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": [],
            "normalizer": null,
            "pre_tokenizer": {
                "type": "Split", "pattern": { "Regex": ANY_CHAR }, "behavior": "Isolated", "invert": false
            },
            "post_processor": null,
            "decoder": { "type": "Fuse" },
            "model": { "type": "WordLevel", "vocab": {}, "unk_token": UNKNOWN },
        })
    }
}
