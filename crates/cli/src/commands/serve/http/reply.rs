//! How an answer with texts is given, and what all of its parts begin with.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    error::ApiError,
    fields::Fields,
    now,
    texts::{TextPlan, Usage},
};

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
        let created = now();
        Ok(Self {
            id: format!("{prefix}-{created:x}-{:x}", COUNT.fetch_add(1, Ordering::Relaxed)),
            created,
            model: plan.engine.id().to_owned(),
            seed: plan.seed(),
            stream,
            include_usage: options.and_then(|options| options.include_usage).unwrap_or(false),
        })
    }

    /// What the answer begins with. `seed` is ours: with it, a text that had none can be made again.
    pub fn head(&self, object: &str) -> Value {
        let Self { id, created, model, seed, .. } = self;
        json!({ "id": id, "object": object, "created": created, "model": model, "seed": seed })
    }

    /// What a piece of the answer begins with: where the last one has the usage, all others have none.
    pub fn head_of_chunk(&self, object: &str) -> Value {
        let mut head = self.head(object);
        if self.include_usage {
            head["usage"] = Value::Null;
        }
        head
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
