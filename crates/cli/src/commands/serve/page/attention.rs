//! `POST /api/attention`: where a head looks.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde_json::json;
use tinygpt_model::{Checkpoint, Gpt};

use super::{Served, at_most, compute, tokens_json};
use crate::{
    commands::serve::http::{error::ApiError, fields::Fields, texts::RequestTime},
    generator::Generator,
};

/// The longest text, in tokens: a map has the square of it in numbers.
pub const MAX_TOKENS: usize = 256;

/// The largest model, in parameters: of those that are served it takes four bytes each beside what the engine holds.
const MAX_PARAMS: usize = 500_000_000;

/// The model whose maps were asked for last, as tensors: a copy of its weights in f32.
#[derive(Default)]
pub struct Maps {
    last: Mutex<Option<(Weak<Generator>, Arc<Gpt>)>>,
}

impl Maps {
    /// The tensors of a model, whose checkpoint this is. New weights of a run are another model.
    fn gpt(&self, model: &Arc<Generator>, checkpoint: &Checkpoint) -> Result<Arc<Gpt>, ApiError> {
        let model = Arc::downgrade(model);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, gpt)) = last.as_ref().filter(|(known, _)| known.ptr_eq(&model)) {
            return Ok(Arc::clone(gpt));
        }
        let config = checkpoint.config();
        check_size(config.n_params())?;
        // Memory for one copy at a time.
        *last = None;
        let tensors = checkpoint.weights().to_tensors(config);
        let gpt = Arc::new(tensors.and_then(|tensors| Gpt::new(config, &tensors)).map_err(ApiError::internal)?);
        *last = Some((model, Arc::clone(&gpt)));
        Ok(gpt)
    }
}

/// `{"model", "text", "layer", "head"}` to `{"tokens": [...], "weights": [[w]...]}`: row `i` has the weights by which position
/// `i` takes from positions `0..=i`.
pub async fn attention(
    State(served): State<Arc<Served>>,
    time: RequestTime,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    compute(&served, time, move |served| {
        let engine = served.engine(fields.take::<String>("model")?.as_deref())?;
        let generator = engine.generator();
        let Generator::Network(checkpoint) = &*generator else {
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
        let tokens = at_most(MAX_TOKENS.min(config.block_size), "text", engine.tokenizer().encode(&text))?;
        let gpt = served.page.maps.gpt(&generator, checkpoint)?;
        let weights = weights(&gpt, &tokens, layer, head)?;
        let answer = json!({ "tokens": tokens_json(engine.tokenizer(), &tokens)?, "weights": weights });
        Ok(Json(answer).into_response())
    })
    .await
}

/// Refuses a model whose copy would take too much memory.
fn check_size(parameters: usize) -> Result<(), ApiError> {
    if parameters > MAX_PARAMS {
        let message = format!("has {parameters} parameters, but maps are shown of models of {MAX_PARAMS} at most");
        return Err(ApiError::bad_param("model", message));
    }
    Ok(())
}

/// A number that counts from 0 and is below `end`.
fn below(fields: &mut Fields, key: &str, end: usize) -> Result<usize, ApiError> {
    Ok(fields.whole(key, 0..=end - 1)?.unwrap_or(0))
}

fn weights(gpt: &Gpt, tokens: &[u32], layer: usize, head: usize) -> Result<Vec<Vec<f64>>, ApiError> {
    let map = gpt.attention_map(tokens, layer).map_err(ApiError::internal)?;
    let map = map.ok_or_else(|| ApiError::internal(format!("the network has no layer {layer}")))?;
    let rows = map.get(head).and_then(|map| map.to_vec2::<f32>()).map_err(ApiError::internal)?; // (T, T)
    let row = |(at, row): (usize, Vec<f32>)| row[..=at].iter().map(|&weight| rounded(weight)).collect();
    Ok(rows.into_iter().enumerate().map(row).collect())
}

/// To four digits behind the point: no eye sees more, and the answer is a third as long.
fn rounded(weight: f32) -> f64 {
    (f64::from(weight) * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_is_too_large_to_be_copied_is_refused_by_name() {
        // GPT-2 medium and large.
        assert_eq!(check_size(354_823_168), Ok(()));
        let refused = check_size(774_030_080);
        assert!(refused.is_err_and(|error| error.status == 400 && error.param.as_deref() == Some("model")));
    }
}
