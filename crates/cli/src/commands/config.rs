//! `tinygpt config`.

use tinygpt_trainer::config::{RECIPES, annotated_default, recipe};

use crate::{
    args::ConfigArgs,
    output::{Usage, put},
};

pub fn run(args: &ConfigArgs) -> anyhow::Result<()> {
    let Some(name) = &args.recipe else { return Ok(put(&annotated_default()?)?) };
    match recipe(name) {
        Some(text) => Ok(put(text)?),
        None => {
            let known = RECIPES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
            Err(Usage(format!("there is no recipe {name}; the recipes are {known}")).into())
        }
    }
}
