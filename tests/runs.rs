//! Following runs: event files for TensorBoard, the list of runs, and what `info` tells.

use std::{fs, process::Stdio};

use serde_json::{Value, json};

use crate::common::{Place, failure, json, stderr, stdout, trained};

/// The event files of a run.
fn event_files(place: &Place, run: &str) -> Vec<String> {
    place.names(&format!("{run}/tensorboard"))
}

/// The scalars of a run's one event file in their order: tag, step and value.
fn scalars(place: &Place, run: &str) -> Vec<(String, u64, f32)> {
    let files = event_files(place, run);
    assert_eq!(files.len(), 1, "{files:?}");
    assert!(files[0].starts_with("events.out.tfevents.") && files[0].ends_with(".tinygpt"), "{files:?}");
    let bytes = place.read(&format!("{run}/tensorboard/{}", files[0]));
    let (mut rest, mut found) = (&bytes[..], Vec::new());
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        let (mut step, mut summary) = (0, None);
        for (field, content) in fields(&rest[12..12 + length]) {
            match (field, content) {
                (2, Field::Number(n)) => step = n,
                (5, Field::Bytes(bytes)) => summary = Some(bytes),
                _ => {}
            }
        }
        for (_, value) in summary.into_iter().flat_map(fields) {
            let Field::Bytes(value) = value else { panic!("a value is a message") };
            let (mut tag, mut number) = (String::new(), None);
            for (field, content) in fields(value) {
                match (field, content) {
                    (1, Field::Bytes(bytes)) => tag = String::from_utf8(bytes.to_vec()).unwrap(),
                    (2, Field::Bytes(bytes)) => number = Some(f32::from_le_bytes(bytes.try_into().unwrap())),
                    _ => {}
                }
            }
            found.extend(number.map(|number| (tag, step, number)));
        }
        rest = &rest[16 + length..];
    }
    found
}

enum Field<'a> {
    Number(u64),
    /// Of fixed length, or with its length before it.
    Bytes(&'a [u8]),
}

/// The fields of a message of protocol buffers.
fn fields(mut message: &[u8]) -> Vec<(u64, Field<'_>)> {
    fn varint(message: &mut &[u8]) -> u64 {
        let mut value = 0;
        for at in 0.. {
            let byte = message[at];
            value |= u64::from(byte & 0x7f) << (7 * at);
            if byte & 0x80 == 0 {
                *message = &message[at + 1..];
                break;
            }
        }
        value
    }
    let mut found = Vec::new();
    while !message.is_empty() {
        let key = varint(&mut message);
        let length = match key & 7 {
            0 => {
                found.push((key >> 3, Field::Number(varint(&mut message))));
                continue;
            }
            1 => 8,
            2 => varint(&mut message) as usize,
            5 => 4,
            other => panic!("wire type {other}"),
        };
        let (content, rest) = message.split_at(length);
        found.push((key >> 3, Field::Bytes(content)));
        message = rest;
    }
    found
}

/// The same of `metrics.jsonl`.
fn metrics(place: &Place, run: &str) -> Vec<(String, u64, f32)> {
    let mut found = Vec::new();
    for line in place.text(&format!("{run}/metrics.jsonl")).lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        for (key, value) in line.as_object().unwrap() {
            if !["kind", "format", "step", "seconds"].contains(&key.as_str()) {
                let tag = format!("{}/{key}", line["kind"].as_str().unwrap());
                found.push((tag, line["step"].as_u64().unwrap(), value.as_f64().unwrap() as f32));
            }
        }
    }
    found
}

#[test]
fn event_files_have_every_figure_of_the_metrics_once_also_after_a_resumption() {
    let place = Place::new();
    let mut train = place.train();
    stdout(train.args([
        "--out",
        "run",
        "--log",
        "tensorboard",
        "--set",
        "train.max_steps=3",
        "--set",
        "train.decay_steps=6",
    ]));
    let first = scalars(&place, "run");
    assert_eq!(first, metrics(&place, "run"));
    let tags = ["train/loss", "train/lr", "train/grad_norm", "train/tokens_per_s", "eval/val_loss", "eval/perplexity"];
    for tag in tags.iter().chain(&["eval/update_ratio"]) {
        assert!(first.iter().any(|(found, ..)| found == tag), "{tag}");
    }
    // Without the flag, since it has a log already. The last line is of an update that the saved state has not seen, as a
    // crash leaves it.
    let metrics_file = place.text("run/metrics.jsonl");
    let beyond = metrics_file.lines().rfind(|line| line.contains("train")).unwrap().replace("\"step\":3", "\"step\":4");
    place.write("run/metrics.jsonl", metrics_file.clone() + &beyond + "\n");
    stdout(place.tinygpt().args(["train", "--resume", "--out", "run", "--set", "train.max_steps=6"]));
    let second = scalars(&place, "run");
    assert_eq!(second, metrics(&place, "run"));
    let steps: Vec<u64> = second.iter().filter(|(tag, ..)| tag == "train/loss").map(|(_, step, _)| *step).collect();
    assert_eq!(steps, [1, 2, 3, 4, 5, 6]);
}

#[test]
fn an_existing_run_is_converted_and_a_second_time_replaces_the_first() {
    let place = Place::new().with_run("run");
    assert!(!place.join("run/tensorboard").exists());
    assert_eq!(stdout(place.tinygpt().args(["log", "tensorboard", "run"])), "run/tensorboard\n");
    assert_eq!(scalars(&place, "run"), metrics(&place, "run"));
    let before = event_files(&place, "run");
    let value = json(place.tinygpt().args(["log", "tensorboard", "run", "--json"]));
    assert_eq!(value, json!({ "tensorboard": "run/tensorboard" }));
    assert_ne!(event_files(&place, "run"), before, "a reader sees that the file is another one");
    assert_eq!(scalars(&place, "run"), metrics(&place, "run"));
    let other = stdout(place.tinygpt().args(["log", "tensorboard", "run", "--out", "logs/tensorboard"]));
    assert_eq!(other, "logs/tensorboard\n");
    assert_eq!(scalars(&place, "logs"), metrics(&place, "run"));
}

#[test]
fn a_format_that_is_not_written_is_refused_with_what_does_instead() {
    let place = Place::new();
    for (format, part) in [("wandb-offline", "wandb sync RUN/tensorboard"), ("csv", "the formats are: tensorboard")] {
        let message = failure(place.train().args(["--log", format]), 2);
        assert!(message.contains(part), "{message}");
        let message = failure(place.tinygpt().args(["log", format, "run"]), 2);
        assert!(message.contains(part), "{message}");
    }
    let message = failure(place.tinygpt().args(["log", "tensorboard", "nowhere"]), 1);
    assert!(message.contains("nowhere is not a run or a model folder"), "{message}");
}

#[test]
fn runs_are_listed_with_their_states_and_the_damaged_ones_with_their_reasons() {
    let place = Place::new().with_run("runs/whole").with_run("runs/sweep/more").with_run("runs/sweep/torn");
    // It was to make more steps.
    let toml = place.text("runs/sweep/more/train.toml");
    place.write("runs/sweep/more/train.toml", toml.replace("max_steps = 60", "max_steps = 90"));
    let weights = place.read("runs/sweep/torn/model.safetensors");
    place.write("runs/sweep/torn/model.safetensors", &weights[..weights.len() - 1]);
    place.write("runs/broken/train.toml", "[train").write("runs/notes/read.me", "no run");
    let lines = trained().text("run/metrics.jsonl");
    place.write("runs/.hidden/train.toml", "[train");

    let value = json(place.tinygpt().args(["runs", "--json"]));
    let runs = value["runs"].as_array().unwrap();
    let run = |name: &str| runs.iter().find(|run| run["name"] == name).unwrap_or_else(|| panic!("{name}: {value}"));
    assert_eq!(runs.len(), 4, "{value}");
    let whole = run("whole");
    assert_eq!((&whole["state"], &whole["ending"]), (&json!("finished"), &json!("max_steps")));
    assert_eq!((&whole["step"], &whole["max_steps"]), (&json!(60), &json!(60)));
    let best = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let best = best.filter_map(|line| line["val_loss"].as_f64()).fold(f64::INFINITY, f64::min);
    assert_eq!(whole["best_val_loss"].as_f64(), Some(best));
    assert!(whole["bytes"].as_u64() > Some(10_000) && whole["saved"].as_f64() > Some(1e9), "{whole}");
    assert_eq!(run("sweep/more")["state"], "interrupted");
    for (name, part) in [("sweep/torn", "model.safetensors: truncated"), ("broken", "train.toml")] {
        let run = run(name);
        assert_eq!((&run["state"], &run["step"]), (&json!("damaged"), &json!(null)));
        assert!(run["damage"].as_str().unwrap().contains(part), "{run}");
    }

    let text = stdout(place.tinygpt().arg("runs"));
    let line =
        |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {text}"));
    assert!(text.starts_with("name "), "{text}");
    assert!(line("whole").contains(" 60/60 ") && line("whole").ends_with(" finished"), "{text}");
    assert!(line("sweep/more").contains(" 60/90 ") && line("sweep/more").ends_with(" interrupted"), "{text}");
    assert!(line("sweep/torn").contains(" damaged: "), "{text}");
    assert_eq!(text.lines().count(), 5);
}

#[test]
fn a_run_is_running_while_its_lock_is_held() {
    let place = Place::new().with_run("runs/one");
    let lock = fs::File::create(place.join("runs/one/.lock")).unwrap();
    lock.lock().unwrap();
    let state = || json(place.tinygpt().args(["runs", "--json"]))["runs"][0]["state"].clone();
    assert_eq!(state(), "running");
    lock.unlock().unwrap();
    assert_eq!(state(), "finished");
}

#[test]
fn no_runs_are_an_empty_list_and_a_missing_folder_an_error() {
    let place = Place::new();
    let message = failure(place.tinygpt().arg("runs"), 1);
    assert!(message.contains("there is no run in runs/ yet"), "{message}");
    place.write("runs/notes.txt", "");
    assert_eq!(json(place.tinygpt().args(["runs", "--json"])), json!({ "runs": [] }));
    assert_eq!(stderr(place.tinygpt().arg("runs")), "there is no run in runs\n");
}

#[test]
fn a_reader_of_the_list_that_goes_away_is_no_error() {
    let place = Place::new().with_run("runs/one");
    let mut child = place.process(&["runs"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn info_tells_parameters_by_part_memory_flops_tokenizer_and_history() {
    let place = trained();
    let value = json(place.tinygpt().args(["info", "run", "--json"]));
    let sum: u64 = value["components"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(Some(sum), value["parameters"].as_u64());
    assert_eq!((&value["components"]["positions"], &value["components"]["head"]), (&json!(16 * 16), &json!(0)));
    // What 0 stands for in the configuration.
    assert_eq!((&value["model"]["mlp_hidden"], &value["model"]["n_kv_head"]), (&json!(64), &json!(2)));
    let f32 = &value["memory"]["generation"]["f32"];
    assert_eq!((f32["weights"].as_u64(), f32["cache_per_sequence"].as_u64()), (Some(4 * sum), Some(2 * 4 * 16 * 16)));
    let rounded = ["int8", "int4"].map(|format| value["memory"]["generation"][format]["weights"].as_u64());
    assert!(rounded[1] < rounded[0] && rounded[0] < f32["weights"].as_u64());
    let training: f64 =
        value["memory"]["training"].as_array().unwrap().iter().map(|part| part["bytes"].as_f64().unwrap()).sum();
    assert!(training > 16.0 * sum as f64, "weights, gradients and two moments, in f32: {value}");
    let flops = |what: &str| value["flops_per_token"][what].as_f64().unwrap();
    // Two for each weight of a matrix, and what attention takes.
    assert!(flops("forward") > 2.0 * (sum - 16 * 16 - 3 * 16) as f64, "{value}");
    assert!((flops("training") / flops("forward") - 3.0).abs() < 1e-9, "{value}");
    assert_eq!((&value["end_of_text"], &value["start_token"]["text"]), (&json!(null), &json!("\n")));
    let history = &value["history"];
    assert_eq!(
        (&history["step"], &history["ending"], &history["seed"]),
        (&json!(60), &json!("max_steps"), &json!(1337))
    );
    assert_eq!((&history["corpus"], history["parts"].as_array().unwrap().len()), (&json!("stories"), 1));
    assert!(history["parts"][0]["began"].as_f64() > Some(1e9));

    let text = stdout(place.tinygpt().args(["info", "run"]));
    for part in [
        "\nparameters\n  embedding ",
        "  head                    0  (the embedding)\n",
        "\nmemory on the CPU\n  generation in f32   ",
        "  training            at least ",
        "\nFLOPs a token, the mean of a context of 16\n",
        "\n  end of text  none\n",
        "\nhistory\n  started    20",
        "  steps      60 of 60, ",
        "finished: train.max_steps\n",
        "\nmlp_hidden = 64\n",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_resumed_run_tells_its_parts_and_one_that_only_ended_again_does_not() {
    let place = Place::new().with_run("run");
    let resume = |steps: &str| {
        stdout(place.tinygpt().args([
            "train",
            "--resume",
            "--out",
            "run",
            "--set",
            &format!("train.max_steps={steps}"),
        ]))
    };
    resume("60");
    let history = || json(place.tinygpt().args(["info", "run", "--json"]))["history"].clone();
    assert_eq!(history()["parts"].as_array().unwrap().len(), 1);
    resume("63");
    let history = history();
    assert_eq!((&history["parts"][1]["step"], &history["step"]), (&json!(60), &json!(63)));
    assert!(stdout(place.tinygpt().args(["info", "run"])).contains(" UTC, after step 60\n"));
}

#[test]
fn info_of_a_file_lists_its_tensors_and_refuses_a_damaged_or_foreign_one() {
    let place = Place::new().with_run("run");
    let text = stdout(place.tinygpt().args(["info", "run/model.safetensors"]));
    assert!(text.starts_with("run/model.safetensors: ") && text.contains("\n  format = \"pt\"\n"), "{text}");
    let wte = text.lines().find(|line| line.starts_with("  transformer.wte.weight ")).unwrap();
    assert!(wte.contains(" F32 ") && wte.ends_with(", 16]"), "{text}");
    let value = json(place.tinygpt().args(["info", "run/last/optimizer-60.safetensors", "--json"]));
    assert_eq!(value["metadata"]["tinygpt_format"], "1", "{value}");
    let bytes: u64 = value["tensors"].as_array().unwrap().iter().map(|tensor| tensor["bytes"].as_u64().unwrap()).sum();
    assert_eq!((value["bytes"].as_u64(), value["elements"].as_u64()), (Some(bytes), Some(bytes / 4)));

    let file = place.read("run/model.safetensors");
    for (name, bytes) in [("short", &file[..100]), ("cut", &file[..file.len() - 4]), ("empty", &[])] {
        place.write(&format!("{name}.safetensors"), bytes);
        let message = failure(place.tinygpt().args(["info", &format!("{name}.safetensors")]), 1);
        assert!(message.contains("truncated, or not a safetensors file"), "{name}: {message}");
    }
    assert!(failure(place.tinygpt().args(["info", "small.toml"]), 1).contains("small.toml: not a GGUF file"));
}

#[test]
fn info_of_an_ngram_model_tells_its_order_and_smoothing() {
    let place = Place::new().with_run("run");
    stdout(place.tinygpt().args(["baseline", "run", "--order", "2", "--save", "bigram"]));
    let text = stdout(place.tinygpt().args(["info", "bigram"]));
    assert!(text.contains("distinct n-grams\n  length 1 ") && text.contains("\n  length 2 "), "{text}");
    let value = json(place.tinygpt().args(["info", "bigram", "--json"]));
    assert_eq!((&value["ngram"]["order"], &value["tokenizer"]), (&json!(2), &json!("char")));
    let distinct: u64 = value["ngram"]["distinct"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(value["parameters"].as_u64(), Some(distinct));
}

#[test]
fn a_damaged_line_of_the_samples_is_told_with_what_to_do() {
    let place = Place::new().with_run("run");
    place.write("run/samples.jsonl", "{\"format\":1,\n\n");
    let message = failure(place.tinygpt().args(["train", "--resume", "--out", "run"]), 1);
    assert!(message.contains("line 1 is not one of its lines") && message.contains("; delete that line"), "{message}");
}
