//! Text from ids that come one at a time.

use tokenizers::{
    DecodeStream, DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
};

use super::{Inner, Result, Tokenizer, TokenizerError, char::CharTable, library::Library};

type LibraryStream<'t> =
    DecodeStream<'t, ModelWrapper, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// Decodes ids one at a time into pieces that never end inside of a character.
///
/// The pieces and what [`TextStream::finish`] gives join to [`Tokenizer::decode`] of all the ids.
pub struct TextStream<'t> {
    state: State<'t>,
}

enum State<'t> {
    Char(&'t CharTable),
    Library {
        library: &'t Library,
        stream: Box<LibraryStream<'t>>,
        /// The ids of the last piece: decoders need what comes before to decode what follows.
        shown: Vec<u32>,
        /// The ids that were fed since, whose text is still withheld.
        withheld: Vec<u32>,
    },
}

impl<'t> TextStream<'t> {
    pub(super) fn new(tokenizer: &'t Tokenizer) -> Self {
        let state = match &tokenizer.inner {
            Inner::Char(table) => State::Char(table),
            Inner::Library(library) => State::Library {
                library,
                stream: Box::new(library.inner().decode_stream(false)),
                shown: Vec::new(),
                withheld: Vec::new(),
            },
        };
        Self { state }
    }

    /// Adds the next id and gives the text that it completes, often none.
    ///
    /// # Errors
    /// When the id is not in the vocabulary.
    pub fn push(&mut self, id: u32) -> Result<String> {
        match &mut self.state {
            State::Char(table) => {
                let mut text = String::new();
                table.decode_into(id, &mut text)?;
                Ok(text)
            }
            State::Library { library, stream, shown, withheld } => {
                library.token(id)?;
                withheld.push(id);
                let Some(piece) = stream.step(id).map_err(TokenizerError::library)? else { return Ok(String::new()) };
                *shown = std::mem::take(withheld);
                Ok(piece)
            }
        }
    }

    /// Ends the text and gives the rest of it: a character that was never completed shows as U+FFFD.
    ///
    /// # Errors
    /// When the tokenizers library cannot decode the rest.
    pub fn finish(self) -> Result<String> {
        match self.state {
            State::Char(_) => Ok(String::new()),
            State::Library { library, mut shown, withheld, .. } => {
                let known = library.decode(&shown)?;
                shown.extend(&withheld);
                let all = library.decode(&shown)?;
                match all.strip_prefix(&known) {
                    Some(rest) => Ok(rest.to_owned()),
                    None => library.decode(&withheld),
                }
            }
        }
    }
}
