//! `GET /openapi.json`: what the API takes and gives, in the words of OpenAPI 3.1.

mod requests;

use axum::Json;
use serde_json::{Map, Value, json};

pub use self::requests::{Key, key, rule_keys, text_keys, up_to};
use self::requests::{chat_keys, completion_keys};
use crate::commands::serve::page;

/// The kind of an answer that comes in pieces, whose schema OpenAPI 3.1 has no words for.
pub const EVENTS: &str = "text/event-stream";

/// The description of the API.
pub async fn openapi() -> Json<Value> {
    Json(document())
}

fn document() -> Value {
    let text = json!({ "text/plain": { "schema": { "type": "string" } } });
    let object = json!({ "application/json": { "schema": { "type": "object" } } });
    let mut model = get("A model.", ok("The model.", as_json("Model")), &[400, 404]);
    model["parameters"] = json!([in_path("id")]);
    let mut paths = json!({
        "/v1/completions": post("Continue texts.", "CompletionRequest", texts("Completion")),
        "/v1/chat/completions": post(
            "The next message of a chat; a model without a chat template refuses.", "ChatRequest", texts("ChatCompletion")),
        "/v1/models": get("All models.", ok("The models.", as_json("Models")), &[]),
        "/v1/models/{id}": model,
        "/metrics": get("What the server does, for Prometheus.", ok("The metrics.", text), &[500]),
        "/health": get("Whether all models are served.", ok("They are.", as_json("Health")), &[503]),
        "/openapi.json": get("This description.", ok("The description.", object), &[]),
    });
    let mut schemas = schemas();
    let of_page = page::described();
    for (all, more) in [(&mut paths, of_page.paths), (&mut schemas, of_page.schemas)] {
        for (name, described) in more {
            all[name] = described;
        }
    }
    // What is open to everyone.
    for path in ["/health", "/openapi.json"] {
        paths[path]["get"]["security"] = json!([]);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "tinygpt serve",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Text of small GPTs: OpenAI's API of completions and chats, with the sampling rules of `tinygpt generate` as further keys, and below /api what the page asks, which may change. A request with a seed has the text of `tinygpt generate --seed`. Keys with null are as absent; unknown ones are refused.",
        },
        "paths": paths,
        "security": [{ "key": [] }, {}],
        "components": {
            "securitySchemes": { "key": { "type": "http", "scheme": "bearer" } },
            "schemas": schemas,
        },
    })
}

/// A schema by its name.
pub fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// A body of JSON.
pub fn as_json(schema: &str) -> Value {
    json!({ "application/json": { "schema": reference(schema) } })
}

/// An answer that is what was asked for.
pub fn ok(description: &str, content: Value) -> Value {
    json!({ "description": description, "content": content })
}

/// Texts as a whole or as they grow.
fn texts(whole: &str) -> Value {
    let mut content = as_json(whole);
    content[EVENTS] = json!({});
    ok("The texts; with `stream`, pieces of them as server-sent events, then `[DONE]`.", content)
}

/// A route that is read.
pub fn get(summary: &str, answer: Value, errors: &[u16]) -> Value {
    json!({ "get": { "summary": summary, "responses": responses(answer, errors) } })
}

/// A route that takes JSON.
pub fn post(summary: &str, request: &str, answer: Value) -> Value {
    json!({ "post": {
        "summary": summary,
        "requestBody": { "required": true, "content": as_json(request) },
        "responses": responses(answer, &[400, 404, 408, 413, 415, 429, 500, 503]),
    } })
}

/// A part of a path.
pub fn in_path(name: &str) -> Value {
    json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string", "minLength": 1 } })
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
pub fn object(keys: &[&str], schema: impl Fn(&str) -> Value) -> Value {
    let properties: Map<_, _> = keys.iter().map(|&key| (key.to_owned(), schema(key))).collect();
    json!({ "type": "object", "required": keys, "properties": properties })
}

/// A request of keys that may all be null, but for those that are required.
pub fn request(keys: impl IntoIterator<Item = Key>, required: &[&str]) -> Value {
    let mut properties = Map::new();
    for Key { name, mut schema, description } in keys {
        if !required.contains(&name) {
            schema = json!({ "anyOf": [schema, { "type": "null" }] });
        }
        schema["description"] = description.into();
        properties.insert(name.into(), schema);
    }
    json!({ "type": "object", "additionalProperties": false, "required": required, "properties": properties })
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
        for schema in ["CompletionRequest", "ChatRequest", "GenerateRequest", "NextRequest"] {
            let keys = &document["components"]["schemas"][schema]["properties"];
            let rules = arguments.get_arguments().map(|arg| arg.get_id().as_str());
            // Of one distribution it cannot be shown.
            let mut rules = rules.filter(|&rule| schema != "NextRequest" || rule != "adaptive");
            assert_eq!(rules.find(|rule| !keys[rule].is_object()), None, "{schema}");
        }
    }

    #[test]
    fn what_watches_is_told_that_a_model_may_have_failed() {
        assert!(document()["paths"]["/health"]["get"]["responses"]["503"].is_object());
    }

    #[test]
    fn limits_are_told_as_they_are() {
        let echo = &document()["components"]["schemas"]["CompletionRequest"]["properties"]["echo"];
        assert!(echo["description"].as_str().unwrap().contains(&super::super::limits::ECHOED_LOGPROBS.to_string()));
    }
}
