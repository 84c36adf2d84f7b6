//! Where the lines of a chat come from.

use std::{
    io::{self, BufRead, IsTerminal, stdin},
    path::PathBuf,
};

use anyhow::Context;
use rustyline::{Config, DefaultEditor, error::ReadlineError};
use tinygpt_trainer::token_cache::default_cache_dir;

/// The file of what was typed, beside the cached tokens.
const HISTORY: &str = "chat_history.txt";
/// The lines that it keeps.
const HISTORY_LINES: usize = 1000;

/// Lines that are typed, or that another program or a file gives.
pub enum Lines {
    /// With editing, and a history that is kept.
    Terminal {
        editor: Box<DefaultEditor>,
        history: PathBuf,
    },
    Piped,
}

impl Lines {
    /// Lines of standard input.
    pub fn open() -> anyhow::Result<Self> {
        if !stdin().is_terminal() || !io::stdout().is_terminal() {
            return Ok(Self::Piped);
        }
        let config = Config::builder().max_history_size(HISTORY_LINES)?.auto_add_history(true).build();
        let mut editor = Box::new(DefaultEditor::with_config(config)?);
        let history = default_cache_dir().join(HISTORY);
        match editor.load_history(&history) {
            Err(ReadlineError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => notice!("the history of {} is not there: {error}", history.display()),
            Ok(()) => {}
        }
        Ok(Self::Terminal { editor, history })
    }

    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal { .. })
    }

    /// The next text: a line, with those after it as long as the last ends in a backslash. `None` at the end.
    pub fn next_text(&mut self) -> anyhow::Result<Option<String>> {
        let Some(mut text) = self.line("> ")? else { return Ok(None) };
        while let Some(first) = text.strip_suffix('\\') {
            let rest = self.line("| ")?;
            text = format!("{first}\n{}", rest.unwrap_or_default());
        }
        Ok(Some(text))
    }

    /// Keeps what was typed for the next time.
    pub fn save(&mut self) -> anyhow::Result<()> {
        let Self::Terminal { editor, history } = self else { return Ok(()) };
        let folder = default_cache_dir();
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        editor.save_history(history).with_context(|| format!("cannot write {}", history.display()))
    }

    fn line(&mut self, prompt: &str) -> anyhow::Result<Option<String>> {
        match self {
            Self::Terminal { editor, .. } => loop {
                match editor.readline(prompt) {
                    Ok(line) => return Ok(Some(line)),
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(ReadlineError::Interrupted) => notice!("/quit or Ctrl-D ends"),
                    Err(error) => return Err(error.into()),
                }
            },
            Self::Piped => {
                let mut bytes = Vec::new();
                stdin().lock().read_until(b'\n', &mut bytes).context("cannot read standard input")?;
                if bytes.is_empty() {
                    return Ok(None);
                }
                let line = String::from_utf8(bytes).context("a line of standard input is not UTF-8")?;
                let line = line.strip_suffix('\n').unwrap_or(&line);
                Ok(Some(line.strip_suffix('\r').unwrap_or(line).to_owned()))
            }
        }
    }
}
