//! `GET /v1/models` and `GET /v1/models/{id}`.

use std::sync::Arc;

use axum::{Json, extract::State};
use serde_json::{Value, json};

use super::{error::ApiError, name::Name};
use crate::commands::serve::{Served, engine::Engine};

/// All models.
pub async fn models(State(served): State<Arc<Served>>) -> Json<Value> {
    let data: Vec<_> = served.engines.iter().map(|engine| described(&served, engine)).collect();
    Json(json!({ "object": "list", "data": data }))
}

/// A model.
pub async fn model(State(served): State<Arc<Served>>, Name(id): Name) -> Result<Json<Value>, ApiError> {
    Ok(Json(described(&served, served.engine(Some(&id))?)))
}

fn described(served: &Served, engine: &Engine) -> Value {
    json!({ "id": engine.id(), "object": "model", "created": served.started, "owned_by": "tinygpt" })
}
