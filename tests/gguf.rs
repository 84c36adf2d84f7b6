//! Models as GGUF files: written, and taken where a folder is.

use serde_json::{Value, json};

use crate::{
    common::{Place, failure, json, stderr, stdout, trained},
    elsewhere::{QWEN3, train},
};

/// `tinygpt export run --gguf FILE --dtype TYPE`, of the shared run.
fn exported(file: &str, dtype: &str) -> Place {
    let place = Place::new().with_run("run");
    stdout(place.tinygpt().args(["export", "run", "--gguf", file, "--dtype", dtype]));
    place
}

/// The greedy continuation of a prompt.
fn text(place: &Place, checkpoint: &str) -> String {
    let mut generate = place.tinygpt();
    generate.args(["generate", "--checkpoint", checkpoint, "--prompt", "One", "--temperature", "0"]);
    stdout(generate.args(["--max-new-tokens", "40"]))
}

fn loss(place: &Place, model: &str) -> f64 {
    json(place.tinygpt().args(["eval", model, "--data", "text.txt", "--json"]))["loss"].as_f64().unwrap()
}

#[test]
fn a_qwen3_is_exported_and_a_file_is_replaced_only_when_asked() {
    let place = Place::new();
    train(&place, "run", &QWEN3);
    let export = || {
        let mut command = place.tinygpt();
        command.args(["export", "run", "--gguf", "model.gguf"]);
        command
    };
    let said = stdout(&mut export());
    assert!(said.starts_with("model.gguf: qwen3 \"run\", ") && said.ends_with(" parameters in f32\n"), "{said}");
    let bytes = place.read("model.gguf");
    assert_eq!(bytes[..8], *b"GGUF\x03\0\0\0");
    let message = failure(&mut export(), 1);
    assert!(
        message.contains("model.gguf exists already: give --overwrite to replace it, or another --gguf"),
        "{message}"
    );
    let value = json(export().args(["--overwrite", "--json"]));
    assert_eq!(
        (&value["architecture"], &value["name"], &value["dtype"]),
        (&json!("qwen3"), &json!("run"), &json!("f32"))
    );
    assert!(place.read("model.gguf") == bytes, "the same bytes again");
    assert_eq!(text(&place, "model.gguf"), text(&place, "run"));
}

#[test]
fn every_command_that_takes_a_folder_takes_a_file() {
    let place = exported("model.gguf", "f32");
    place.write("text.txt", "One day a fox met a bear.\nThe bear was big.\n");
    assert_eq!(text(&place, "model.gguf"), text(&place, "run"));
    assert_eq!(loss(&place, "model.gguf"), loss(&place, "run"));
    let score = |model| json(place.tinygpt().args(["score", model, "One day.", "--json"]))["logprob"].clone();
    assert!(score("model.gguf").is_number(), "{}", score("model.gguf"));
    assert_eq!(score("model.gguf"), score("run"));
    let compared = json(place.tinygpt().args(["compare", "model.gguf", "run", "--data", "text.txt", "--json"]));
    assert_eq!(compared["jensen_shannon"], json!(0.0), "{compared}");
    stdout(place.tinygpt().args(["bench", "decode", "model.gguf", "--tokens", "8", "--weights", "bf16"]));
    let again = stdout(place.tinygpt().args(["export", "model.gguf", "--gguf", "again.gguf"]));
    assert!(again.starts_with("again.gguf: gpt2 \"model.gguf\", "), "{again}");
    // A run that stays near it is the run that stays near the folder.
    for (reference, out) in [("run", "one"), ("model.gguf", "other")] {
        let keys = [format!("train.reference={reference}"), "train.kl_weight=0.1".to_owned()];
        train(&place, out, &keys.each_ref().map(String::as_str));
    }
    assert!(place.read("one/model.safetensors") == place.read("other/model.safetensors"));
    let message = failure(place.tinygpt().args(["eval", "model.gguf"]), 1);
    assert!(message.contains("it is a file, which says nothing of how its model was trained"), "{message}");
}

#[test]
fn a_file_of_smaller_weights_has_a_loss_within_their_rounding() {
    let place = exported("f16.gguf", "f16");
    place.write("text.txt", "One day a fox met a bear.\nThe bear was big.\n");
    let whole = loss(&place, "run");
    for (dtype, within) in [("f16", 1e-3), ("bf16", 1e-2), ("q8_0", 1e-2), ("q4_0", 0.1)] {
        let name = format!("{dtype}.gguf");
        let mut export = place.tinygpt();
        let said = stderr(export.args(["export", "run", "--gguf", &name, "--dtype", dtype, "--overwrite"]));
        // Rows of 16 weights are no blocks.
        assert_eq!(said.contains("note: 4 matrices are in f16"), dtype.starts_with('q'), "{said}");
        assert!(said.contains("llama.cpp computes GPT-2's approximation of GELU"), "{said}");
        let off = (loss(&place, &name) - whole).abs();
        assert!(off < within, "{dtype}: {off}");
        assert!(place.read(&name).len() < place.read("run/model.safetensors").len());
    }
}

#[test]
fn info_tells_what_a_file_holds() {
    let place = exported("model.gguf", "bf16");
    let said = stdout(place.tinygpt().args(["info", "model.gguf"]));
    assert!(
        said.starts_with("model.gguf: ")
            && said.contains("(char)\n")
            && said.contains("made by    a GGUF file of f32 and bf16\n"),
        "{said}"
    );
    let value = |path: &str| json(place.tinygpt().args(["info", path, "--json"]));
    let (file, run) = (value("model.gguf"), value("run"));
    assert_eq!(file["gguf"], json!(["f32", "bf16"]));
    assert_eq!(run["gguf"], Value::Null);
    for key in ["architecture", "parameters", "vocab_size", "tokenizer", "model"] {
        assert_eq!(file[key], run[key], "{key}");
    }
}

#[test]
fn what_is_no_gguf_file_or_a_broken_one_is_refused_by_every_command() {
    let place = exported("model.gguf", "f16");
    let whole = place.read("model.gguf");
    place.write("cut.gguf", &whole[..whole.len() / 2]).write("empty.gguf", "").write("text.txt", "One");
    for (file, reason) in [
        ("small.toml", "small.toml: not a GGUF file: it does not begin with \"GGUF\""),
        ("empty.gguf", "empty.gguf: not a GGUF file"),
        ("cut.gguf", "cut.gguf: it ends before its tensor"),
        ("nowhere.gguf", "nowhere.gguf is not a run or a model folder: there is no such folder"),
    ] {
        for command in [
            &["generate", "--prompt", "One", "--checkpoint", file][..],
            &["eval", file, "--data", "text.txt"],
            &["info", file],
            &["export", file, "--gguf", "new.gguf"],
        ] {
            let message = failure(place.tinygpt().args(command), 1);
            assert!(message.contains(reason), "{command:?}: {message}");
        }
    }
    assert!(!place.join("new.gguf").exists());
}

#[test]
fn a_network_of_its_own_kind_is_not_exported_and_the_keys_to_blame_are_named() {
    let place = Place::new();
    train(&place, "own", &["model.logit_cap=10"]);
    let message = failure(place.tinygpt().args(["export", "own", "--gguf", "model.gguf"]), 1);
    for part in ["cannot be written as GGUF", "GPT2LMHeadModel needs model.logit_cap = 0, which is 10"] {
        assert!(message.contains(part), "{message}");
    }
    assert!(!place.join("model.gguf").exists());
    let place = trained();
    assert!(failure(place.tinygpt().args(["export", "run"]), 2).contains("--gguf"));
    assert!(failure(place.tinygpt().args(["export", "run", "--gguf", "x.gguf", "--dtype", "q4"]), 2).contains("q4"));
    let message = failure(place.tinygpt().args(["export", "nowhere", "--gguf", "model.gguf"]), 1);
    assert!(message.contains("nowhere is not a run or a model folder"), "{message}");
}
