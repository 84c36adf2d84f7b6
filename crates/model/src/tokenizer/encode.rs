//! Encoding a text that comes in pieces.

use std::{borrow::Cow, collections::HashMap};

use super::{Inner, Result, Tokenizer, char::CharTable, library::Library, segment::Segmenter};

/// How many segments are remembered with their ids.
const MEMO_ENTRIES: usize = 1 << 16;

/// The longest segment (in bytes) that is worth remembering.
const MEMO_SEGMENT_BYTES: usize = 64;

/// Encodes a text that comes in pieces: the ids are those of the whole text, wherever the pieces are cut.
///
/// Special tokens that the text spells out are text: the token that ends a document comes from
/// [`CorpusEncoder::end_document`] alone.
///
/// A char tokenizer holds nothing back and a byte-level BPE only the text since the last white space. Any other
/// tokenizer may look at the whole text, so for [`super::TokenizerFamily::Other`] all of it is kept and encoded at the end.
pub struct CorpusEncoder<'t> {
    state: State<'t>,
    end_of_text: Option<u32>,
}

enum State<'t> {
    Char { table: &'t CharTable, next_index: u64 },
    Segments { segmenter: Segmenter, memo: Memo<'t> },
    Whole { library: Cow<'t, Library>, text: String },
}

impl<'t> CorpusEncoder<'t> {
    pub(super) fn new(tokenizer: &'t Tokenizer) -> Self {
        let state = match &tokenizer.inner {
            Inner::Char(table) => State::Char { table, next_index: 0 },
            Inner::Library(library) if library.is_byte_level() => {
                State::Segments { segmenter: Segmenter::default(), memo: Memo::new(library.ordinary()) }
            }
            Inner::Library(library) => State::Whole { library: library.ordinary(), text: String::new() },
        };
        Self { state, end_of_text: tokenizer.end_of_text() }
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

    /// Ends a document: appends the ids that remain of it, and the token that ends a text where the tokenizer has one. What
    /// comes next is encoded as if nothing came before it.
    ///
    /// # Errors
    /// When the tokenizer refuses the text.
    pub fn end_document(&mut self, ids: &mut Vec<u32>) -> Result<()> {
        self.flush(ids)?;
        ids.extend(self.end_of_text);
        Ok(())
    }

    /// Ends the text and appends the remaining ids.
    ///
    /// # Errors
    /// When the tokenizer refuses the text.
    pub fn finish(mut self, ids: &mut Vec<u32>) -> Result<()> {
        self.flush(ids)
    }

    fn flush(&mut self, ids: &mut Vec<u32>) -> Result<()> {
        match &mut self.state {
            State::Char { .. } => Ok(()),
            State::Segments { segmenter, memo } => {
                std::mem::take(segmenter).finish(|segment| memo.encode_into(segment, ids))
            }
            State::Whole { library, text } => {
                ids.extend(library.encode(&std::mem::take(text))?);
                Ok(())
            }
        }
    }
}

/// The ids of segments that were seen: most of a text is the same few thousand words.
struct Memo<'t> {
    library: Cow<'t, Library>,
    known: HashMap<String, Vec<u32>>,
}

impl<'t> Memo<'t> {
    fn new(library: Cow<'t, Library>) -> Self {
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
