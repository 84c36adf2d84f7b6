//! The char tokenizer: a table of characters.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::{END_OF_TEXT, Piece, Result, TokenizerError};

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
    /// The id of the token that ends a text, one more than that of the last character, where there is one.
    end_of_text: Option<u32>,
}

impl CharTable {
    pub(super) fn train<S: AsRef<str>, E>(
        pieces: impl IntoIterator<Item = std::result::Result<Piece<S>, E>>,
        with_end_of_text: bool,
    ) -> std::result::Result<Self, E> {
        let mut seen = vec![false; char::MAX as usize + 1];
        for piece in pieces {
            for ch in piece?.text.as_ref().chars() {
                seen[ch as usize] = true;
            }
        }
        Ok(Self::new(('\0'..=char::MAX).filter(|&ch| seen[ch as usize]).collect(), with_end_of_text))
    }

    pub(super) fn new(chars: Vec<char>, with_end_of_text: bool) -> Self {
        let ids: HashMap<char, u32> = chars.iter().copied().zip(0..).collect();
        let mut ascii_ids = [u32::MAX; 128];
        for (slot, ch) in ascii_ids.iter_mut().zip('\0'..) {
            *slot = ids.get(&ch).copied().unwrap_or(u32::MAX);
        }
        let end_of_text = with_end_of_text.then_some(chars.len() as u32);
        Self { chars, ids, ascii_ids, end_of_text }
    }

    pub(super) fn len(&self) -> usize {
        self.chars.len() + usize::from(self.end_of_text.is_some())
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
            let known = self.chars.len();
            let id = self.id_of(ch).ok_or(TokenizerError::UnknownChar { ch, index, vocab_size: known })?;
            ids.push(id);
            index += 1;
        }
        Ok(index)
    }

    /// The table as a standard `tokenizer.json`.
    pub(super) fn to_json(&self) -> Vec<u8> {
        let vocab: serde_json::Map<String, Value> =
            self.chars.iter().zip(0u32..).map(|(ch, id)| (ch.to_string(), id.into())).collect();
        let mut shape = self.shape();
        shape["model"]["vocab"] = Value::Object(vocab);
        format!("{shape:#}\n").into_bytes()
    }

    /// The table in a `tokenizer.json`, if it is one that [`CharTable::to_json`] could have written.
    pub(super) fn from_json(value: &Value) -> Option<Self> {
        // Everything but the vocabulary must be exactly ours: a normalizer, say, would change the text.
        let mut emptied = value.clone();
        let vocab = emptied.get_mut("model")?.get_mut("vocab")?.take();
        let vocab = vocab.as_object()?;
        let mut by_id: Vec<Option<char>> = vec![None; vocab.len()];
        for (text, id) in vocab {
            let mut chars = text.chars();
            let ch = chars.next().filter(|_| chars.next().is_none())?;
            *by_id.get_mut(usize::try_from(id.as_u64()?).ok()?)? = Some(ch);
        }
        // As many ids as characters and no id missing: none is given twice.
        let has_added = emptied.get("added_tokens")?.as_array().is_some_and(|added| !added.is_empty());
        let table = Self::new(by_id.into_iter().collect::<Option<_>>()?, has_added);
        let mut shape = table.shape();
        shape["model"]["vocab"] = Value::Null;
        (emptied == shape).then_some(table)
    }

    pub(super) fn end_of_text(&self) -> Option<u32> {
        self.end_of_text
    }

    /// Appends the text of a token.
    pub(super) fn decode_into(&self, id: u32, text: &mut String) -> Result<()> {
        if Some(id) == self.end_of_text {
            text.push_str(END_OF_TEXT);
        } else {
            text.push(self.char_of(id)?);
        }
        Ok(())
    }

    /// The length of the text of a token in bytes.
    pub(super) fn bytes_of(&self, id: u32) -> Result<usize> {
        if Some(id) == self.end_of_text { Ok(END_OF_TEXT.len()) } else { Ok(self.char_of(id)?.len_utf8()) }
    }

    fn shape(&self) -> Value {
        let end_of_text = self.end_of_text.map(|id| {
            json!({
                "id": id, "content": END_OF_TEXT, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            })
        });
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": end_of_text.into_iter().collect::<Vec<_>>(),
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
