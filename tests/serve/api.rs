//! The routes, what they take and what they give.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    process::Stdio,
};

use serde_json::{Value, json};

use super::server;
use crate::common::{Place, http_server::Server, json as one_json, stdout, trained};

/// `tinygpt generate --json` of the shared run.
fn generate(args: &[&str]) -> Value {
    let mut command = trained().tinygpt();
    command.args(["generate", "--checkpoint", "run", "--json", "--prompt", "One"]).args(args);
    one_json(&mut command)
}

/// The texts of an answer.
fn texts(answer: &Value) -> Vec<&str> {
    answer["choices"].as_array().unwrap().iter().map(|choice| choice["text"].as_str().unwrap()).collect()
}

fn complete(server: &Server, body: Value) -> Value {
    let answer = server.post("/v1/completions", &body);
    assert_eq!(answer.status, 200, "{body}: {answer:?}");
    answer.json()
}

/// The error of a request that is refused: its status, the key to blame, and the message.
fn refusal(server: &Server, path: &str, body: Value) -> (u16, Value, String) {
    let answer = server.post(path, &body);
    let error = answer.json()["error"].clone();
    assert_eq!(error.as_object().unwrap().len(), 4, "{error}");
    (answer.status, error["param"].clone(), error["message"].as_str().unwrap().to_owned())
}

#[test]
fn a_text_is_that_of_generate_with_this_seed_and_sample() {
    let server = server();
    let of_program = generate(&["--seed", "7", "--num-samples", "3", "--first-sample", "2", "--max-new-tokens", "24"]);
    let request = json!({ "prompt": "One", "seed": 7, "n": 3, "first_sample": 2, "max_tokens": 24 });
    let answer = complete(&server, request);
    let expected: Vec<_> =
        of_program["samples"].as_array().unwrap().iter().map(|s| s["text"].as_str().unwrap()).collect();
    assert_eq!(texts(&answer), expected);
    let prompt_tokens = answer["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(
        answer["usage"],
        json!({ "prompt_tokens": prompt_tokens, "completion_tokens": 72, "total_tokens": prompt_tokens + 72 })
    );
    assert_eq!(
        [&answer["object"], &answer["model"], &answer["seed"]],
        [&json!("text_completion"), &json!("run"), &json!(7)]
    );
    assert!(answer["choices"].as_array().unwrap().iter().all(|choice| choice["finish_reason"] == "length"));
}

#[test]
fn every_rule_acts_as_it_does_on_the_command_line() {
    let server = server();
    let flags =
        ["--temperature", "1.3", "--top-k", "20", "--top-p", "0.9", "--min-p", "0.02", "--repetition-penalty", "1.2"];
    let of_program = generate(
        &[
            &flags[..],
            &[
                "--presence-penalty",
                "0.5",
                "--logit-bias",
                "3=-2",
                "--seed",
                "9",
                "--stop",
                "e",
                "--max-new-tokens",
                "30",
            ],
        ]
        .concat(),
    );
    let answer = complete(
        &server,
        json!({
            "prompt": "One", "temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2,
            "presence_penalty": 0.5, "logit_bias": { "3": -2 }, "seed": 9, "stop": ["e"], "max_tokens": 30,
        }),
    );
    assert_eq!(texts(&answer), [of_program["samples"][0]["text"].as_str().unwrap()]);
    let is_stop = of_program["samples"][0]["ended_by"] == "stop";
    assert_eq!(answer["choices"][0]["finish_reason"], if is_stop { "stop" } else { "length" });

    let of_program = generate(&[
        "--adaptive",
        "0.3",
        "--dry-multiplier",
        "0.8",
        "--xtc-probability",
        "0.5",
        "--seed",
        "4",
        "--max-new-tokens",
        "30",
    ]);
    let answer = complete(
        &server,
        json!({
            "prompt": "One", "adaptive": 0.3, "dry_multiplier": 0.8, "xtc_probability": 0.5, "seed": 4, "max_tokens": 30,
        }),
    );
    assert_eq!(texts(&answer), [of_program["samples"][0]["text"].as_str().unwrap()]);
}

#[test]
fn a_grammar_is_followed_and_its_end_is_a_stop() {
    let server = server();
    let answer = complete(&server, json!({ "prompt": "One", "regex": "(ab|cd){3}", "seed": 1, "max_tokens": 50 }));
    let text = texts(&answer)[0];
    assert!(text.len() == 6 && ["ab", "cd"].contains(&&text[..2]), "{text}");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(refusal(&server, "/v1/completions", json!({ "regex": "(" })).1, "regex");
    let (status, param, message) =
        refusal(&server, "/v1/completions", json!({ "regex": "a", "grammar": "start: \"a\"" }));
    assert_eq!((status, param), (400, json!("grammar")), "{message}");
}

#[test]
fn logprobs_are_those_of_generate_and_of_the_prompt_where_it_is_echoed() {
    let server = server();
    let of_program = generate(&["--seed", "3", "--max-new-tokens", "5", "--logprobs", "2"]);
    let answer = complete(&server, json!({ "prompt": "One", "seed": 3, "max_tokens": 5, "logprobs": 2 }));
    let logprobs = &answer["choices"][0]["logprobs"];
    let expected = of_program["samples"][0]["logprobs"].as_array().unwrap();
    let near = |a: &Value, b: &Value| (a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 1e-9;
    assert_eq!(logprobs["tokens"].as_array().unwrap().len(), 5);
    for (at, token) in expected.iter().enumerate() {
        assert_eq!(logprobs["tokens"][at], token["token"]);
        assert!(near(&logprobs["token_logprobs"][at], &token["logprob"]), "{logprobs}");
        for top in token["top"].as_array().unwrap() {
            let of_top = &logprobs["top_logprobs"][at][top["token"].as_str().unwrap()];
            assert!(near(of_top, &top["logprob"]), "{logprobs}");
        }
    }

    // A text that was generated has, as a prompt that is echoed, the same probabilities.
    let text = format!("One{}", texts(&answer)[0]);
    let echoed = complete(&server, json!({ "prompt": text, "echo": true, "max_tokens": 0, "logprobs": 2 }));
    assert_eq!(texts(&echoed), [text.as_str()]);
    let of_prompt = &echoed["choices"][0]["logprobs"];
    assert_eq!(of_prompt["token_logprobs"][0], Value::Null);
    let tokens = of_prompt["tokens"].as_array().unwrap();
    assert_eq!(tokens.iter().map(|token| token.as_str().unwrap()).collect::<String>(), text);
    let mut offset = 0;
    for (at, token) in tokens.iter().enumerate() {
        assert_eq!(of_prompt["text_offset"][at], json!(offset));
        offset += token.as_str().unwrap().chars().count();
    }
    // The text is cut into the same tokens again, which are characters.
    assert_eq!(tokens.len(), 8);
    for at in 0..5 {
        assert!(near(&of_prompt["token_logprobs"][at + 3], &logprobs["token_logprobs"][at]), "{of_prompt} {logprobs}");
    }
}

#[test]
fn a_prompt_is_a_text_or_tokens_or_several_of_either() {
    let server = server();
    let text = |prompt: Value| {
        let answer = complete(&server, json!({ "prompt": prompt, "seed": 5, "max_tokens": 8, "echo": true }));
        texts(&answer).into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let one = text(json!("One"));
    assert!(one[0].starts_with("One"));
    let two = text(json!("Two"));
    assert_eq!(text(json!(["One", "Two"])), [one[0].clone(), two[0].clone()]);
    let tokens = complete(&server, json!({ "prompt": "One", "echo": true, "max_tokens": 0, "logprobs": 0 }));
    assert_eq!(
        tokens["choices"][0]["logprobs"]["tokens"].as_array().unwrap().len() as u64,
        tokens["usage"]["prompt_tokens"].as_u64().unwrap()
    );
    let of_numbers = text(json!([1, 2, 3]));
    assert_eq!(text(json!([[1, 2, 3], [1, 2, 3]])), [of_numbers[0].clone(), of_numbers[0].clone()]);
    assert_eq!(text(Value::Null), text(json!("")));
}

#[test]
fn the_pieces_of_a_stream_are_the_whole() {
    let server = server();
    let request = json!({ "prompt": "One", "seed": 5, "max_tokens": 20, "n": 2, "logprobs": 1, "echo": true });
    let whole = complete(&server, request.clone());
    let mut streamed = request;
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({ "include_usage": true });
    let events = server.post("/v1/completions", &streamed).events();
    let (last, chunks) = events.split_last().unwrap();
    assert_eq!(last, "[DONE]");
    let chunks: Vec<Value> = chunks.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect();
    let (usage, chunks) = chunks.split_last().unwrap();
    assert_eq!([&usage["usage"], &usage["choices"]], [&whole["usage"], &json!([])]);
    assert!(chunks.iter().all(|chunk| chunk["usage"].is_null() && chunk["id"] == usage["id"]));
    for (index, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
        let of_choice =
            || chunks.iter().map(|chunk| &chunk["choices"][0]).filter(|choice| choice["index"] == json!(index));
        let text: String = of_choice().map(|piece| piece["text"].as_str().unwrap()).collect();
        assert_eq!(choice["text"], json!(text));
        for key in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            let joined: Vec<Value> =
                of_choice().flat_map(|piece| piece["logprobs"][key].as_array().unwrap().clone()).collect();
            assert_eq!(choice["logprobs"][key], json!(joined), "{key}");
        }
        assert_eq!(of_choice().next_back().unwrap()["finish_reason"], choice["finish_reason"]);
    }
}

#[test]
fn what_makes_no_sense_is_refused_with_the_key_to_blame() {
    let server = server();
    for (body, param) in [
        (json!({ "temprature": 1 }), "temprature"),
        (json!({ "temperature": "a" }), "temperature"),
        (json!({ "temperature": -1 }), "temperature"),
        (json!({ "top_p": 1.5 }), "top_p"),
        (json!({ "max_tokens": -1 }), "max_tokens"),
        (json!({ "max_tokens": 1.5 }), "max_tokens"),
        (json!({ "max_tokens": 1_000_000_000 }), "max_tokens"),
        (json!({ "n": 0 }), "n"),
        (json!({ "n": 1000 }), "n"),
        (json!({ "n": 40, "prompt": ["a", "b"] }), "n"),
        (json!({ "logprobs": 21 }), "logprobs"),
        (json!({ "best_of": 2 }), "best_of"),
        (json!({ "suffix": "end" }), "suffix"),
        (json!({ "stop": "" }), "stop"),
        (json!({ "stop": ["a", "b", "c", "d", "e"] }), "stop"),
        (json!({ "stop": 1 }), "stop"),
        (json!({ "seed": -1 }), "seed"),
        (json!({ "first_sample": u64::MAX, "n": 2 }), "first_sample"),
        (json!({ "logit_bias": { "99999": 1 } }), "logit_bias"),
        (json!({ "prompt": [] }), "prompt"),
        (json!({ "prompt": [[]] }), "prompt"),
        (json!({ "prompt": [99999] }), "prompt"),
        (json!({ "prompt": [1, "a"] }), "prompt"),
        (json!({ "prompt": { "a": 1 } }), "prompt"),
        (json!({ "prompt": "a".repeat(70_000) }), "prompt"),
        (json!({ "stream": 1 }), "stream"),
        (json!({ "stream_options": { "include_usage": true } }), "stream_options"),
        (json!({ "stream": true, "stream_options": { "other": true } }), "stream_options"),
        (json!({ "model": 5 }), "model"),
    ] {
        let (status, blamed, message) = refusal(&server, "/v1/completions", body.clone());
        assert_eq!((status, blamed), (400, json!(param)), "{message}");
        assert!(message.starts_with(param), "{message}");
    }
    let (status, param, message) = refusal(&server, "/v1/completions", json!({ "model": "other" }));
    assert_eq!((status, param, message.as_str()), (404, json!("model"), "no model is named `other`; there are run"));
}

/// Method, path, headers and body of a request, and the status of the answer.
type Case<'a> = (&'a str, &'a str, &'a [&'a str], &'a [u8], u16);

#[test]
fn what_is_no_request_is_refused_in_the_same_shape() {
    let server = server();
    let json_type = &["Content-Type: application/json"];
    let long = format!("{{\"prompt\": \"{}\"}}", "a".repeat(2 << 20));
    let cases: [Case<'_>; 9] = [
        ("GET", "/other", &[], b"", 404),
        ("GET", "/v1/models/other/one", &[], b"", 404),
        ("GET", "/../../etc/passwd", &[], b"", 404),
        ("GET", "/v1/completions", &[], b"", 405),
        ("DELETE", "/v1/models", &[], b"", 405),
        ("POST", "/v1/completions", &["Content-Type: text/plain"], b"{}", 415),
        ("POST", "/v1/completions", json_type, b"{\"prompt\": ", 400),
        ("POST", "/v1/completions", json_type, b"{\"prompt\": \"\xff\"}", 400),
        ("POST", "/v1/completions", json_type, long.as_bytes(), 413),
    ];
    for (method, path, headers, body, status) in cases {
        let answer = server.ask(method, path, headers, body);
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
        let error = &answer.json()["error"];
        assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()) && error["type"].is_string(), "{error}");
    }
    assert!(server.ask("GET", "/v1/completions", &[], b"").header("allow").is_some_and(|allow| allow.contains("POST")));
}

#[test]
fn models_health_metrics_and_the_description_are_there() {
    let server = server();
    let models = server.get("/v1/models").json();
    assert_eq!([&models["object"], &models["data"][0]["id"]], [&json!("list"), &json!("run")]);
    assert_eq!(server.get("/v1/models/run").json(), models["data"][0]);
    assert_eq!(server.get("/health").json(), json!({ "status": "ok" }));

    complete(&server, json!({ "max_tokens": 7, "n": 2 }));
    server
        .wait_for("the end of the texts", |server| server.metric("tinygpt_running_texts{model=\"run\"}") == Some(0.0));
    assert_eq!(server.metric("tinygpt_generated_tokens_total{model=\"run\"}"), Some(14.0));
    assert_eq!(server.metric("tinygpt_request_seconds_count{model=\"run\"}"), Some(1.0));
    assert_eq!(server.metric("tinygpt_time_to_first_token_seconds_count{model=\"run\"}"), Some(1.0));
    assert_eq!(server.metric("tinygpt_time_per_token_seconds_count{model=\"run\"}"), Some(12.0));
    let of_route = "tinygpt_http_requests_total{method=\"POST\",route=\"/v1/completions\",status=\"200\"}";
    assert_eq!(server.metric(of_route), Some(1.0));
}

#[test]
fn all_that_is_described_is_there_and_takes_what_it_says() {
    let server = Server::start(trained(), &["run", "--runs", "."]);
    let description = server.get("/openapi.json").json();
    let paths = description["paths"].as_object().unwrap();
    assert_eq!(paths.keys().filter(|path| path.starts_with("/api/")).count(), 8);
    for (path, described) in paths {
        let there = server.get(&path.replace("{id}", "run").replace("{name}", "run"));
        assert_eq!(there.status, if described["get"].is_object() { 200 } else { 405 }, "{path}: {there:?}");
    }
    for (path, schema, least) in [
        ("/v1/completions", "CompletionRequest", 40),
        ("/api/generate", "GenerateRequest", 35),
        ("/api/next", "NextRequest", 28),
        ("/api/attention", "AttentionRequest", 4),
    ] {
        let described = &description["components"]["schemas"][schema];
        let keys: BTreeSet<_> = described["properties"].as_object().unwrap().keys().collect();
        assert!(keys.len() >= least, "{schema} has {}", keys.len());
        for key in keys {
            // A value of a wrong type is blamed on the key, which is hence known.
            let mut body = json!({ key.as_str(): [[[]]] });
            for required in described["required"].as_array().unwrap().iter().filter(|other| *other != key) {
                body[required.as_str().unwrap()] = json!("One");
            }
            let (status, param, message) = refusal(&server, path, body);
            assert!(status == 400 && param == json!(key) && !message.contains("unknown"), "{key}: {message}");
        }
    }
}

#[test]
fn a_chat_needs_a_template_and_is_a_prompt_with_it() {
    let place = Place::new().with_run("plain").with_run("chatty");
    let config = "chatty/tokenizer_config.json";
    let mut tokenizer = place.json(config);
    let template = "{% for message in messages %}{{ message.role }}, {{ message.content }}\n{% endfor %}{% if add_generation_prompt %}One{% endif %}";
    tokenizer["chat_template"] = json!(template);
    place.write(config, tokenizer.to_string());
    let server = Server::start(&place, &["plain", "chatty"]);
    let messages = json!([{ "role": "user", "content": [{ "type": "text", "text": "One" }] }]);
    let chat = |more: Value| {
        let mut body = json!({ "messages": messages, "seed": 5, "max_tokens": 12, "model": "chatty" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let path = "/v1/chat/completions";
    let answer = server.post(path, &chat(json!({ "logprobs": true, "top_logprobs": 2, "n": 2 })));
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer = answer.json();
    let twin = complete(&server, json!({ "prompt": "user, One\nOne", "seed": 5, "max_tokens": 12, "n": 2 }));
    for at in 0..2 {
        assert_eq!(answer["choices"][at]["message"]["content"], twin["choices"][at]["text"]);
        let tokens = answer["choices"][at]["logprobs"]["content"].as_array().unwrap();
        assert!(tokens.len() == 12 && tokens.iter().all(|token| token["top_logprobs"].as_array().unwrap().len() == 2));
    }
    assert_eq!(answer["usage"], twin["usage"]);

    let events = server.post(path, &chat(json!({ "stream": true }))).events();
    let pieces = events[..events.len() - 1].iter().map(|event| serde_json::from_str::<Value>(event).unwrap());
    let content = |piece: Value| piece["choices"][0]["delta"]["content"].as_str().unwrap_or_default().to_owned();
    assert_eq!(json!(pieces.map(content).collect::<String>()), twin["choices"][0]["text"]);

    let json_text = server.post(
        path,
        &chat(json!({ "response_format": { "type": "json_schema", "json_schema": { "schema": { "const": true } } } })),
    );
    assert_eq!(json_text.json()["choices"][0]["message"]["content"], "true");

    let (status, param, message) = refusal(&server, path, chat(json!({ "model": "plain" })));
    assert_eq!((status, param), (400, json!("model")));
    assert!(message.contains("no chat template"), "{message}");
    for (body, param) in [
        (chat(json!({ "messages": [] })), "messages"),
        (chat(json!({ "messages": [{ "role": "user" }] })), "messages"),
        (chat(json!({ "messages": null })), "messages"),
        (chat(json!({ "top_logprobs": 2 })), "top_logprobs"),
        (chat(json!({ "response_format": { "type": "xml" } })), "response_format"),
        (chat(json!({ "tools": [] })), "tools"),
    ] {
        assert_eq!(refusal(&server, path, body.clone()).1, json!(param), "{body}");
    }
}

/// A GGUF file with one more key, whose value is a text.
fn with_text(file: &[u8], key: &str, text: &str) -> Vec<u8> {
    // The tensors begin at a multiple of 32 bytes, hence what comes before them grows by one.
    let padding = 32 - (8 + key.len() + 4 + 8 + text.len() + 4) % 32;
    let text = format!("{{#{}#}}{text}", " ".repeat(padding));
    let len = |text: &str| (text.len() as u64).to_le_bytes();
    let added = [&len(key)[..], key.as_bytes(), &8u32.to_le_bytes(), &len(&text), text.as_bytes()].concat();
    // Behind the numbers of tensors and of keys.
    let keys = u64::from_le_bytes(file[16..24].try_into().unwrap()) + 1;
    [&file[..16], &keys.to_le_bytes(), &added, &file[24..]].concat()
}

#[test]
fn a_gguf_file_brings_its_chat_template() {
    let place = Place::new().with_run("run");
    stdout(place.tinygpt().args(["export", "run", "--gguf", "plain.gguf"]));
    let template =
        "{% for message in messages %}{{ message.content }}{% endfor %}{% if add_generation_prompt %}e{% endif %}";
    place.write("chatty.gguf", with_text(&place.read("plain.gguf"), "tokenizer.chat_template", template));
    let server = Server::start(&place, &["plain.gguf", "chatty.gguf"]);
    let chat = |model: &str| json!({ "model": model, "messages": [{ "role": "user", "content": "On" }], "seed": 5, "max_tokens": 12 });
    let answer = server.post("/v1/chat/completions", &chat("chatty.gguf"));
    assert_eq!(answer.status, 200, "{answer:?}");
    let twin = complete(&server, json!({ "prompt": "One", "seed": 5, "max_tokens": 12 }));
    assert_eq!(answer.json()["choices"][0]["message"]["content"], twin["choices"][0]["text"]);
    let (status, _, message) = refusal(&server, "/v1/chat/completions", chat("plain.gguf"));
    assert_eq!(status, 400);
    assert!(message.contains("no chat template"), "{message}");

    let broken = with_text(&place.read("plain.gguf"), "tokenizer.chat_template", "{% if %}");
    place.write("broken.gguf", broken);
    let server = Server::start(&place, &["broken.gguf"]);
    assert_eq!(server.post("/v1/completions", &json!({ "prompt": "On", "max_tokens": 1 })).status, 200);
    let (status, _, message) = refusal(&server, "/v1/chat/completions", chat("broken.gguf"));
    assert!(status == 400 && message.contains("no chat template that can be used"), "{message}");
    let told = told_at_start(&place, "broken.gguf");
    assert!(told.contains("the chat template of broken.gguf is not understood, so chats are refused: "), "{told}");
}

/// What a server of a model tells before it listens.
fn told_at_start(place: &Place, model: &str) -> String {
    let told = fs::File::create(place.join("told.txt")).unwrap();
    let mut command = place.process(&["serve", model, "--port", "0"]);
    let mut server = command.env_remove("TINYGPT_API_KEY").stdout(Stdio::piped()).stderr(told).spawn().unwrap();
    let mut address = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut address).unwrap();
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(address.starts_with("http://"), "{address}: {}", place.text("told.txt"));
    place.text("told.txt")
}

#[test]
fn a_damaged_state_of_a_run_is_told_of_and_its_weights_are_served() {
    let place = Place::new().with_run("run");
    let told = told_at_start(&place, "run");
    assert!(!told.contains("not known"), "{told}");
    place.write("run/last/state.json", "{");
    let told = told_at_start(&place, "run");
    assert!(
        told.contains("the step and the loss of the weights are not known: ") && told.contains("state.json"),
        "{told}"
    );
}

#[test]
fn rules_that_leave_nothing_to_draw_from_are_the_requests_fault() {
    let server = server();
    for (stream, status) in [(false, 400), (true, 200)] {
        let request = json!({ "prompt": "One", "max_tokens": 5, "frequency_penalty": -1e300, "stream": stream });
        let answer = server.post("/v1/completions", &request);
        assert_eq!(answer.status, status, "{answer:?}");
        let error: Value =
            if stream { serde_json::from_str(answer.events().last().unwrap()).unwrap() } else { answer.json() };
        assert_eq!(error["error"]["type"], "invalid_request_error");
        let message = error["error"]["message"].as_str().unwrap();
        assert!(message.starts_with("the rules leave nothing to draw from: "), "{message}");
    }
}

#[test]
fn answers_that_would_be_too_long_are_refused_by_the_key() {
    let server = server();
    for (request, param) in [
        (json!({ "max_tokens": 65_536, "n": 17 }), "max_tokens"),
        (json!({ "max_tokens": 65_536, "logprobs": 20 }), "max_tokens"),
        (json!({ "prompt": vec![1; 513], "echo": true, "logprobs": 0, "max_tokens": 0 }), "prompt"),
    ] {
        let answer = server.post("/v1/completions", &request);
        assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!(param)), "{answer:?}");
    }
    let answer = server.get("/v1/models/%ff");
    assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!("name")), "{answer:?}");
}
