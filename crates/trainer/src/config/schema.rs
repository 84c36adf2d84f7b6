//! The keys of a configuration with their documentation and defaults, and why a configuration is refused.

use tinygpt_model::{MODEL_KEYS, ModelKey};
use toml::{Table, Value};

use super::RunConfig;

/// A refused configuration.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The text is not TOML.
    #[error("not valid TOML: {0}")]
    Syntax(String),
    /// A key that does not exist.
    #[error("unknown key `{key}`{}; `tinygpt config` lists all keys", hint(.nearest))]
    UnknownKey {
        /// The key, dotted.
        key: String,
        /// The valid key that resembles it most.
        nearest: Option<String>,
    },
    /// A value of the wrong type.
    #[error("`{key}` must be {expected}, not {got}")]
    Type {
        /// The key, dotted.
        key: String,
        /// What it takes.
        expected: String,
        /// What was given.
        got: String,
    },
    /// A value out of its range, or in conflict with another.
    #[error("`{key}` = {value}: {reason}")]
    Range {
        /// The key, dotted.
        key: String,
        /// What was given.
        value: String,
        /// What is allowed.
        reason: String,
    },
    /// An override that is not `KEY=VALUE`.
    #[error("`--set {0}` is not KEY=VALUE; for example --set train.max_steps=100")]
    Override(String),
    /// A sweep that would train the same run twice.
    #[error("--set {what} is there twice: each value of a sweep once, a key with all its values in one --set")]
    SweptTwice {
        /// The key, or the key with its value.
        what: String,
    },
    /// What is wrong comes from an override, not from the text.
    #[error("--set {item}: {source}")]
    InOverride {
        /// The override.
        item: String,
        /// What is wrong.
        source: Box<ConfigError>,
    },
    /// The configuration of a run, which has every key, lacks one.
    #[error("it has no `{0}`: it was emptied, cut short or edited")]
    Incomplete(String),
    /// An override that a resumed run cannot take.
    #[error(
        "`{0}` cannot change when a run is resumed: only train.max_steps, train.max_minutes, train.patience, train.lr, train.lr_*, train.min_lr, train.decay_steps, train.batch_size, model.dropout, train.eval_*, train.final_eval_batches, train.log_every, train.sample_* and generate.* can"
    )]
    FixedOnResume(String),
}

fn hint(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|key| format!("; did you mean `{key}`?")).unwrap_or_default()
}

/// One key of the configuration, with the line that documents it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// The dotted key.
    pub key: &'static str,
    /// What it means, with its unit.
    pub doc: &'static str,
}

macro_rules! fields {
    ($($key:literal: $doc:literal,)*) => { &[$(Field { key: $key, doc: $doc }),*] };
}

/// Every key before the section `[model]`.
const GENERAL: &[Field] = fields! {
    "format": "format version of this file",
    "name": "runs go to runs/NAME-N [default: the name of this file]",
    "seed": "seed of everything random: weights, batches, dropout, the built-in corpus",
    "data.corpus": "\"stories\" (built in, with a known entropy), or the path of a file (text, .jsonl, .parquet, .gz, .zst, or tokens in .bin), a folder or a glob",
    "data.stories_bytes": "size of the built-in corpus in bytes",
    "data.tokenizer": "\"char\" (one token a character) or \"bpe\" (byte-level byte-pair encoding)",
    "data.vocab_size": "tokens of the bpe vocabulary, at least 256; char takes what the text has",
    "data.val_fraction": "share of the corpus, at its end, that is held out for validation, in (0, 1)",
    "data.val_documents": "true takes that share of the documents, spread evenly over the corpus, instead of its end",
    "data.val": "a corpus of its own for validation, instead of that share; \"\" is none",
    "data.text_key": "key of .jsonl, column of .parquet, that holds the text",
    "data.documents": "what of a text is a document, behind which comes <|endoftext|>: \"none\", \"file\", \"line\" or \"marker\" (between <|endoftext|> in the text); a record of .jsonl and .parquet always is one",
    "data.tokenizer_path": "a tokenizer.json, a folder with one, or hf:NAME of the hub, to use instead of training one; \"\" is none",
};

/// Every key behind the section `[model]`.
const TRAINING: &[Field] = fields! {
    "train.batch_size": "windows of block_size tokens in a batch",
    "train.grad_accum": "batches averaged into one update",
    "train.precision": "\"f32\", \"tf32\" (CUDA alone: products of f32 on tensor cores), \"bf16\" (faster; products in bf16; needs a CPU with AVX512-BF16 or a GPU) or \"f16\" (GPUs without bf16)",
    "train.max_steps": "updates",
    "train.max_minutes": "stop after so many minutes of training; 0 is no limit",
    "train.lr": "learning rate after the warm-up",
    "train.min_lr": "learning rate at the end of the decay",
    "train.warmup_steps": "updates of linear warm-up",
    "train.decay_steps": "update at which the decay ends; 0 is max_steps, also of a run that is resumed with more",
    "train.beta1": "AdamW: decay of the first moment",
    "train.beta2": "AdamW: decay of the second moment",
    "train.eps": "AdamW: added to the root of the second moment",
    "train.weight_decay": "decoupled decay of matrices (never of biases and norms), times their learning rate",
    "train.clip": "largest global norm of the gradient; 0 is off",
    "train.eval_every": "updates between evaluations, each of which also saves the run",
    "train.eval_batches": "batches of an evaluation during training, spread over the split; 0 is the whole split",
    "train.final_eval_batches": "batches of the evaluation of the best weights at the end, spread over the split; 0 is the whole split",
    "train.patience": "stop after so many evaluations without a new best; 0 is never",
    "train.log_every": "updates between lines of metrics.jsonl",
    "train.optimizer": "\"adamw\", or \"muon\" (Muon for the matrices of linear layers, AdamW for all else)",
    "train.lr_matrices": "learning rate of the matrices of linear layers, decaying as lr does; 0 is lr",
    "train.lr_embeddings": "learning rate of embeddings, positions and an untied head, decaying as lr does; 0 is lr",
    "train.schedule": "how lr decays: \"cosine\", \"linear\" or \"wsd\" (stable, then linear at the end)",
    "train.decay_fraction": "\"wsd\": share of the updates up to decay_steps, at their end, in which lr decays, in (0, 1]",
    "train.muon_momentum": "Muon: decay of the momentum",
    "train.muon_steps": "Muon: Newton-Schulz iterations, 1 to 5",
    "train.prior": "\"none\", \"l2\" (normal) or \"l1\" (Laplace): a prior of what weight_decay covers, as a part of the loss, before clipping",
    "train.prior_weight": "lambda: the loss gets lambda/2 times the sum of squares (l2) or lambda times that of magnitudes (l1)",
    "train.reference": "a run of the same vocabulary that the model is kept near; \"\" is none",
    "train.kl_weight": "the loss gets this times KL(reference || model), the mean over positions",
    "train.sample_every": "updates between samples by the rules of [generate], which go to samples.jsonl; 0 is never",
    "train.sample_tokens": "tokens of a sample after its prompt",
    "train.sample_prompt": "text that samples continue; an empty one begins as `tinygpt generate` without a prompt",
    "lora.rank": "rank of the adapter that is trained in the place of the weights of --init-from; 0 trains all weights",
    "lora.alpha": "the products of the adapter are multiplied with alpha / rank",
    "lora.targets": "linear layers that it adapts, as PEFT's target_modules: for example [\"c_attn\"] or [\"q_proj\", \"v_proj\"]; [] is all",
    "generate.temperature": "default of `tinygpt generate`; 0 is greedy",
    "generate.top_k": "default of `tinygpt generate`: keep the k most probable tokens; 0 is off",
    "generate.top_p": "default of `tinygpt generate`: keep the smallest set of probability p; 1 is off",
    "generate.max_new_tokens": "default of `tinygpt generate`: tokens after the prompt",
};

/// Every key, in the order of the file.
pub fn fields() -> impl Iterator<Item = Field> {
    let model = MODEL_KEYS.iter().map(|&ModelKey { key, doc, .. }| Field { key, doc });
    GENERAL.iter().copied().chain(model).chain(TRAINING.iter().copied())
}

/// Keys that the first version of format 1 did not have, each with the revision in which it came. The file of an older run
/// lacks those of later revisions, and their defaults are what it was trained with.
pub(super) fn later_keys() -> impl Iterator<Item = (&'static str, u32)> {
    let of_model = MODEL_KEYS.iter().map(|key| (key.key, key.since));
    of_model.chain(LATER_OF_TRAINING.iter().copied()).filter(|(_, since)| *since > 0)
}

/// Those of the other sections. A new key takes the number after the largest of all, those of [`MODEL_KEYS`] included.
const LATER_OF_TRAINING: &[(&str, u32)] = &[
    ("train.precision", 1),
    ("train.optimizer", 5),
    ("train.lr_matrices", 5),
    ("train.lr_embeddings", 5),
    ("train.schedule", 5),
    ("train.decay_fraction", 5),
    ("train.muon_momentum", 5),
    ("train.muon_steps", 5),
    ("train.prior", 6),
    ("train.prior_weight", 6),
    ("train.reference", 6),
    ("train.kl_weight", 6),
    ("train.sample_every", 6),
    ("train.sample_tokens", 6),
    ("train.sample_prompt", 6),
    ("lora.rank", 8),
    ("lora.alpha", 8),
    ("lora.targets", 8),
    ("data.val", 9),
    ("data.text_key", 9),
    ("data.documents", 9),
    ("data.tokenizer_path", 9),
    ("train.final_eval_batches", 10),
    ("data.val_documents", 11),
];

/// The first of all keys that a file should have and lacks. It was written with every key of its revision, which is the newest
/// of the keys that it has.
pub(super) fn missing_key(later: &[(&str, u32)], has: impl Fn(&str) -> bool) -> Option<&'static str> {
    let since = |key: &str| later.iter().find(|(later, _)| *later == key).map_or(0, |(_, since)| *since);
    let revision = fields().filter(|field| has(field.key)).map(|field| since(field.key)).max().unwrap_or(0);
    fields().map(|field| field.key).find(|key| since(key) <= revision && !has(key))
}

/// Keys under names that they had earlier, and have now.
pub(super) const RENAMED: &[(&str, &str)] = &[("model.activation", "model.mlp")];

/// Keys that may change between two parts of one run. Those of the first lines alter no update, but for what
/// `train.decay_steps` = 0 derives of `train.max_steps`; the others do, which the run records ([`Change`](super::Change)).
pub(super) const FREE_ON_RESUME: &[&str] = &[
    "train.max_steps",
    "train.max_minutes",
    "train.patience",
    "train.eval_every",
    "train.eval_batches",
    "train.final_eval_batches",
    "train.log_every",
    "train.sample_every",
    "train.sample_tokens",
    "train.sample_prompt",
    "train.lr",
    "train.lr_matrices",
    "train.lr_embeddings",
    "train.min_lr",
    "train.decay_steps",
    "train.batch_size",
    "model.dropout",
];

/// All keys with their documentation and defaults, as a commented TOML file.
///
/// # Errors
/// Never: the defaults can be written as TOML.
pub fn annotated_default() -> Result<String, ConfigError> {
    let defaults = defaults()?;
    let mut text = String::new();
    let mut section = "";
    for Field { key, doc } in fields() {
        let (table, name) = key.split_once('.').unwrap_or(("", key));
        if table != section {
            text += &format!("\n[{table}]\n");
            section = table;
        }
        let value = lookup(&defaults, key).map(Value::to_string).unwrap_or_default();
        // A file without a name is named for itself.
        let off = if key == "name" { "# " } else { "" };
        text += &format!("# {doc}\n{off}{name} = {value}\n");
    }
    Ok(text)
}

pub(super) fn defaults() -> Result<Table, ConfigError> {
    to_table(&RunConfig::default())
}

/// The keys of a configuration.
pub(super) fn to_table(config: &RunConfig) -> Result<Table, ConfigError> {
    Table::try_from(config).map_err(|e| ConfigError::Syntax(e.to_string()))
}

pub(super) fn lookup<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        Some((section, name)) => table.get(section)?.as_table()?.get(name),
        None => table.get(key),
    }
}
