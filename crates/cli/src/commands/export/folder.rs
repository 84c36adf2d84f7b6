//! `tinygpt export --out`: a model folder, with the effective weights where there is an adapter.

use std::{fs, path::Path};

use anyhow::Context;
use serde_json::json;
use tinygpt_model::{Checkpoint, ModelFolder, checkpoint::FloatType};

use crate::output::{print_json, print_stdout};

/// Writes a model as a folder of its own.
pub fn write_model(checkpoint: &Checkpoint, out: &Path, kind: FloatType, as_json: bool) -> anyhow::Result<()> {
    let name = out.display();
    match fs::read_dir(out) {
        Ok(mut entries) => anyhow::ensure!(entries.next().is_none(), "{name} is not empty: give another --out"),
        Err(_) => fs::create_dir_all(out).with_context(|| format!("cannot create {name}"))?,
    }
    let (folder, config) = (ModelFolder::new(out), checkpoint.config());
    folder.write_description_as(kind, config, checkpoint.tokenizer(), checkpoint.defaults())?;
    folder.write_weights_as(kind, config, &checkpoint.weights().slices())?;
    let parameters = config.n_params();
    if as_json {
        return print_json(&json!({ "model": out, "parameters": parameters, "dtype": kind.name() }));
    }
    Ok(print_stdout(&format!("{name}: {parameters} parameters in {}\n", kind.name()))?)
}
