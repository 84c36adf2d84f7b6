//! What a folder lacks to be that of a model, and what it has instead.

use std::path::Path;

use super::{CONFIG_FILE, WEIGHTS_FILE, weight_files::WEIGHTS_INDEX};
use crate::{
    ModelError, Result,
    ngram::is_ngram_folder,
    tokenizer::{GPT2_FILES, TOKENIZER_FILE},
};

/// PyTorch's files of weights, in one and in several.
const PICKLES: [&str; 2] = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
/// A tokenizer of the `sentencepiece` library.
const SENTENCEPIECE: &str = "tokenizer.model";

/// Refuses a folder without shape, weights or tokenizer; where `transformers` can convert what is there, with its command.
///
/// # Errors
/// [`ModelError::NotAModelFolder`].
pub(super) fn check_files(folder: &Path) -> Result<()> {
    let refused = |reason: String| Err(ModelError::NotAModelFolder { path: folder.to_owned(), reason });
    if !folder.is_dir() {
        return refused("there is no such folder".into());
    }
    if is_ngram_folder(folder) {
        return refused("it is an n-gram model, which `generate`, `eval`, `score` and `compare` take".into());
    }
    let has = |name: &str| folder.join(name).is_file();
    if !has(CONFIG_FILE) {
        return refused(format!("it has no {CONFIG_FILE}"));
    }
    if !has(WEIGHTS_FILE) && !has(WEIGHTS_INDEX) {
        let pickle = PICKLES.iter().find(|name| has(name)).map(|name| {
            let command = saved_again("AutoModelForCausalLM", folder);
            format!(": {name} is a pickle, which can run any program and is not opened here; convert it by {command}")
        });
        return refused(format!("it has no {WEIGHTS_FILE}{}", pickle.unwrap_or_default()));
    }
    if !has(TOKENIZER_FILE) && !GPT2_FILES.iter().all(|name| has(name)) {
        let [vocabulary, merges] = GPT2_FILES;
        let other = has(SENTENCEPIECE).then(|| {
            format!("; {SENTENCEPIECE} is not read here, convert it by {}", saved_again("AutoTokenizer", folder))
        });
        let other = other.unwrap_or_default();
        return refused(format!("it has no {TOKENIZER_FILE}, nor {vocabulary} with {merges}{other}"));
    }
    Ok(())
}

/// The command by which a class of `transformers` saves what it reads from the folder beside it, in the form of today.
fn saved_again(class: &str, folder: &Path) -> String {
    let python =
        format!("import sys, transformers as t; t.{class}.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[1])");
    format!("python3 -c \"{python}\" {}", shell_word(folder))
}

/// A path as a word of a shell's command.
fn shell_word(path: &Path) -> String {
    let path = path.display().to_string();
    let plain = |ch: char| ch.is_ascii_alphanumeric() || "/._-".contains(ch);
    if path.chars().all(plain) { path } else { format!("'{}'", path.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_word_of_a_shell() {
        for (path, word) in [("runs/a-1.b", "runs/a-1.b"), ("a b", "'a b'"), ("it's", r"'it'\''s'"), ("$(x)", "'$(x)'")]
        {
            assert_eq!(shell_word(Path::new(path)), word);
        }
    }
}
