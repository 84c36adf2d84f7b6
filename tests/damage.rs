//! Runs whose files are damaged, training that diverges, and disks that fill up: each with a message that names the file,
//! and what was whole stays whole.

use crate::common::{PROGRAM, Place, failure, stdout};
use assert_cmd::Command;
use serde_json::json;

/// What `generate`, `eval` and `train --resume` say to this run; each must fail with exit code 1 and name the file.
fn damaged(place: &Place, file: &str, commands: &[&[&str]]) -> Vec<String> {
    commands
        .iter()
        .map(|args| {
            let message = failure(place.tinygpt().args(*args), 1);
            assert!(message.contains(file), "{args:?}: {message}");
            message
        })
        .collect()
}

const GENERATE: &[&str] = &["generate", "--checkpoint", "run", "--seed", "1", "--prompt", "O"];
const EVAL: &[&str] = &["eval", "run"];
const RESUME: &[&str] = &["train", "--resume", "--out", "run", "--set", "train.max_steps=90"];

#[test]
fn weights_that_are_truncated_foreign_or_missing() {
    let place = Place::new().with_run("run");
    let whole = place.read("run/model.safetensors");
    // The best weights are not the last, so that nothing else has them.
    let mut state = place.json("run/last/state.json");
    state["best"]["step"] = json!(30);
    place.write("run/last/state.json", state.to_string());
    for content in [
        &whole[..whole.len() - 1],
        &whole[..100],
        &whole[..4],
        b"",
        b"just a text file, not weights",
        b"\xff\xff\xff\xff\xff\xff\xff\xff{}",
    ] {
        place.write("run/model.safetensors", content);
        for message in damaged(&place, "run/model.safetensors", &[GENERATE, EVAL, RESUME]) {
            assert!(message.contains("truncated, or not a safetensors file"), "{message}");
        }
    }
    std::fs::remove_file(place.join("run/model.safetensors")).unwrap();
    for message in damaged(&place, "model.safetensors", &[GENERATE, EVAL]) {
        assert!(message.contains("it has no model.safetensors"), "{message}");
    }
    let message = &damaged(&place, "run/model.safetensors", &[RESUME])[0];
    assert!(message.contains("run/model.safetensors: it is missing"), "{message}");
    // Weights of another shape.
    place.write("run/model.safetensors", &whole);
    let config = place.text("run/config.json").replace("\"n_embd\": 16", "\"n_embd\": 32");
    place.write("run/config.json", config);
    for message in damaged(&place, "run/model.safetensors", &[GENERATE, EVAL]) {
        assert!(message.contains("transformer.wte.weight has shape"), "{message}");
    }
}

#[test]
fn weights_of_the_last_update_that_are_truncated() {
    for file in ["run/last/weights-60.safetensors", "run/last/optimizer-60.safetensors"] {
        let place = Place::new().with_run("run");
        let whole = place.read(file);
        place.write(file, &whole[..whole.len() / 2]);
        damaged(&place, file, &[RESUME]);
        std::fs::remove_file(place.join(file)).unwrap();
        let message = &damaged(&place, file, &[RESUME])[0];
        assert!(message.contains("it is missing"), "{message}");
        // The best model is whole.
        stdout(place.tinygpt().args(GENERATE));
    }
}

#[test]
fn a_state_of_another_format() {
    let place = Place::new().with_run("run");
    let mut state = place.json("run/last/state.json");
    state["format"] = json!(99);
    place.write("run/last/state.json", state.to_string());
    let message = &damaged(&place, "run/last/state.json", &[RESUME])[0];
    insta::assert_snapshot!(message.trim_end(), @"error: run/last/state.json has format 99, this program reads format 1: use the version of tinygpt that wrote it");
    for content in ["", "{}", "{\"format\": 1}", "[]", "not json"] {
        place.write("run/last/state.json", content);
        damaged(&place, "run/last/state.json", &[RESUME]);
    }
    std::fs::remove_file(place.join("run/last/state.json")).unwrap();
    damaged(&place, "run/last/state.json", &[RESUME]);
}

#[test]
fn descriptions_that_are_broken() {
    // Of a network that is no GPT-2.
    let own = |ours: &str, vocab_size: usize| {
        format!("{{\"model_type\": \"tinygpt\", \"vocab_size\": {vocab_size}, \"tinygpt\": {ours}}}")
    };
    for (file, content, commands) in [
        ("run/config.json", "{}", &[GENERATE, EVAL, RESUME][..]),
        ("run/config.json", "{\"model_type\": \"llama\"}", &[GENERATE, EVAL, RESUME]),
        ("run/config.json", "not json", &[GENERATE, EVAL, RESUME]),
        ("run/config.json", &own("{}", 1), &[GENERATE, EVAL, RESUME]),
        ("run/config.json", &own("{\"model\": {\"colour\": 1}}", 1), &[GENERATE, EVAL, RESUME]),
        ("run/config.json", &own("{\"model\": {\"norm\": \"x\"}}", 1), &[GENERATE, EVAL, RESUME]),
        ("run/config.json", &own("{\"model\": {\"n_head\": 0}}", 1), &[GENERATE, EVAL, RESUME]),
        ("run/config.json", &own("{\"model\": {\"n_layer\": 0}}", 1), &[GENERATE, EVAL, RESUME]),
        (
            "run/config.json",
            &own("{\"model\": {\"position\": \"rope\", \"n_embd\": 6, \"n_head\": 2}}", 1),
            &[GENERATE, EVAL, RESUME],
        ),
        ("run/config.json", &own("{\"format\": 99, \"model\": {}}", 1), &[GENERATE, EVAL, RESUME]),
        ("run/tokenizer.json", "not json", &[GENERATE, EVAL, RESUME]),
        ("run/tokenizer.json", "{}", &[GENERATE, EVAL, RESUME]),
        ("run/generation_config.json", "[", &[GENERATE]),
        ("run/train.toml", "[train", &[EVAL, RESUME]),
        ("run/train.toml", "format = 99", &[EVAL, RESUME]),
        ("run/train.toml", "", &[EVAL, RESUME]),
        ("run/train.toml", "format = 1\n[data]\n", &[EVAL, RESUME]),
        ("run/generation_config.json", "{\"tinygpt\": {\"format\": 99}}", &[GENERATE]),
    ] {
        let place = Place::new().with_run("run");
        place.write(file, content);
        damaged(&place, file, commands);
    }
    let place = Place::new().with_run("run");
    std::fs::remove_file(place.join("run/train.toml")).unwrap();
    damaged(&place, "it has no train.toml", &[EVAL, RESUME]);
    let place = Place::new().with_run("run");
    let config = place.text("run/config.json").replace("\"format\": 1", "\"format\": 99");
    place.write("run/config.json", config);
    for message in damaged(&place, "run/config.json", &[GENERATE, EVAL, RESUME]) {
        assert!(message.contains("has format 99, this program reads format 1"), "{message}");
    }
}

#[test]
fn a_tokenizer_of_another_model() {
    let place = Place::new();
    for (out, text) in [("run", "the cat sat on the mat. "), ("other", "ABCDEFGHIJKLMNOPQRSTUVWXYZ")] {
        place.write("a.txt", text.repeat(20));
        place.train().args(["--data", "a.txt", "--out", out]).assert().success();
    }
    std::fs::copy(place.join("other/tokenizer.json"), place.join("run/tokenizer.json")).unwrap();
    for temperature in ["0", "1"] {
        let mut generate = place.tinygpt();
        generate.args([
            "generate",
            "--checkpoint",
            "run",
            "--seed",
            "1",
            "--temperature",
            temperature,
            "--prompt",
            "Z",
        ]);
        let output = generate.output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains("token") && !message.contains("panicked"), "{message}");
    }
}

#[test]
fn training_that_diverges_is_named_and_the_last_good_state_stays_loadable() {
    let place = Place::new();
    let diverge = ["--out", "run", "--set", "train.lr=1e30", "--set", "train.clip=0"];
    let output = place.train().args(diverge).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(output.stdout.is_empty());
    let error = message.lines().find(|line| line.starts_with("error: ")).unwrap();
    assert!(error.contains("training has diverged; start again with a lower train.lr"), "{error}");
    let finite = |file: &str| {
        let bytes = place.read(file);
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        tensors
            .tensors()
            .iter()
            .all(|(_, t)| t.data().chunks(4).all(|x| f32::from_le_bytes(x.try_into().unwrap()).is_finite()))
    };
    let step = place.json("run/last/state.json")["step"].as_u64().unwrap();
    assert!(finite(&format!("run/last/weights-{step}.safetensors")) && finite("run/model.safetensors"));
    for line in place.text("run/metrics.jsonl").lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }
    stdout(place.tinygpt().args(["eval", "run"]));
    stdout(place.tinygpt().args(["generate", "--checkpoint", "run", "--seed", "1", "--max-new-tokens", "3"]));
    // It can be resumed, and diverges again at the same update.
    let message = failure(place.tinygpt().args(["train", "--resume", "--out", "run"]), 1);
    assert!(message.contains(error), "{message}");
    // What came before the first update was not done again.
    let metrics = place.text("run/metrics.jsonl");
    assert_eq!(metrics.lines().filter(|line| line.contains("\"kind\":\"eval\"")).count(), 1, "{metrics}");
}

/// The program where no file may have more than `blocks` blocks (of 512 or 1024 bytes, as the shell likes): as good
/// as a full disk.
#[cfg(unix)]
fn on_a_full_disk(place: &Place, blocks: &str, args: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -f $0; exec \"$@\"", blocks, PROGRAM]).args(args);
    command.current_dir(place.path()).env("TINYGPT_CACHE", place.join("cache"));
    command
}

#[test]
#[cfg(unix)]
fn a_full_disk_at_the_start_leaves_no_run() {
    let place = Place::new();
    let train = ["train", "--config", "small.toml"];
    for out in [&[][..], &["--out", "run"]] {
        let message = failure(&mut on_a_full_disk(&place, "1", &[&train, out].concat()), 1);
        assert!(message.contains("cannot write run") && message.contains("/train.toml: File too large"), "{message}");
        assert_eq!(message.matches("File too large").count(), 1, "the reason is given once: {message}");
        assert!(!message.contains(".writing-"), "the name of the file, not a temporary one: {message}");
    }
    let left: Vec<String> =
        ["run", "runs"].iter().filter(|f| place.join(f).exists()).flat_map(|f| place.names(f)).collect();
    assert_eq!(left, [""; 0]);
    let message = failure(&mut on_a_full_disk(&place, "1", &["data", "synth", "--bytes", "9000", "--out", "a.txt"]), 1);
    assert!(message.contains("cannot write a.txt: File too large"), "{message}");
    let message = failure(&mut on_a_full_disk(&place, "0", &[&train[..], &["--data", "small.toml"]].concat()), 1);
    assert!(message.contains("cannot write the token cache in `") && message.contains("TINYGPT_CACHE"), "{message}");
    let files: Vec<String> = place.names(".").into_iter().filter(|name| place.join(name).is_file()).collect();
    assert_eq!(files, ["small.toml"]);
    assert_eq!(place.names("cache"), [""; 0]);
}

#[test]
#[cfg(unix)]
fn a_full_disk_or_a_limit_on_file_sizes_in_the_middle_is_an_error_and_keeps_what_was_saved_before() {
    let place = Place::new().with_run("run");
    let before = place.timeless("run");
    let resume = ["train", "--resume", "--out", "run", "--set", "train.max_steps=90"];
    // Room for the descriptions, but not for weights of 17 KiB.
    let message = failure(&mut on_a_full_disk(&place, "16", &resume), 1);
    let error = message.lines().last().unwrap();
    assert!(error.starts_with("error: cannot write run/") && error.contains(": File too large"), "{message}");
    let after = place.timeless("run");
    for (name, bytes) in before.iter().filter(|(name, _)| name.as_str() != "train.toml") {
        assert_eq!(after.get(name), Some(bytes), "{name}");
    }
    assert_eq!(after.len(), before.len(), "nothing half-written: {:?}", after.keys());
    stdout(place.tinygpt().args(resume));
}
