//! `POST /v1/chat/completions`, for models whose tokenizer has a chat template.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use serde_json::{Value, json};
use tinygpt_model::constraint::Grammar;

use super::{
    Reply,
    error::ApiError,
    fields::Fields,
    limits,
    logprobs::chat_logprob,
    reading,
    stream::{Chunks, stream},
    texts::{RequestTime, TextPlan, Usage, finish_reason},
};
use crate::commands::serve::{Served, engine::Event};

/// What a piece of an answer is.
const CHUNK: &str = "chat.completion.chunk";

/// What is asked for.
struct Request {
    plan: TextPlan,
    prompt: Vec<u32>,
    /// How many of the most probable tokens are told beside each token.
    logprobs: Option<usize>,
    reply: Reply,
}

/// Answers with the next message, whole or in pieces.
pub async fn chat_completions(
    State(served): State<Arc<Served>>,
    time: RequestTime,
    fields: Fields,
) -> Result<Response, ApiError> {
    let Request { plan, prompt, logprobs, reply } = reading(&served, time, fields, Request::take).await?;
    let mut texts = plan.start(&[prompt], logprobs, &time, &served.metrics)?;
    if reply.stream {
        return Ok(stream(texts, StreamedMessages { plan, logprobs: logprobs.is_some(), reply }));
    }
    let mut messages: Vec<_> = (0..plan.n).map(|_| Message::new(logprobs.is_some())).collect();
    while let Some((text, event)) = texts.next().await? {
        messages[text].event(&plan, event)?;
    }
    let choices = || messages.into_iter().enumerate().map(|(index, message)| message.into_json(index)).collect();
    reply.whole("chat.completion", (texts.usage(), time), choices).await
}

impl Request {
    fn take(served: &Served, mut fields: Fields) -> Result<Self, ApiError> {
        let max_tokens = fields.whole("max_completion_tokens", 0..=limits::MAX_TOKENS)?;
        let max_tokens = max_tokens.or(fields.whole("max_tokens", 0..=limits::MAX_TOKENS)?);
        let format = response_format(&mut fields)?;
        let plan = TextPlan::take(served, &mut fields, max_tokens, format)?;
        let Some(template) = served.chat_template(plan.engine.id()) else {
            let message = format!(
                "`{}` has no chat template that can be used, as models that were not trained to chat: use /v1/completions",
                plan.engine.id()
            );
            return Err(ApiError::bad_param("model", message).with_code("no_chat_template"));
        };
        let messages: Vec<Value> = fields.required("messages")?;
        let text = template.render(&messages).map_err(|error| ApiError::bad_param("messages", error))?;
        let prompt = plan.engine.tokenizer().encode(&text).map_err(|error| ApiError::bad_param("messages", error))?;
        if prompt.is_empty() {
            return Err(ApiError::bad_param("messages", "the chat template makes no text of them"));
        }
        TextPlan::check_prompt(&prompt, "messages")?;
        let top = fields.whole("top_logprobs", 0..=limits::TOP_LOGPROBS)?;
        let logprobs = match (fields.take("logprobs")?, top) {
            (Some(true), top) => Some(top.unwrap_or(0)),
            (_, None) => None,
            (_, Some(_)) => return Err(ApiError::bad_param("top_logprobs", "is for requests with logprobs: true")),
        };
        let reply = Reply::take(&mut fields, "chatcmpl", &plan)?;
        fields.finish()?;
        if !reply.stream {
            plan.check_whole(1, 0, logprobs)?;
        }
        Ok(Self { plan, prompt, logprobs, reply })
    }
}

/// What the message must be.
fn response_format(fields: &mut Fields) -> Result<Option<Grammar>, ApiError> {
    let Some(format) = fields.take::<Value>("response_format")? else { return Ok(None) };
    match format["type"].as_str() {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(Grammar::JsonSchema(json!({ "type": "object" })))),
        Some("json_schema") if !format["json_schema"]["schema"].is_null() => {
            Ok(Some(Grammar::JsonSchema(format["json_schema"]["schema"].clone())))
        }
        Some("json_schema") => Err(ApiError::bad_param("response_format", "json_schema.schema is missing")),
        _ => Err(ApiError::bad_param("response_format", "type must be text, json_object or json_schema")),
    }
}

/// The message as it grows.
struct Message {
    text: String,
    logprobs: Option<Vec<Value>>,
    finish_reason: Option<&'static str>,
}

impl Message {
    fn new(logprobs: bool) -> Self {
        Self { text: String::new(), logprobs: logprobs.then(Vec::new), finish_reason: None }
    }

    fn event(&mut self, plan: &TextPlan, event: Event) -> Result<(), ApiError> {
        match event {
            Event::Token(token) => {
                if let Some(logprobs) = &mut self.logprobs {
                    logprobs.extend(chat_logprob(plan.engine.tokenizer(), &token)?);
                }
                self.text += &token.piece;
            }
            Event::Ended { by, rest } => {
                self.text += &rest;
                self.finish_reason = Some(finish_reason(by));
            }
            Event::Failed(failure) => return Err(failure.into()),
        }
        Ok(())
    }

    fn logprobs(&self) -> Value {
        self.logprobs.as_ref().map_or(Value::Null, |content| json!({ "content": content, "refusal": null }))
    }

    fn into_json(self, index: usize) -> Value {
        json!({
            "index": index,
            "logprobs": self.logprobs(),
            "finish_reason": self.finish_reason,
            "message": { "role": "assistant", "content": self.text, "refusal": null },
        })
    }
}

/// Messages that are told piece by piece.
struct StreamedMessages {
    plan: TextPlan,
    logprobs: bool,
    reply: Reply,
}

impl StreamedMessages {
    fn chunk(&self, choice: Value) -> Value {
        self.reply.chunk(CHUNK, choice)
    }
}

impl Chunks for StreamedMessages {
    fn begin(&mut self) -> Vec<Value> {
        let delta = json!({ "role": "assistant", "content": "" });
        let begin = |index| json!({ "index": index, "delta": delta, "logprobs": null, "finish_reason": null });
        (0..self.plan.n).map(|index| self.chunk(begin(index))).collect()
    }

    fn event(&mut self, index: usize, event: Event) -> Result<Option<Value>, ApiError> {
        let mut piece = Message::new(self.logprobs);
        piece.event(&self.plan, event)?;
        if piece.text.is_empty() && piece.logprobs.is_none() && piece.finish_reason.is_none() {
            return Ok(None);
        }
        let delta = if piece.text.is_empty() { json!({}) } else { json!({ "content": piece.text }) };
        let (logprobs, finish_reason) = (piece.logprobs(), piece.finish_reason);
        Ok(Some(self.chunk(json!({
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }))))
    }

    fn end(&mut self, usage: Usage) -> Option<Value> {
        self.reply.usage_chunk(CHUNK, usage)
    }
}
