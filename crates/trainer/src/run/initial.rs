//! The model that a run starts from, in the place of random weights.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tinygpt_model::{GptConfig, ModelFolder, Tokenizer, param_specs, plan::Role, tokenizer::TokenizerFamily};

use crate::{
    Result, TrainError,
    config::{RunConfig, TokenizerKind},
    digest::Hasher,
};

/// A model that a run starts from: a run, or a folder of Hugging Face. Its weights are read when the run starts.
#[derive(Debug, Clone)]
pub struct InitialModel {
    /// What it was called.
    name: String,
    folder: ModelFolder,
    gpt: GptConfig,
    tokenizer: Tokenizer,
    /// Whether an adapter of them would be added to other weights than the folder has.
    pub(super) queries_are_scaled: bool,
}

/// Where the weights of a run come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// The folder of the model.
    pub path: String,
    /// SHA-256 of the values of its parameters that the run started with, in parameter order, as little-endian f32.
    pub weights_sha256: String,
}

impl InitialModel {
    /// Reads shape and tokenizer of the model in a folder.
    ///
    /// # Errors
    /// When the folder holds no model.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = std::path::absolute(folder).map_err(TrainError::io("find", folder))?;
        Self::open_as(&path.to_string_lossy(), folder)
    }

    /// As [`InitialModel::open`], of a model that is called `name`: so it is recorded in the run.
    ///
    /// # Errors
    /// As [`InitialModel::open`].
    pub fn open_as(name: &str, folder: &Path) -> Result<Self> {
        let folder = ModelFolder::new(folder);
        // Tells what is missing, before any of it is read.
        let (gpt, weights, tokenizer) = folder.map_with_tokenizer()?;
        let queries_are_scaled = weights.queries_are_scaled();
        Ok(Self { name: name.to_owned(), folder, gpt, tokenizer, queries_are_scaled })
    }

    /// Its shape.
    pub fn gpt(&self) -> &GptConfig {
        &self.gpt
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The defaults of a configuration of a run that starts from it: those of any run, with what it settles.
    pub fn defaults(&self) -> RunConfig {
        let mut config = RunConfig { model: self.gpt.clone(), ..RunConfig::default() };
        if self.tokenizer.kind() != TokenizerFamily::Char {
            config.data.tokenizer = TokenizerKind::Bpe;
            // The least that a configuration may say; tokenizers of others can have fewer.
            config.data.vocab_size = self.tokenizer.vocab_size().max(256);
        }
        config
    }

    /// Reads the weights for a run of the shape `gpt`, with no more positions than that has.
    pub(super) fn read_weights(&self, gpt: &GptConfig) -> Result<Vec<Vec<f32>>> {
        let mut params = self.folder.read_weights(&self.gpt)?;
        for (spec, values) in param_specs(gpt).iter().zip(&mut params) {
            if spec.role == Role::Position {
                // (block_size, C): the rows of the first positions.
                values.truncate(spec.len());
            }
        }
        Ok(params)
    }

    /// What the run records of it.
    pub(super) fn origin(&self, params: &[Vec<f32>]) -> Origin {
        Origin { path: self.name.clone(), weights_sha256: weights_sha256(params) }
    }

    /// The folder.
    pub fn path(&self) -> PathBuf {
        self.folder.path().to_owned()
    }
}

/// SHA-256 of the values of parameters, in parameter order, as little-endian f32.
pub(super) fn weights_sha256(params: &[Vec<f32>]) -> String {
    let mut hasher = Hasher::default();
    for values in params {
        for chunk in values.chunks(1 << 14) {
            let bytes: Vec<u8> = chunk.iter().flat_map(|x| x.to_le_bytes()).collect();
            hasher.update(&bytes);
        }
    }
    hasher.finish().to_string()
}
