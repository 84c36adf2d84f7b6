//! `POST /api/tokenize`: the tokens of a text.

use std::sync::Arc;

use axum::{Json, extract::State};
use serde_json::{Value, json};

use super::{Served, compute, limits, tokens, tokens_json};
use crate::commands::serve::http::{error::ApiError, fields::Fields};

/// `{"model", "text"}` to `{"tokens": [{"id", "text"}]}`.
pub async fn tokenize(State(served): State<Arc<Served>>, mut fields: Fields) -> Result<Json<Value>, ApiError> {
    compute(&served, move |served| {
        let engine = served.engine(fields.take::<String>("model")?.as_deref())?;
        let text: String = fields.required("text")?;
        fields.finish()?;
        let tokens = tokens(engine, "text", &text, limits::PROMPT_TOKENS)?;
        Ok(Json(json!({ "tokens": tokens_json(engine.tokenizer(), &tokens)? })))
    })
    .await
}
