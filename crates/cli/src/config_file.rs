//! A configuration named on the command line: a file or a recipe.

use std::{
    ffi::OsStr,
    fs::read_to_string,
    path::{Path, PathBuf},
};

use anyhow::Context;
use tinygpt_trainer::{
    RunConfig,
    config::{self, ConfigError, recipe},
};

use crate::output::Usage;

/// The configuration of a file, of `configs/FILE` or `configs/FILE.toml`, or of a built-in recipe, with overrides
/// `KEY=VALUE`.
pub fn read(path: &Path, overrides: Vec<String>) -> anyhow::Result<RunConfig> {
    read_over(&RunConfig::default(), path, overrides)
}

/// Whether the configuration that [`read`] would read sets a key `SECTION.NAME` or `NAME` itself.
pub fn sets(path: &Path, key: &str) -> anyhow::Result<bool> {
    let table: toml::Table = find(path)?.1.parse()?;
    Ok(match key.split_once('.') {
        Some((section, name)) => table.get(section).is_some_and(|section| section.get(name).is_some()),
        None => table.contains_key(key),
    })
}

/// The file, or the name of the recipe, and its text.
fn find(path: &Path) -> anyhow::Result<(PathBuf, String)> {
    let mut with_extension = path.as_os_str().to_owned();
    with_extension.push(".toml");
    let with_extension = PathBuf::from(with_extension);
    let candidates = [
        path.to_owned(),
        with_extension.clone(),
        Path::new("configs").join(path),
        Path::new("configs").join(with_extension),
    ];
    Ok(match candidates.into_iter().find(|p| p.is_file()) {
        Some(found) => {
            let text = read_to_string(&found).with_context(|| format!("cannot read {}", found.display()))?;
            (found, text)
        }
        None => (path.to_owned(), path.to_str().and_then(recipe).ok_or_else(|| no_config(path))?.to_owned()),
    })
}

/// As [`read`], with other defaults.
pub fn read_over(base: &RunConfig, path: &Path, mut overrides: Vec<String>) -> anyhow::Result<RunConfig> {
    let (found, text) = find(path)?;
    let named = text.parse::<toml::Table>().is_ok_and(|table| table.contains_key("name"));
    if !named && let Some(stem) = found.file_stem() {
        // A file without a name is named for itself.
        overrides.insert(0, format!("name=\"{}\"", run_name(stem)));
    }
    let config = config::load_over(base, &text, &overrides).map_err(|e| match e {
        ConfigError::InOverride { .. } | ConfigError::Override(_) => Usage(e.to_string()),
        _ => Usage(format!("{}: {e}", found.display())),
    })?;
    Ok(config)
}

/// The configuration of a text, with overrides `KEY=VALUE`.
pub fn load(base: &RunConfig, text: &str, overrides: Vec<String>) -> anyhow::Result<RunConfig> {
    Ok(config::load_over(base, text, &overrides).map_err(|e| Usage(e.to_string()))?)
}

fn no_config(path: &Path) -> Usage {
    let recipes = config::RECIPES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    Usage(format!(
        "there is no configuration {} here or in configs/, and the recipes are {recipes}; `tinygpt config` prints one",
        path.display()
    ))
}

/// The name of the runs of a configuration that is named for its file.
pub fn run_name(stem: &OsStr) -> String {
    stem.to_string_lossy().chars().map(|c| if c.is_alphanumeric() || "-_".contains(c) { c } else { '-' }).collect()
}
