//! `tinygpt config`.

use tinygpt_trainer::config::annotated_default;

use crate::output::put;

pub fn run() -> anyhow::Result<()> {
    Ok(put(&annotated_default()?)?)
}
