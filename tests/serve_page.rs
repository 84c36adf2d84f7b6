//! What the page of `tinygpt serve` is made of and asks for: its files, and the routes below `/api`.

use std::{
    collections::HashMap,
    fs,
    process::{Child, Stdio},
};

use candle_core::{DType, Device, IndexOp};
use serde_json::{Value, json};
use tinygpt_model::{Checkpoint, Gpt, params};

use crate::common::{Place, http_server::Server, json as one_json, trained};

/// A server of the shared run, which is also the one that the page shows.
fn server() -> Server {
    Server::start(trained(), &["run", "--runs", "."])
}

fn asked(server: &Server, path: &str, body: &Value) -> Value {
    let answer = server.post(path, body);
    assert_eq!(answer.status, 200, "{path} {body}: {answer:?}");
    answer.json()
}

fn got(server: &Server, path: &str) -> Value {
    let answer = server.get(path);
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    answer.json()
}

fn array(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

fn ids(tokens: &Value) -> Vec<u64> {
    array(tokens).iter().map(|token| token["id"].as_u64().unwrap()).collect()
}

fn texts(tokens: &Value) -> String {
    array(tokens).iter().map(|token| token["text"].as_str().unwrap()).collect()
}

#[test]
fn the_page_comes_with_all_files_that_it_names_and_a_browser_keeps_them() {
    let server = server();
    let page = server.get("/");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(page.header("content-security-policy").unwrap().contains("script-src 'self'"));
    let assets: Vec<&str> = page.body.split('"').filter(|quoted| quoted.starts_with("/assets/")).collect();
    assert!(assets.len() > 3, "{}", page.body);
    for path in assets {
        let file = server.get(path);
        let expected =
            if path.ends_with(".css") { "text/css; charset=utf-8" } else { "text/javascript; charset=utf-8" };
        assert_eq!((file.status, file.header("content-type")), (200, Some(expected)), "{path}");
        let etag = format!("If-None-Match: {}", file.header("etag").unwrap());
        let again = server.ask("GET", path, &[&etag], b"");
        assert_eq!((again.status, again.body.as_str(), again.header("cache-control")), (304, "", Some("no-cache")));
    }
}

#[test]
fn no_path_of_a_request_is_a_path_of_the_file_system() {
    let place = Place::new().with_run("runs/one").with_run("beside");
    let server = Server::start(&place, &["runs/one", "--runs", "runs"]);
    assert_eq!(
        got(&server, "/api/runs/one/metrics")["next"].as_u64(),
        Some(place.text("runs/one/metrics.jsonl").lines().count() as u64)
    );
    for name in [
        "..%2Fbeside",
        "%2E%2E%2Fbeside",
        ".",
        "%2E%2E",
        "one%2F..%2F..%2Fbeside",
        "one%2Flast",
        "%2Fetc",
        "two",
        "one%00",
    ] {
        for what in ["metrics", "samples", "config"] {
            let answer = server.get(&format!("/api/runs/{name}/{what}"));
            assert_eq!(answer.status, 404, "{name}: {answer:?}");
            assert_eq!(answer.json()["error"]["code"], "run_not_found");
        }
    }
    for path in [
        "/api/runs/../beside/metrics",
        "/assets/../page/app.js",
        "/assets/..%2Fsrc%2Fmain.rs",
        "/assets/",
        "/assets/app.js/",
        "/assets/%2Fetc%2Fpasswd",
        "/index.html",
    ] {
        let answer = server.get(path);
        assert_eq!(answer.status, 404, "{path}: {answer:?}");
        assert!(answer.json()["error"]["message"].is_string());
    }
    let answer = server.get("/api/runs/%FF/metrics");
    assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!("name")));
}

#[test]
fn a_model_is_described_with_the_evaluation_of_its_weights() {
    let server = server();
    let models = got(&server, "/api/models");
    let [model] = array(&models["models"]) else { panic!("{models}") };
    let config = trained().json("run/config.json");
    let best = trained().json("run/last/state.json")["best"].clone();
    assert_eq!([&model["id"], &model["path"], &model["tokenizer"]], ["run", "run", "char"]);
    assert_eq!([&model["step"], &model["val_loss"]], [&best["step"], &best["val_loss"]]);
    for (key, of_config) in [
        ("vocab_size", "vocab_size"),
        ("block_size", "n_positions"),
        ("n_layer", "n_layer"),
        ("n_head", "n_head"),
        ("n_embd", "n_embd"),
    ] {
        assert_eq!(model[key], config[of_config], "{key}");
    }
    let info = one_json(trained().tinygpt().args(["info", "run", "--json"]));
    assert_eq!(model["parameters"], info["parameters"], "{info}");
    assert!(number(&model["defaults"]["temperature"]) > 0.0 && model["defaults"]["max_new_tokens"].is_u64());
}

#[test]
fn a_model_keeps_the_evaluation_of_the_weights_that_were_read_until_there_are_others() {
    let place = Place::new().with_run("run");
    let server = Server::start(&place, &["run", "--reload"]);
    let told = |server: &Server| {
        let model = got(server, "/api/models")["models"][0].clone();
        (model["step"].clone(), model["val_loss"].clone())
    };
    let mut state = place.json("run/last/state.json");
    let before = (state["best"]["step"].clone(), state["best"]["val_loss"].clone());
    assert_eq!(told(&server), before);
    // A run saves its state first, and the weights that it names then.
    state["best"] = json!({ "step": 41, "val_loss": 1.25 });
    place.write("run/last/state.json", state.to_string());
    assert_eq!(told(&server), before, "the weights are the same");
    place.write("run/new", place.read("run/model.safetensors"));
    fs::rename(place.join("run/new"), place.join("run/model.safetensors")).unwrap();
    server.wait_for("the new weights", |server| told(server) == (json!(41), json!(1.25)));
    assert_eq!(server.metric("tinygpt_reloads_total{model=\"run\"}"), Some(1.0));
}

/// What `tinygpt sample` says of these logits in so many texts, from number `sample` on.
fn sampled(logits: &[Value], draws: usize, sample: u64, position: u64, rules: &Value) -> Vec<Value> {
    let mut command = trained().tinygpt();
    command.args(["sample", "--input", "-", "--json", "--seed", "7", "--sequence", &sample.to_string()]);
    command.args(["--position", &position.to_string()]);
    for (rule, value) in rules.as_object().unwrap() {
        command.args([format!("--{}", rule.replace('_', "-")), value.to_string()]);
    }
    let rows = json!({ "rows": vec![logits; draws] }).to_string();
    array(&one_json(command.write_stdin(rows))["rows"]).to_vec()
}

#[test]
fn the_next_token_is_that_of_sample_rule_by_rule() {
    let server = server();
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-6 * b.abs() + 1e-9;
    for (rules, cut_by) in [
        (json!({ "temperature": 1.0, "top_k": 0, "top_p": 1.0 }), json!([null])),
        (json!({ "temperature": 0.7, "top_k": 5, "top_p": 1.0 }), json!([null, "top_k"])),
        (json!({ "temperature": 1.5, "top_k": 0, "top_p": 0.6 }), json!([null, "top_p"])),
        (json!({ "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.7 }), json!([null, "min_p"])),
        (
            json!({ "temperature": 0.2, "top_k": 20, "top_p": 0.9, "min_p": 0.3 }),
            json!([null, "min_p", "top_k", "top_p"]),
        ),
        (json!({ "temperature": 0.0, "top_k": 0, "top_p": 1.0 }), json!([null, "temperature"])),
        (json!({ "temperature": 1.0, "top_k": 0, "top_p": 1.0, "typical_p": 0.5 }), json!([null, "typical_p"])),
    ] {
        let (sample, draws) = (3, 40);
        let mut request = rules.clone();
        for (key, value) in [
            ("prompt", json!("Once there")),
            ("seed", json!(7)),
            ("sample", json!(sample)),
            ("limit", json!(2000)),
            ("draws", json!(draws)),
        ] {
            request[key] = value;
        }
        let next = asked(&server, "/api/next", &request);
        let mut tokens = array(&next["tokens"]).to_vec();
        assert_eq!(tokens.len() as u64, next["vocab_size"].as_u64().unwrap());
        assert!(tokens.windows(2).all(|two| number(&two[0]["logit"]) >= number(&two[1]["logit"])));
        assert_eq!(
            [&next["rest"]["tokens"], &next["rest"]["count"], &next["draws"]],
            [&json!(0), &json!(0), &json!(draws)]
        );
        assert_eq!(next["argmax"]["id"], tokens[0]["id"]);
        assert_eq!(next["position"], array(&next["prompt"]).len());
        assert_eq!(texts(&next["prompt"]), "Once there");
        let mut rules_seen: Vec<Value> = tokens.iter().map(|token| token["cut_by"].clone()).collect();
        rules_seen.sort_by_key(|rule| rule.as_str().map(str::to_owned));
        rules_seen.dedup();
        assert_eq!(json!(rules_seen), cut_by, "{rules}");

        let kept: Vec<u64> = tokens
            .iter()
            .filter(|token| token["cut_by"].is_null())
            .map(|token| token["id"].as_u64().unwrap())
            .collect();
        tokens.sort_by_key(|token| token["id"].as_u64());
        let logits: Vec<Value> = tokens.iter().map(|token| token["logit"].clone()).collect();
        let rows = sampled(&logits, draws, sample, next["position"].as_u64().unwrap(), &rules);
        assert_eq!(rows[0]["kept"], json!(kept), "{rules}");
        assert_eq!(next["kept"], kept.len());
        assert!(near(number(&next["entropy_after"]), number(&rows[0]["entropy"])), "{rules}: {next}");
        for (id, p) in kept.iter().zip(array(&rows[0]["probs"])) {
            assert!(near(number(&tokens[*id as usize]["p_kept"]), number(p)), "{rules}");
        }
        let mass: f64 = kept.iter().map(|&id| number(&tokens[id as usize]["p_tempered"])).sum();
        assert!(near(number(&next["kept_mass"]), mass));
        for key in ["p", "p_tempered", "p_kept"] {
            assert!(near(tokens.iter().map(|token| number(&token[key])).sum(), 1.0), "{rules}: {key}");
        }
        let entropy: f64 = tokens.iter().map(|token| number(&token["p"])).map(|p| -p * p.ln()).sum();
        assert!(near(number(&next["entropy_before"]), entropy));

        // The draw is the first of those that are counted.
        assert_eq!(next["draw"]["id"], rows[0]["samples"][0], "{rules}");
        let mut counts = HashMap::<u64, u64>::new();
        rows.iter().for_each(|row| *counts.entry(row["samples"][0].as_u64().unwrap()).or_default() += 1);
        for (id, token) in (0..).zip(&tokens) {
            assert_eq!(token["count"], counts.get(&id).copied().unwrap_or(0), "{rules}: token {id}");
        }
        let [uniform, from, to] = ["uniform", "from", "to"].map(|key| number(&next["draw"][key]));
        let drawn = next["draw"]["id"].as_u64().unwrap() as usize;
        let below: f64 = tokens[..drawn].iter().map(|token| number(&token["p_kept"])).sum();
        assert!((from - below).abs() < 1e-9 && (to - from - number(&tokens[drawn]["p_kept"])).abs() < 1e-9);
        assert!(from <= uniform && uniform < to, "{rules}: {}", next["draw"]);
    }
}

#[test]
fn the_tokens_that_are_not_listed_are_told_together() {
    let server = server();
    let of = |limit: usize| {
        asked(
            &server,
            "/api/next",
            &json!({ "prompt": "", "seed": 1, "temperature": 1.0, "top_k": 0, "top_p": 0.9, "limit": limit, "draws": 500 }),
        )
    };
    let (few, all) = (of(3), of(2000));
    assert_eq!(few["tokens"], json!(array(&all["tokens"])[..3]));
    let rest = &array(&all["tokens"])[3..];
    assert_eq!(
        [&few["rest"]["tokens"], &few["rest"]["count"]],
        [&json!(rest.len()), &json!(rest.iter().map(|token| token["count"].as_u64().unwrap()).sum::<u64>())]
    );
    for key in ["p", "p_kept"] {
        let sum: f64 = rest.iter().map(|token| number(&token[key])).sum();
        assert!((number(&few["rest"][key]) - sum).abs() < 1e-9);
    }
    // No text begins behind the token that texts start behind.
    assert_eq!([&few["position"], &json!(array(&few["prompt"]).len())], [&json!(1), &json!(1)]);
}

#[test]
fn a_text_comes_token_by_token_as_generate_says_it() {
    let server = server();
    for (seed, sample, rules) in [(7, 0, json!({})), (8, 5, json!({ "temperature": 1.3, "top_k": 20, "min_p": 0.01 }))]
    {
        let mut request = rules.clone();
        for (key, value) in [
            ("model", json!("run")),
            ("prompt", json!("One")),
            ("seed", json!(seed)),
            ("sample", json!(sample)),
            ("max_tokens", json!(30)),
            ("top", json!(4)),
        ] {
            request[key] = value;
        }
        let answer = server.post("/api/generate", &request);
        assert_eq!(answer.status, 200, "{answer:?}");
        let mut events = answer.events();
        assert_eq!(events.pop().as_deref(), Some("[DONE]"));
        let events: Vec<Value> = events.iter().map(|event| serde_json::from_str(event).unwrap()).collect();
        let [prompt, tokens @ .., end] = events.as_slice() else { panic!("{events:?}") };
        assert_eq!(texts(&prompt["prompt"]), "One");
        assert_eq!(end["ended_by"], "length");

        let mut command = trained().tinygpt();
        command.args([
            "generate",
            "--checkpoint",
            "run",
            "--prompt",
            "One",
            "--max-new-tokens",
            "30",
            "--json",
            "--logprobs",
            "4",
        ]);
        command.args(["--seed", &seed.to_string(), "--first-sample", &sample.to_string()]);
        for (rule, value) in rules.as_object().unwrap() {
            command.args([format!("--{}", rule.replace('_', "-")), value.to_string()]);
        }
        let told = one_json(&mut command)["samples"][0].clone();
        let text: String = tokens.iter().chain([end]).map(|event| event["piece"].as_str().unwrap()).collect();
        assert_eq!(json!(text), told["text"]);
        let logprobs = array(&told["logprobs"]);
        assert_eq!(tokens.len(), logprobs.len());
        for (token, expected) in tokens.iter().zip(logprobs) {
            assert_eq!(
                [&token["id"], &token["text"], &token["logprob"]],
                [&expected["id"], &expected["token"], &expected["logprob"]]
            );
            let top = array(&token["top"]);
            assert_eq!(ids(&token["top"]), ids(&expected["top"]));
            assert!(top.iter().zip(array(&expected["top"])).all(|(one, other)| one["logprob"] == other["logprob"]));
            let rank = token["rank"].as_u64().unwrap() as usize;
            assert_eq!(rank <= 4, top.get(rank - 1).is_some_and(|other| other["id"] == token["id"]));
            assert!(number(&token["entropy"]) > 0.0);
        }
    }
}

#[test]
fn a_text_ends_at_a_stop_with_what_was_held_back() {
    let server = server();
    let of = |stop: &str| {
        let answer =
            server.post("/api/generate", &json!({ "prompt": "One", "seed": 7, "max_tokens": 30, "stop": [stop] }));
        let events = answer.events();
        events[..events.len() - 1].iter().map(|event| serde_json::from_str(event).unwrap()).collect::<Vec<Value>>()
    };
    let text =
        |events: &[Value]| -> String { events[1..].iter().map(|event| event["piece"].as_str().unwrap()).collect() };
    let whole = of("no such text");
    let cut = of(" ");
    assert_eq!([&whole.last().unwrap()["ended_by"], &cut.last().unwrap()["ended_by"]], ["length", "stop"]);
    assert_eq!(text(&cut), text(&whole).split(' ').next().unwrap());
}

/// A run that trains until the test ends.
struct Training(Child);

impl Drop for Training {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn runs_and_their_lines_grow_while_another_process_trains() {
    let place = Place::new().with_run("model");
    let server = Server::start(&place, &["model", "--runs", "runs"]);
    assert_eq!(got(&server, "/api/runs"), json!({ "runs": [] }), "there is no folder yet");
    let train = [
        "train",
        "--config",
        "small.toml",
        "--out",
        "runs/group/one",
        "--set",
        "train.max_steps=10000000",
        "--set",
        "train.sample_every=3",
        "--set",
        "train.sample_tokens=4",
    ];
    let training = Training(place.process(&train).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let until = |what: &str, holds: &mut dyn FnMut() -> bool| server.wait_for(what, |_| holds());
    until("the run is listed", &mut || !array(&got(&server, "/api/runs")["runs"]).is_empty());
    let mut read = HashMap::from([("metrics", Vec::new()), ("samples", Vec::new())]);
    // A part of what is there each time, and more than once something new.
    for (what, records) in &mut read {
        for _ in 0..3 {
            until(what, &mut || {
                let path = format!("/api/runs/group%2Fone/{what}?from={}", records.len());
                let answer = server.get(&path);
                // The run begins to write.
                let new = array(&answer.json()["records"]).to_vec();
                assert_eq!(answer.json()["next"], records.len() + new.len());
                let grows = !new.is_empty();
                records.extend(new);
                grows
            });
        }
    }
    until("it has more steps than at first", &mut || {
        number(&got(&server, &format!("/api/runs/group%2Fone/metrics?from={}", read["metrics"].len()))["next"])
            > read["metrics"].len() as f64
    });
    until("its first save is listed", &mut || number(&got(&server, "/api/runs")["runs"][0]["step"]) > 0.0);
    let listed = got(&server, "/api/runs")["runs"][0].clone();
    assert_eq!(
        [&listed["name"], &listed["state"], &listed["reason"], &listed["max_steps"]],
        [&json!("group/one"), &json!("running"), &Value::Null, &json!(10_000_000)]
    );
    assert!(number(&listed["best_loss"]) > 0.0 && number(&listed["bytes"]) > 0.0 && number(&listed["saved"]) > 1e9);
    assert_eq!(got(&server, "/api/runs/group%2Fone/config")["toml"], place.text("runs/group/one/train.toml"));
    drop(training);
    for (what, records) in read {
        let file = place.text(&format!("runs/group/one/{what}.jsonl"));
        let whole = &file[..file.rfind('\n').unwrap() + 1];
        let lines: Vec<Value> = whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[..records.len()], records, "{what}");
        // An answer has a part of many lines; the next one goes on.
        let mut all = Vec::new();
        loop {
            let answer = got(&server, &format!("/api/runs/group%2Fone/{what}?from={}", all.len()));
            let new = array(&answer["records"]).to_vec();
            all.extend(new.clone());
            assert_eq!(answer["next"], all.len());
            if new.is_empty() {
                break;
            }
        }
        assert_eq!(all, lines, "{what}");
    }
    until("it is interrupted", &mut || got(&server, "/api/runs")["runs"][0]["state"] == "interrupted");
    // Who asks for more lines than there are has read another file.
    let again = got(&server, "/api/runs/group%2Fone/samples?from=99999999");
    assert_eq!(array(&again["records"])[0]["step"], 0, "the text before the first update");
    fs::remove_dir_all(place.join("runs/group")).unwrap();
    until("it is gone", &mut || got(&server, "/api/runs") == json!({ "runs": [] }));
    assert_eq!(server.get("/api/runs/group%2Fone/metrics").status, 404);
}

#[test]
fn finished_and_damaged_runs_are_listed_with_their_reasons() {
    let place = Place::new().with_run("runs/whole").with_run("runs/broken");
    place.write("runs/broken/model.safetensors", "nothing");
    let server = Server::start(&place, &["runs/whole", "--runs", "runs"]);
    let listed = got(&server, "/api/runs")["runs"].clone();
    let of = |name: &str| array(&listed).iter().find(|run| run["name"] == name).unwrap();
    let whole = of("whole");
    assert_eq!(
        [&whole["state"], &whole["reason"], &whole["step"], &whole["max_steps"]],
        [&json!("finished"), &json!("max_steps"), &json!(60), &json!(60)]
    );
    assert_eq!(whole["best_loss"], place.json("runs/whole/last/state.json")["best"]["val_loss"]);
    assert_eq!(of("broken")["state"], "damaged");
    assert!(of("broken")["reason"].as_str().unwrap().contains("model.safetensors"));
}

#[test]
fn the_lines_of_a_long_run_are_thinned_to_what_is_asked_for() {
    let place = Place::new().with_run("run");
    let row = |step: u64, loss: f64| {
        json!({ "kind": "train", "format": 1, "step": step, "loss": loss, "seconds": step }).to_string() + "\n"
    };
    let lines: String = (1..=5000).map(|step| row(step, if step == 777 { 9.5 } else { 1.0 / step as f64 })).collect();
    place.write("run/metrics.jsonl", &lines);
    let server = Server::start(&place, &["run", "--runs", "."]);
    let asked_for = |query: &str| got(&server, &format!("/api/runs/run/metrics?{query}"));
    let few = asked_for("most=200");
    assert_eq!(few["next"], 5000);
    let records = array(&few["records"]);
    assert!((50..=200).contains(&records.len()), "{}", records.len());
    assert!(records.iter().any(|record| record["step"] == 777 && record["loss"] == 9.5), "the peak is lost");
    assert_eq!(records.last().unwrap()["step"], 5000);
    assert_eq!(array(&asked_for("from=0")["records"]).len(), 5000, "nobody asked for fewer");
    // What is new is told as it is, where it is not much.
    place.write("run/metrics.jsonl", lines + &row(5001, 3.0) + &row(5002, 4.0));
    let new = asked_for("from=5000&most=200");
    assert_eq!((array(&new["records"]).len(), &new["next"]), (2, &json!(5002)));
    for most in ["0", "99", "20001", "x", "-1"] {
        let answer = server.get(&format!("/api/runs/run/metrics?most={most}"));
        assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!("most")), "{most}");
    }
    assert_eq!(server.get("/api/runs/run/samples?most=200").status, 400);
}

#[test]
fn a_run_whose_lines_are_broken_says_so_and_keeps_no_other_from_being_read() {
    let place = Place::new().with_run("runs/whole").with_run("runs/broken");
    let lines = place.text("runs/broken/metrics.jsonl");
    place.write("runs/broken/metrics.jsonl", format!("no record\n{lines}"));
    place.write("runs/broken/samples.jsonl", "{\"format\": 999}\n");
    let server = Server::start(&place, &["runs/whole", "--runs", "runs"]);
    for (query, file) in
        [("metrics", "metrics.jsonl"), ("metrics?most=200", "metrics.jsonl"), ("samples", "samples.jsonl")]
    {
        let answer = server.get(&format!("/api/runs/broken/{query}"));
        let error = answer.json()["error"].clone();
        assert_eq!((answer.status, &error["type"]), (500, &json!("server_error")), "{answer:?}");
        assert!(error["message"].as_str().unwrap().contains(file), "{error}");
    }
    assert!(!array(&got(&server, "/api/runs/whole/metrics")["records"]).is_empty());
    assert_eq!(array(&got(&server, "/api/runs")["runs"]).len(), 2);
    place.write("runs/broken/metrics.jsonl", &lines);
    assert_eq!(got(&server, "/api/runs/broken/metrics")["next"], lines.lines().count());
}

#[test]
fn attention_is_that_of_the_library() {
    let server = server();
    let checkpoint = Checkpoint::open(trained().join("run")).unwrap();
    let text = "Once there was";
    let ids_of_text = checkpoint.tokenizer().encode(text).unwrap();
    let config = checkpoint.config();
    let tensors = params::to_tensors(config, &checkpoint.weights().slices(), DType::F32, &Device::Cpu).unwrap();
    let maps = Gpt::new(config, &tensors).unwrap().attention_maps(&ids_of_text).unwrap();
    for head in 0..config.n_head {
        let answer =
            asked(&server, "/api/attention", &json!({ "model": "run", "text": text, "layer": 0, "head": head }));
        assert_eq!(ids(&answer["tokens"]), ids_of_text.iter().map(|&id| u64::from(id)).collect::<Vec<_>>());
        let expected: Vec<Vec<f32>> = maps[0].i(head).unwrap().to_vec2().unwrap();
        let rows = array(&answer["weights"]);
        assert_eq!(rows.len(), ids_of_text.len());
        for (at, (row, expected)) in rows.iter().zip(expected).enumerate() {
            let row: Vec<f64> = array(row).iter().map(number).collect();
            assert_eq!(row.len(), at + 1);
            assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-4 * row.len() as f64);
            assert!(
                row.iter().zip(&expected).all(|(one, other)| (one - f64::from(*other)).abs() < 6e-5),
                "{row:?} {expected:?}"
            );
        }
    }
}

#[test]
fn an_ngram_model_has_a_distribution_and_no_attention() {
    let place = Place::new().with_run("run");
    place.tinygpt().args(["baseline", "run", "--order", "3", "--save", "trigram"]).assert().success();
    let server = Server::start(&place, &["trigram"]);
    let model = got(&server, "/api/models")["models"][0].clone();
    assert_eq!([&model["n_layer"], &model["block_size"], &model["step"]], [&json!(0), &json!(2), &Value::Null]);
    let next = asked(&server, "/api/next", &json!({ "prompt": "Once", "limit": 1 }));
    assert!(number(&next["tokens"][0]["p"]) > 0.0);
    let refused = server.post("/api/attention", &json!({ "text": "Once" }));
    assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("model")));
}

#[test]
fn bad_input_is_refused_with_the_key_to_blame() {
    let server = server();
    let long = "Once there was a fox. ".repeat(40);
    for (path, body, status, param) in [
        ("/api/next", json!({ "prompt": ["a"] }), 400, "prompt"),
        ("/api/next", json!({ "prompt": "a", "temperature": -1 }), 400, "temperature"),
        ("/api/next", json!({ "prompt": "a", "top_p": 2 }), 400, "top_p"),
        ("/api/next", json!({ "prompt": "a", "top_k": -1 }), 400, "top_k"),
        ("/api/next", json!({ "prompt": "a", "draws": 10_001 }), 400, "draws"),
        ("/api/next", json!({ "prompt": "a", "limit": 2001 }), 400, "limit"),
        ("/api/next", json!({ "prompt": "a", "adaptive": 0.5 }), 400, "adaptive"),
        ("/api/next", json!({ "prompt": "a", "sample": -1 }), 400, "sample"),
        ("/api/next", json!({ "prompt": "a", "max_tokens": 3 }), 400, "max_tokens"),
        ("/api/generate", json!({ "prompt": "a", "top": 21 }), 400, "top"),
        ("/api/generate", json!({ "prompt": "a", "n": 2 }), 400, "n"),
        ("/api/generate", json!({ "prompt": "a", "stop": [1] }), 400, "stop"),
        ("/api/generate", json!({ "prompt": "a", "model": "other" }), 404, "model"),
        ("/api/attention", json!({ "layer": 0, "head": 0 }), 400, "text"),
        ("/api/attention", json!({ "text": "" }), 400, "text"),
        ("/api/attention", json!({ "text": long }), 400, "text"),
        ("/api/attention", json!({ "text": "a", "layer": 1 }), 400, "layer"),
        ("/api/attention", json!({ "text": "a", "head": 2 }), 400, "head"),
    ] {
        let answer = server.post(path, &body);
        let error = answer.json()["error"].clone();
        assert_eq!((answer.status, &error["param"]), (status, &json!(param)), "{path} {body}: {error}");
        assert_eq!(error["type"], "invalid_request_error");
        assert!(error["message"].as_str().unwrap().len() > 5);
    }
    for from in ["-1", "x", "1.5", "99999999999999999999999"] {
        let answer = server.get(&format!("/api/runs/run/metrics?from={from}"));
        assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!("from")), "{from}");
    }
    for (method, path) in [("GET", "/api/next"), ("POST", "/api/runs"), ("DELETE", "/api/runs/run/config")] {
        assert_eq!(server.ask(method, path, &[], b"").status, 405, "{method} {path}");
    }
}
