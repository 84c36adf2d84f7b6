//! The texts of single tokens, as people read them.

use tinygpt_model::{Tokenizer, TokenizerError};

/// The text of a token. Models may have more tokens than their tokenizer, to fill up a round number.
pub fn text_of(tokenizer: &Tokenizer, id: u32) -> anyhow::Result<String> {
    match tokenizer.token_text(id) {
        Ok(text) => Ok(text),
        Err(TokenizerError::UnknownId { .. }) => Ok(format!("<{id}>")),
        Err(error) => Err(error.into()),
    }
}

/// The text of a token on one line: white space can be seen.
pub fn visible(text: &str) -> String {
    text.replace('\n', "⏎").replace('\t', "⇥").replace(' ', "␣")
}
