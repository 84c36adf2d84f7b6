//! Runs that other programs open: what is said of them, and what is written.

use serde_json::json;

use crate::common::{Place, failure, json, stderr, stdout, trained};

/// The keys that make a Qwen3 of the small configuration.
const QWEN3: [&str; 4] = ["model.norm=rms", "model.position=rope", "model.mlp=swiglu", "model.qk_norm=true"];

/// Trains a run with these keys; gives standard error.
fn train(place: &Place, out: &str, keys: &[&str]) -> String {
    let mut command = place.train();
    keys.iter().for_each(|key| {
        command.args(["--set", key]);
    });
    stderr(command.args(["--out", out]))
}

#[test]
fn a_run_says_where_it_opens_or_which_keys_are_to_blame() {
    let place = Place::new();
    for (out, keys, message) in [
        ("qwen3", &QWEN3[..], "opens in transformers as Qwen3ForCausalLM\n"),
        ("llama", &QWEN3[..3], "opens in transformers as LlamaForCausalLM\n"),
        ("own", &QWEN3[1..], "opens here alone: Qwen3ForCausalLM needs model.norm = \"rms\", which is \"layer\"\n"),
        ("rms", &QWEN3[..1], "opens here alone: GPT2LMHeadModel needs model.norm = \"layer\", which is \"rms\"\n"),
    ] {
        let said = train(&place, out, keys);
        assert!(said.contains(message), "{keys:?}: {said}");
        let info = stdout(place.tinygpt().args(["info", out]));
        assert!(info.contains(message), "{keys:?}: {info}");
    }
    let said = train(&place, "gpt2", &[]);
    assert!(!said.contains("opens"), "a GPT-2 says what it always said: {said}");
}

#[test]
fn info_shows_shape_size_and_tokenizer() {
    let place = trained();
    let text = stdout(place.tinygpt().args(["info", "run"]));
    assert!(text.starts_with("run: ") && text.contains("(char)\nopens in transformers as GPT2LMHeadModel\n"), "{text}");
    assert!(text.contains("\n[model]\nblock_size = 16\n"), "{text}");
    let value = json(place.tinygpt().args(["info", "run", "--json"]));
    assert_eq!((&value["architecture"], &value["blame"]), (&json!("GPT2LMHeadModel"), &json!(null)));
    assert_eq!((&value["model"]["n_embd"], &value["tokenizer"]), (&json!(16), &json!("char")));
    let message = failure(place.tinygpt().args(["info", "nowhere"]), 1);
    assert!(message.contains("nowhere is not a run or a model folder: there is no such folder"), "{message}");
}

#[test]
fn a_qwen3_trains_resumes_and_generates_alike() {
    let place = Place::new();
    let shape = ["model.n_kv_head=1", "model.head_size=12", "model.norm_eps=1e-5", "model.dropout=0.1"];
    let angles = ["model.rope_scaling=llama3", "model.rope_factor=8", "model.rope_original_block_size=8"];
    let keys = |steps| [&QWEN3[..], &shape, &angles, &["train.decay_steps=6", steps]].concat();
    train(&place, "whole", &keys("train.max_steps=6"));
    train(&place, "parts", &keys("train.max_steps=3"));
    stdout(place.tinygpt().args(["train", "--resume", "--out", "parts", "--set", "train.max_steps=6"]));
    assert!(place.read("whole/model.safetensors") == place.read("parts/model.safetensors"));
    assert_eq!(place.json("whole/config.json")["model_type"], "qwen3");
    let text = |run| {
        let mut generate = place.tinygpt();
        stdout(generate.args(["generate", "--checkpoint", run, "--prompt", "One", "--seed", "5"]))
    };
    assert_eq!(text("whole"), text("parts"));
    stdout(place.tinygpt().args(["eval", "whole"]));
}

#[test]
fn a_qwen3_is_exported_as_gguf_and_a_file_is_replaced_only_when_asked() {
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
    assert_eq!((&value["architecture"], &value["name"]), (&json!("qwen3"), &json!("run")));
    assert!(place.read("model.gguf") == bytes, "the same bytes again");
}

#[test]
fn a_gpt2_is_not_exported_as_gguf_and_the_message_says_what_would_be() {
    let place = Place::new().with_run("run");
    let message = failure(place.tinygpt().args(["export", "run", "--gguf", "model.gguf"]), 1);
    for part in ["cannot be written as GGUF", "GPT2LMHeadModel", "LlamaForCausalLM needs model.norm = \"rms\""] {
        assert!(message.contains(part), "{message}");
    }
    assert!(!place.join("model.gguf").exists());
    assert!(failure(place.tinygpt().args(["export", "run"]), 2).contains("--gguf"));
    let message = failure(place.tinygpt().args(["export", "nowhere", "--gguf", "model.gguf"]), 1);
    assert!(message.contains("nowhere is not a run or a model folder"), "{message}");
}
