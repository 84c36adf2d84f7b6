//! `POST /api/generate`: a text as it grows, with what the model thought of each token.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use serde_json::{Value, json};

use super::{Served, compute, prompt_tokens, token_json, tokens_json};
use crate::{
    commands::serve::{
        engine::{EndedBy, Engine, Event},
        http::{
            error::ApiError,
            fields::Fields,
            limits,
            stream::{Chunks, stream},
            texts::{RequestTime, TextPlan, Usage, finish_reason},
        },
    },
    growing_text::Ending,
};

/// How many of the most probable tokens are told beside each token where nobody says.
pub const TOP: usize = 10;

/// What is asked for.
struct Request {
    plan: TextPlan,
    prompt: Vec<u32>,
    top: usize,
}

/// Answers with server-sent events: the tokens of the prompt, then each token that is drawn, then how the text ended.
pub async fn generate(
    State(served): State<Arc<Served>>,
    time: RequestTime,
    fields: Fields,
) -> Result<Response, ApiError> {
    let Request { plan, prompt, top } = compute(&served, time, |served| Request::take(served, fields)).await?;
    let prompt_json = tokens_json(plan.engine.tokenizer(), &prompt)?;
    let texts = plan.start(&[prompt], Some(top), &time, &served.metrics)?;
    Ok(stream(texts, Tokens { engine: plan.engine, prompt: prompt_json }))
}

impl Request {
    fn take(served: &Served, mut fields: Fields) -> Result<Self, ApiError> {
        let max_tokens = fields.whole("max_tokens", 0..=limits::MAX_TOKENS)?;
        let prompt: String = fields.take("prompt")?.unwrap_or_default();
        let top = fields.whole("top", 0..=limits::TOP_LOGPROBS)?.unwrap_or(TOP);
        // The API's name for it.
        if let Some(sample) = fields.take::<u64>("sample")? {
            fields.insert("first_sample", sample);
        }
        fields.whole("n", 1..=1)?;
        let plan = TextPlan::take(served, &mut fields, max_tokens, None)?;
        fields.finish()?;
        let prompt = prompt_tokens(&plan.engine, &prompt)?;
        Ok(Self { plan, prompt, top })
    }
}

/// The events of the text, in the words of the page.
struct Tokens {
    engine: Engine,
    prompt: Vec<Value>,
}

impl Chunks for Tokens {
    fn begin(&mut self) -> Vec<Value> {
        vec![json!({ "prompt": std::mem::take(&mut self.prompt) })]
    }

    fn event(&mut self, _: usize, event: Event) -> Result<Option<Value>, ApiError> {
        let tokenizer = self.engine.tokenizer();
        let chunk = match event {
            Event::Token(token) => {
                let mut told = token_json(tokenizer, token.id)?;
                told["piece"] = token.piece.into();
                if let Some(measured) = token.measured {
                    told["logprob"] = measured.logprob.into();
                    told["rank"] = measured.rank.into();
                    told["entropy"] = measured.entropy.into();
                    let other = |(id, logprob): (u32, f64)| {
                        let mut other = token_json(tokenizer, id)?;
                        other["logprob"] = logprob.into();
                        Ok(other)
                    };
                    told["top"] = measured.top.into_iter().map(other).collect::<Result<_, ApiError>>()?;
                }
                told
            }
            Event::Ended { by, rest } => {
                // The API has no word of its own for a text that a grammar says is complete.
                let by = if by == EndedBy::Grammar { Ending::Grammar.name() } else { finish_reason(by) };
                json!({ "ended_by": by, "piece": rest })
            }
            Event::Failed(failure) => return Err(failure.into()),
        };
        Ok(Some(chunk))
    }

    fn end(&mut self, _: Usage) -> Option<Value> {
        None
    }
}
