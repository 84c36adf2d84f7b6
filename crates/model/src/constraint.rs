//! Text that a grammar allows, token by token: which tokens may follow, by the `llguidance` crate.
//!
//! A [`Constraint`] masks logits before the rules of sampling see them. It works on the bytes of tokens, so it is the same for
//! characters and for a byte-level BPE, whose tokens may be parts of characters.

use std::{ops::ControlFlow, sync::Arc};

use llguidance::{
    Matcher, ParserFactory,
    api::{StopReason, TopLevelGrammar},
    toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie},
};

use crate::tokenizer::Tokenizer;

/// What the generated text must be, from its first to its last character.
#[derive(Debug, Clone, PartialEq)]
pub enum Grammar {
    /// A regular expression in the syntax of the `regex` crate, without anchors.
    Regex(String),
    /// A context-free grammar in the variant of Lark that `llguidance` reads; it begins with `start`.
    Lark(String),
    /// JSON of this schema.
    JsonSchema(serde_json::Value),
}

/// What can go wrong with a grammar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConstraintError {
    /// The grammar has an error, is too large, or no text belongs to it.
    #[error("this grammar cannot be used: {0}")]
    Grammar(String),
    /// The grammar's texts begin with what the tokenizer cannot write.
    #[error("no text of this grammar can be written: no token of the vocabulary begins one")]
    NoFirstToken,
    /// The grammar's texts go on with what the tokenizer cannot write.
    #[error("the grammar allows no token of the vocabulary after {tokens} tokens")]
    NoNextToken {
        /// The number of tokens before.
        tokens: usize,
    },
    /// The grammar is too complex to follow.
    #[error("the grammar cannot be followed after {tokens} tokens: {reason}")]
    Parser {
        /// The number of tokens before.
        tokens: usize,
        /// What the grammar's parser says.
        reason: String,
    },
    /// A token that the grammar does not allow was given to it.
    #[error("the grammar does not allow token {token} after {tokens} tokens: {reason}")]
    NotAllowed {
        /// The token.
        token: u32,
        /// The number of tokens before.
        tokens: usize,
        /// What the grammar's parser says.
        reason: String,
    },
}

/// The state of a text that follows a grammar. A clone is a text of its own.
#[derive(Clone)]
pub struct Constraint {
    matcher: Matcher,
    /// The token that ends a text.
    end: u32,
    /// Whether the tokenizer has it. Where not, it is a number beyond the vocabulary, which only the parser knows.
    has_end: bool,
    tokens: usize,
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Constraint").field("end", &self.end).field("tokens", &self.tokens).finish_non_exhaustive()
    }
}

impl Constraint {
    /// The constraint of a text that has no token yet.
    ///
    /// # Errors
    /// [`ConstraintError::Grammar`] or [`ConstraintError::NoFirstToken`].
    pub fn new(grammar: &Grammar, tokenizer: &Tokenizer) -> Result<Self, ConstraintError> {
        let refuse = |error: String| ConstraintError::Grammar(error.trim().to_owned());
        let end = tokenizer.end_of_text().unwrap_or(tokenizer.vocab_size() as u32);
        let environment = token_environment(tokenizer, end);
        let mut factory = ParserFactory::new_simple(&environment).map_err(|error| refuse(error.to_string()))?;
        // Libraries never print, and a state of the parser says nothing to a user.
        factory.quiet().limits_mut().verbose_errors = false;
        let grammar = match grammar {
            Grammar::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Grammar::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
            Grammar::JsonSchema(schema) => TopLevelGrammar::from_json_schema(schema.clone()),
        };
        let matcher = Matcher::new(factory.create_parser(grammar));
        if let Some(error) = matcher.get_error() {
            return Err(refuse(error));
        }
        let mut constraint = Self { matcher, end, has_end: tokenizer.end_of_text().is_some(), tokens: 0 };
        match constraint.allowed() {
            Ok(_) => Ok(constraint),
            Err(ConstraintError::NoNextToken { .. }) => Err(ConstraintError::NoFirstToken),
            Err(error) => Err(error),
        }
    }

    /// Sets the logits of all tokens to -inf that may not follow. `Break` means that nothing may: the text is complete.
    ///
    /// # Errors
    /// [`ConstraintError::NoNextToken`] or [`ConstraintError::Parser`].
    pub fn mask(&mut self, logits: &mut [f32]) -> Result<ControlFlow<()>, ConstraintError> {
        if self.is_complete() {
            return Ok(ControlFlow::Break(()));
        }
        let allowed = self.allowed()?;
        let mut any = false;
        for (token, logit) in (0..).zip(logits) {
            // A model may have more tokens than its tokenizer.
            let is_token = (token as usize) < allowed.len() && (token != self.end || self.has_end);
            if is_token && allowed.is_allowed(token) {
                any = true;
            } else {
                *logit = f32::NEG_INFINITY;
            }
        }
        if any {
            Ok(ControlFlow::Continue(()))
        } else if allowed.is_allowed(self.end) {
            Ok(ControlFlow::Break(()))
        } else {
            Err(ConstraintError::NoNextToken { tokens: self.tokens })
        }
    }

    /// The tokens that may follow, of which there is at least one.
    fn allowed(&mut self) -> Result<SimpleVob, ConstraintError> {
        let tokens = self.tokens;
        self.matcher.compute_mask().map_err(|error| {
            let reason = error.to_string();
            let is_dead_end = reason.starts_with(&StopReason::NoExtensionBias.to_string());
            if is_dead_end {
                ConstraintError::NoNextToken { tokens }
            } else {
                ConstraintError::Parser { tokens, reason }
            }
        })
    }

    /// Goes on with a token. `Break` means that no token may follow it: the text is complete.
    ///
    /// # Errors
    /// [`ConstraintError::NotAllowed`].
    pub fn accept(&mut self, token: u32) -> Result<ControlFlow<()>, ConstraintError> {
        let tokens = self.tokens;
        let refuse = |error: String| ConstraintError::NotAllowed { token, tokens, reason: error };
        self.matcher.consume_token(token).map_err(|error| refuse(error.to_string()))?;
        self.tokens += 1;
        Ok(if self.is_complete() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    /// Whether the text could end here: it belongs to the grammar.
    pub fn may_end(&mut self) -> bool {
        // An error of the parser was told by `mask` or `accept`.
        self.is_complete() || self.matcher.is_accepting().unwrap_or(false)
    }

    /// Whether nothing may follow.
    fn is_complete(&self) -> bool {
        self.matcher.is_stopped() && self.matcher.stop_reason().is_ok()
    }
}

/// The bytes of all tokens, as the parser wants them.
fn token_environment(tokenizer: &Tokenizer, end: u32) -> TokEnv {
    // A byte that no UTF-8 has begins the name of a special token, which no text contains.
    let special = |name: String| [b"\xFF", name.as_bytes()].concat();
    let vocab_size = (tokenizer.vocab_size() as u32).max(end + 1);
    let bytes = |id| match tokenizer.token_content(id) {
        Some(bytes) if id != end => bytes,
        _ => special(format!("token {id}")),
    };
    let words: Vec<Vec<u8>> = (0..vocab_size).map(bytes).collect();
    Arc::new(ApproximateTokEnv::new(TokTrie::from(&TokRxInfo::new(vocab_size, end), &words)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chars() -> Tokenizer {
        Tokenizer::train_char([Ok::<_, std::convert::Infallible>("ab01 {}\":,é")]).unwrap()
    }

    fn bpe() -> Tokenizer {
        let text = "abab abab 0101 {\"ab\": 01} é €€ ".repeat(20);
        Tokenizer::train_bpe([Ok::<_, crate::TokenizerError>(text)], 300).unwrap()
    }

    fn regex(text: &str) -> Grammar {
        Grammar::Regex(text.into())
    }

    /// The texts of all tokens that may come next.
    fn allowed(constraint: &mut Constraint, tokenizer: &Tokenizer) -> Vec<String> {
        let mut logits = vec![0.0; tokenizer.vocab_size() + 5];
        assert!(constraint.mask(&mut logits).unwrap().is_continue());
        let ids = (0..logits.len()).filter(|&id| logits[id] == 0.0);
        ids.map(|id| tokenizer.token_text(id as u32).unwrap()).collect()
    }

    fn accept(constraint: &mut Constraint, tokenizer: &Tokenizer, text: &str) -> bool {
        let ids = tokenizer.encode(text).unwrap();
        ids.into_iter().map(|id| constraint.accept(id).unwrap().is_break()).last().unwrap()
    }

    #[test]
    fn only_tokens_that_lead_to_a_text_of_the_grammar_may_follow() {
        let tokenizer = chars();
        let mut constraint = Constraint::new(&regex("a[01]+b"), &tokenizer).unwrap();
        assert_eq!(allowed(&mut constraint, &tokenizer), ["a"]);
        assert!(!accept(&mut constraint, &tokenizer, "a0"));
        assert!(!constraint.may_end());
        assert_eq!(allowed(&mut constraint, &tokenizer), ["0", "1", "b"]);
        // A clone goes its own way.
        let mut other = constraint.clone();
        assert!(accept(&mut other, &tokenizer, "b") && other.may_end());
        assert_eq!(other.mask(&mut [0.0; 11]), Ok(ControlFlow::Break(())));
        assert_eq!(allowed(&mut constraint, &tokenizer), ["0", "1", "b"]);
        let refused = constraint.accept(tokenizer.id_of("a").unwrap()).unwrap_err();
        assert!(matches!(refused, ConstraintError::NotAllowed { tokens: 2, .. }), "{refused}");
    }

    #[test]
    fn tokens_of_several_characters_and_parts_of_characters_are_what_their_bytes_are() {
        let tokenizer = bpe();
        let mut constraint = Constraint::new(&regex("(ab)+€"), &tokenizer).unwrap();
        let first = allowed(&mut constraint, &tokenizer);
        assert!(first.contains(&"abab".to_owned()) && first.contains(&"a".to_owned()), "{first:?}");
        assert!(!first.contains(&" abab".to_owned()) && !first.contains(&"0".to_owned()));
        accept(&mut constraint, &tokenizer, "ab");
        assert!(allowed(&mut constraint, &tokenizer).contains(&r"\xE2".to_owned()));
        assert!(accept(&mut constraint, &tokenizer, "€"));
    }

    #[test]
    fn a_text_that_may_end_or_go_on_does_not_end_by_itself() {
        let tokenizer = chars();
        let mut constraint = Constraint::new(&regex("[01]+"), &tokenizer).unwrap();
        assert!(!accept(&mut constraint, &tokenizer, "0") && constraint.may_end());
        assert_eq!(allowed(&mut constraint, &tokenizer), ["0", "1"]);
    }

    #[test]
    fn the_end_of_text_may_follow_where_the_text_may_end() {
        let mut json: serde_json::Value = serde_json::from_slice(bpe().json()).unwrap();
        let end = bpe().vocab_size() as u32;
        json["added_tokens"] = serde_json::json!([{"id": end, "content": "<|endoftext|>", "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false, "special": true}]);
        let tokenizer = Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap();
        let mut constraint = Constraint::new(&regex("[01<]+"), &tokenizer).unwrap();
        let name = "<|endoftext|>".to_owned();
        assert!(!allowed(&mut constraint, &tokenizer).contains(&name));
        accept(&mut constraint, &tokenizer, "01");
        assert!(allowed(&mut constraint, &tokenizer).contains(&name));
        assert!(constraint.accept(end).unwrap().is_break());
    }

    #[test]
    fn grammars_and_schemas_are_followed_too() {
        let tokenizer = chars();
        let lark = Grammar::Lark("start: \"a\" inner \"b\"\ninner: \"\" | \"a\" inner \"b\"\n".into());
        let mut constraint = Constraint::new(&lark, &tokenizer).unwrap();
        assert!(accept(&mut constraint, &tokenizer, "aabb"));
        let schema = serde_json::json!({"type": "object", "properties": {"a": {"enum": [0, 1]}},
            "required": ["a"], "additionalProperties": false});
        let mut constraint = Constraint::new(&Grammar::JsonSchema(schema), &tokenizer).unwrap();
        assert!(accept(&mut constraint, &tokenizer, "{\"a\": 1}"));
    }

    #[test]
    fn grammars_that_cannot_be_followed_are_refused() {
        let tokenizer = chars();
        let refused = |grammar| Constraint::new(&grammar, &tokenizer).unwrap_err();
        assert_eq!(refused(regex("[xyz]+")), ConstraintError::NoFirstToken);
        for bad in [regex("("), regex("[a"), Grammar::Lark("start: other".into()), Grammar::Lark(String::new())] {
            assert!(matches!(refused(bad.clone()), ConstraintError::Grammar(_)), "{bad:?}");
        }
        let schema = Grammar::JsonSchema(serde_json::json!({"type": "wrong"}));
        assert!(matches!(refused(schema), ConstraintError::Grammar(_)));
        let mut constraint = Constraint::new(&regex("ax"), &tokenizer).unwrap();
        assert!(constraint.accept(tokenizer.id_of("a").unwrap()).unwrap().is_continue());
        assert_eq!(constraint.mask(&mut [0.0; 11]), Err(ConstraintError::NoNextToken { tokens: 1 }));
    }
}
