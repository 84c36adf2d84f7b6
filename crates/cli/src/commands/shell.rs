//! `tinygpt completions` and `tinygpt man`: what a shell and a manual want to know of the command line.

use std::fs;

use anyhow::Context;
use clap::CommandFactory;
use clap_mangen::Man;

use crate::{
    args::{Cli, CompletionsArgs, ManArgs},
    output::print_stdout,
};

pub fn completions(args: &CompletionsArgs) -> anyhow::Result<()> {
    let mut command = Cli::command();
    let name = command.get_name().to_owned();
    // Printed at once, since a reader that has gone away is no error here and would be a panic in clap_complete.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    Ok(print_stdout(&String::from_utf8(script)?)?)
}

pub fn man(args: &ManArgs) -> anyhow::Result<()> {
    let command = Cli::command().disable_help_subcommand(true);
    match &args.dir {
        None => {
            let mut page = Vec::new();
            Man::new(command).render(&mut page)?;
            Ok(print_stdout(&String::from_utf8(page)?)?)
        }
        Some(dir) => {
            fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
            clap_mangen::generate_to(command, dir).with_context(|| format!("cannot write to {}", dir.display()))
        }
    }
}
