//! The routes of the server, and what all requests go through.

mod chat;
mod chat_template;
mod completions;
pub mod connections;
pub mod error;
pub mod fields;
pub mod in_progress;
pub mod limits;
pub mod logprobs;
pub mod metrics;
mod models;
pub mod name;
pub mod openapi;
pub mod per_client;
mod reply;
pub mod rules;
pub mod security;
pub mod stream;
#[cfg(test)]
mod tests;
pub mod texts;

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Request, State},
    http::StatusCode,
    middleware::from_fn_with_state,
    routing::{get, post},
};
use serde_json::{Value, json};
use tokio::{sync::Semaphore, time::timeout_at};

pub use self::chat_template::ChatTemplate;
use self::{
    error::ApiError,
    fields::Fields,
    reply::Reply,
    texts::{RequestTime, too_long},
};
use super::{Served, engine::Refused, page};

/// All routes.
pub fn router(served: Served) -> Router {
    let served = Arc::new(served);
    Router::new()
        .route("/health", get(health))
        .route("/metrics", get(metrics::metrics))
        .route("/openapi.json", get(openapi::openapi))
        .route("/v1/models", get(models::models))
        // Names of the hub have a slash.
        .route("/v1/models/{*id}", get(models::model))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/chat/completions", post(chat::chat_completions))
        .merge(page::router())
        .fallback(no_route)
        .method_not_allowed_fallback(other_method)
        .layer(DefaultBodyLimit::max(limits::BODY_BYTES))
        .layer(from_fn_with_state(served.clients.clone(), per_client::limit))
        .layer(from_fn_with_state(Arc::clone(&served), security::guard))
        .layer(from_fn_with_state(Arc::clone(&served), metrics::count))
        .layer(from_fn_with_state(served.requests.clone(), in_progress::track))
        .with_state(served)
}

/// Whether all models are served.
async fn health(State(served): State<Arc<Served>>) -> Result<Json<Value>, ApiError> {
    match served.engines.iter().find(|engine| !engine.is_alive()) {
        Some(engine) => {
            let failed: ApiError = Refused::EngineFailed.into();
            Err(ApiError { message: format!("`{}`: {}", engine.id(), failed.message), ..failed })
        }
        None => Ok(Json(json!({ "status": "ok" }))),
    }
}

async fn no_route(request: Request) -> ApiError {
    let message = format!("there is no {}; /openapi.json says what there is", request.uri().path());
    ApiError::new(StatusCode::NOT_FOUND, message).with_code("unknown_url")
}

async fn other_method(request: Request) -> ApiError {
    let message = format!("{} does not take {}", request.uri().path(), request.method());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message)
}

/// Does what may take long without keeping other requests waiting, until the request's time is over. Where there are turns, it
/// waits for one. What has begun keeps its turn to its end, also where the request is given up meanwhile.
pub async fn blocking<T: Send + 'static>(
    turns: Option<&Arc<Semaphore>>,
    time: RequestTime,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = async {
        let turn = match turns {
            Some(turns) => Some(Arc::clone(turns).acquire_owned().await.map_err(ApiError::internal)?),
            None => None,
        };
        let work = move || {
            let result = work();
            drop(turn);
            result
        };
        tokio::task::spawn_blocking(work).await.map_err(ApiError::internal)?
    };
    timeout_at(time.deadline, done).await.unwrap_or_else(|_| Err(too_long()))
}

/// Reads a request for texts. A short one is read where it is: another thread would come later than it takes. Grammars, which may take
/// seconds of a processor, take turns.
async fn reading<T: Send + 'static>(
    served: &Arc<Served>,
    time: RequestTime,
    fields: Fields,
    take: impl FnOnce(&Served, Fields) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    if fields.bytes() <= limits::READ_AT_ONCE && !texts::takes_long(&fields) {
        return take(served, fields);
    }
    let turns = texts::has_grammar(&fields).then_some(&served.grammars);
    let of = Arc::clone(served);
    blocking(turns, time, move || take(&of, fields)).await
}
