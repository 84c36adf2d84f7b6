//! `generate --logprobs`: what the model itself made of each token.

use serde::Serialize;
use tinygpt_model::{
    ModelError, Tokenizer,
    language_model::{NextToken, most_probable},
};

/// A drawn token in the model's own distribution: temperature 1, before penalties, grammars and all other rules.
#[derive(Debug, Serialize)]
pub struct TokenLogprob {
    #[serde(flatten)]
    token: TokenProbability,
    /// The most probable tokens, that one first.
    top: Vec<TokenProbability>,
}

/// A token and the logarithm of its probability.
#[derive(Debug, Serialize)]
struct TokenProbability {
    id: u32,
    token: String,
    logprob: f64,
}

/// Looks up the tokens of the rows of a step, one row after the other.
pub struct Logprobs {
    /// How many of the most probable tokens are told.
    top: usize,
    /// The logits of the row that draws next, `[V]`.
    logits: Vec<f32>,
}

impl Logprobs {
    pub fn new(top: usize) -> Self {
        Self { top, logits: Vec::new() }
    }

    /// Keeps the logits of the row that draws next.
    pub fn see(&mut self, logits: &[f32]) {
        self.logits.clear();
        self.logits.extend_from_slice(logits);
    }

    /// What the row that was seen last makes of the token that was drawn.
    pub fn of(&self, drawn: u32, tokenizer: &Tokenizer) -> Result<TokenLogprob, ModelError> {
        let distribution = NextToken::of(&self.logits);
        let probability = |(id, logit): (u32, f32)| {
            let logprob = distribution.logprob(logit);
            // A model may have more tokens than its tokenizer.
            let in_tokenizer = (id as usize) < tokenizer.vocab_size();
            let token = if in_tokenizer { tokenizer.token_text(id)? } else { String::new() };
            Ok::<_, ModelError>(TokenProbability { id, token, logprob })
        };
        let top = most_probable(&self.logits, self.top).into_iter().map(probability).collect::<Result<_, _>>()?;
        let token = probability((drawn, self.logits[drawn as usize]))?;
        Ok(TokenLogprob { token, top })
    }
}
