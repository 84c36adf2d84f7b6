//! `GET /openapi.json`: what the API takes and gives, in the words of OpenAPI 3.1.

use axum::Json;
use serde_json::{Map, Value, json};

use super::limits;

/// The description of the API.
pub async fn openapi() -> Json<Value> {
    Json(document())
}

fn document() -> Value {
    let reference = |name: &str| json!({ "$ref": format!("#/components/schemas/{name}") });
    let as_json = |schema: &str| json!({ "application/json": { "schema": reference(schema) } });
    let ok = |description: &str, content: Value| json!({ "description": description, "content": content });
    let get = |summary: &str, answer: Value, errors: &[u16]| json!({ "get": { "summary": summary, "responses": responses(answer, errors) } });
    let generate = |summary: &str, request: &str, answer: &str| {
        let mut content = as_json(answer);
        content["text/event-stream"] = json!({ "schema": { "type": "string" } });
        let answer = ok("The texts; with `stream`, pieces of them as server-sent events, then `[DONE]`.", content);
        json!({ "post": {
            "summary": summary,
            "requestBody": { "required": true, "content": as_json(request) },
            "responses": responses(answer, &[400, 404, 408, 413, 415, 429, 500, 503]),
        } })
    };
    let text = json!({ "text/plain": { "schema": { "type": "string" } } });
    let object = json!({ "application/json": { "schema": { "type": "object" } } });
    let mut model = get("A model.", ok("The model.", as_json("Model")), &[404]);
    model["parameters"] = json!([{ "name": "id", "in": "path", "required": true, "schema": { "type": "string" } }]);
    let mut paths = json!({
        "/v1/completions": generate("Continue texts.", "CompletionRequest", "Completion"),
        "/v1/chat/completions": generate(
            "The next message of a chat; a model without a chat template refuses.", "ChatRequest", "ChatCompletion"),
        "/v1/models": get("All models.", ok("The models.", as_json("Models")), &[]),
        "/v1/models/{id}": model,
        "/metrics": get("What the server does, for Prometheus.", ok("The metrics.", text), &[500]),
        "/health": get("Whether the server answers.", ok("It does.", as_json("Health")), &[]),
        "/openapi.json": get("This description.", ok("The description.", object), &[]),
    });
    // What is open to everyone.
    for path in ["/health", "/openapi.json"] {
        paths[path]["get"]["security"] = json!([]);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "tinygpt serve",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Text of small GPTs: OpenAI's API of completions and chats, with the sampling rules of `tinygpt generate` as further keys. A request with a seed has the text of `tinygpt generate --seed`. Keys with null are as absent; unknown ones are refused.",
        },
        "paths": paths,
        "security": [{ "key": [] }, {}],
        "components": {
            "securitySchemes": { "key": { "type": "http", "scheme": "bearer" } },
            "schemas": schemas(),
        },
    })
}

/// The answer, and the errors that any request may meet beside its own.
fn responses(answer: Value, errors: &[u16]) -> Value {
    let mut responses = Map::new();
    responses.insert("200".into(), answer);
    let schema = json!({ "$ref": "#/components/schemas/Error" });
    for status in errors.iter().chain(&[401, 403, 405, 421]) {
        let error = json!({ "description": "An error.", "content": { "application/json": { "schema": schema } } });
        responses.insert(status.to_string(), error);
    }
    Value::Object(responses)
}

fn schemas() -> Value {
    let string = json!({ "type": "string" });
    let usage = object(&["prompt_tokens", "completion_tokens", "total_tokens"], |_| json!({ "type": "integer" }));
    let whole = |object: &str, choice: Value| {
        json!({
            "type": "object",
            "required": ["id", "object", "created", "model", "seed", "choices", "usage"],
            "properties": {
                "id": string,
                "object": { "const": object },
                "created": { "type": "integer" },
                "model": string,
                "seed": { "type": "integer", "description": "The seed of the draws: with it the texts can be made again." },
                "choices": { "type": "array", "items": choice },
                "usage": usage,
            },
        })
    };
    let choice = |key: &str, value: Value| {
        json!({
            "type": "object",
            "required": ["index", "finish_reason", key],
            "properties": {
                "index": { "type": "integer" },
                "finish_reason": { "enum": ["stop", "length"] },
                "logprobs": { "type": ["object", "null"] },
                key: value,
            },
        })
    };
    let message = json!({
        "type": "object",
        "required": ["role", "content"],
        "properties": { "role": string, "content": string },
    });
    let model = object(&["id", "object", "owned_by"], |_| string.clone());
    json!({
        "CompletionRequest": request(completion_keys(), &[]),
        "ChatRequest": request(chat_keys(), &["messages"]),
        "Completion": whole("text_completion", choice("text", string.clone())),
        "ChatCompletion": whole("chat.completion", choice("message", message)),
        "Model": model,
        "Models": { "type": "object", "properties": { "data": { "type": "array", "items": model } } },
        "Health": object(&["status"], |_| string.clone()),
        "Error": { "type": "object", "required": ["error"], "properties": { "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": string,
                "type": string,
                "param": { "type": ["string", "null"] },
                "code": { "type": ["string", "null"] },
            },
        } } },
    })
}

/// An object that has all of these keys.
fn object(keys: &[&str], schema: impl Fn(&str) -> Value) -> Value {
    let properties: Map<_, _> = keys.iter().map(|&key| (key.to_owned(), schema(key))).collect();
    json!({ "type": "object", "required": keys, "properties": properties })
}

/// A request of keys that may all be null, but for those that are required.
fn request(keys: Vec<(&'static str, Value, &'static str)>, required: &[&str]) -> Value {
    let mut properties = Map::new();
    for (key, mut schema, description) in keys {
        if !required.contains(&key) {
            schema = json!({ "anyOf": [schema, { "type": "null" }] });
        }
        schema["description"] = description.into();
        properties.insert(key.into(), schema);
    }
    json!({ "type": "object", "additionalProperties": false, "required": required, "properties": properties })
}

fn completion_keys() -> Vec<(&'static str, Value, &'static str)> {
    let token = json!({ "type": "integer", "minimum": 0 });
    let string = json!({ "type": "string" });
    let some = |items: &Value| json!({ "type": "array", "items": items, "minItems": 1 });
    let mut keys = vec![
        (
            "prompt",
            json!({ "anyOf": [string, some(&string), some(&token), some(&some(&token))] }),
            "What to continue; without one, a new text.",
        ),
        ("max_tokens", up_to(limits::MAX_TOKENS), "The most tokens of a text; by default the run's."),
        (
            "logprobs",
            up_to(limits::TOP_LOGPROBS),
            "Tell of each token what the model made of it, and this many others.",
        ),
        (
            "echo",
            json!({ "type": "boolean" }),
            "Begin the text with the prompt; with logprobs, prompts of 512 tokens in all at most.",
        ),
        ("best_of", json!({ "type": "integer" }), "Refused, unless it is n."),
        ("suffix", json!({ "const": "" }), "Refused: the models only continue a text."),
    ];
    keys.extend(shared_keys());
    keys
}

fn chat_keys() -> Vec<(&'static str, Value, &'static str)> {
    let format = json!({
        "type": "object",
        "required": ["type"],
        "properties": { "type": { "enum": ["text", "json_object", "json_schema"] }, "json_schema": { "type": "object" } },
    });
    let mut keys = vec![
        ("messages", json!({ "type": "array", "minItems": 1, "items": { "type": "object" } }), "The chat so far."),
        ("max_tokens", up_to(limits::MAX_TOKENS), "The most tokens of the message; by default the run's."),
        ("max_completion_tokens", up_to(limits::MAX_TOKENS), "The same, by its newer name."),
        ("logprobs", json!({ "type": "boolean" }), "Tell of each token what the model made of it."),
        ("top_logprobs", up_to(limits::TOP_LOGPROBS), "And of this many others."),
        ("response_format", format, "JSON, or JSON of a schema."),
    ];
    keys.extend(shared_keys());
    keys
}

fn up_to(max: usize) -> Value {
    json!({ "type": "integer", "minimum": 0, "maximum": max })
}

/// What both take.
fn shared_keys() -> Vec<(&'static str, Value, &'static str)> {
    let string = || json!({ "type": "string" });
    let boolean = || json!({ "type": "boolean" });
    let number = || json!({ "type": "number" });
    let positive = || json!({ "type": "number", "minimum": 0 });
    let share = || json!({ "type": "number", "minimum": 0, "maximum": 1 });
    let count = || json!({ "type": "integer", "minimum": 0 });
    let some_strings =
        |max: usize| json!({ "type": "array", "items": { "type": "string", "minLength": 1 }, "maxItems": max });
    let stop = json!({ "anyOf": [{ "type": "string", "minLength": 1 }, some_strings(limits::STOPS)] });
    let options = json!({
        "type": "object",
        "additionalProperties": false,
        "properties": { "include_usage": boolean(), "include_obfuscation": boolean() },
    });
    let bias = json!({ "type": "object", "additionalProperties": { "anyOf": [number(), { "const": "-inf" }] } });
    vec![
        ("model", string(), "One of /v1/models; by default the first."),
        ("n", json!({ "type": "integer", "minimum": 1 }), "Texts for each prompt."),
        ("first_sample", count(), "The number of the first, of which the draws depend beside the seed."),
        ("seed", count(), "The seed of the draws; by default a fresh one, which is told."),
        ("stream", boolean(), "Tell the texts piece by piece."),
        ("stream_options", options, "With include_usage, the last piece has the numbers of tokens."),
        ("stop", stop, "End a text before one of these."),
        ("user", string(), "Is read, and told to nobody."),
        ("temperature", positive(), "Divides the logits; 0 is greedy; by default the run's."),
        ("top_k", count(), "Keep the most probable tokens; 0 is off; by default the run's."),
        ("top_p", share(), "Keep the smallest set of tokens of this probability; by default the run's."),
        ("min_p", share(), "Keep the tokens whose probability is at least this share of the largest."),
        (
            "repetition_penalty",
            json!({ "type": "number", "exclusiveMinimum": 0 }),
            "Divide the logits of the tokens so far.",
        ),
        ("presence_penalty", number(), "Take this from the logits of the tokens so far, once each."),
        ("frequency_penalty", number(), "Take this from the logits of the tokens so far, once for each time."),
        ("logit_bias", bias, "Add to the logits of tokens, by their numbers."),
        ("dry_multiplier", positive(), "The penalty of tokens that would prolong a repetition (DRY)."),
        (
            "dry_base",
            json!({ "type": "number", "minimum": 1 }),
            "What each further token of a repetition multiplies it by.",
        ),
        (
            "dry_allowed_length",
            json!({ "type": "integer", "minimum": 1 }),
            "The shortest repetition that is penalised.",
        ),
        ("dry_range", count(), "Look for repetitions in so many of the last tokens; 0 is all."),
        ("dry_breaker", some_strings(64), "Texts that no repetition reaches across."),
        ("no_repeat_ngram_size", count(), "Never repeat a sequence of so many tokens."),
        ("top_n_sigma", positive(), "Keep the logits within so many standard deviations of the largest."),
        ("dynatemp_range", positive(), "Move the temperature by up to this with the entropy."),
        ("dynatemp_exponent", json!({ "type": "number", "exclusiveMinimum": 0 }), "The power of the entropy in it."),
        ("typical_p", share(), "Keep the tokens that are about as surprising as expected, of this probability."),
        ("xtc_probability", share(), "With this probability, drop all top choices but the least probable (XTC)."),
        ("xtc_threshold", share(), "The probability that makes a top choice of XTC."),
        ("mirostat_tau", positive(), "Steer the surprise to so many bits a token (mirostat 2)."),
        ("mirostat_eta", positive(), "How fast mirostat learns."),
        ("adaptive", share(), "Be greedy wherever the largest probability exceeds this."),
        ("regex", string(), "The text matches this regular expression."),
        ("grammar", string(), "The text is one of this grammar, in llguidance's variant of Lark."),
        ("json_schema", json!({ "type": "object" }), "The text is JSON of this schema."),
    ]
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests {
    use super::*;

    #[test]
    fn references_lead_somewhere() {
        let document = document();
        let text = document.to_string();
        let names: Vec<_> =
            text.split("#/components/schemas/").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
        assert!(names.len() > 5);
        for name in names {
            assert!(document["components"]["schemas"][name].is_object(), "{name}");
        }
    }

    #[test]
    fn every_rule_of_the_command_line_is_described() {
        use clap::{Args, Command};
        let document = document();
        let arguments = crate::args::RuleArgs::augment_args(Command::new("rules"));
        for schema in ["CompletionRequest", "ChatRequest"] {
            let keys = &document["components"]["schemas"][schema]["properties"];
            arguments.get_arguments().for_each(|arg| assert!(keys[arg.get_id().as_str()].is_object(), "{arg}"));
        }
    }
}
