//! Reading a configuration: defaults, overrides, and whether all of it is there.

use serde::Deserialize;
use toml::{Table, Value};

use super::{
    RunConfig,
    check::{check_table, kind, unknown},
    schema::{ConfigError, FREE_ON_RESUME, RENAMED, defaults, fields, later_keys, lookup, missing_key, to_table},
};

/// Reads a configuration from TOML text with `KEY=VALUE` overrides, fills in defaults and checks everything that can be
/// checked without the corpus. With `resume`, only keys that a run may change on its way may be overridden.
///
/// # Errors
/// [`ConfigError`], naming the key, and the override where one is to blame.
pub fn load(text: &str, overrides: &[String], resume: bool) -> Result<RunConfig, ConfigError> {
    load_with(text, overrides, resume, &defaults()?)
}

/// As [`load()`] of a new run, with other defaults: those of a run that starts from a model.
///
/// # Errors
/// As [`load()`].
pub fn load_over(base: &RunConfig, text: &str, overrides: &[String]) -> Result<RunConfig, ConfigError> {
    load_with(text, overrides, false, &to_table(base)?)
}

fn load_with(text: &str, overrides: &[String], resume: bool, defaults: &Table) -> Result<RunConfig, ConfigError> {
    let first = |n: usize| read(text, &overrides[..n], resume, defaults);
    let error = match first(overrides.len()) {
        Err(error) if !matches!(error, ConfigError::Override(_)) => error,
        done => return done,
    };
    // To blame is the last override before which it was not so.
    match (0..overrides.len()).rev().find(|&n| first(n).err().as_ref() != Some(&error)) {
        Some(n) => Err(ConfigError::InOverride { item: overrides[n].clone(), source: Box::new(error) }),
        None => Err(error),
    }
}

/// Reads the configuration of a run. It was written with every key that there was then, so none of these may be missing:
/// what is left of an emptied or cut file would read as the defaults.
///
/// # Errors
/// As [`load`], and [`ConfigError::Incomplete`].
pub fn load_resolved(text: &str) -> Result<RunConfig, ConfigError> {
    let config = load(text, &[], false)?;
    let table = parse(text)?;
    match missing_key(&later_keys().collect::<Vec<_>>(), |key| lookup(&table, key).is_some()) {
        Some(key) => Err(ConfigError::Incomplete(key.into())),
        None => Ok(config),
    }
}

fn read(text: &str, overrides: &[String], resume: bool, defaults: &Table) -> Result<RunConfig, ConfigError> {
    let mut table = parse(text)?;
    for item in overrides {
        apply_override(&mut table, item, resume)?;
    }
    check_table("", &mut table, defaults)?;
    fill(&mut table, defaults);
    RunConfig::deserialize(table).map_err(|e| ConfigError::Syntax(e.to_string()))?.resolved()
}

/// Adds the keys that are missing.
fn fill(table: &mut Table, defaults: &Table) {
    for (key, default) in defaults {
        match (table.get_mut(key), default) {
            (Some(Value::Table(section)), Value::Table(defaults)) => fill(section, defaults),
            (Some(_), _) => {}
            (None, default) => {
                table.insert(key.clone(), default.clone());
            }
        }
    }
}

/// The table of a file, whose keys have their present names.
fn parse(text: &str) -> Result<Table, ConfigError> {
    let mut table: Table = toml::from_str(text).map_err(|e| ConfigError::Syntax(e.to_string()))?;
    for (old, new) in RENAMED {
        let (Some((section, old)), Some((_, new))) = (old.split_once('.'), new.split_once('.')) else { continue };
        let Some(section) = table.get_mut(section).and_then(Value::as_table_mut) else { continue };
        // A file with both is refused for the old one.
        if !section.contains_key(new)
            && let Some(value) = section.remove(old)
        {
            section.insert(new.into(), value);
        }
    }
    Ok(table)
}

fn apply_override(table: &mut Table, item: &str, resume: bool) -> Result<(), ConfigError> {
    let (key, text) = item.split_once('=').ok_or_else(|| ConfigError::Override(item.into()))?;
    let (key, text) = (key.trim(), text.trim());
    let key = RENAMED.iter().find(|(old, _)| *old == key).map_or(key, |(_, new)| new);
    if !fields().any(|f| f.key == key) {
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
