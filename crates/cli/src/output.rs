//! What goes to standard output, and the errors that only a program has.

use std::{
    borrow::Cow,
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
};

use serde::Serialize;

/// The command line asks for something that makes no sense: exit code 2.
#[derive(Debug)]
pub struct Usage(pub String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// The user asked to stop: exit code 130.
#[derive(Debug)]
pub struct Interrupted(pub String);

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Interrupted {}

/// Writes a piece of a result to standard output, at once. What a model or a file says must not drive the terminal;
/// anything else gets it byte for byte.
pub fn print_stdout(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let text = if out.is_terminal() { harmless(text) } else { text.into() };
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Writes a text with colours to a terminal. What it quotes must be [`harmless`].
pub fn print_colored(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Whether colours may be printed: to a terminal that has them, unless NO_COLOR (<https://no-color.org>) is set.
pub fn has_colors() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    io::stdout().is_terminal() && !is_set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// The text with its control characters (C0, DEL, C1) as `\x1b`, but for line breaks and tabs.
pub fn harmless(text: &str) -> Cow<'_, str> {
    let drives = |c: char| c.is_control() && c != '\n' && c != '\t';
    if !text.contains(drives) {
        return text.into();
    }
    text.chars().map(|c| if drives(c) { format!("\\x{:02x}", u32::from(c)) } else { c.to_string() }).collect()
}

/// Writes a result as one line of JSON.
pub fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    Ok(print_stdout(&(serde_json::to_string(value)? + "\n"))?)
}

/// The file to write: one that does not exist yet, or with --overwrite a regular file; where it is a link, what it leads
/// to. `flag` is the one that named it.
pub fn new_or_replaced(file: &Path, overwrite: bool, flag: &str) -> anyhow::Result<PathBuf> {
    let name = file.display();
    match std::fs::symlink_metadata(file) {
        Err(_) => Ok(file.to_owned()), // writing says what is wrong, if anything is
        Ok(_) if !overwrite => {
            anyhow::bail!("{name} exists already: give --overwrite to replace it, or another {flag}")
        }
        Ok(_) => match file.canonicalize() {
            Ok(path) if path.is_file() => Ok(path),
            _ => anyhow::bail!("{name} is not a regular file: give another {flag}"),
        },
    }
}

/// Whether the reader of our output has gone away.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_and_text_is_left_alone() {
        assert_eq!(harmless("a\x1b[2J\rb\u{7f}\u{9b}31m\0"), r"a\x1b[2J\x0db\x7f\x9b31m\x00");
        for text in ["", "Once\tthere\n", "Käse 🦀 \\x1b"] {
            assert!(matches!(harmless(text), Cow::Borrowed(same) if same == text));
        }
    }
}
