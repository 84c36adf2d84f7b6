//! A text as it grows: what `generate` prints and `serve` sends.

use std::ops::ControlFlow;

use tinygpt_model::{
    ModelError, Tokenizer,
    constraint::Constraint,
    tokenizer::{StopStrings, TextStream},
};

/// Why a text ends by itself, before its length does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// By a stop string, or the token that ends texts.
    Stop,
    /// The text of a grammar is complete.
    Grammar,
}

impl Ending {
    /// As JSON spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Grammar => "grammar",
        }
    }
}

/// The text of the tokens so far: settled pieces, stop strings, the end of text and a grammar.
pub struct GrowingText<'t> {
    /// None once the rest was taken.
    stream: Option<TextStream<'t>>,
    stops: StopStrings,
    tokenizer: &'t Tokenizer,
    constraint: Option<Constraint>,
}

impl<'t> GrowingText<'t> {
    /// A text without a token.
    pub fn new(tokenizer: &'t Tokenizer, stops: StopStrings, constraint: Option<Constraint>) -> Self {
        Self { stream: Some(tokenizer.text_stream()), stops, tokenizer, constraint }
    }

    /// Whether [`GrowingText::mask`] does anything.
    pub fn is_constrained(&self) -> bool {
        self.constraint.is_some()
    }

    /// Whether a grammar would let the text end here.
    pub fn is_complete(&mut self) -> bool {
        self.constraint.as_mut().is_none_or(Constraint::may_end)
    }

    /// Masks the logits `[V]` of tokens that the grammar does not allow. `Break` where it allows none: the text is over.
    pub fn mask(&mut self, logits: &mut [f32]) -> Result<ControlFlow<Ending>, ModelError> {
        let Some(constraint) = &mut self.constraint else { return Ok(ControlFlow::Continue(())) };
        Ok(constraint.mask(logits)?.map_break(|()| Ending::Grammar))
    }

    /// The text that a token settles, and whether it ends the text.
    pub fn push(&mut self, token: u32) -> Result<(String, ControlFlow<Ending>), ModelError> {
        let over = ControlFlow::Break(Ending::Stop);
        let Some(stream) = self.stream.as_mut().filter(|_| !self.tokenizer.ends_text(token)) else {
            return Ok((String::new(), over));
        };
        let (piece, is_over) = self.stops.push(&stream.push(token)?);
        if is_over {
            return Ok((piece, over));
        }
        let next = match &mut self.constraint {
            Some(constraint) => constraint.accept(token)?.map_break(|()| Ending::Grammar),
            None => ControlFlow::Continue(()),
        };
        Ok((piece, next))
    }

    /// The rest: what was held back for a stop string or an unfinished character, and the ending where there is a stop in it. Of
    /// stops `abX` and `b`, the text `ab` may become the first until it is over.
    pub fn finish(&mut self) -> Result<(String, Option<Ending>), ModelError> {
        let Some(stream) = self.stream.take() else { return Ok((String::new(), None)) };
        let (text, _) = self.stops.push(&stream.finish()?);
        let rest = text + &self.stops.finish();
        Ok((rest, self.stops.stopped().then_some(Ending::Stop)))
    }
}

#[cfg(test)]
mod tests {
    use tinygpt_model::TokenizerError;

    use super::*;

    #[test]
    fn a_stop_that_a_longer_one_held_back_ends_the_text_all_the_same() {
        let tokenizer = Tokenizer::train_char([Ok::<_, TokenizerError>("abcX")]).unwrap();
        let stops = StopStrings::new(vec!["abX".into(), "b".into()]).unwrap();
        for (tokens, rest) in [("cab", ("a", Some(Ending::Stop))), ("ca", ("a", None)), ("c", ("", None))] {
            let mut text = GrowingText::new(&tokenizer, stops.clone(), None);
            let mut told = String::new();
            for token in tokenizer.encode(tokens).unwrap() {
                let (piece, next) = text.push(token).unwrap();
                assert_eq!(next, ControlFlow::Continue(()));
                told += &piece;
            }
            assert_eq!(told, "c");
            assert_eq!(text.finish().unwrap(), (rest.0.to_owned(), rest.1));
        }
    }
}
