//! `POST /api/attention`: where a head looks.

use std::sync::{Arc, Mutex, PoisonError};

use axum::{Json, extract::State};
use candle_core::{DType, Device};
use serde_json::{Value, json};
use tinygpt_model::{Checkpoint, Gpt, params};

use super::{Served, compute, tokens, tokens_json};
use crate::{
    commands::serve::http::{error::ApiError, fields::Fields},
    generator::Generator,
};

/// The longest text, in tokens: a map has the square of it in numbers.
const MAX_TOKENS: usize = 256;

/// What tells weights apart: the name of their model, and the step of the run that they are from.
type Weights = (String, Option<u64>);

/// The model whose maps were asked for last, as tensors: a copy of its weights in f32.
#[derive(Default)]
pub struct Maps {
    last: Mutex<Option<(Weights, Arc<Gpt>)>>,
}

impl Maps {
    /// The tensors of these weights, which are a checkpoint's.
    fn gpt(&self, of: Weights, checkpoint: &Checkpoint) -> Result<Arc<Gpt>, ApiError> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, gpt)) = last.as_ref().filter(|(known, _)| *known == of) {
            return Ok(Arc::clone(gpt));
        }
        // Memory for one copy at a time.
        *last = None;
        let config = checkpoint.config();
        let tensors = params::to_tensors(config, &checkpoint.weights().slices(), DType::F32, &Device::Cpu);
        let gpt = Arc::new(tensors.and_then(|tensors| Gpt::new(config, &tensors)).map_err(internal)?);
        *last = Some((of, Arc::clone(&gpt)));
        Ok(gpt)
    }
}

/// `{"model", "text", "layer", "head"}` to `{"tokens": [...], "weights": [[w]...]}`: row `i` has the weights by which position
/// `i` takes from positions `0..=i`.
pub async fn attention(State(served): State<Arc<Served>>, mut fields: Fields) -> Result<Json<Value>, ApiError> {
    compute(&served, move |served| {
        let engine = served.engine(fields.take::<String>("model")?.as_deref())?;
        let generator: &Generator = &engine.generator();
        let Generator::Network(checkpoint) = generator else {
            return Err(ApiError::bad_param("model", "an n-gram model has no attention"));
        };
        let config = checkpoint.config();
        let text: String = fields.required("text")?;
        let layer = below(&mut fields, "layer", config.n_layer)?;
        let head = below(&mut fields, "head", config.n_head)?;
        fields.finish()?;
        if text.is_empty() {
            return Err(ApiError::bad_param("text", "is empty: there is nothing to look at"));
        }
        let tokens = tokens(engine, "text", &text, MAX_TOKENS.min(config.block_size))?;
        let step = served.page.models.best(engine.id()).map(|best| best.step);
        let gpt = served.page.maps.gpt((engine.id().to_owned(), step), checkpoint)?;
        let weights = weights(&gpt, &tokens, layer, head)?;
        Ok(Json(json!({ "tokens": tokens_json(engine.tokenizer(), &tokens)?, "weights": weights })))
    })
    .await
}

/// A number that counts from 0 and is below `end`.
fn below(fields: &mut Fields, key: &str, end: usize) -> Result<usize, ApiError> {
    Ok(fields.whole(key, 0..=end - 1)?.unwrap_or(0))
}

fn weights(gpt: &Gpt, tokens: &[u32], layer: usize, head: usize) -> Result<Vec<Vec<f64>>, ApiError> {
    let map = gpt.attention_map(tokens, layer).map_err(internal)?;
    let map = map.ok_or_else(|| ApiError::internal(format!("the network has no layer {layer}")))?;
    let rows = map.get(head).and_then(|map| map.to_vec2::<f32>()).map_err(internal)?; // (T, T)
    let row = |(at, row): (usize, Vec<f32>)| row[..=at].iter().map(|&weight| rounded(weight)).collect();
    Ok(rows.into_iter().enumerate().map(row).collect())
}

/// To four digits behind the point: no eye sees more, and the answer is a third as long.
fn rounded(weight: f32) -> f64 {
    (f64::from(weight) * 1e4).round() / 1e4
}

fn internal(error: impl std::fmt::Display) -> ApiError {
    ApiError::internal(error.to_string())
}
