//! The prompts of `generate`.

use crate::{args::GenerateArgs, text_input::read_text};

/// The prompts of the flags: one, or one for each line of a file. An empty one is the start of a text.
pub fn prompts(args: &GenerateArgs) -> anyhow::Result<Vec<String>> {
    let prompts = match args {
        GenerateArgs { prompt: Some(text), .. } => vec![text.clone()],
        GenerateArgs { prompt_file: Some(path), .. } => vec![read_text(path)?],
        GenerateArgs { prompt_lines: Some(path), .. } => {
            let lines: Vec<String> = read_text(path)?.lines().map(str::to_owned).collect();
            anyhow::ensure!(!lines.is_empty(), "{} has no lines, and so no prompts", path.display());
            lines
        }
        _ => vec![String::new()],
    };
    Ok(if args.text.escapes { prompts.iter().map(|prompt| unescape(prompt)).collect() } else { prompts })
}

/// Line breaks and tabs are hard to type in a shell.
pub fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, chars.as_str().chars().next()) {
            ('\\', Some(next @ ('n' | 't' | '\\'))) => {
                chars.next();
                out.push(match next {
                    'n' => '\n',
                    't' => '\t',
                    other => other,
                });
            }
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_in_stop_strings_are_understood_and_other_backslashes_kept() {
        assert_eq!(unescape(r"a\nb\tc\\n"), "a\nb\tc\\n");
        assert_eq!(unescape(r"\x \"), r"\x \");
    }
}
