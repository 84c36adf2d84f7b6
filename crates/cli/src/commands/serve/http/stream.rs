//! Answers that come in pieces: server-sent events.

use std::{collections::VecDeque, convert::Infallible, time::Duration};

use axum::response::{
    IntoResponse, Response,
    sse::{Event as SseEvent, KeepAlive, Sse},
};
use serde_json::Value;

use super::{
    error::ApiError,
    texts::{Texts, Usage},
};
use crate::commands::serve::engine::Event;

/// A stream in which nothing happens says so this often, so that a client that is gone is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// What the last event says.
const DONE: &str = "[DONE]";

/// What is told of the texts of a request, in the words of its route.
pub trait Chunks: Send + 'static {
    /// What comes before all texts.
    fn begin(&mut self) -> Vec<Value>;
    /// What an event of a text is told as, if it is.
    fn event(&mut self, text: usize, event: Event) -> Result<Option<Value>, ApiError>;
    /// What comes after all texts.
    fn end(&mut self, usage: Usage) -> Option<Value>;
}

/// Tells the events of texts as they come, then `[DONE]`; an error ends the stream in its place.
pub fn stream(texts: Texts, mut chunks: impl Chunks) -> Response {
    let waiting = chunks.begin().iter().map(Value::to_string).collect();
    let state = State { texts, chunks, waiting, is_over: false };
    let events = futures_util::stream::unfold(state, |mut state| async {
        let data = state.next().await?;
        Some((Ok::<_, Infallible>(SseEvent::default().data(data)), state))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

struct State<C> {
    texts: Texts,
    chunks: C,
    /// Data that is to be sent before anything else happens.
    waiting: VecDeque<String>,
    is_over: bool,
}

impl<C: Chunks> State<C> {
    /// The data of the next event.
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(data) = self.waiting.pop_front() {
                return Some(data);
            }
            if self.is_over {
                return None;
            }
            if let Err(error) = self.advance().await {
                self.is_over = true;
                self.waiting.push_back(error.body().to_string());
            }
        }
    }

    /// Waits for an event of a text, or for the end of all.
    async fn advance(&mut self) -> Result<(), ApiError> {
        let chunk = match self.texts.next().await? {
            Some((text, event)) => self.chunks.event(text, event)?,
            None => {
                self.is_over = true;
                self.chunks.end(self.texts.usage())
            }
        };
        self.waiting.extend(chunk.map(|chunk| chunk.to_string()));
        if self.is_over {
            self.waiting.push_back(DONE.into());
        }
        Ok(())
    }
}
