//! The configuration of a run: what `train.toml` and the files in `configs/` hold.

mod base;
mod changes;
mod check;
mod choices;
mod fine_tuning;
mod load;
mod own_text;
mod recipes;
mod schema;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use tinygpt_model::{AdapterShape, GenerationDefaults, GptConfig, Precision};

use crate::corpus::{CorpusOptions, Documents, Part};

pub use changes::Change;
pub use choices::{OptimizerKind, PriorKind, Schedule};
pub use load::{load, load_over, load_resolved};
pub use own_text::TextSize;
pub use recipes::{RECIPES, recipe};
pub use schema::{ConfigError, Field, annotated_default, fields};

/// The format of `train.toml`.
pub const CONFIG_FORMAT: u64 = 1;

/// Everything that determines a run, but for its corpus' contents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunConfig {
    /// The format version of this file.
    pub format: u64,
    /// The run's name: runs go to `runs/NAME-N`.
    pub name: String,
    /// The seed of everything random: weights, batches, dropout, the built-in corpus.
    pub seed: u64,
    /// Where the text comes from and how it becomes tokens.
    pub data: DataConfig,
    /// The shape of the model; the vocabulary comes from the tokenizer.
    pub model: GptConfig,
    /// The training loop.
    pub train: TrainConfig,
    /// The adapter that is trained in the place of the weights.
    pub lora: LoraConfig,
    /// Defaults of `tinygpt generate` for this run.
    pub generate: GenerateConfig,
}

/// Where the text comes from and how it becomes tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// `stories` (the built-in corpus), or what [`Corpus::open_with`](crate::corpus::Corpus::open_with) takes, or a file of
    /// tokens ([`crate::token_files`]).
    pub corpus: String,
    /// The size of the built-in corpus.
    pub stories_bytes: usize,
    /// `char` or `bpe`.
    pub tokenizer: TokenizerKind,
    /// The vocabulary size asked of `bpe`.
    pub vocab_size: usize,
    /// The share of the corpus, at its end, that is held out.
    pub val_fraction: f64,
    /// Whether the share is one of the documents, spread evenly over the corpus, instead of its end.
    pub val_documents: bool,
    /// What is held out instead, of the same kinds as `corpus`; nothing where it is empty.
    pub val: String,
    /// The key of JSON lines, or the column of a table, that holds the text.
    pub text_key: String,
    /// `none`, `file`, `line` or `marker`: what of a text is a document.
    pub documents: Documents,
    /// A tokenizer.json, or a folder with one, to use instead of training `tokenizer`.
    pub tokenizer_path: String,
}

/// The two tokenizers that can be trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenizerKind {
    /// One token a character.
    Char,
    /// Byte-level byte-pair encoding.
    Bpe,
}

/// The training loop: batches, optimizer, schedule, evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Windows of `block_size` tokens in a batch.
    pub batch_size: usize,
    /// Batches whose gradients are averaged for one update.
    pub grad_accum: usize,
    /// `f32`, `bf16` or `f16`.
    pub precision: Precision,
    /// Updates after which training ends.
    pub max_steps: u64,
    /// Minutes of training after which it ends; 0 is no limit.
    pub max_minutes: f64,
    /// The learning rate after the warm-up.
    pub lr: f64,
    /// The learning rate at the end of the decay.
    pub min_lr: f64,
    /// Updates of linear warm-up.
    pub warmup_steps: u64,
    /// The update at which the decay ends; 0 means `max_steps`, whatever that becomes.
    pub decay_steps: u64,
    /// AdamW's decay of the first moment.
    pub beta1: f64,
    /// AdamW's decay of the second moment.
    pub beta2: f64,
    /// AdamW's epsilon.
    pub eps: f64,
    /// Decoupled weight decay of the matrices.
    pub weight_decay: f64,
    /// The global norm to which a larger gradient is scaled down; 0 is off.
    pub clip: f64,
    /// Updates between evaluations.
    pub eval_every: u64,
    /// Batches of an evaluation during training; 0 is the whole split.
    pub eval_batches: usize,
    /// Batches of the evaluation of the best weights at the end; 0 is the whole split.
    pub final_eval_batches: usize,
    /// Evaluations without a new best before training stops; 0 is never.
    pub patience: u64,
    /// Updates between lines of `metrics.jsonl`.
    pub log_every: u64,
    /// `adamw` or `muon`.
    pub optimizer: OptimizerKind,
    /// The learning rate of the matrices of linear layers after the warm-up, which has the shape of that of `lr`; 0 means
    /// `lr`.
    pub lr_matrices: f64,
    /// The same of embeddings, positions and an untied head.
    pub lr_embeddings: f64,
    /// `cosine`, `linear` or `wsd`: how the learning rate decays.
    pub schedule: Schedule,
    /// The share of the updates up to `decay_steps`, at their end, in which `wsd` decays.
    pub decay_fraction: f64,
    /// Muon's decay of its momentum.
    pub muon_momentum: f64,
    /// Muon's Newton-Schulz iterations, at most 5.
    pub muon_steps: usize,
    /// `none`, `l2` or `l1`: the prior of what weight decay covers.
    pub prior: PriorKind,
    /// The weight of the prior in the loss.
    pub prior_weight: f64,
    /// A run, or another model folder, that training keeps the model near; an empty one is none.
    pub reference: String,
    /// The weight of the divergence from the reference in the loss.
    pub kl_weight: f64,
    /// Updates between samples, which go to `samples.jsonl`; 0 is never.
    pub sample_every: u64,
    /// The tokens of a sample after its prompt.
    pub sample_tokens: usize,
    /// The text that samples continue; an empty one is the start token.
    pub sample_prompt: String,
}

/// The low-rank adapter ([`tinygpt_model::adapter`]) that is trained in the place of the weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// The rank of its products; 0 is no adapter.
    pub rank: usize,
    /// Divided by the rank, the factor of its products.
    pub alpha: f64,
    /// The linear layers, as PEFT's `target_modules`; none are all.
    pub targets: Vec<String>,
}

impl LoraConfig {
    /// The adapter of a model of the shape `gpt`; `None` where all weights are trained.
    ///
    /// # Errors
    /// [`ConfigError::Range`] of a target that is no linear layer of the model.
    pub fn shape(&self, gpt: &GptConfig) -> Result<Option<AdapterShape>, ConfigError> {
        let Self { rank, alpha, targets } = self;
        if *rank == 0 {
            return Ok(None);
        }
        AdapterShape::new(gpt, *rank, *alpha, targets).map(Some).map_err(|error| {
            let (key, value) = ("lora.targets".into(), format!("{targets:?}"));
            ConfigError::Range { key, value, reason: error.to_string() }
        })
    }
}

/// Defaults of `tinygpt generate` for a run, kept in its `generation_config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GenerateConfig {
    /// The temperature of the draws; 0 is greedy.
    pub temperature: f64,
    /// The number of most probable tokens that are kept; 0 is off.
    pub top_k: usize,
    /// The probability of the smallest set of tokens that is kept; 1 is off.
    pub top_p: f64,
    /// The most tokens after the prompt.
    pub max_new_tokens: usize,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            format: CONFIG_FORMAT,
            name: "run".into(),
            seed: 1337,
            data: DataConfig::default(),
            model: GptConfig::default(),
            train: TrainConfig::default(),
            lora: LoraConfig::default(),
            generate: GenerateConfig::default(),
        }
    }
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            corpus: "stories".into(),
            stories_bytes: 2_000_000,
            tokenizer: TokenizerKind::Char,
            vocab_size: 1024,
            val_fraction: 0.1,
            val_documents: false,
            val: String::new(),
            text_key: CorpusOptions::default().text_key,
            documents: Documents::None,
            tokenizer_path: String::new(),
        }
    }
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            batch_size: 12,
            grad_accum: 1,
            precision: Precision::F32,
            max_steps: 2000,
            max_minutes: 0.0,
            lr: 1e-3,
            min_lr: 1e-4,
            warmup_steps: 100,
            decay_steps: 0,
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: 0.1,
            clip: 1.0,
            eval_every: 250,
            eval_batches: 20,
            final_eval_batches: 0,
            patience: 0,
            log_every: 10,
            optimizer: OptimizerKind::default(),
            lr_matrices: 0.0,
            lr_embeddings: 0.0,
            schedule: Schedule::default(),
            decay_fraction: 0.8,
            muon_momentum: 0.9,
            muon_steps: 3,
            prior: PriorKind::default(),
            prior_weight: 0.0,
            reference: String::new(),
            kl_weight: 0.0,
            sample_every: 0,
            sample_tokens: 100,
            sample_prompt: String::new(),
        }
    }
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self { rank: 0, alpha: 16.0, targets: Vec::new() }
    }
}

impl Default for GenerateConfig {
    fn default() -> Self {
        Self { temperature: 0.8, top_k: 0, top_p: 1.0, max_new_tokens: 300 }
    }
}

impl From<&GenerateConfig> for GenerationDefaults {
    fn from(generate: &GenerateConfig) -> Self {
        let GenerateConfig { temperature, top_k, top_p, max_new_tokens } = *generate;
        Self {
            temperature: Some(temperature),
            top_k: Some(top_k),
            top_p: Some(top_p),
            max_new_tokens: Some(max_new_tokens),
            do_sample: Some(temperature > 0.0),
        }
    }
}

impl DataConfig {
    /// How files become documents.
    pub fn corpus_options(&self) -> CorpusOptions {
        CorpusOptions { documents: self.documents, text_key: self.text_key.clone(), part: Part::Whole }
    }
}

impl TrainConfig {
    /// The update at which the decay ends: that of `decay_steps`, or with 0 the last one; never before the end of the warm-up,
    /// so that a short trial of a long recipe ends inside it.
    pub fn decay_end(&self) -> u64 {
        let end = if self.decay_steps == 0 { self.max_steps } else { self.decay_steps };
        end.max(self.warmup_steps)
    }
}

impl RunConfig {
    /// The model's shape for a vocabulary.
    pub fn gpt(&self, vocab_size: usize) -> GptConfig {
        GptConfig { vocab_size, ..self.model.clone() }
    }

    /// The configuration, every value of which was checked. [`load()`] returns one.
    ///
    /// # Errors
    /// [`ConfigError::Range`], naming the key.
    pub fn resolved(self) -> Result<Self, ConfigError> {
        check::validate(&self)?;
        Ok(self)
    }

    /// Tokens that one update sees.
    pub fn tokens_per_step(&self) -> usize {
        self.train.batch_size * self.train.grad_accum * self.model.block_size
    }

    /// The file's text, as `train.toml` holds it.
    ///
    /// # Errors
    /// Never for a configuration made by [`load()`].
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        toml::to_string_pretty(self).map_err(|e| ConfigError::Syntax(e.to_string()))
    }
}
