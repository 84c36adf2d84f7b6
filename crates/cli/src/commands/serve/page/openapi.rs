//! What the page asks, in the words of OpenAPI.

use serde_json::{Map, Value, json};

use super::{attention, generate, next, runs};
use crate::commands::serve::http::{
    limits,
    openapi::{EVENTS, Key, as_json, get, in_path, key, object, ok, post, request, rule_keys, text_keys, up_to},
};

/// Paths, and the schemas that they name.
pub struct Described {
    pub paths: Map<String, Value>,
    pub schemas: Map<String, Value>,
}

/// The routes below `/api`.
pub fn described() -> Described {
    let events = json!({ EVENTS: {} });
    let of_run = |what: &str, schema: &str, more: &[Value]| {
        let mut path = get(what, ok(what, as_json(schema)), &[400, 404, 500, 503]);
        path["parameters"] = std::iter::once(in_path("name")).chain(more.iter().cloned()).collect();
        path
    };
    let in_query = |name: &str, least: usize, most: Option<usize>, description: &str| {
        let mut schema = json!({ "type": "integer", "minimum": least });
        if let Some(most) = most {
            schema["maximum"] = most.into();
        }
        json!({ "name": name, "in": "query", "schema": schema, "description": description })
    };
    let from = in_query("from", 0, None, "The number of the first line, from 0.");
    let most = in_query(
        "most",
        *runs::MOST.start(),
        Some(*runs::MOST.end()),
        "All lines, thinned to so many at most: with the extremes of each figure, and the last.",
    );
    let paths = [
        ("models", get("The models, as the page shows them.", ok("The models.", as_json("PageModels")), &[500, 503])),
        (
            "generate",
            post(
                "A text as it grows.",
                "GenerateRequest",
                ok("The prompt, its tokens, and how it ended, as server-sent events.", events),
            ),
        ),
        (
            "next",
            post(
                "The distribution of the token after a prompt, rule by rule.",
                "NextRequest",
                ok("The tokens.", as_json("Next")),
            ),
        ),
        ("attention", post("Where a head looks.", "AttentionRequest", ok("The map.", as_json("Attention")))),
        ("runs", get("The runs below the folder.", ok("The runs.", as_json("Runs")), &[500, 503])),
        ("runs/{name}/metrics", of_run("Lines of metrics.jsonl.", "Records", &[from.clone(), most])),
        ("runs/{name}/samples", of_run("Lines of samples.jsonl.", "Records", &[from])),
        ("runs/{name}/config", of_run("The configuration of a run.", "RunConfig", &[])),
    ];
    let paths = paths.into_iter().map(|(path, described)| (format!("/api/{path}"), described)).collect();
    Described { paths, schemas: schemas().into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect() }
}

fn schemas() -> [(&'static str, Value); 9] {
    let whole = || json!({ "type": "integer", "minimum": 0 });
    let list = |items: Value| json!({ "type": "array", "items": items });
    let token = object(&["id", "text"], |key| if key == "id" { whole() } else { string() });
    let tokens = || list(token.clone());
    let numbers = || list(json!({ "type": "number" }));
    let model = object(&["id", "path", "vocab_size", "n_layer", "n_head", "defaults"], |key| match key {
        "id" | "path" => string(),
        "defaults" => json!({ "type": "object" }),
        _ => whole(),
    });
    let run = object(&["name", "state", "step", "bytes"], |key| match key {
        "name" => string(),
        "state" => json!({ "enum": ["running", "finished", "interrupted", "damaged"] }),
        _ => whole(),
    });
    let records =
        object(&["records", "next"], |key| if key == "next" { whole() } else { list(json!({ "type": "object" })) });
    let next = object(&["prompt", "tokens", "kept", "entropy_before", "entropy_after", "draw"], |key| match key {
        "prompt" | "tokens" => tokens(),
        "kept" => whole(),
        "draw" => token.clone(),
        _ => json!({ "type": "number" }),
    });
    [
        ("GenerateRequest", request(generate_keys(), &[])),
        ("NextRequest", request(next_keys(), &[])),
        ("AttentionRequest", request(attention_keys(), &["text"])),
        ("PageModels", object(&["models"], |_| list(model.clone()))),
        ("Next", next),
        ("Attention", object(&["tokens", "weights"], |key| if key == "tokens" { tokens() } else { list(numbers()) })),
        ("Runs", object(&["runs"], |_| list(run.clone()))),
        ("Records", records),
        ("RunConfig", object(&["toml"], |_| string())),
    ]
}

fn string() -> Value {
    json!({ "type": "string" })
}

fn generate_keys() -> Vec<Key> {
    let number = || json!({ "type": "integer", "minimum": 0 });
    let mut keys = vec![
        key("prompt", string(), "What to continue; without one, a new text."),
        key("max_tokens", up_to(limits::MAX_TOKENS), "The most tokens of the text; by default the run's."),
        key(
            "top",
            up_to(limits::TOP_LOGPROBS),
            format!("Tell of so many others beside each token; {} by default.", generate::TOP),
        ),
        key("sample", number(), "The number of the text, of which the draws depend beside the seed."),
        key("n", json!({ "const": 1 }), "One text."),
    ];
    keys.extend(text_keys());
    keys.extend(rule_keys());
    keys
}

fn next_keys() -> Vec<Key> {
    let mut keys = vec![
        key("model", string(), "One of /v1/models; by default the first."),
        key("prompt", string(), "What comes before the token."),
        key("sample", json!({ "type": "integer", "minimum": 0 }), "The number of the text that the draw is of."),
        key("limit", up_to(next::MAX_LIMIT), format!("So many tokens one by one; {} by default.", next::LIMIT)),
        key("draws", up_to(next::MAX_DRAWS), format!("So many draws are counted; {} by default.", next::DRAWS)),
    ];
    // It is no rule of one distribution.
    keys.extend(rule_keys().into_iter().filter(|key| key.name != "adaptive"));
    keys
}

fn attention_keys() -> Vec<Key> {
    vec![
        key("model", string(), "One of /v1/models; by default the first."),
        key(
            "text",
            json!({ "type": "string", "minLength": 1 }),
            format!("Of {} tokens at most.", attention::MAX_TOKENS),
        ),
        key("layer", json!({ "type": "integer", "minimum": 0 }), "From 0."),
        key("head", json!({ "type": "integer", "minimum": 0 }), "From 0."),
    ]
}
