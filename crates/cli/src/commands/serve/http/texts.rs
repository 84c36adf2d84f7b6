//! What the texts of completions and of chats have in common: how they are asked for, and how they are followed.

use std::{convert::Infallible, future::poll_fn, sync::Arc, task::Poll, time::Duration};

use axum::{
    extract::FromRequestParts,
    http::{StatusCode, request::Parts},
};
use serde_json::{Value, json};
use tinygpt_model::{
    constraint::{Constraint, Grammar},
    tokenizer::StopStrings,
};
use tokio::{
    sync::mpsc::Receiver,
    time::{Instant, timeout_at},
};

use super::{
    error::ApiError,
    fields::Fields,
    limits,
    metrics::{Metrics, TextClock},
    rules::{OfModel, Rules},
};
use crate::{
    commands::serve::{
        Served,
        engine::{EndedBy, Engine, Event, Refused, TextRequest},
    },
    generation::default_max_new_tokens,
};

/// How the texts of a request grow.
#[derive(Clone)]
pub struct TextPlan {
    pub engine: Engine,
    rules: Rules,
    /// Texts for each prompt.
    pub n: usize,
    /// The number of the first.
    first_sample: u64,
    max_tokens: usize,
    stops: StopStrings,
    constraint: Option<Constraint>,
}

impl TextPlan {
    /// Takes what completions and chats share out of a request. `max_tokens` has been taken, and a grammar, if the request has
    /// one in other words than ours.
    pub fn take(
        served: &Served,
        fields: &mut Fields,
        max_tokens: Option<usize>,
        grammar: Option<Grammar>,
    ) -> Result<Self, ApiError> {
        let name: Option<String> = fields.take("model")?;
        let engine = served.engine(name.as_deref())?.clone();
        let model = engine.generator();
        let defaults = model.defaults();
        let tokenizer = engine.tokenizer();
        let rules = Rules::take(fields, OfModel { defaults: &defaults, tokenizer, vocab_size: model.vocab_size() })?;
        let n = fields.whole("n", 1..=served.max_texts)?.unwrap_or(1);
        let first_sample: u64 = fields.take("first_sample")?.unwrap_or(0);
        if first_sample.checked_add(n as u64 - 1).is_none() {
            return Err(ApiError::bad_param("first_sample", format!("{first_sample} leaves no numbers for n = {n}")));
        }
        let stops = StopStrings::new(stop(fields)?).map_err(|error| ApiError::bad_param("stop", error))?;
        // Who may be named, and is told to nobody.
        fields.take::<String>("user")?;
        let constraint = constraint(fields, grammar, &engine)?;
        let max_tokens = max_tokens.unwrap_or_else(|| default_max_new_tokens(&defaults));
        Ok(Self { engine, rules, n, first_sample, max_tokens, stops, constraint })
    }

    /// The seed of the draws.
    pub fn seed(&self) -> u64 {
        self.rules.params.seed
    }

    /// Refuses a prompt that is too long.
    pub fn check_prompt(prompt: &[u32], param: &str) -> Result<(), ApiError> {
        if prompt.len() > limits::PROMPT_TOKENS {
            let message = format!("has {} tokens, but may have {} at most", prompt.len(), limits::PROMPT_TOKENS);
            return Err(ApiError::bad_param(param, message).with_code("context_length_exceeded"));
        }
        Ok(())
    }

    /// Refuses an answer that would be too long to be told as a whole. `echoed` tokens of prompts are in it.
    pub fn check_whole(&self, prompts: usize, echoed: usize, top: Option<usize>) -> Result<(), ApiError> {
        let tokens = (prompts * self.n).saturating_mul(self.max_tokens).saturating_add(echoed.saturating_mul(self.n));
        let told = tokens.saturating_mul(1 + top.map_or(0, |top| top + 1));
        if told > limits::WHOLE_ANSWER {
            let message = format!(
                "{tokens} tokens, and what is told beside them, are too many for one answer: ask for less, or set stream: true"
            );
            return Err(ApiError::bad_param("max_tokens", message).with_code("answer_too_long"));
        }
        Ok(())
    }

    /// Queues the texts of all prompts, those of the first prompt first; all of them or none.
    pub fn start(
        &self,
        prompts: &[Vec<u32>],
        top: Option<usize>,
        time: &RequestTime,
        metrics: &Metrics,
    ) -> Result<Texts, ApiError> {
        let text = |prompt: &[u32], sample| TextRequest {
            prompt: prompt.to_vec(),
            rules: self.rules.params.clone(),
            adaptive: self.rules.adaptive,
            sequence: self.first_sample + sample,
            max_new_tokens: self.max_tokens,
            stops: self.stops.clone(),
            top,
            constraint: self.constraint.clone(),
        };
        let of_prompt = |prompt| (0..self.n as u64).map(move |sample| (prompt, sample));
        let requests = prompts.iter().flat_map(of_prompt).map(|(prompt, sample)| text(prompt, sample)).collect();
        let receivers: Vec<_> = self.engine.submit_all(requests)?.into_iter().map(Some).collect();
        let prompt_tokens = prompts.iter().map(Vec::len).sum();
        let clock = metrics.begin_texts(self.engine.id(), prompt_tokens, receivers.len(), time.started);
        let usage = Usage { prompt_tokens, completion_tokens: 0 };
        Ok(Texts { receivers, looked_at: 0, deadline: time.deadline, usage, clock })
    }
}

/// When a request came, and when it is given up.
#[derive(Debug, Clone, Copy)]
pub struct RequestTime {
    started: Instant,
    pub deadline: Instant,
}

impl RequestTime {
    /// A request that came now.
    pub fn starts(limit: Duration) -> Self {
        let started = Instant::now();
        Self { started, deadline: started + limit }
    }
}

/// Of a request whose head has come: what its body takes counts.
impl FromRequestParts<Arc<Served>> for RequestTime {
    type Rejection = Infallible;

    async fn from_request_parts(_: &mut Parts, served: &Arc<Served>) -> Result<Self, Infallible> {
        Ok(Self::starts(served.timeout))
    }
}

/// What is said of a request that took too long.
pub fn too_long() -> ApiError {
    let message = "the request took longer than the server allows (--timeout)";
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message).with_code("timeout")
}

/// Tokens so far.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
}

impl Usage {
    pub fn to_json(self) -> Value {
        let Self { prompt_tokens, completion_tokens } = self;
        let total = prompt_tokens + completion_tokens;
        json!({ "prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total })
    }
}

/// The running texts of a request. They are given up when this is dropped.
pub struct Texts {
    /// None where a text has ended.
    receivers: Vec<Option<Receiver<Event>>>,
    /// The text that is asked first, so that each has its turn.
    looked_at: usize,
    deadline: Instant,
    usage: Usage,
    clock: TextClock,
}

impl Texts {
    /// Tokens of the prompts, and of all texts so far.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// What happens next, and to which text; none when all have ended.
    pub async fn next(&mut self) -> Result<Option<(usize, Event)>, ApiError> {
        if self.receivers.iter().all(Option::is_none) {
            self.clock.end();
            return Ok(None);
        }
        let Ok((text, event)) = timeout_at(self.deadline, self.any()).await else { return Err(too_long()) };
        match event {
            Some(Event::Failed(failure)) => Err(failure.into()),
            Some(Event::Ended { by: EndedBy::TimedOut, .. }) => Err(too_long()),
            Some(Event::Ended { by: EndedBy::ShutDown, .. }) => Err(Refused::ShuttingDown.into()),
            None => Err(Refused::EngineFailed.into()),
            Some(event) => {
                if let Event::Ended { .. } = event {
                    self.receivers[text] = None;
                } else {
                    self.usage.completion_tokens += 1;
                    self.clock.token(text);
                }
                Ok(Some((text, event)))
            }
        }
    }

    /// The first event of any text that runs.
    async fn any(&mut self) -> (usize, Option<Event>) {
        poll_fn(|context| {
            for _ in 0..self.receivers.len() {
                let text = self.looked_at;
                self.looked_at = (text + 1) % self.receivers.len();
                let Some(receiver) = &mut self.receivers[text] else { continue };
                if let Poll::Ready(event) = receiver.poll_recv(context) {
                    return Poll::Ready((text, event));
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// Why a text ended, in the words of the API.
pub fn finish_reason(by: EndedBy) -> &'static str {
    match by {
        EndedBy::Stop | EndedBy::Grammar => "stop",
        // The last two are errors of the request, in the place of its texts.
        EndedBy::Length | EndedBy::TimedOut | EndedBy::ShutDown => "length",
    }
}

/// A string, or some.
fn stop(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let bad = || ApiError::bad_param("stop", format!("must be a string or up to {} strings", limits::STOPS));
    let stops = match fields.take::<Value>("stop")? {
        None => Vec::new(),
        Some(Value::String(stop)) => vec![stop],
        Some(several) => serde_json::from_value(several).map_err(|_| bad())?,
    };
    if stops.len() > limits::STOPS { Err(bad()) } else { Ok(stops) }
}

/// Whether a request takes long to be read, however short it is: for a grammar, or since a rule looks at all of the vocabulary.
pub fn takes_long(fields: &Fields) -> bool {
    has_grammar(fields) || fields.has("dry_multiplier")
}

/// Whether a request has a grammar.
pub fn has_grammar(fields: &Fields) -> bool {
    ["response_format", "regex", "grammar", "json_schema"].iter().any(|key| fields.has(key))
}

/// What the text must be; one key says it at most.
fn constraint(fields: &mut Fields, given: Option<Grammar>, engine: &Engine) -> Result<Option<Constraint>, ApiError> {
    let mut grammars: Vec<_> = given.map(|grammar| ("response_format", grammar)).into_iter().collect();
    grammars.extend(fields.take("regex")?.map(|text| ("regex", Grammar::Regex(text))));
    grammars.extend(fields.take("grammar")?.map(|text| ("grammar", Grammar::Lark(text))));
    grammars.extend(fields.take("json_schema")?.map(|schema| ("json_schema", Grammar::JsonSchema(schema))));
    match grammars.as_slice() {
        [] => Ok(None),
        [(key, grammar)] => {
            let constraint = Constraint::new(grammar, engine.tokenizer());
            Ok(Some(constraint.map_err(|error| ApiError::bad_param(*key, error))?))
        }
        [(first, _), (second, _), ..] => {
            Err(ApiError::bad_param(*second, format!("a text follows one grammar, and `{first}` is given already")))
        }
    }
}
