//! The tokens that begin and end a text.

use super::Tokenizer;

/// The ids of the special tokens at the begin and the end of texts.
#[derive(Debug, Clone, Default)]
pub(super) struct Boundaries {
    /// The token that begins a text, where the folder says so.
    begin: Option<u32>,
    /// The token that ends a text.
    end: Option<u32>,
    /// Others that end what is generated: of a turn in a chat, say.
    other_ends: Vec<u32>,
}

impl Boundaries {
    /// No token but perhaps one that ends texts.
    pub(super) fn ending(end: Option<u32>) -> Self {
        Self { end, ..Self::default() }
    }
}

impl Tokenizer {
    /// The same with these tokens at the begin and the end of a text, as far as they are special ones.
    pub(crate) fn with_boundaries(mut self, begin: Option<&str>, end: Option<&str>) -> Self {
        let id = |token: Option<&str>| token.and_then(|token| self.inner.special_id(token));
        let (begin, end) = (id(begin), id(end));
        self.boundaries.begin = begin;
        self.boundaries.end = end.or(self.boundaries.end);
        self
    }

    /// The same where these tokens, too, end what is generated, as far as the vocabulary has them.
    pub(crate) fn with_other_ends(mut self, ends: impl IntoIterator<Item = u32>) -> Self {
        let (end, tokens) = (self.boundaries.end, self.vocab_size());
        let mut others: Vec<u32> = Vec::new();
        for id in ends {
            if Some(id) != end && (id as usize) < tokens && !others.contains(&id) {
                others.push(id);
            }
        }
        self.boundaries.other_ends = others;
        self
    }

    /// The id of the special token that ends a text, if the tokenizer has one: what its folder says, or GPT-2's
    /// `<|endoftext|>`; of those that are trained here, the ones of a text of documents have it.
    pub fn end_of_text(&self) -> Option<u32> {
        self.boundaries.end
    }

    /// The ids of further tokens that end what is generated, where the folder lists several.
    pub fn other_ends(&self) -> &[u32] {
        &self.boundaries.other_ends
    }

    /// Whether a token ends what is generated.
    pub fn ends_text(&self, token: u32) -> bool {
        self.boundaries.end == Some(token) || self.boundaries.other_ends.contains(&token)
    }

    /// The id of the special token that begins a text: what its folder says, or the one that ends a text, as GPT-2 has it.
    pub fn begin_of_text(&self) -> Option<u32> {
        self.boundaries.begin.or(self.boundaries.end)
    }

    /// The token that a text starts behind where there is no prompt: the one that begins a text, the end of another text, or
    /// a line break; in a vocabulary without any, its first token.
    pub fn start_token(&self) -> u32 {
        self.begin_of_text().or_else(|| self.id_of("\n")).unwrap_or(0)
    }
}
