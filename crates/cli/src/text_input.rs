//! Texts that a command reads.

use std::{
    io::{Read, stdin},
    path::Path,
};

use anyhow::Context;

/// The text of a file; `-` is standard input.
pub fn read_text(path: &Path) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        stdin().read_to_end(&mut bytes).context("cannot read standard input")?;
    } else {
        bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    }
    String::from_utf8(bytes).map_err(|e| {
        anyhow::anyhow!("{} is not UTF-8: bad byte at offset {}", path.display(), e.utf8_error().valid_up_to())
    })
}
