//! `generation_config.json`: how text is generated where nobody says otherwise.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::MODEL_FORMAT;
use crate::Tokenizer;

/// The defaults in a folder's `generation_config.json`; absent ones are `None`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GenerationDefaults {
    /// 0 is greedy.
    pub temperature: Option<f64>,
    /// 0 is off.
    pub top_k: Option<usize>,
    /// 1 is off.
    pub top_p: Option<f64>,
    /// Tokens after the prompt.
    pub max_new_tokens: Option<usize>,
    /// Whether to draw at all; `false` is greedy.
    pub do_sample: Option<bool>,
}

impl GenerationDefaults {
    /// The content of the file. Hugging Face refuses a temperature of 0; there, greedy is `do_sample: false`.
    pub(super) fn to_json(&self, tokenizer: &Tokenizer) -> Value {
        let greedy = self.temperature == Some(0.0) || self.do_sample == Some(false);
        let others = tokenizer.other_ends();
        let end = match tokenizer.end_of_text() {
            end if others.is_empty() => json!(end),
            end => end.iter().chain(others).copied().collect(),
        };
        let known = [
            ("do_sample", Some(json!(!greedy))),
            ("top_k", self.top_k.map(Value::from)),
            ("top_p", self.top_p.map(Value::from)),
            ("max_new_tokens", self.max_new_tokens.map(Value::from)),
            ("bos_token_id", Some(json!(tokenizer.begin_of_text()))),
            ("eos_token_id", Some(end)),
            ("tinygpt", Some(json!({ "format": MODEL_FORMAT }))),
            ("temperature", self.temperature.filter(|&t| t > 0.0).map(Value::from)),
        ];
        known.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
    }
}
