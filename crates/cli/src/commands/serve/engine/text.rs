//! A text as it grows.

use std::ops::ControlFlow;

use tinygpt_model::{
    Generation, GenerationHooks, ModelError, Tokenizer,
    constraint::Constraint,
    tokenizer::{StopStrings, TextStream},
};
use tokio::sync::mpsc::UnboundedSender;

use super::{EndedBy, Event, GeneratedToken, Measured, TextRequest};

/// The text of a request.
pub struct Text<'a> {
    request: &'a TextRequest,
    stream: Option<TextStream<'a>>,
    stops: StopStrings,
    end_of_text: Option<u32>,
    constraint: Option<Constraint>,
    measured: Option<Vec<f32>>,
    ended_by: EndedBy,
    events: UnboundedSender<Event>,
}

impl<'a> Text<'a> {
    /// A text without a token.
    pub fn new(tokenizer: &'a Tokenizer, request: &'a TextRequest, events: UnboundedSender<Event>) -> Self {
        Self {
            request,
            stream: Some(tokenizer.text_stream()),
            stops: request.stops.clone(),
            end_of_text: tokenizer.end_of_text(),
            constraint: request.constraint.clone(),
            measured: None,
            ended_by: EndedBy::Length,
            events,
        }
    }

    /// What the token loop is asked for.
    pub fn generation(&self) -> Generation<'a> {
        let TextRequest { prompt, sequence, max_new_tokens, .. } = self.request;
        Generation { prompt, first_sequence: *sequence, rows: 1, max_new_tokens: *max_new_tokens }
    }

    /// Tells how the text ended.
    pub fn end(mut self, result: Result<(), ModelError>) {
        let event = match result.and_then(|()| self.rest()) {
            Ok(rest) => Event::Ended { by: self.ended_by, rest },
            Err(error) => Event::Failed(error.to_string()),
        };
        // A receiver that is gone has no need of it.
        self.events.send(event).ok();
    }

    fn rest(&mut self) -> Result<String, ModelError> {
        let Some(stream) = self.stream.take() else { return Ok(String::new()) };
        let (text, _) = self.stops.push(&stream.finish()?);
        Ok(text + &self.stops.finish())
    }
}

impl GenerationHooks for Text<'_> {
    fn reads_logits(&self) -> bool {
        self.request.top.is_some() || self.constraint.is_some()
    }

    fn logits(&mut self, _: usize, logits: &mut [f32]) -> Result<ControlFlow<()>, ModelError> {
        self.measured = self.request.top.map(|_| logits.to_vec());
        let Some(constraint) = &mut self.constraint else { return Ok(ControlFlow::Continue(())) };
        let next = constraint.mask(logits)?;
        if next.is_break() {
            self.ended_by = EndedBy::Grammar;
        }
        Ok(next)
    }

    fn token(&mut self, _: usize, id: u32) -> Result<ControlFlow<()>, ModelError> {
        let (piece, is_over) = match &mut self.stream {
            Some(stream) if Some(id) != self.end_of_text => self.stops.push(&stream.push(id)?),
            _ => (String::new(), true),
        };
        let measured = self.measured.take().zip(self.request.top);
        let measured = measured.map(|(logits, top)| Measured::of(&logits, id, top));
        let gone = self.events.send(Event::Token(GeneratedToken { id, piece, measured })).is_err();
        if is_over {
            self.ended_by = EndedBy::Stop;
        }
        if gone || is_over {
            return Ok(ControlFlow::Break(()));
        }
        let Some(constraint) = &mut self.constraint else { return Ok(ControlFlow::Continue(())) };
        let next = constraint.accept(id)?;
        if next.is_break() {
            self.ended_by = EndedBy::Grammar;
        }
        Ok(next)
    }
}
