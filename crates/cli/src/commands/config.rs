//! `tinygpt config`.

use tinygpt_trainer::config::{RECIPES, annotated_default, recipe};

use crate::{
    args::ConfigArgs,
    output::{Usage, print_stdout},
};

pub fn run(args: &ConfigArgs) -> anyhow::Result<()> {
    let Some(name) = &args.recipe else { return Ok(print_stdout(&annotated_default()?)?) };
    match recipe(name) {
        Some(text) => Ok(print_stdout(text)?),
        None => {
            let known = RECIPES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
            Err(Usage(format!("there is no recipe {name}; the recipes are {known}")).into())
        }
    }
}
