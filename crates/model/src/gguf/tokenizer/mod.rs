//! A tokenizer in GGUF's metadata: llama.cpp's byte-level BPE, of the model `gpt2`. A table of characters is one too, whose only
//! merges are those of the bytes of one character.

mod read;
mod write;

pub(super) use read::parse;
pub(super) use write::describe;

use crate::tokenizer::byte_level::char_of;

/// llama.cpp's `llama_token_type`.
mod kinds {
    /// Text.
    pub(super) const NORMAL: i32 = 1;
    /// What stands for unknown text.
    pub(super) const UNKNOWN: i32 = 2;
    /// A token that is no text.
    pub(super) const CONTROL: i32 = 3;
    /// One that is found in a text before it is cut into words.
    pub(super) const USER_DEFINED: i32 = 4;
    /// An id that stands for nothing.
    pub(super) const UNUSED: i32 = 5;
}

/// A way to cut text into words, which are then merged each alone.
struct Words {
    /// What llama.cpp calls it: the first is written, any is read.
    names: &'static [&'static str],
    /// The pattern of a word in `tokenizer.json`; `None` is the one that the pre-tokenizer `ByteLevel` has, GPT-2's.
    pattern: Option<&'static str>,
    /// Whether a word that is a token is that token, whatever the merges make of it.
    ignores_merges: bool,
}

/// The ways that are known here. llama.cpp has many more.
const WORDS: &[Words] = &[
    Words { names: &["gpt-2"], pattern: None, ignores_merges: false },
    Words {
        names: &["llama-bpe", "llama3", "llama-v3"],
        pattern: Some(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        ignores_merges: true,
    },
    Words {
        names: &["qwen2"],
        pattern: Some(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        ignores_merges: false,
    },
];

/// The merges that make a character of its bytes. UTF-8 says where a character begins, so that they merge nothing else.
fn merges_of_char(char: char) -> Vec<String> {
    let bytes: Vec<char> = char.to_string().bytes().map(char_of).collect();
    (1..bytes.len()).map(|end| format!("{} {}", bytes[..end].iter().collect::<String>(), bytes[end])).collect()
}
