//! What a configuration must fulfil: known keys, right types, values in their ranges.

use tinygpt_model::{
    GptConfig, MODEL_KEYS, ModelError,
    adapter::MAX_RANK,
    cpu::{CpuPrecision, POLAR_EXPRESS, TrainingFloats},
};
use toml::{Table, Value};

use super::{
    CONFIG_FORMAT, OptimizerKind, PriorKind, RunConfig, TokenizerKind,
    schema::{ConfigError, fields},
};

/// Refuses unknown keys and wrong types, and turns integers into floats where a float is meant.
pub(super) fn check_table(prefix: &str, table: &mut Table, defaults: &Table) -> Result<(), ConfigError> {
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
    let choices: &[&str] = match key {
        "data.tokenizer" => &["char", "bpe"],
        "data.documents" => &["none", "file", "line", "marker"],
        "train.precision" => &["f32", "tf32", "bf16", "f16"],
        "train.optimizer" => &["adamw", "muon"],
        "train.schedule" => &["cosine", "linear", "wsd"],
        "train.prior" => &["none", "l2", "l1"],
        _ => MODEL_KEYS.iter().find(|model| model.key == key).map_or(&[], |model| model.choices),
    };
    if choices.is_empty() {
        return Ok(());
    }
    if choices.contains(&text) {
        return Ok(());
    }
    let (last, others) = choices.split_last().unwrap_or((&"", &[]));
    let expected = format!("\"{}\" or \"{last}\"", others.join("\", \""));
    Err(ConfigError::Type { key: key.into(), expected, got: format!("\"{text}\"") })
}

pub(super) fn kind(value: &Value) -> &'static str {
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
pub(super) fn unknown(key: &str) -> ConfigError {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let likeness = |valid: &str| {
        let whole = strsim::jaro_winkler(key, valid);
        let tail = strsim::jaro_winkler(&last(key), &last(valid));
        // A right name in a wrong section is as good as a misspelt one in the right section.
        whole.max(tail)
    };
    let sections = ["data", "model", "train", "lora", "generate"];
    let candidates =
        fields().map(|f| f.key).chain(if key.contains('.') { [].iter() } else { sections.iter() }.copied());
    // `data` is a section, and no key.
    let nearest = candidates
        .filter(|valid| *valid != key)
        .map(|valid| (likeness(valid), valid))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let nearest = nearest.filter(|(score, _)| *score > 0.6).map(|(_, valid)| valid.to_owned());
    ConfigError::UnknownKey { key: key.into(), nearest }
}

pub(super) fn validate(config: &RunConfig) -> Result<(), ConfigError> {
    let refuse = |key: &str, value: &dyn std::fmt::Display, reason: &str| {
        Err(ConfigError::Range { key: key.into(), value: value.to_string(), reason: reason.into() })
    };
    let RunConfig { format, name, data, train, lora, generate, .. } = config;
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
    if data.val == "-" {
        return refuse("data.val", &data.val, "must be a file, since standard input is gone when it is read again");
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
        ("train.sample_tokens", train.sample_tokens as u64),
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
        ("train.final_eval_batches", train.final_eval_batches),
        ("train.sample_tokens", train.sample_tokens),
        ("data.vocab_size", data.vocab_size),
        ("lora.rank", lora.rank),
    ] {
        if value > MOST {
            return refuse(key, &value, "is larger than 16,777,216, the most this program handles");
        }
    }
    if train.batch_size.saturating_mul(config.model.block_size) > 1 << 31 {
        return refuse("train.batch_size", &train.batch_size, "times model.block_size must be at most 2^31 tokens");
    }
    let RunConfig { model, .. } = config;
    // Without embeddings: what they take is of the memory, which is checked when the text is known.
    let blocks = GptConfig { block_size: 1, ..config.gpt(1) };
    if TrainingFloats::new(&blocks, CpuPrecision::F32).parameters > (1u64 << 33) as f64 {
        let reason = "model.n_layer and model.mlp_hidden ask for more than 2^33 parameters";
        return refuse("model.n_embd", &model.n_embd, &format!("with {reason}"));
    }
    if model.n_embd < 2 {
        return refuse(
            "model.n_embd",
            &model.n_embd,
            "must be at least 2: the layer norm of one channel is always zero",
        );
    }
    if !(1..=POLAR_EXPRESS.len()).contains(&train.muon_steps) {
        return refuse("train.muon_steps", &train.muon_steps, "must be between 1 and 5");
    }
    if lora.rank > MAX_RANK {
        return refuse("lora.rank", &lora.rank, &format!("must be at most {MAX_RANK}"));
    }
    if lora.rank > 0 && train.optimizer != OptimizerKind::Adamw {
        let reason = "the matrices of an adapter (lora.rank) are trained by \"adamw\"";
        return refuse("train.optimizer", &format!("\"{}\"", train.optimizer.name()), reason);
    }
    if lora.rank > 0 && train.prior != PriorKind::None {
        return refuse("train.prior_weight", &train.prior_weight, "an adapter (lora.rank) is trained without a prior");
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
        ("train.lr_matrices", train.lr_matrices, at_least_0(train.lr_matrices), "must be at least 0 (0 is train.lr)"),
        (
            "train.lr_embeddings",
            train.lr_embeddings,
            at_least_0(train.lr_embeddings),
            "must be at least 0 (0 is train.lr)",
        ),
        (
            "train.decay_fraction",
            train.decay_fraction,
            train.decay_fraction > 0.0 && train.decay_fraction <= 1.0,
            "must be larger than 0 and at most 1",
        ),
        (
            "train.muon_momentum",
            train.muon_momentum,
            (0.0..1.0).contains(&train.muon_momentum),
            "must be at least 0 and below 1",
        ),
        ("train.prior_weight", train.prior_weight, at_least_0(train.prior_weight), "must be at least 0"),
        (
            "train.prior_weight",
            train.prior_weight,
            (train.prior == PriorKind::None) == (train.prior_weight == 0.0),
            "must be larger than 0 with a train.prior, and 0 with \"none\"",
        ),
        ("train.kl_weight", train.kl_weight, at_least_0(train.kl_weight), "must be at least 0"),
        (
            "train.kl_weight",
            train.kl_weight,
            train.kl_weight == 0.0 || !train.reference.is_empty(),
            "needs a train.reference to stay near",
        ),
        ("lora.alpha", lora.alpha, lora.alpha > 0.0 && lora.alpha.is_finite(), "must be larger than 0"),
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
