//! `POST /v1/completions`.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use serde_json::{Value, json};
use tinygpt_model::Tokenizer;

use super::{
    Reply,
    error::ApiError,
    fields::Fields,
    limits,
    logprobs::{CompletionLogprobs, PromptLogits},
    reading,
    stream::{Chunks, stream},
    texts::{RequestTime, TextPlan, Usage, finish_reason},
};
use crate::commands::serve::{
    Served,
    engine::{Event, Measured},
};

/// What an answer and each of its pieces are.
const COMPLETION: &str = "text_completion";

/// What is asked for.
struct Request {
    plan: TextPlan,
    prompts: Vec<Prompt>,
    /// The prompt is told before the text.
    echo: bool,
    /// How many of the most probable tokens are told beside each token.
    logprobs: Option<usize>,
    reply: Reply,
}

/// A text to continue.
#[derive(Debug, Clone, Default)]
struct Prompt {
    /// What is echoed: nothing, for the token that stands for no prompt.
    text: String,
    tokens: Vec<u32>,
    /// Of each token, where echo and logprobs are asked for.
    measured: Vec<Option<Measured>>,
}

/// Answers with the texts, whole or in pieces.
pub async fn completions(
    State(served): State<Arc<Served>>,
    time: RequestTime,
    fields: Fields,
) -> Result<Response, ApiError> {
    let mut request = reading(&served, time, fields, Request::take).await?;
    if let (true, Some(top)) = (request.echo, request.logprobs) {
        let mut logits = PromptLogits::new(&request.plan.engine, time.deadline);
        for prompt in request.prompts.iter_mut().filter(|prompt| !prompt.text.is_empty()) {
            prompt.measured = logits.measured(&prompt.tokens, top).await?;
        }
    }
    let tokens: Vec<_> = request.prompts.iter().map(|prompt| prompt.tokens.clone()).collect();
    let mut texts = request.plan.start(&tokens, request.logprobs, &time, &served.metrics)?;
    let (reply, mut choices) = (request.reply.clone(), Choices::of(request)?);
    if reply.stream {
        return Ok(stream(texts, StreamedChoices { choices, reply }));
    }
    while let Some((text, event)) = texts.next().await? {
        choices.event(text, event)?;
    }
    let all = move || choices.all.iter().enumerate().map(|(index, choice)| choice.to_json(index)).collect();
    reply.whole(COMPLETION, (texts.usage(), time), all).await
}

impl Request {
    fn take(served: &Served, mut fields: Fields) -> Result<Self, ApiError> {
        let max_tokens = fields.whole("max_tokens", 0..=limits::MAX_TOKENS)?;
        let plan = TextPlan::take(served, &mut fields, max_tokens, None)?;
        let prompts = prompts(&mut fields, &plan)?;
        if prompts.len() * plan.n > served.max_texts {
            let message =
                format!("{} texts are asked for, but {} at most are taken", prompts.len() * plan.n, served.max_texts);
            return Err(ApiError::bad_param("n", message));
        }
        let echo = fields.take("echo")?.unwrap_or(false);
        let logprobs = fields.whole("logprobs", 0..=limits::TOP_LOGPROBS)?;
        if let Some(best_of) = fields.take::<usize>("best_of")?.filter(|&best_of| best_of != plan.n) {
            let message = format!("is {best_of}, but no more texts are generated than n = {}", plan.n);
            return Err(ApiError::bad_param("best_of", message));
        }
        if fields.take::<String>("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
            return Err(ApiError::bad_param("suffix", "a text cannot be filled in: these models only continue one"));
        }
        let reply = Reply::take(&mut fields, "cmpl", &plan)?;
        fields.finish()?;
        let tokens: usize = prompts.iter().map(|prompt| prompt.tokens.len()).sum();
        if echo && logprobs.is_some() && tokens > limits::ECHOED_LOGPROBS {
            let message = format!(
                "{tokens} tokens are to be echoed with logprobs, but {} at most are, each of which is a computation of its own",
                limits::ECHOED_LOGPROBS
            );
            return Err(ApiError::bad_param("prompt", message));
        }
        if !reply.stream {
            plan.check_whole(prompts.len(), if echo { tokens } else { 0 }, logprobs)?;
        }
        Ok(Self { plan, prompts, echo, logprobs, reply })
    }
}

/// A text, tokens, or some of either. None is the empty text.
fn prompts(fields: &mut Fields, plan: &TextPlan) -> Result<Vec<Prompt>, ApiError> {
    let bad = |message: &str| ApiError::bad_param("prompt", message);
    let kinds = "must be a string, an array of strings, an array of tokens or an array of arrays of tokens";
    let of_text = |text: &Value| Prompt::of_text(text.as_str().ok_or_else(|| bad(kinds))?, plan);
    let of_tokens = |tokens: &Value| {
        let tokens = serde_json::from_value(tokens.clone()).map_err(|_| bad(kinds))?;
        Prompt::of_tokens(tokens, plan)
    };
    match fields.take::<Value>("prompt")? {
        None => Ok(vec![Prompt::of_text("", plan)?]),
        Some(text @ Value::String(_)) => Ok(vec![of_text(&text)?]),
        Some(Value::Array(several)) => match several.first() {
            None => Err(bad("is an empty array")),
            Some(Value::String(_)) => several.iter().map(of_text).collect(),
            Some(Value::Array(_)) => several.iter().map(of_tokens).collect(),
            Some(_) => Ok(vec![of_tokens(&Value::Array(several))?]),
        },
        Some(_) => Err(bad(kinds)),
    }
}

impl Prompt {
    /// As `tinygpt generate --prompt`: no text is the token that texts start behind.
    fn of_text(text: &str, plan: &TextPlan) -> Result<Self, ApiError> {
        let tokens = plan.engine.tokenizer().encode_prompt(text);
        let tokens = tokens.map_err(|error| ApiError::bad_param("prompt", error))?;
        TextPlan::check_prompt(&tokens, "prompt")?;
        Ok(Self { text: text.into(), tokens, measured: Vec::new() })
    }

    fn of_tokens(tokens: Vec<u32>, plan: &TextPlan) -> Result<Self, ApiError> {
        let bad = |message: String| Err(ApiError::bad_param("prompt", message));
        let vocab_size = plan.engine.generator().vocab_size();
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocab_size) {
            return bad(format!("token {token} is not below the vocabulary size {vocab_size}"));
        }
        if tokens.is_empty() {
            return bad("has no token".into());
        }
        TextPlan::check_prompt(&tokens, "prompt")?;
        let tokenizer = plan.engine.tokenizer();
        // A model may have more tokens than its tokenizer.
        let in_tokenizer: Vec<u32> =
            tokens.iter().copied().filter(|&id| (id as usize) < tokenizer.vocab_size()).collect();
        let text = tokenizer.decode(&in_tokenizer).map_err(|error| ApiError::bad_param("prompt", error))?;
        Ok(Self { text, tokens, measured: Vec::new() })
    }
}

/// The texts as they grow.
struct Choices {
    plan: TextPlan,
    all: Vec<Choice>,
}

/// What has been generated of a text, or in a stream what has not been told of it.
#[derive(Debug, Default)]
struct Choice {
    text: String,
    logprobs: Option<CompletionLogprobs>,
    /// The character of the text at which the next token begins.
    offset: usize,
    finish_reason: Option<&'static str>,
}

impl Choices {
    /// The texts without a token, but with their prompts where they are echoed.
    fn of(request: Request) -> Result<Self, ApiError> {
        let Request { plan, prompts, echo, logprobs, .. } = request;
        let mut all = Vec::new();
        for prompt in &prompts {
            for _ in 0..plan.n {
                let logprobs = logprobs.map(|_| CompletionLogprobs::default());
                let mut choice = Choice { logprobs, ..Choice::default() };
                if echo {
                    choice.echo(plan.engine.tokenizer(), prompt)?;
                }
                all.push(choice);
            }
        }
        Ok(Self { plan, all })
    }

    /// Adds what happened to a text.
    fn event(&mut self, text: usize, event: Event) -> Result<(), ApiError> {
        let choice = &mut self.all[text];
        match event {
            Event::Token(token) => {
                choice.text += &token.piece;
                if let Some(logprobs) = &mut choice.logprobs {
                    let tokenizer = self.plan.engine.tokenizer();
                    choice.offset = logprobs.push(tokenizer, token.id, token.measured.as_ref(), choice.offset)?;
                }
            }
            Event::Ended { by, rest } => {
                choice.text += &rest;
                choice.finish_reason = Some(finish_reason(by));
            }
            Event::Failed(failure) => return Err(failure.into()),
        }
        Ok(())
    }
}

impl Choice {
    /// Puts the prompt before the text.
    fn echo(&mut self, tokenizer: &Tokenizer, prompt: &Prompt) -> Result<(), ApiError> {
        self.text.clone_from(&prompt.text);
        if let Some(logprobs) = &mut self.logprobs {
            for (&id, measured) in prompt.tokens.iter().zip(&prompt.measured) {
                self.offset = logprobs.push(tokenizer, id, measured.as_ref(), self.offset)?;
            }
        }
        self.offset = prompt.text.chars().count();
        Ok(())
    }

    fn to_json(&self, index: usize) -> Value {
        json!({
            "index": index,
            "text": self.text,
            "logprobs": self.logprobs.as_ref().map(CompletionLogprobs::to_json),
            "finish_reason": self.finish_reason,
        })
    }

    /// What there is to tell, which is then told.
    fn told(&mut self, index: usize) -> Value {
        let told = self.to_json(index);
        self.text.clear();
        self.logprobs = self.logprobs.as_ref().map(|_| CompletionLogprobs::default());
        told
    }
}

/// Texts that are told piece by piece.
struct StreamedChoices {
    choices: Choices,
    reply: Reply,
}

impl StreamedChoices {
    fn chunk(&mut self, index: usize) -> Value {
        self.reply.chunk(COMPLETION, self.choices.all[index].told(index))
    }
}

impl Chunks for StreamedChoices {
    fn begin(&mut self) -> Vec<Value> {
        let echoed: Vec<_> = (0..self.choices.all.len()).filter(|&at| !self.choices.all[at].text.is_empty()).collect();
        echoed.into_iter().map(|index| self.chunk(index)).collect()
    }

    fn event(&mut self, text: usize, event: Event) -> Result<Option<Value>, ApiError> {
        self.choices.event(text, event)?;
        let choice = &self.choices.all[text];
        let is_news = !choice.text.is_empty() || choice.logprobs.is_some() || choice.finish_reason.is_some();
        Ok(is_news.then(|| self.chunk(text)))
    }

    fn end(&mut self, usage: Usage) -> Option<Value> {
        self.reply.usage_chunk(COMPLETION, usage)
    }
}
