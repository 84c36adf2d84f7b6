//! The page, and the routes below `/api` that it asks.

mod attention;
mod files;
mod generate;
mod models;
mod next;
mod openapi;
mod runs;
mod thinned;

use std::{path::PathBuf, sync::Arc};

use axum::{
    Json, Router,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use tinygpt_model::{Tokenizer, TokenizerError};
use tokio::sync::Semaphore;

pub use self::openapi::described;
use super::{
    Served,
    engine::Engine,
    http::{blocking, error::ApiError, limits, logprobs::token_text, texts::RequestTime},
};

/// Computations for the page at a time; others wait for their turn. Texts are not among them, which the engines compute.
const COMPUTATIONS: usize = 2;

/// What the page's requests share.
pub struct Page {
    runs: runs::Runs,
    maps: attention::Maps,
    free: Arc<Semaphore>,
}

impl Page {
    /// The page of a server that shows the runs of a folder.
    pub fn new(runs: PathBuf) -> Self {
        Self {
            runs: runs::Runs::new(runs),
            maps: attention::Maps::default(),
            free: Arc::new(Semaphore::new(COMPUTATIONS)),
        }
    }
}

/// The routes of the page.
pub fn router() -> Router<Arc<Served>> {
    Router::new()
        .route("/", get(files::index))
        .route("/assets/{name}", get(files::asset))
        .route("/api/models", get(models::models))
        .route("/api/generate", post(generate::generate))
        .route("/api/next", post(next::next))
        .route("/api/runs", get(runs::runs))
        .route("/api/runs/{name}/metrics", get(runs::metrics))
        .route("/api/runs/{name}/samples", get(runs::samples))
        .route("/api/runs/{name}/config", get(runs::config))
        .route("/api/attention", post(attention::attention))
}

/// Computes what takes a while, when it is its turn.
async fn compute<T: Send + 'static>(
    served: &Arc<Served>,
    time: RequestTime,
    work: impl FnOnce(&Served) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let of = Arc::clone(served);
    blocking(Some(&served.page.free), time, move || work(&of)).await
}

/// Reads files, which computations do not keep waiting.
async fn read(
    served: &Arc<Served>,
    time: RequestTime,
    work: impl FnOnce(&Served) -> Result<Value, ApiError> + Send + 'static,
) -> Result<Response, ApiError> {
    let of = Arc::clone(served);
    blocking(None, time, move || Ok(Json(work(&of)?).into_response())).await
}

/// The tokens of a prompt. As for `tinygpt generate --prompt`, no text is the token that texts start behind.
fn prompt_tokens(engine: &Engine, text: &str) -> Result<Vec<u32>, ApiError> {
    at_most(limits::PROMPT_TOKENS, "prompt", engine.tokenizer().encode_prompt(text))
}

/// The tokens of the text of a key, of which there may be so many.
fn at_most(most: usize, key: &str, tokens: Result<Vec<u32>, TokenizerError>) -> Result<Vec<u32>, ApiError> {
    let tokens = tokens.map_err(|error| ApiError::bad_param(key, error))?;
    if tokens.len() > most {
        return Err(ApiError::bad_param(key, format!("has {} tokens, but may have {most} at most", tokens.len())));
    }
    Ok(tokens)
}

/// A token as the page is told of it.
fn token_json(tokenizer: &Tokenizer, id: u32) -> Result<Value, ApiError> {
    Ok(json!({ "id": id, "text": token_text(tokenizer, id)? }))
}

/// Tokens as the page is told of them.
fn tokens_json(tokenizer: &Tokenizer, ids: &[u32]) -> Result<Vec<Value>, ApiError> {
    ids.iter().map(|&id| token_json(tokenizer, id)).collect()
}
