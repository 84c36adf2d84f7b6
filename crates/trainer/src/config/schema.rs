//! Reading a configuration: every key is known, every value has the right type and lies in its range, or the
//! configuration is refused before any work is done.

use serde::Deserialize;
use toml::{Table, Value};

use super::{CONFIG_FORMAT, RunConfig, TokenizerKind};
use tinygpt_model::ModelError;

/// A refused configuration.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
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
    /// An override that a resumed run cannot take.
    #[error(
        "`{0}` cannot change when a run is resumed: only train.max_steps, train.max_minutes, train.patience, train.eval_every, train.eval_batches, train.log_every and generate.* can"
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

/// Every key, in the order of the file.
pub const FIELDS: &[Field] = fields! {
    "format": "format version of this file",
    "name": "runs go to runs/NAME-N [default: the name of this file]",
    "seed": "seed of everything random: weights, batches, dropout, the built-in corpus",
    "data.corpus": "\"stories\" (built in, with a known entropy), or the path of a UTF-8 file, a folder or a glob",
    "data.stories_bytes": "size of the built-in corpus in bytes",
    "data.tokenizer": "\"char\" (one token a character) or \"bpe\" (byte-level byte-pair encoding)",
    "data.vocab_size": "tokens of the bpe vocabulary, at least 256; char takes what the text has",
    "data.val_fraction": "share of the corpus, at its end, that is held out for validation, in (0, 1)",
    "model.block_size": "context length in tokens",
    "model.n_layer": "transformer blocks",
    "model.n_head": "attention heads; divides n_embd",
    "model.n_embd": "channels of the residual stream",
    "model.dropout": "probability of dropping a value in training, in [0, 1)",
    "model.bias": "whether linear layers and norms have biases",
    "model.activation": "\"gelu\" (exact) or \"gelu_new\" (tanh approximation, as GPT-2)",
    "train.batch_size": "windows of block_size tokens in a batch",
    "train.grad_accum": "batches averaged into one update",
    "train.max_steps": "updates",
    "train.max_minutes": "stop after so many minutes of training; 0 is no limit",
    "train.lr": "learning rate after the warm-up",
    "train.min_lr": "learning rate at the end of the cosine decay",
    "train.warmup_steps": "updates of linear warm-up",
    "train.decay_steps": "update at which the decay ends; 0 is max_steps",
    "train.beta1": "AdamW: decay of the first moment",
    "train.beta2": "AdamW: decay of the second moment",
    "train.eps": "AdamW: added to the root of the second moment",
    "train.weight_decay": "AdamW: decoupled decay of matrices (never of biases and norms)",
    "train.clip": "largest global norm of the gradient; 0 is off",
    "train.eval_every": "updates between evaluations, each of which also saves the run",
    "train.eval_batches": "batches of an evaluation during training, spread over the split; 0 is the whole split",
    "train.patience": "stop after so many evaluations without a new best; 0 is never",
    "train.log_every": "updates between lines of metrics.jsonl",
    "generate.temperature": "default of `tinygpt generate`; 0 is greedy",
    "generate.top_k": "default of `tinygpt generate`: keep the k most probable tokens; 0 is off",
    "generate.top_p": "default of `tinygpt generate`: keep the smallest set of probability p; 1 is off",
    "generate.max_new_tokens": "default of `tinygpt generate`: tokens after the prompt",
};

/// Keys that may change between two parts of one run: none of them alters the updates.
const FREE_ON_RESUME: &[&str] = &[
    "train.max_steps",
    "train.max_minutes",
    "train.patience",
    "train.eval_every",
    "train.eval_batches",
    "train.log_every",
];

/// Reads a configuration from TOML text with `KEY=VALUE` overrides, fills in defaults and checks everything that can be
/// checked without the corpus. With `resume`, only keys that leave the updates as they are may be overridden.
///
/// # Errors
/// [`ConfigError`], naming the key.
pub fn load(text: &str, overrides: &[String], resume: bool) -> Result<RunConfig, ConfigError> {
    let mut table: Table = toml::from_str(text).map_err(|e| ConfigError::Syntax(e.to_string()))?;
    for item in overrides {
        apply_override(&mut table, item, resume)?;
    }
    let defaults = defaults()?;
    check_table("", &mut table, &defaults)?;
    let mut config = RunConfig::deserialize(table).map_err(|e| ConfigError::Syntax(e.to_string()))?;
    if config.train.decay_steps == 0 {
        config.train.decay_steps = config.train.max_steps;
    }
    // A short trial of a long recipe must not fail for its warm-up; it simply ends inside it.
    config.train.decay_steps = config.train.decay_steps.max(config.train.warmup_steps);
    validate(&config)?;
    Ok(config)
}

/// All keys with their documentation and defaults, as a commented TOML file.
///
/// # Errors
/// Never: the defaults can be written as TOML.
pub fn annotated_default() -> Result<String, ConfigError> {
    let defaults = defaults()?;
    let mut text = String::new();
    let mut section = "";
    for Field { key, doc } in FIELDS {
        let (table, name) = key.split_once('.').unwrap_or(("", key));
        if table != section {
            text += &format!("\n[{table}]\n");
            section = table;
        }
        let value = lookup(&defaults, key).map(Value::to_string).unwrap_or_default();
        // A file without a name is named for itself.
        let off = if *key == "name" { "# " } else { "" };
        text += &format!("# {doc}\n{off}{name} = {value}\n");
    }
    Ok(text)
}

fn defaults() -> Result<Table, ConfigError> {
    Table::try_from(RunConfig::default()).map_err(|e| ConfigError::Syntax(e.to_string()))
}

fn lookup<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        Some((section, name)) => table.get(section)?.as_table()?.get(name),
        None => table.get(key),
    }
}

fn apply_override(table: &mut Table, item: &str, resume: bool) -> Result<(), ConfigError> {
    let (key, text) = item.split_once('=').ok_or_else(|| ConfigError::Override(item.into()))?;
    let (key, text) = (key.trim(), text.trim());
    if !FIELDS.iter().any(|f| f.key == key) {
        return Err(unknown(key));
    }
    if resume && !FREE_ON_RESUME.contains(&key) && !key.starts_with("generate.") {
        return Err(ConfigError::FixedOnResume(key.into()));
    }
    // `--set name=abc` needs no quotes: what is not a TOML value is a string.
    let value = toml::from_str::<Table>(&format!("value = {text}"))
        .ok()
        .and_then(|mut t| t.remove("value"))
        .unwrap_or_else(|| Value::String(text.into()));
    match key.split_once('.') {
        Some((section, name)) => {
            let entry = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            let got = kind(entry).to_owned();
            let section_table = entry.as_table_mut().ok_or_else(|| ConfigError::Type {
                key: section.into(),
                expected: "a table".into(),
                got,
            })?;
            section_table.insert(name.into(), value);
        }
        None => {
            table.insert(key.into(), value);
        }
    }
    Ok(())
}

/// Refuses unknown keys and wrong types, and turns integers into floats where a float is meant.
fn check_table(prefix: &str, table: &mut Table, defaults: &Table) -> Result<(), ConfigError> {
    for (name, value) in table.iter_mut() {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        let Some(default) = defaults.get(name) else { return Err(unknown(&key)) };
        match (default, &mut *value) {
            (Value::Table(defaults), Value::Table(table)) => check_table(&key, table, defaults)?,
            (Value::Float(_), Value::Integer(i)) => *value = Value::Float(*i as f64),
            (Value::Integer(_), Value::Integer(i)) if *i < 0 => {
                let reason = "must not be negative".into();
                return Err(ConfigError::Range { key, value: i.to_string(), reason });
            }
            (default, value) if std::mem::discriminant(default) != std::mem::discriminant(value) => {
                return Err(ConfigError::Type { key, expected: kind(default).into(), got: kind(value).into() });
            }
            (_, Value::String(text)) => check_choice(&key, text)?,
            _ => {}
        }
    }
    Ok(())
}

fn check_choice(key: &str, text: &str) -> Result<(), ConfigError> {
    let choices = match key {
        "data.tokenizer" => ["char", "bpe"],
        "model.activation" => ["gelu", "gelu_new"],
        _ => return Ok(()),
    };
    if choices.contains(&text) {
        return Ok(());
    }
    let expected = format!("\"{}\" or \"{}\"", choices[0], choices[1]);
    Err(ConfigError::Type { key: key.into(), expected, got: format!("\"{text}\"") })
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a string",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "an array",
        Value::Table(_) => "a table",
    }
}

/// An unknown key with the valid key that is most like it, whole or by its last part.
fn unknown(key: &str) -> ConfigError {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let likeness = |valid: &str| {
        let whole = strsim::jaro_winkler(key, valid);
        let tail = strsim::jaro_winkler(&last(key), &last(valid));
        // A right name in a wrong section is as good as a misspelt one in the right section.
        whole.max(tail)
    };
    let sections = ["data", "model", "train", "generate"];
    let candidates =
        FIELDS.iter().map(|f| f.key).chain(if key.contains('.') { [].iter() } else { sections.iter() }.copied());
    let nearest = candidates.map(|valid| (likeness(valid), valid)).max_by(|a, b| a.0.total_cmp(&b.0));
    let nearest = nearest.filter(|(score, _)| *score > 0.6).map(|(_, valid)| valid.to_owned());
    ConfigError::UnknownKey { key: key.into(), nearest }
}

fn validate(config: &RunConfig) -> Result<(), ConfigError> {
    let refuse = |key: &str, value: &dyn std::fmt::Display, reason: &str| {
        Err(ConfigError::Range { key: key.into(), value: value.to_string(), reason: reason.into() })
    };
    let RunConfig { format, name, data, train, generate, .. } = config;
    if *format != CONFIG_FORMAT {
        return refuse("format", format, &format!("this program reads format {CONFIG_FORMAT}"));
    }
    if name.is_empty() || !name.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c)) || name.starts_with('.') {
        return refuse("name", name, "must be letters, digits, `-`, `_` or `.`: it becomes a folder's name");
    }
    if data.corpus.is_empty() {
        return refuse("data.corpus", &"\"\"", "must name a corpus: \"stories\", a file, a folder or a glob");
    }
    if data.stories_bytes == 0 || data.stories_bytes > 1 << 32 {
        return refuse("data.stories_bytes", &data.stories_bytes, "must be between 1 and 4 GiB");
    }
    if !(data.val_fraction > 0.0 && data.val_fraction < 1.0) {
        return refuse("data.val_fraction", &data.val_fraction, "must lie between 0 and 1, both excluded");
    }
    if data.tokenizer == TokenizerKind::Bpe && data.vocab_size < 256 {
        return refuse("data.vocab_size", &data.vocab_size, "byte-level bpe has at least its 256 bytes");
    }
    if let Err(ModelError::Config { field, value, reason }) = config.gpt(1).validate() {
        return refuse(&format!("model.{field}"), &value, &reason);
    }
    for (key, value) in [
        ("train.batch_size", train.batch_size as u64),
        ("train.grad_accum", train.grad_accum as u64),
        ("train.max_steps", train.max_steps),
        ("train.eval_every", train.eval_every),
        ("train.log_every", train.log_every),
    ] {
        if value == 0 {
            return refuse(key, &value, "must be at least 1");
        }
    }
    // Sizes that no machine holds are refused here, before they overflow anything.
    const MOST: usize = 1 << 24;
    for (key, value) in [
        ("train.batch_size", train.batch_size),
        ("train.grad_accum", train.grad_accum),
        ("train.eval_batches", train.eval_batches),
        ("data.vocab_size", data.vocab_size),
    ] {
        if value > MOST {
            return refuse(key, &value, "is larger than 16,777,216, the most this program handles");
        }
    }
    if train.batch_size.saturating_mul(config.model.block_size) > 1 << 31 {
        return refuse("train.batch_size", &train.batch_size, "times model.block_size must be at most 2^31 tokens");
    }
    let RunConfig { model, .. } = config;
    let weights = 12 * model.n_layer as u128 * (model.n_embd as u128).pow(2);
    if weights > 1 << 33 {
        return refuse("model.n_embd", &model.n_embd, "and model.n_layer ask for more than 2^33 parameters");
    }
    if model.n_embd < 2 {
        return refuse(
            "model.n_embd",
            &model.n_embd,
            "must be at least 2: the layer norm of one channel is always zero",
        );
    }
    let at_least_0 = |x: f64| x >= 0.0 && x.is_finite();
    for (key, value, good, reason) in [
        ("train.max_minutes", train.max_minutes, at_least_0(train.max_minutes), "must be at least 0"),
        ("train.lr", train.lr, train.lr > 0.0 && train.lr.is_finite(), "must be larger than 0"),
        ("train.min_lr", train.min_lr, at_least_0(train.min_lr), "must be at least 0"),
        ("train.min_lr", train.min_lr, train.min_lr <= train.lr, "must not be larger than train.lr"),
        ("train.beta1", train.beta1, (0.0..1.0).contains(&train.beta1), "must be at least 0 and below 1"),
        ("train.beta2", train.beta2, (0.0..1.0).contains(&train.beta2), "must be at least 0 and below 1"),
        ("train.eps", train.eps, train.eps > 0.0 && train.eps.is_finite(), "must be larger than 0"),
        ("train.weight_decay", train.weight_decay, at_least_0(train.weight_decay), "must be at least 0"),
        ("train.clip", train.clip, at_least_0(train.clip), "must be at least 0 (0 is off)"),
        ("generate.temperature", generate.temperature, at_least_0(generate.temperature), "must be at least 0"),
        ("generate.top_p", generate.top_p, (0.0..=1.0).contains(&generate.top_p), "must lie in [0, 1]"),
    ] {
        if !good {
            return refuse(key, &value, reason);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        load(text, &[], false).unwrap_err().to_string()
    }

    #[test]
    fn the_table_of_fields_is_exactly_the_configuration() {
        let mut keys = Vec::new();
        for (name, value) in &defaults().unwrap() {
            match value.as_table() {
                Some(table) => keys.extend(table.keys().map(|k| format!("{name}.{k}"))),
                None => keys.push(name.clone()),
            }
        }
        let documented: Vec<_> = FIELDS.iter().map(|f| f.key.to_owned()).collect();
        let sorted = |mut v: Vec<String>| {
            v.sort();
            v
        };
        assert_eq!(sorted(keys), sorted(documented));
        assert!(FREE_ON_RESUME.iter().all(|key| FIELDS.iter().any(|f| f.key == *key)));
    }

    #[test]
    fn the_annotated_default_reads_back_as_the_default() {
        let config = load(&annotated_default().unwrap(), &[], false).unwrap();
        let expected = load("", &[], false).unwrap();
        assert_eq!(config, expected);
        assert_eq!(load(&expected.to_toml().unwrap(), &[], false).unwrap(), expected);
    }

    #[test]
    fn an_unknown_key_is_refused_and_the_nearest_named() {
        assert_eq!(
            error("[train]\nmax_step = 5"),
            "unknown key `train.max_step`; did you mean `train.max_steps`?; `tinygpt config` lists all keys"
        );
        assert!(error("[model]\nn_layers = 5").contains("`model.n_layer`"));
        assert!(error("[train]\nlearning_rate = 5").contains("unknown key `train.learning_rate`"));
        assert!(error("[modle]\nn_layer = 5").contains("did you mean `model`?"));
        assert!(error("n_layer = 5").contains("`model.n_layer`"));
        let message = load("", &["train.lrr=1".into()], false).unwrap_err().to_string();
        assert!(message.contains("`train.lr`"), "{message}");
    }

    #[test]
    fn a_wrong_type_is_refused_and_both_types_named() {
        assert_eq!(error("[train]\nmax_steps = \"5\""), "`train.max_steps` must be a whole number, not a string");
        assert_eq!(error("[train]\nmax_steps = 5.5"), "`train.max_steps` must be a whole number, not a number");
        assert_eq!(error("[model]\nbias = 1"), "`model.bias` must be true or false, not a whole number");
        assert_eq!(error("model = 1"), "`model` must be a table, not a whole number");
        assert_eq!(error("[data]\ntokenizer = \"word\""), "`data.tokenizer` must be \"char\" or \"bpe\", not \"word\"");
        assert!(error("[train]\nmax_steps = -5").contains("must not be negative"));
        assert!(error("[train\n").contains("not valid TOML"));
    }

    #[test]
    fn a_value_out_of_range_is_refused_and_its_key_named() {
        for (text, key) in [
            ("format = 9", "format"),
            ("name = \"a/b\"", "name"),
            ("[data]\nval_fraction = 1.0", "data.val_fraction"),
            ("[data]\ntokenizer = \"bpe\"\nvocab_size = 100", "data.vocab_size"),
            ("[model]\nn_embd = 130", "model.n_embd"),
            ("[model]\ndropout = 1.0", "model.dropout"),
            ("[train]\nmax_steps = 0", "train.max_steps"),
            ("[train]\nlr = nan", "train.lr"),
            ("[train]\nmin_lr = 1", "train.min_lr"),
            ("[train]\nbeta2 = 1", "train.beta2"),
            ("[generate]\ntop_p = 1.5", "generate.top_p"),
            ("[generate]\ntemperature = -1", "generate.temperature"),
        ] {
            let message = error(text);
            assert!(message.starts_with(&format!("`{key}` = ")), "{text}: {message}");
        }
    }

    #[test]
    fn overrides_win_and_need_no_quotes() {
        let set =
            |items: &[&str]| load("[train]\nlr = 0.5", &items.iter().map(|s| s.to_string()).collect::<Vec<_>>(), false);
        let config = set(&["train.lr=1", "name=abc", "train.max_steps=7", "data.corpus=a b.txt"]).unwrap();
        assert_eq!((config.train.lr, config.name.as_str(), config.train.max_steps), (1.0, "abc", 7));
        assert_eq!(config.data.corpus, "a b.txt");
        assert_eq!(config.train.decay_steps, 100, "the decay follows max_steps but never ends before the warm-up");
        assert!(matches!(set(&["train.lr"]), Err(ConfigError::Override(_))));
    }

    #[test]
    fn a_resumed_run_refuses_what_would_change_its_updates() {
        assert!(load("", &["train.max_steps=9000".into()], true).is_ok());
        assert!(matches!(load("", &["train.lr=1.0".into()], true), Err(ConfigError::FixedOnResume(_))));
        assert!(matches!(load("", &["model.n_layer=1".into()], true), Err(ConfigError::FixedOnResume(_))));
    }
}
