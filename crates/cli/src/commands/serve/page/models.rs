//! `GET /api/models`: what is served.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use serde_json::{Value, json};
use tinygpt_model::tokenizer::TokenizerFamily;

use super::{Served, read};
use crate::{
    commands::serve::{
        engine::Engine,
        http::{error::ApiError, texts::RequestTime},
    },
    generation::{DefaultRules, default_max_new_tokens},
    generator::Generator,
};

/// `{"models": [...]}`.
pub async fn models(State(served): State<Arc<Served>>, time: RequestTime) -> Result<Response, ApiError> {
    read(&served, time, |served| Ok(json!({ "models": served.engines.iter().map(described).collect::<Vec<_>>() })))
        .await
}

fn described(engine: &Engine) -> Value {
    let (generator, best) = engine.model();
    let defaults = generator.defaults();
    let rules = DefaultRules::of(&defaults, false);
    // An n-gram model has neither layers nor channels, and sees the tokens before the last of an n-gram.
    let (block_size, [n_layer, n_head, n_embd], parameters) = match &*generator {
        Generator::Network(checkpoint) => {
            let config = checkpoint.config();
            (config.block_size, [config.n_layer, config.n_head, config.n_embd], config.n_params() as u64)
        }
        Generator::Ngrams(model, _) => (model.order() - 1, [0; 3], model.parameters()),
    };
    json!({
        "id": engine.id(),
        // For command lines that people copy.
        "path": engine.folder().display().to_string(),
        "vocab_size": generator.vocab_size(),
        "block_size": block_size,
        "n_layer": n_layer,
        "n_head": n_head,
        "n_embd": n_embd,
        "parameters": parameters,
        "tokenizer": match engine.tokenizer().kind() {
            TokenizerFamily::Char => "char",
            _ => "bpe",
        },
        "step": best.map(|best| best.step),
        "val_loss": best.map(|best| best.val_loss),
        "defaults": {
            "temperature": rules.temperature,
            "top_k": rules.top_k,
            "top_p": rules.top_p,
            "max_new_tokens": default_max_new_tokens(&defaults),
        },
    })
}
