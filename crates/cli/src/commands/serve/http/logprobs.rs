//! What the model itself made of tokens, as completions and chats tell it.

use std::time::Duration;

use serde_json::{Map, Value, json};
use tinygpt_model::Tokenizer;
use tokio::time::{Instant, timeout_at};

use super::{error::ApiError, texts::too_long};
use crate::{
    commands::serve::engine::{Engine, GeneratedToken, Measured, Refused},
    token_text::text_of,
};

/// What a request that has begun waits before it asks a full queue again.
const TRY_AGAIN: Duration = Duration::from_millis(20);

/// The text of a token; models may have more tokens than their tokenizer.
pub fn token_text(tokenizer: &Tokenizer, id: u32) -> Result<String, ApiError> {
    text_of(tokenizer, id).map_err(ApiError::internal)
}

/// How many characters begin in a token: what it adds to the offset of those after it.
fn chars_of(tokenizer: &Tokenizer, id: u32) -> usize {
    let is_start = |byte: &u8| byte & 0b1100_0000 != 0b1000_0000;
    match tokenizer.token_content(id) {
        Some(bytes) => bytes.iter().filter(|byte| is_start(byte)).count(),
        // A special token is in the text by its name.
        None => tokenizer.token_text(id).map_or(0, |name| name.chars().count()),
    }
}

/// `logprobs` of a completion, of some of its tokens.
#[derive(Debug, Default)]
pub struct CompletionLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f64>>,
    top_logprobs: Vec<Option<Map<String, Value>>>,
    text_offset: Vec<usize>,
}

impl CompletionLogprobs {
    /// Adds a token that begins at this character of the text, and gives where the next one does. The first token of a text
    /// has nothing that it could have been expected from.
    pub fn push(
        &mut self,
        tokenizer: &Tokenizer,
        id: u32,
        measured: Option<&Measured>,
        offset: usize,
    ) -> Result<usize, ApiError> {
        let text = token_text(tokenizer, id)?;
        let top = measured.map(|measured| {
            let mut top = Map::new();
            for &(id, logprob) in &measured.top {
                top.insert(token_text(tokenizer, id)?, json!(logprob));
            }
            top.insert(text.clone(), json!(measured.logprob));
            Ok::<_, ApiError>(top)
        });
        self.tokens.push(text);
        self.token_logprobs.push(measured.map(|measured| measured.logprob));
        self.top_logprobs.push(top.transpose()?);
        self.text_offset.push(offset);
        Ok(offset + chars_of(tokenizer, id))
    }

    pub fn to_json(&self) -> Value {
        json!({
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        })
    }
}

/// A token in `logprobs.content` of a chat.
pub fn chat_logprob(tokenizer: &Tokenizer, token: &GeneratedToken) -> Result<Option<Value>, ApiError> {
    let Some(measured) = &token.measured else { return Ok(None) };
    let entry = |(id, logprob): (u32, f64)| {
        let bytes = tokenizer.token_content(id);
        let text = token_text(tokenizer, id)?;
        Ok::<_, ApiError>(json!({ "token": text, "logprob": logprob, "bytes": bytes }))
    };
    let mut drawn = entry((token.id, measured.logprob))?;
    drawn["top_logprobs"] = measured.top.iter().copied().map(entry).collect::<Result<_, _>>()?;
    Ok(Some(drawn))
}

/// Asks an engine for what it makes of the tokens of prompts.
pub struct PromptLogits<'e> {
    engine: &'e Engine,
    deadline: Instant,
    /// A computation was taken: from then on, the request waits where there is no room.
    has_begun: bool,
}

impl<'e> PromptLogits<'e> {
    /// The prompts of a request with this deadline.
    pub fn new(engine: &'e Engine, deadline: Instant) -> Self {
        Self { engine, deadline, has_begun: false }
    }

    /// The tokens of a prompt in the model's own distribution, each after those before it; the first has none.
    pub async fn measured(&mut self, prompt: &[u32], top: usize) -> Result<Vec<Option<Measured>>, ApiError> {
        let mut all = vec![None];
        for at in 1..prompt.len() {
            let logits = self.after(&prompt[..at]).await?;
            all.push(Some(Measured::of(&logits, prompt[at], top)));
        }
        Ok(all)
    }

    /// The logits of the token after a prompt, `[V]`.
    pub async fn after(&mut self, prompt: &[u32]) -> Result<Vec<f32>, ApiError> {
        timeout_at(self.deadline, self.computed(prompt)).await.unwrap_or_else(|_| Err(too_long()))
    }

    async fn computed(&mut self, prompt: &[u32]) -> Result<Vec<f32>, ApiError> {
        loop {
            match self.engine.logits(prompt.to_vec()).await {
                // What was computed would be lost with the request.
                Err(Refused::QueueFull) if self.has_begun => tokio::time::sleep(TRY_AGAIN).await,
                logits => {
                    self.has_begun = true;
                    return logits?.map_err(ApiError::internal);
                }
            }
        }
    }
}
