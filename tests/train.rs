//! `tinygpt train`: what a run folder holds, and what is printed where.

use std::fs;

use crate::common::{Place, SMALL, failure, json, stderr, stdout, trained};
use safetensors::SafeTensors;
use serde_json::{Value, json};

#[test]
fn a_run_folder_holds_a_model_its_configuration_its_metrics_and_what_resuming_needs() {
    let place = trained();
    assert_eq!(
        place.names("run"),
        [
            ".lock",
            "config.json",
            "generation_config.json",
            "last",
            "loss.png",
            "loss.svg",
            "metrics.jsonl",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "train.toml",
        ]
    );
    assert_eq!(place.names("run/last"), ["optimizer-60.safetensors", "state.json", "weights-60.safetensors"]);
    let state = place.json("run/last/state.json");
    assert_eq!((&state["format"], &state["step"]), (&json!(1), &json!(60)));
    let svg = place.text("run/loss.svg");
    assert!(
        svg.starts_with("<svg") && svg.contains("small") && svg.contains("validation"),
        "a title and a legend: {svg}"
    );
}

#[test]
fn every_file_of_ours_says_its_format() {
    let place = trained();
    for (file, format) in [
        ("run/config.json", &["tinygpt", "format"][..]),
        ("run/generation_config.json", &["tinygpt", "format"]),
        ("run/last/state.json", &["format"]),
    ] {
        let value = place.json(file);
        assert_eq!(format.iter().fold(&value, |value, key| &value[key]), &json!(1), "{file}");
    }
    assert!(place.text("run/train.toml").starts_with("format = 1\n"));
    assert!(place.text("run/metrics.jsonl").lines().all(|line| line.contains("\"format\":1,")));
    assert!(place.text("run/loss.svg").contains("<!-- tinygpt chart, format 1 -->"));
    let ours = [("tinygpt_format", "1")];
    for (file, metadata) in [
        ("run/model.safetensors", &[("format", "pt"), ours[0]][..]),
        ("run/last/weights-60.safetensors", &ours),
        ("run/last/optimizer-60.safetensors", &ours),
    ] {
        let bytes = place.read(file);
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let mut found: Vec<_> = header.metadata().iter().flatten().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        found.sort();
        assert_eq!(found, metadata, "{file}");
    }
}

#[test]
fn the_hugging_face_configuration_says_what_is_true() {
    let place = trained();
    let config = place.json("run/config.json");
    let tokenizer = place.json("run/tokenizer.json");
    let vocab_size = tokenizer["model"]["vocab"].as_object().unwrap().len();
    for (key, value) in [
        ("model_type", json!("gpt2")),
        ("architectures", json!(["GPT2LMHeadModel"])),
        ("activation_function", json!("gelu")),
        ("bos_token_id", Value::Null),
        ("eos_token_id", Value::Null),
        ("vocab_size", json!(vocab_size)),
        ("n_positions", json!(16)),
        ("n_embd", json!(16)),
        ("n_layer", json!(1)),
        ("n_head", json!(2)),
        ("tie_word_embeddings", json!(true)),
    ] {
        assert_eq!(config.get(key), Some(&value), "{key}");
    }
    let generation = place.json("run/generation_config.json");
    assert_eq!((&generation["do_sample"], &generation["temperature"]), (&json!(true), &json!(0.8)));
    assert_eq!(place.json("run/tokenizer_config.json")["model_max_length"], json!(16));
}

#[test]
fn another_activation_and_greedy_defaults_are_written_as_they_are() {
    let place = Place::new();
    let set = ["--set", "model.activation=gelu_new", "--set", "generate.temperature=0", "--set", "model.bias=true"];
    place.train().args(["--out", "run"]).args(set).assert().success();
    assert_eq!(place.json("run/config.json")["activation_function"], "gelu_new");
    let generation = place.json("run/generation_config.json");
    assert_eq!(generation["do_sample"], false);
    assert_eq!(generation.get("temperature"), None, "Hugging Face refuses a temperature of 0");
    // Greedy by default: no seed is needed, and none is named.
    let mut generate = place.tinygpt();
    generate.args(["generate", "--checkpoint", "run", "--max-new-tokens", "4"]);
    assert_eq!(stderr(&mut generate), "");
}

#[test]
fn the_weights_have_hugging_faces_names_and_zeros_for_the_biases_that_the_model_lacks() {
    let bytes = trained().read("run/model.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let shape = |name: &str| tensors.tensor(&format!("transformer.{name}")).unwrap().shape().to_vec();
    assert_eq!(shape("wpe.weight"), [16, 16]);
    assert_eq!(shape("h.0.attn.c_attn.weight"), [16, 48], "(in, out)");
    assert_eq!(shape("h.0.mlp.c_fc.weight"), [16, 64], "(in, out)");
    assert_eq!(shape("h.0.mlp.c_proj.weight"), [64, 16], "(in, out)");
    let biases =
        ["h.0.ln_1", "h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.ln_2", "h.0.mlp.c_fc", "h.0.mlp.c_proj", "ln_f"];
    for name in biases {
        let bias = tensors.tensor(&format!("transformer.{name}.bias")).unwrap();
        assert!(bias.data().iter().all(|&byte| byte == 0), "{name}");
    }
    assert_eq!(tensors.len(), 2 + 2 * biases.len(), "{:?}", tensors.names());
    assert!(tensors.names().iter().all(|name| name.starts_with("transformer.")));
}

#[test]
fn the_written_configuration_is_resolved_and_starts_the_same_run_again() {
    let place = Place::new();
    place.train().args(["--out", "one", "--seed", "7", "--set", "train.max_steps=5"]).assert().success();
    let written = place.text("one/train.toml");
    for line in ["format = 1", "seed = 7", "max_steps = 5", "decay_steps = 0", "n_embd = 16", "name = \"small\""] {
        assert!(written.lines().any(|l| l == line), "{line}: {written}");
    }
    place.tinygpt().args(["train", "--config", "one/train.toml", "--out", "two"]).assert().success();
    assert_eq!(place.timeless("one"), place.timeless("two"));
}

#[test]
fn every_line_of_the_metrics_has_the_documented_keys() {
    let text = trained().text("run/metrics.jsonl");
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let keys = |row: &Value| row.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
    let (train, eval): (Vec<&Value>, Vec<&Value>) = rows.iter().partition(|row| row["kind"] == "train");
    assert_eq!(train.len(), 60);
    for row in train {
        assert_eq!(keys(row), "kind format step loss lr grad_norm tokens_per_s seconds");
    }
    let steps: Vec<_> = eval.iter().map(|row| row["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [0, 30, 60]);
    for row in eval {
        let ratio = if row["step"] == 0 { "" } else { "update_ratio " };
        assert_eq!(keys(row), format!("kind format step val_loss perplexity bits_per_byte floor {ratio}seconds"));
        assert_eq!((&row["kind"], &row["format"]), (&json!("eval"), &json!(1)));
    }
    let loss = |at: usize| eval_loss(&rows, at);
    assert!(loss(60) < loss(0) - 0.2, "it learns: {} to {}", loss(0), loss(60));
}

fn eval_loss(rows: &[Value], step: usize) -> f64 {
    rows.iter().find(|row| row["kind"] == "eval" && row["step"] == step).unwrap()["val_loss"].as_f64().unwrap()
}

#[test]
fn standard_output_carries_the_result_and_standard_error_the_progress_in_plain_lines() {
    let place = Place::new();
    let output = place.train().output().unwrap();
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{err}");
    // Three sample stories, the loss, the floor and the gap, the time, the folder.
    assert!(out.starts_with("  "), "{out}");
    for start in ["validation loss ", "floor  ", "gap  ", "6 steps in ", "runs/small-1"] {
        assert_eq!(out.lines().filter(|line| line.starts_with(start)).count(), 1, "{start:?} in {out}");
    }
    assert!(out.contains("bits/byte") && out.contains("% of the floor"), "{out}");
    assert!(out.ends_with("runs/small-1\n"), "{out}");
    for start in ["runs/small-1: ", "eval 0/6 ", "step 1/6 ", "eval 3/6 ", "step 6/6 ", "eval 6/6 "] {
        assert_eq!(err.lines().filter(|line| line.starts_with(start)).count(), 1, "{start:?} in {err}");
    }
    assert!(!err.contains(['\r', '\x1b']), "no terminal, no control characters: {err:?}");
    let step = err.lines().find(|line| line.starts_with("step 6/6")).unwrap();
    for figure in ["loss ", "lr ", "norm ", " tok/s", " left"] {
        assert!(step.contains(figure), "{figure:?} in {step}");
    }
    assert!(!step.contains("val"), "the validation loss is that of an earlier step: {step}");
}

#[test]
fn json_prints_exactly_one_object_with_the_loss_the_floor_the_gap_and_three_samples() {
    let place = Place::new();
    let result = json(place.train().args(["--json", "--out", "run"]));
    for (key, value) in [("run", json!("run")), ("ending", json!("max_steps")), ("step", json!(6))] {
        assert_eq!(result[key], value, "{key}");
    }
    let report = |key: &str| result["report"][key].as_f64().unwrap();
    assert!((report("loss") - report("floor") - report("gap")).abs() < 1e-12);
    assert!((report("perplexity") - report("loss").exp()).abs() < 1e-9);
    // Stories are ASCII and a token is a character.
    assert!((report("bits_per_byte") - report("loss") / std::f64::consts::LN_2).abs() < 1e-9);
    let samples: Vec<_> = result["samples"].as_array().unwrap().iter().map(|s| s.as_str().unwrap()).collect();
    assert_eq!(samples.len(), 3);
    assert!(samples.iter().all(|s| !s.contains('\n')), "a story is one line: {samples:?}");
}

#[test]
fn runs_without_an_out_folder_are_numbered_by_the_configurations_name() {
    let place = Place::new();
    for n in 1..=2 {
        assert!(stdout(&mut place.train()).ends_with(&format!("runs/small-{n}\n")));
    }
    place.train().args(["--set", "name=other"]).assert().success();
    assert_eq!(place.names("runs"), ["other-1", "small-1", "small-2"]);
}

#[test]
fn a_configuration_is_also_found_in_configs_and_without_its_extension() {
    let place = Place::new();
    place.write("configs/tiny.toml", SMALL);
    for config in ["tiny", "tiny.toml", "configs/tiny.toml"] {
        place.tinygpt().args(["train", "--config", config, "--set", "train.max_steps=1"]).assert().success();
    }
    assert_eq!(place.names("runs"), ["tiny-1", "tiny-2", "tiny-3"]);
}

#[test]
fn a_corpus_of_ones_own_has_no_floor() {
    let place = Place::new();
    place
        .write("mine/a.txt", "the cat sat on the mat. ".repeat(20))
        .write("mine/b.md", "the dog sat on the log. ".repeat(20));
    let result = json(place.train().args(["--data", "mine", "--json", "--out", "run"]));
    assert!(result["report"]["floor"].is_null() && result["report"]["gap"].is_null());
    assert!(result["report"]["bits_per_byte"].is_f64());
    assert!(!place.text("run/metrics.jsonl").contains("floor"));
    let corpus = place.text("run/train.toml").lines().find(|line| line.starts_with("corpus")).unwrap().to_owned();
    assert!(corpus.starts_with("corpus = \"/") && corpus.ends_with("/mine\""), "found again from any folder: {corpus}");
}

#[test]
fn the_name_of_a_corpus_may_hold_any_character() {
    let place = Place::new();
    for name in ["with space.txt", "quote\".txt", "cafe\u{301}.txt", "1e5"] {
        place.write(name, "the cat sat on the mat. ".repeat(20));
        place.train().args(["--data", name, "--set", "train.max_steps=1"]).assert().success();
    }
}

#[test]
fn the_token_cache_is_shared_by_runs_and_the_text_is_encoded_once() {
    let place = Place::new();
    place.write("a.txt", "the cat sat on the mat. ".repeat(20));
    let tokens = |path: &std::path::PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("tokens-");
    let files = || fs::read_dir(place.join("cache")).unwrap().map(|e| e.unwrap().path());
    let cached = || files().filter(tokens).collect::<Vec<_>>();
    place.train().args(["--data", "a.txt", "--set", "train.max_steps=1"]).assert().success();
    let first = cached();
    assert_eq!(first.len(), 1);
    let written = fs::metadata(&first[0]).unwrap().modified().unwrap();
    place.train().args(["--data", "a.txt", "--set", "train.max_steps=1"]).assert().success();
    assert_eq!(cached(), first);
    assert_eq!(fs::metadata(&first[0]).unwrap().modified().unwrap(), written);
}

#[test]
fn overwrite_replaces_the_run_in_the_folder() {
    let place = Place::new();
    place.train().args(["--out", "run", "--set", "train.max_steps=5"]).assert().success();
    place.train().args(["--out", "run", "--overwrite", "--set", "train.max_steps=3"]).assert().success();
    assert_eq!(place.names("run/last"), ["optimizer-3.safetensors", "state.json", "weights-3.safetensors"]);
    assert_eq!(place.text("run/metrics.jsonl").lines().count(), 3 + 2, "nothing of the old run is left");
}

#[test]
fn a_run_ends_at_its_minutes_and_says_so() {
    let place = Place::new();
    let set =
        ["--set", "train.max_steps=10000000", "--set", "train.max_minutes=0.005", "--set", "train.eval_every=1000"];
    let out = stdout(place.train().args(["--out", "run"]).args(set));
    assert!(out.contains("(train.max_minutes = 0.005)"), "{out}");
    let state = place.json("run/last/state.json");
    assert!(state["seconds"].as_f64().unwrap() >= 0.3, "{state}");
    // Its last update is evaluated and saved.
    let rows = place.text("run/metrics.jsonl");
    let last: Value = serde_json::from_str(rows.lines().last().unwrap()).unwrap();
    assert_eq!((&last["kind"], &last["step"]), (&json!("eval"), &state["step"]));
}

#[test]
fn a_run_ends_when_patience_does_and_says_so() {
    let place = Place::new();
    // So small a learning rate changes nothing, and what does not change is not better.
    let set = ["train.lr=1e-30", "train.min_lr=0", "train.patience=2", "train.eval_every=1", "train.max_steps=1000"];
    let set: Vec<&str> = set.iter().flat_map(|item| ["--set", item]).collect();
    let out = stdout(place.train().args(["--out", "run"]).args(&set));
    assert!(out.contains("(no better validation loss in 2 evaluations)"), "{out}");
    assert!(out.contains("2 steps in ") && out.contains("best at step 0"), "{out}");
    let result = json(place.train().args(["--out", "two", "--json"]).args(&set));
    assert_eq!((&result["ending"], &result["step"], &result["best_step"]), (&json!("patience"), &json!(2), &json!(0)));
}

#[test]
fn the_floor_is_that_of_the_very_text_that_is_evaluated() {
    let place = Place::new();
    let result = json(place.train().args(["--out", "run", "--json"]));
    let floors = |run: &str| -> Vec<f64> {
        let text = place.text(&format!("{run}/metrics.jsonl"));
        let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        rows.filter_map(|row| row["floor"].as_f64()).collect()
    };
    let whole = result["report"]["floor"].as_f64().unwrap();
    let estimated = floors("run");
    assert!(estimated.iter().all(|floor| (0.1..1.0).contains(floor)), "{estimated:?}");
    assert!(estimated.iter().all(|floor| *floor == estimated[0] && *floor != whole), "{estimated:?}, {whole}");
    // An evaluation of the whole split has the floor of the whole split.
    place.train().args(["--out", "all", "--set", "train.eval_batches=0"]).assert().success();
    assert!(floors("all").iter().all(|floor| (floor - whole).abs() < 1e-12), "{:?}, {whole}", floors("all"));
}

#[test]
fn the_recipes_are_built_in_and_a_file_of_the_same_name_wins() {
    let place = Place::new();
    let small = ["model.n_layer=1", "model.n_head=1", "model.n_embd=8", "model.block_size=8", "train.max_steps=1"];
    let small = small.iter().chain(&["data.stories_bytes=60000", "train.eval_batches=1"]).flat_map(|x| ["--set", x]);
    let small: Vec<&str> = small.collect();
    for config in ["tiny", "tiny.toml", "configs/tiny.toml"] {
        place.tinygpt().args(["train", "--config", config]).args(&small).assert().success();
    }
    assert_eq!(place.names("runs"), ["tiny-1", "tiny-2", "tiny-3"]);
    assert!(place.text("runs/tiny-1/train.toml").contains("lr = 0.02\n"), "the recipe's");
    place.write("tiny.toml", SMALL);
    place.tinygpt().args(["train", "--config", "tiny"]).args(&small).assert().success();
    assert!(place.text("runs/tiny-4/train.toml").contains("lr = 0.001"), "the file's");
}

#[test]
fn a_model_that_is_no_gpt2_trains_resumes_and_generates_alike_in_every_format() {
    let place = Place::new();
    let keys = ["model.norm=rms", "model.position=rope", "model.tie_embeddings=false", "train.decay_steps=6"];
    let train = |out: &str, steps: &str| {
        let mut command = place.train();
        for key in keys.iter().chain([&steps]) {
            command.args(["--set", key]);
        }
        stdout(command.args(["--out", out]));
    };
    train("whole", "train.max_steps=6");
    train("parts", "train.max_steps=3");
    stdout(place.tinygpt().args(["train", "--resume", "--out", "parts", "--set", "train.max_steps=6"]));
    assert!(place.read("whole/model.safetensors") == place.read("parts/model.safetensors"));
    let config = place.json("whole/config.json");
    assert_eq!((&config["model_type"], &config["tinygpt"]["model"]["norm"]), (&json!("tinygpt"), &json!("rms")));
    for format in ["f32", "bf16", "int8", "int4"] {
        for window in ["slide", "half"] {
            let text = |threads, run| {
                let mut command = place.tinygpt();
                command.args(["--threads", threads, "generate", "--checkpoint", run, "--prompt", "One", "--seed", "5"]);
                stdout(command.args(["--max-new-tokens", "60", "--weights", format, "--window", window]))
            };
            assert_eq!(text("1", "whole"), text("2", "parts"), "{format} {window}");
        }
    }
}

#[test]
fn muon_says_what_it_updates_trains_and_goes_on_to_the_same_bytes() {
    let place = Place::new();
    let train = |out: &str, more: &[&str]| {
        let mut command = place.train();
        for key in ["train.decay_steps=6", "train.schedule=wsd", "train.weight_decay=0.01"].iter().chain(more) {
            command.args(["--set", key]);
        }
        stderr(command.args(["--out", out]))
    };
    let muon = ["train.optimizer=muon", "train.lr_matrices=0.02", "train.lr_embeddings=0.005"];
    let [whole, parts] = [["train.max_steps=6"], ["train.max_steps=3"]].map(|steps| [&muon[..], &steps].concat());
    let told = train("whole", &whole);
    assert!(told.contains("muon: 6 matrices, 3,072 parameters, lr 0.02; adamw: 2 embeddings, "), "{told}");
    assert!(!train("plain", &["train.max_steps=6"]).contains("adamw"));
    train("parts", &parts);
    stdout(place.tinygpt().args([
        "train",
        "--resume",
        "--out",
        "parts",
        "--set",
        "train.max_steps=6",
        "--threads",
        "1",
    ]));
    assert!(place.read("whole/model.safetensors") == place.read("parts/model.safetensors"));
    assert!(place.read("whole/model.safetensors") != place.read("plain/model.safetensors"));
    let refused =
        failure(place.tinygpt().args(["train", "--resume", "--out", "parts", "--set", "train.optimizer=adamw"]), 2);
    assert!(refused.contains("`train.optimizer` cannot change when a run is resumed"), "{refused}");
}

#[test]
fn samples_of_a_run_are_what_generate_prints_and_go_on_where_it_is_resumed() {
    let place = Place::new();
    let set = ["--set", "train.sample_every=2", "--set", "train.sample_tokens=24", "--set", "train.sample_prompt=a"];
    place.train().args(["--out", "run"]).args(set).assert().success();
    let samples = || -> Vec<Value> {
        place.text("run/samples.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let rows = samples();
    assert_eq!(rows.iter().map(|row| row["step"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 2, 4, 6]);
    assert_eq!(place.json("run/last/state.json")["best"]["step"], 6, "generate has the last weights");
    let generate =
        ["generate", "--checkpoint", "run", "--prompt", "a", "--seed", "1337", "--max-new-tokens", "24", "--json"];
    let generated = json(place.tinygpt().args(generate));
    assert_eq!((&rows[3]["text"], &rows[3]["seed"]), (&generated["samples"][0]["text"], &generated["seed"]));
    // Samples may be taken otherwise in the next part of a run.
    let resume = ["train", "--resume", "--out", "run", "--set", "train.max_steps=8", "--set", "train.sample_prompt="];
    place.tinygpt().args(resume).assert().success();
    let resumed = samples();
    assert_eq!(resumed[..4], rows);
    assert_eq!((resumed.len(), &resumed[4]["step"], &resumed[4]["prompt"]), (5, &json!(8), &json!("")));
}

#[test]
fn a_prompt_of_samples_that_the_vocabulary_lacks_is_refused_before_anything_is_written() {
    let place = Place::new();
    let message = failure(place.train().args(["--out", "run", "--set", "train.sample_prompt=Ω"]), 2);
    assert!(message.contains("`train.sample_prompt` = \"Ω\": "), "{message}");
    assert!(!place.join("run").exists());
}

#[test]
fn an_inspection_shows_how_the_start_is_spread_and_leaves_no_run() {
    let place = Place::new();
    let of = |init: &str| json(place.train().args(["--inspect", "--json", "--set", &format!("model.init={init}")]));
    let std = |found: &Value, module: &str| {
        let value = found["values"].as_array().unwrap().iter().find(|value| value["module"] == module).unwrap().clone();
        (value["activations"]["std"].as_f64().unwrap(), value["gradients"]["std"].as_f64().unwrap())
    };
    let (gpt2, he) = (of("gpt2"), of("he"));
    assert!((gpt2["loss"].as_f64().unwrap() / gpt2["uniform_loss"].as_f64().unwrap() - 1.0).abs() < 0.01);
    assert_eq!((&gpt2["init"], &he["init"]), (&json!("gpt2"), &json!("he")));
    assert!(std(&he, "h.0.mlp.c_fc").0 > 5.0 * std(&gpt2, "h.0.mlp.c_fc").0);
    assert!(std(&gpt2, "wte").1 > 0.0);
    assert_eq!(gpt2["params"].as_array().unwrap().len(), 9);
    let tables = stdout(place.train().arg("--inspect"));
    for part in ["first batch: loss ", "h.0.attn.c_attn      Linear ", "h.0.mlp.c_proj.weight "] {
        assert!(tables.contains(part), "{part:?} is not in {tables}");
    }
    assert_eq!(place.names("."), ["cache", "small.toml"]);
    let message = failure(place.train().args(["--inspect", "--out", "run"]), 2);
    assert!(message.contains("cannot be used with"), "{message}");
}
