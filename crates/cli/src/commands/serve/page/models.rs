//! `GET /api/models`: what is served.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::{extract::State, response::Response};
use serde_json::{Value, json};
use tinygpt_model::tokenizer::TokenizerFamily;
use tinygpt_trainer::{RunDir, run::Best};

use super::{Served, read};
use crate::{
    commands::serve::{engine::Engine, http::error::ApiError},
    generation::{DefaultRules, default_max_new_tokens},
    generator::Generator,
};

/// How far the models were trained.
pub struct Trained {
    /// By the names of the models.
    folders: HashMap<String, PathBuf>,
    /// What their runs said when they were opened, if they are not opened again.
    at_start: Option<HashMap<String, Option<Best>>>,
}

impl Trained {
    /// Models by their names, with their folders. With `reload` they follow the runs that train them.
    pub fn new(models: &[(String, PathBuf)], reload: bool) -> Self {
        let at_start = || models.iter().map(|(id, folder)| (id.clone(), best_of(folder))).collect();
        Self { folders: models.iter().cloned().collect(), at_start: (!reload).then(at_start) }
    }

    /// The folder of a model, for command lines that people copy.
    fn folder(&self, id: &str) -> Option<&Path> {
        self.folders.get(id).map(PathBuf::as_path)
    }

    /// The evaluation of the weights that are served of a model, the best ones of its run; none of what is no run of ours.
    pub fn best(&self, id: &str) -> Option<Best> {
        match &self.at_start {
            Some(known) => *known.get(id)?,
            None => best_of(self.folders.get(id)?),
        }
    }
}

fn best_of(folder: &Path) -> Option<Best> {
    RunDir::open(folder).ok()?.last().read_state().ok()?.best
}

/// `{"models": [...]}`.
pub async fn models(State(served): State<Arc<Served>>) -> Result<Response, ApiError> {
    read(&served, |served| {
        let trained = &served.page.models;
        let described = |engine: &Engine| described(engine, trained.folder(engine.id()), trained.best(engine.id()));
        let models: Vec<Value> = served.engines.iter().map(described).collect();
        Ok(json!({ "models": models }))
    })
    .await
}

fn described(engine: &Engine, folder: Option<&Path>, best: Option<Best>) -> Value {
    let generator: &Generator = &engine.generator();
    let defaults = generator.defaults();
    let rules = DefaultRules::of(&defaults, false);
    // An n-gram model has neither layers nor channels, and sees the tokens before the last of an n-gram.
    let (block_size, [n_layer, n_head, n_embd], parameters) = match generator {
        Generator::Network(checkpoint) => {
            let config = checkpoint.config();
            (config.block_size, [config.n_layer, config.n_head, config.n_embd], config.n_params() as u64)
        }
        Generator::Ngrams(model, _) => (model.order() - 1, [0; 3], model.parameters()),
    };
    json!({
        "id": engine.id(),
        "path": folder.map(|folder| folder.display().to_string()),
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
