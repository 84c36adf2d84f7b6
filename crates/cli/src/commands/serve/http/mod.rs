//! The routes of the server.

use std::sync::Arc;

use axum::{Json, Router, extract::State, routing::get};
use serde_json::{Value, json};

use super::{Served, page};

/// All routes.
pub fn router(served: Served) -> Router {
    Router::new()
        .route("/health", get(|| async { Json(json!({ "status": "ok" })) }))
        .route("/v1/models", get(models))
        .merge(page::router())
        .with_state(Arc::new(served))
}

async fn models(State(served): State<Arc<Served>>) -> Json<Value> {
    let models = served.engines.iter().map(|engine| json!({ "id": engine.id(), "object": "model" }));
    Json(json!({ "object": "list", "data": models.collect::<Vec<_>>() }))
}
