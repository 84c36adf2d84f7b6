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
    end_of_text: Option<u32>,
    constraint: Option<Constraint>,
}

impl<'t> GrowingText<'t> {
    /// A text without a token.
    pub fn new(tokenizer: &'t Tokenizer, stops: StopStrings, constraint: Option<Constraint>) -> Self {
        Self { stream: Some(tokenizer.text_stream()), stops, end_of_text: tokenizer.end_of_text(), constraint }
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
        let Some(stream) = self.stream.as_mut().filter(|_| Some(token) != self.end_of_text) else {
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

    /// The rest: what was held back for a stop string or an unfinished character.
    pub fn finish(&mut self) -> Result<String, ModelError> {
        let Some(stream) = self.stream.take() else { return Ok(String::new()) };
        let (text, _) = self.stops.push(&stream.finish()?);
        Ok(text + &self.stops.finish())
    }
}
