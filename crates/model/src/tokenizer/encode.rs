//! Encoding a text that comes in pieces.

use std::collections::HashMap;

use super::{Inner, Result, Tokenizer, char::CharTable, library::Library, segment::Segmenter};

/// How many segments are remembered with their ids.
const MEMO_ENTRIES: usize = 1 << 16;

/// The longest segment (in bytes) that is worth remembering.
const MEMO_SEGMENT_BYTES: usize = 64;

/// Encodes a text that comes in pieces: the ids are those of the whole text, wherever the pieces are cut.
///
/// A char tokenizer holds nothing back and a byte-level BPE only the text since the last white space. Any other
/// tokenizer may look at the whole text, so for [`super::TokenizerFamily::Other`] all of it is kept and encoded at the end.
pub struct CorpusEncoder<'t> {
    state: State<'t>,
}

enum State<'t> {
    Char { table: &'t CharTable, next_index: u64 },
    Segments { segmenter: Segmenter, memo: Memo<'t> },
    Whole { library: &'t Library, text: String },
}

impl<'t> CorpusEncoder<'t> {
    pub(super) fn new(tokenizer: &'t Tokenizer) -> Self {
        let state = match &tokenizer.inner {
            Inner::Char(table) => State::Char { table, next_index: 0 },
            Inner::Library(library) if library.is_byte_level() => {
                State::Segments { segmenter: Segmenter::default(), memo: Memo::new(library) }
            }
            Inner::Library(library) => State::Whole { library, text: String::new() },
        };
        Self { state }
    }

    /// Adds the next piece of the text and appends the ids that are settled.
    ///
    /// # Errors
    /// When a char tokenizer meets a character that it does not know; its index counts from the first piece.
    pub fn push(&mut self, piece: &str, ids: &mut Vec<u32>) -> Result<()> {
        match &mut self.state {
            State::Char { table, next_index } => *next_index = table.encode_into(piece, *next_index, ids)?,
            State::Segments { segmenter, memo } => segmenter.push(piece, |segment| memo.encode_into(segment, ids))?,
            State::Whole { text, .. } => text.push_str(piece),
        }
        Ok(())
    }

    /// Ends the text and appends the remaining ids.
    ///
    /// # Errors
    /// When the tokenizer refuses the text.
    pub fn finish(self, ids: &mut Vec<u32>) -> Result<()> {
        match self.state {
            State::Char { .. } => Ok(()),
            State::Segments { segmenter, mut memo } => segmenter.finish(|segment| memo.encode_into(segment, ids)),
            State::Whole { library, text } => {
                ids.extend(library.encode(&text)?);
                Ok(())
            }
        }
    }
}

/// The ids of segments that were seen: most of a text is the same few thousand words.
struct Memo<'t> {
    library: &'t Library,
    known: HashMap<String, Vec<u32>>,
}

impl<'t> Memo<'t> {
    fn new(library: &'t Library) -> Self {
        Self { library, known: HashMap::new() }
    }

    fn encode_into(&mut self, segment: &str, ids: &mut Vec<u32>) -> Result<()> {
        if let Some(known) = self.known.get(segment) {
            ids.extend_from_slice(known);
            return Ok(());
        }
        let new = self.library.encode(segment)?;
        ids.extend_from_slice(&new);
        if self.known.len() < MEMO_ENTRIES && segment.len() <= MEMO_SEGMENT_BYTES {
            self.known.insert(segment.to_owned(), new);
        }
        Ok(())
    }
}
