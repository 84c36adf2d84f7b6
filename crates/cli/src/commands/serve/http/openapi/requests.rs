//! The keys of requests, as they are described.

use serde_json::{Value, json};

use crate::commands::serve::http::limits;

/// A key of a request.
pub struct Key {
    pub name: &'static str,
    pub schema: Value,
    pub description: String,
}

/// A key with its schema, and what it is in words.
pub fn key(name: &'static str, schema: Value, description: impl Into<String>) -> Key {
    Key { name, schema, description: description.into() }
}

/// The keys of a completion.
pub fn completion_keys() -> Vec<Key> {
    let token = json!({ "type": "integer", "minimum": 0 });
    let string = json!({ "type": "string" });
    let some = |items: &Value| json!({ "type": "array", "items": items, "minItems": 1 });
    let mut keys = vec![
        key(
            "prompt",
            json!({ "anyOf": [string, some(&string), some(&token), some(&some(&token))] }),
            "What to continue; without one, a new text.",
        ),
        key("max_tokens", up_to(limits::MAX_TOKENS), "The most tokens of a text; by default the run's."),
        key(
            "logprobs",
            up_to(limits::TOP_LOGPROBS),
            "Tell of each token what the model made of it, and this many others.",
        ),
        key(
            "echo",
            json!({ "type": "boolean" }),
            format!(
                "Begin the text with the prompt; with logprobs, prompts of {} tokens in all at most.",
                limits::ECHOED_LOGPROBS
            ),
        ),
        key("best_of", json!({ "type": "integer" }), "Refused, unless it is n."),
        key("suffix", json!({ "const": "" }), "Refused: the models only continue a text."),
    ];
    keys.extend(shared_keys());
    keys
}

/// The keys of a chat.
pub fn chat_keys() -> Vec<Key> {
    let format = json!({
        "type": "object",
        "required": ["type"],
        "properties": { "type": { "enum": ["text", "json_object", "json_schema"] }, "json_schema": { "type": "object" } },
    });
    let part = json!({
        "type": "object",
        "required": ["type", "text"],
        "properties": { "type": { "const": "text" }, "text": string() },
    });
    let content = json!({ "anyOf": [string(), { "type": "array", "items": part }] });
    let message = json!({
        "type": "object",
        "required": ["role", "content"],
        "properties": { "role": string(), "content": content },
    });
    let mut keys = vec![
        key("messages", json!({ "type": "array", "minItems": 1, "items": message }), "The chat so far."),
        key("max_tokens", up_to(limits::MAX_TOKENS), "The most tokens of the message; by default the run's."),
        key("max_completion_tokens", up_to(limits::MAX_TOKENS), "The same, by its newer name."),
        key("logprobs", json!({ "type": "boolean" }), "Tell of each token what the model made of it."),
        key("top_logprobs", up_to(limits::TOP_LOGPROBS), "And of this many others."),
        key("response_format", format, "JSON, or JSON of a schema."),
    ];
    keys.extend(shared_keys());
    keys
}

/// A whole number.
pub fn up_to(max: usize) -> Value {
    json!({ "type": "integer", "minimum": 0, "maximum": max })
}

/// What both take beside it.
fn shared_keys() -> Vec<Key> {
    let boolean = || json!({ "type": "boolean" });
    let options = json!({
        "type": "object",
        "additionalProperties": false,
        "properties": { "include_usage": boolean(), "include_obfuscation": boolean() },
    });
    let mut keys = vec![
        key("n", json!({ "type": "integer", "minimum": 1 }), "Texts for each prompt."),
        key("stream", boolean(), "Tell the texts piece by piece."),
        key("stream_options", options, "With include_usage, the last piece has the numbers of tokens."),
    ];
    keys.extend(text_keys());
    keys.extend(rule_keys());
    keys
}

/// What says how any text grows, beside the rules.
pub fn text_keys() -> Vec<Key> {
    let stop = json!({ "anyOf": [{ "type": "string", "minLength": 1 }, some_strings(limits::STOPS)] });
    vec![
        key("model", string(), "One of /v1/models; by default the first."),
        key("first_sample", count(), "The number of the first, of which the draws depend beside the seed."),
        key("stop", stop, "End a text before one of these."),
        key("user", string(), "Is read, and told to nobody."),
        key("regex", string(), "The text matches this regular expression."),
        key("grammar", string(), "The text is one of this grammar, in llguidance's variant of Lark."),
        key("json_schema", json!({ "type": "object" }), "The text is JSON of this schema."),
    ]
}

/// The rules of sampling.
pub fn rule_keys() -> Vec<Key> {
    let positive = || json!({ "type": "number", "minimum": 0 });
    let share = || json!({ "type": "number", "minimum": 0, "maximum": 1 });
    let bias = json!({ "type": "object", "additionalProperties": { "anyOf": [number(), { "const": "-inf" }] } });
    vec![
        key("seed", count(), "The seed of the draws; by default a fresh one, which is told."),
        key("temperature", positive(), "Divides the logits; 0 is greedy; by default the run's."),
        key("top_k", count(), "Keep the most probable tokens; 0 is off; by default the run's."),
        key("top_p", share(), "Keep the smallest set of tokens of this probability; by default the run's."),
        key("min_p", share(), "Keep the tokens whose probability is at least this share of the largest."),
        key(
            "repetition_penalty",
            json!({ "type": "number", "exclusiveMinimum": 0 }),
            "Divide the logits of the tokens so far.",
        ),
        key("presence_penalty", number(), "Take this from the logits of the tokens so far, once each."),
        key("frequency_penalty", number(), "Take this from the logits of the tokens so far, once for each time."),
        key("logit_bias", bias, "Add to the logits of tokens, by their numbers."),
        key("dry_multiplier", positive(), "The penalty of tokens that would prolong a repetition (DRY)."),
        key(
            "dry_base",
            json!({ "type": "number", "minimum": 1 }),
            "What each further token of a repetition multiplies it by.",
        ),
        key(
            "dry_allowed_length",
            json!({ "type": "integer", "minimum": 1 }),
            "The shortest repetition that is penalised.",
        ),
        key("dry_range", count(), "Look for repetitions in so many of the last tokens; 0 is all."),
        key("dry_breaker", some_strings(64), "Texts that no repetition reaches across."),
        key("no_repeat_ngram_size", count(), "Never repeat a sequence of so many tokens."),
        key("top_n_sigma", positive(), "Keep the logits within so many standard deviations of the largest."),
        key("dynatemp_range", positive(), "Move the temperature by up to this with the entropy."),
        key("dynatemp_exponent", json!({ "type": "number", "exclusiveMinimum": 0 }), "The power of the entropy in it."),
        key("typical_p", share(), "Keep the tokens that are about as surprising as expected, of this probability."),
        key("xtc_probability", share(), "With this probability, drop all top choices but the least probable (XTC)."),
        key("xtc_threshold", share(), "The probability that makes a top choice of XTC."),
        key("mirostat_tau", positive(), "Steer the surprise to so many bits a token (mirostat 2)."),
        key("mirostat_eta", positive(), "How fast mirostat learns."),
        key("adaptive", share(), "Be greedy wherever the largest probability exceeds this."),
    ]
}

fn string() -> Value {
    json!({ "type": "string" })
}

fn number() -> Value {
    json!({ "type": "number" })
}

fn count() -> Value {
    json!({ "type": "integer", "minimum": 0 })
}

fn some_strings(max: usize) -> Value {
    json!({ "type": "array", "items": { "type": "string", "minLength": 1 }, "maxItems": max })
}
