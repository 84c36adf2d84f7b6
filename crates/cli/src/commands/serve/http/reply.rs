//! How an answer with texts is given, and what all of its parts begin with.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    blocking,
    error::ApiError,
    fields::Fields,
    texts::{RequestTime, TextPlan, Usage},
};
use crate::units::seconds_since_1970;

/// An answer with texts.
#[derive(Debug, Clone)]
pub struct Reply {
    id: String,
    created: u64,
    model: String,
    seed: u64,
    pub stream: bool,
    /// A stream ends with the number of tokens.
    include_usage: bool,
}

/// `stream_options`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamOptions {
    include_usage: Option<bool>,
    /// Random characters against those who measure the length of chunks: there are none to leave out.
    #[serde(rename = "include_obfuscation")]
    _include_obfuscation: Option<bool>,
}

impl Reply {
    /// Takes `stream` and its options out of a request.
    pub fn take(fields: &mut Fields, prefix: &str, plan: &TextPlan) -> Result<Self, ApiError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let stream = fields.take("stream")?.unwrap_or(false);
        let options: Option<StreamOptions> = fields.take("stream_options")?;
        if options.is_some() && !stream {
            return Err(ApiError::bad_param("stream_options", "is for requests with stream: true"));
        }
        let created = seconds_since_1970(SystemTime::now()) as u64;
        Ok(Self {
            id: format!("{prefix}-{created:x}-{:x}", COUNT.fetch_add(1, Ordering::Relaxed)),
            created,
            model: plan.engine.id().to_owned(),
            seed: plan.seed(),
            stream,
            include_usage: options.and_then(|options| options.include_usage).unwrap_or(false),
        })
    }

    /// The whole answer. What there is of it may be much, so it is put together where nothing waits for it.
    pub async fn whole(
        self,
        object: &'static str,
        (usage, time): (Usage, RequestTime),
        choices: impl FnOnce() -> Vec<Value> + Send + 'static,
    ) -> Result<Response, ApiError> {
        let whole = move || {
            let mut body = self.head(object);
            body["choices"] = choices().into();
            body["usage"] = usage.to_json();
            Ok(Json(body).into_response())
        };
        blocking(None, time, whole).await
    }

    /// A piece of the answer: where the last one has the usage, all others have none.
    pub fn chunk(&self, object: &str, choice: Value) -> Value {
        let mut chunk = self.head(object);
        chunk["choices"] = json!([choice]);
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    /// What all parts of the answer begin with. `seed` is ours: with it, a text that had none can be made again.
    fn head(&self, object: &str) -> Value {
        let Self { id, created, model, seed, .. } = self;
        json!({ "id": id, "object": object, "created": created, "model": model, "seed": seed })
    }

    /// The last piece, if it was asked for.
    pub fn usage_chunk(&self, object: &str, usage: Usage) -> Option<Value> {
        self.include_usage.then(|| {
            let mut chunk = self.head(object);
            chunk["choices"] = json!([]);
            chunk["usage"] = usage.to_json();
            chunk
        })
    }
}
