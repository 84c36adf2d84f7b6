//! The model that a run stays near, read from its folder.

use std::path::PathBuf;

use tinygpt_model::{GptConfig, ModelFolder, Tokenizer};

use super::LoopState;
use crate::{
    Result, TrainError,
    config::RunConfig,
    digest::Digest,
    engine::{Objective, Reference},
    hub::{Hub, HubModel},
};

/// What of `train.reference` is known before the text is: the model, its vocabulary, and the hash of its weights.
pub(super) struct OpenReference {
    path: PathBuf,
    tokenizer: Tokenizer,
    /// SHA-256 of the file of the weights, or of all of them in order.
    pub(super) hash: String,
    reference: Reference,
}

impl OpenReference {
    /// Reads what a configuration asks for; nothing where the divergence has no weight.
    ///
    /// # Errors
    /// When the folder holds no model.
    pub(super) fn open(config: &RunConfig) -> Result<Option<Self>> {
        let weight = config.train.kl_weight;
        if weight == 0.0 {
            return Ok(None);
        }
        let path = match HubModel::named(&config.train.reference) {
            Some(model) => Hub::from_env()?.folder(&model?, |_, _, _| {})?,
            None => PathBuf::from(&config.train.reference),
        };
        let folder = ModelFolder::new(&path);
        let (config, params) = folder.read()?;
        let files = folder.weight_files()?;
        let hash = Digest::of_files(&files).map_err(|(file, error)| TrainError::io("read", file)(error))?.to_string();
        let reference = Reference { config, params, weight };
        Ok(Some(Self { tokenizer: folder.read_tokenizer()?, path, hash, reference }))
    }

    /// The shape of the model.
    pub(super) fn gpt(&self) -> &GptConfig {
        &self.reference.config
    }

    /// Refuses a model with another vocabulary than the run's, or a shorter context; and, where the run goes on, other weights
    /// than it began with.
    ///
    /// # Errors
    /// [`TrainError::Reference`].
    pub(super) fn check(&self, gpt: &GptConfig, tokenizer: &Tokenizer, state: Option<&LoopState>) -> Result<()> {
        let refused = |reason: String| Err(TrainError::Reference { path: self.path.clone(), reason });
        let (own, other) = (gpt.block_size, self.gpt().block_size);
        if !self.tokenizer.is_same(tokenizer) {
            return refused(format!(
                "its vocabulary is another ({} tokens, and {} of this text), so that the probabilities of tokens cannot be \
                 compared; train both with one data.tokenizer on one text, or on texts of the same characters",
                self.tokenizer.vocab_size(),
                tokenizer.vocab_size()
            ));
        }
        if own > other {
            return refused(format!("its context is {other} tokens; lower model.block_size = {own} to that"));
        }
        if state.is_some_and(|state| state.reference_hash.as_ref() != Some(&self.hash)) {
            return refused("its weights have changed since this run was started; start a new run".into());
        }
        Ok(())
    }
}

/// What a run minimises beside the cross-entropy.
pub(super) fn objective(config: &RunConfig, reference: Option<OpenReference>) -> Objective {
    Objective { prior: (&config.train).into(), reference: reference.map(|open| open.reference) }
}
