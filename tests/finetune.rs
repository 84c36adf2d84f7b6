//! Training that starts from a model: all of its weights, or an adapter over them, which goes to and from PEFT's files.

use assert_cmd::Command;
use serde_json::{Value, json};
use tinygpt_model::{
    Adapter, AdapterShape, GptConfig, ModelFolder, Tokenizer, checkpoint::GenerationDefaults, init_params,
    tokenizer::TokenizerError,
};
use tinygpt_sampler::simd::to_bf16;

use crate::common::{Place, assert_same, failure, json, stderr, stdout, trained};

/// A configuration that leaves the network to the model that it starts from.
const FINE: &str = "[data]\nstories_bytes = 20000\n[train]\nbatch_size = 2\nmax_steps = 6\ndecay_steps = 6\nwarmup_steps = 2\neval_every = 3\neval_batches = 0\nlog_every = 1\n";

const LORA: &str = "[lora]\nrank = 4\nalpha = 8\n";

/// Keys with which the adapter ends better than the model began.
const LEARN: [&str; 5] =
    ["train.lr=0.01", "train.batch_size=16", "train.max_steps=20", "train.decay_steps=20", "train.eval_every=20"];

/// The keys that make a Qwen3 of the small configuration.
const QWEN3: [&str; 4] = ["model.norm=rms", "model.position=rope", "model.mlp=swiglu", "model.qk_norm=true"];

/// A place with the run `base` to start from, the configuration `fine.toml`, and `lora.toml`, which trains an adapter.
fn place() -> Place {
    let place = Place::new().with_run("base");
    place.write("fine.toml", FINE).write("lora.toml", format!("{FINE}{LORA}"));
    place
}

/// `tinygpt train --init-from base --config CONFIG --out OUT`, with keys.
fn train(place: &Place, config: &str, out: &str, keys: &[&str]) -> Command {
    let mut command = place.tinygpt();
    command.args(["train", "--init-from", "base", "--config", config, "--out", out]);
    keys.iter().for_each(|key| {
        command.args(["--set", key]);
    });
    command
}

fn rows(place: &Place, run: &str) -> Vec<Value> {
    place.text(&format!("{run}/metrics.jsonl")).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn loss(place: &Place, args: &[&str]) -> f64 {
    json(place.tinygpt().arg("eval").args(args).arg("--json"))["loss"].as_f64().unwrap()
}

fn greedy(place: &Place, args: &[&str]) -> String {
    let mut command = place.tinygpt();
    command.args(["generate", "--prompt", "Once", "--temperature", "0", "--max-new-tokens", "40"]);
    stdout(command.args(args))
}

#[test]
fn the_first_validation_loss_is_the_models_and_comes_before_the_first_update() {
    let place = place();
    stdout(&mut train(&place, "fine.toml", "run", &[]));
    let rows = rows(&place, "run");
    assert_eq!((&rows[0]["kind"], &rows[0]["step"]), (&json!("eval"), &json!(0)));
    let expected = loss(&place, &["base"]);
    assert!((rows[0]["val_loss"].as_f64().unwrap() - expected).abs() < 1e-6, "{} {expected}", rows[0]);
    assert_eq!(place.read("run/tokenizer.json"), place.read("base/tokenizer.json"));
    assert_eq!(place.json("run/config.json"), place.json("base/config.json"));
    assert_ne!(place.read("run/model.safetensors"), place.read("base/model.safetensors"));
}

#[test]
fn a_run_records_where_it_came_from_and_goes_on_without_it() {
    let place = place();
    stdout(&mut train(&place, "fine.toml", "whole", &[]));
    stdout(&mut train(&place, "fine.toml", "parts", &["train.max_steps=3"]));
    let origin = &place.json("parts/last/state.json")["init_from"];
    assert!(origin["path"].as_str().unwrap().ends_with("/base"), "{origin}");
    assert_eq!(origin["weights_sha256"].as_str().unwrap().len(), 64);
    std::fs::remove_dir_all(place.join("base")).unwrap();
    stdout(place.tinygpt().args(["train", "--resume", "--out", "parts", "--set", "train.max_steps=6"]));
    assert_same(&place.timeless("whole"), &place.timeless("parts"));
    assert_eq!(&place.json("parts/last/state.json")["init_from"], origin);
}

#[test]
fn fewer_positions_and_another_dropout_may_be_had() {
    let place = place();
    stdout(&mut train(&place, "fine.toml", "run", &["model.block_size=8", "model.dropout=0.2"]));
    let config = place.json("run/config.json");
    assert_eq!((&config["n_positions"], &config["resid_pdrop"]), (&json!(8), &json!(0.2)));
    greedy(&place, &["--checkpoint", "run"]);
}

#[test]
fn what_contradicts_the_model_is_refused_by_name() {
    let place = place();
    for (key, message) in [
        ("model.n_layer=2", "`model.n_layer` = 2: the model that the run starts from has 1; leave the key out"),
        ("model.bias=true", "`model.bias` = true: the model that the run starts from has false"),
        ("data.tokenizer=bpe", "`data.tokenizer` = \"bpe\": the model that the run starts from has \"char\""),
        ("model.block_size=17", "`model.block_size` = 17: the model that the run starts from has learned 16 positions"),
    ] {
        let error = failure(&mut train(&place, "fine.toml", "run", &[key]), 2);
        assert!(error.contains(message), "{key}: {error}");
        assert!(!place.join("run").exists());
    }
    stdout(&mut train(&place, "fine.toml", "run", &["model.n_layer=1", "model.mlp_hidden=64"]));
    let error = failure(place.tinygpt().args(["train", "--init-from", "nowhere", "--config", "fine.toml"]), 1);
    assert!(error.contains("there is no such folder"), "{error}");
}

#[test]
fn a_text_with_a_character_that_the_model_does_not_know_is_refused() {
    let place = place();
    place.write("a.txt", "Once \u{e9} there was. ".repeat(50));
    let error = failure(train(&place, "fine.toml", "run", &[]).args(["--data", "a.txt"]), 1);
    assert!(error.contains("'\u{e9}'") && error.contains("is not among the"), "{error}");
    assert!(!place.join("run").exists());
}

#[test]
fn positions_that_are_rotated_may_be_more_than_the_model_had() {
    let place = place();
    std::fs::remove_dir_all(place.join("base")).unwrap();
    let keys = QWEN3.iter().flat_map(|key| ["--set", key]);
    stdout(place.train().args(["--out", "base"]).args(keys));
    stdout(&mut train(
        &place,
        "lora.toml",
        "run",
        &["model.block_size=24", "lora.targets=[\"q_proj\", \"down_proj\"]"],
    ));
    assert_eq!(place.json("run/config.json")["max_position_embeddings"], json!(24));
    let keys = place.json("run/adapter/adapter_config.json");
    assert_eq!((&keys["target_modules"], &keys["fan_in_fan_out"]), (&json!(["down_proj", "q_proj"]), &json!(false)));
    let of_both = ["--checkpoint", "run/base", "--adapter", "run/adapter"];
    assert_eq!(greedy(&place, &of_both), greedy(&place, &["--checkpoint", "run"]));
}

#[test]
fn an_adapter_is_trained_over_the_model_and_both_are_the_run() {
    let place = place();
    let said = stderr(&mut train(&place, "lora.toml", "run", &LEARN));
    assert!(said.contains("parameters of an adapter of 4 linear layers are trained, and no others"), "{said}");
    let rows = rows(&place, "run");
    assert!((rows[0]["val_loss"].as_f64().unwrap() - loss(&place, &["base"])).abs() < 1e-6, "it begins as the model");
    let [base, both, run] =
        [&["base"][..], &["base", "--adapter", "run/adapter"], &["run"]].map(|args| loss(&place, args));
    assert!(run < base, "{run} {base}");
    assert!((both - run).abs() < 1e-6, "{both} {run}");
    let texts = [&["--checkpoint", "base", "--adapter", "run/adapter"][..], &["--checkpoint", "run"]];
    assert_eq!(greedy(&place, texts[0]), greedy(&place, texts[1]));
    let scores = [&["base", "--adapter", "run/adapter"][..], &["run"]].map(|args| {
        let score = json(place.tinygpt().arg("score").args(args).args(["Once there was a fox.", "--json"]));
        score["logprob"].as_f64().unwrap()
    });
    assert!((scores[0] - scores[1]).abs() < 1e-4, "{scores:?}");
    assert_eq!(place.read("run/base/model.safetensors"), place.read("base/model.safetensors"));
    let keys = place.json("run/adapter/adapter_config.json");
    assert_eq!((&keys["peft_type"], &keys["r"], &keys["lora_alpha"]), (&json!("LORA"), &json!(4), &json!(8)));
    assert!(keys["base_model_name_or_path"].as_str().unwrap().ends_with("/base"), "{keys}");
}

#[test]
fn an_adapter_is_resumed_and_computed_on_any_threads_to_the_same_bytes() {
    let place = place();
    let keys = ["model.dropout=0.1"];
    stdout(train(&place, "lora.toml", "whole", &keys).args(["--threads", "2"]));
    stdout(train(&place, "lora.toml", "parts", &[keys[0], "train.max_steps=3"]).args(["--threads", "1"]));
    std::fs::remove_dir_all(place.join("base")).unwrap();
    let mut resume = place.tinygpt();
    resume.args(["train", "--resume", "--out", "parts", "--set", "train.max_steps=6", "--threads", "1"]);
    stdout(&mut resume);
    assert_same(&place.timeless("whole"), &place.timeless("parts"));
    let kept = place.names("whole/last");
    assert_eq!(kept, ["optimizer-6.safetensors", "state.json", "weights-6.safetensors"]);
    let [adapter, model] =
        ["last/weights-6.safetensors", "model.safetensors"].map(|name| place.read(&format!("whole/{name}")).len());
    assert!(2 * adapter < model, "only the adapter is saved: {adapter} of {model} bytes");
}

#[test]
fn what_a_crash_left_out_of_an_adapter_is_written_when_the_run_goes_on() {
    let place = place();
    stdout(&mut train(&place, "lora.toml", "run", &LEARN));
    let best = place.read("run/adapter/adapter_model.safetensors");
    std::fs::remove_dir_all(place.join("run/adapter")).unwrap();
    stdout(place.tinygpt().args(["train", "--resume", "--out", "run"]));
    assert!(place.read("run/adapter/adapter_model.safetensors") == best);
}

#[test]
fn a_run_whose_base_is_damaged_is_not_resumed() {
    let place = place();
    stdout(&mut train(&place, "lora.toml", "run", &[]));
    let path = "run/base/model.safetensors";
    let mut bytes = place.read(path);
    *bytes.last_mut().unwrap() ^= 1;
    place.write(path, &bytes);
    let resume = || failure(place.tinygpt().args(["train", "--resume", "--out", "run"]), 1);
    let error = resume();
    assert!(error.contains("run/base: its weights are not those that the run started from"), "{error}");
    std::fs::remove_file(place.join(path)).unwrap();
    assert!(resume().contains("model.safetensors"), "it is named");
}

#[test]
fn an_adapter_that_cannot_be_is_refused_by_its_key() {
    let place = place();
    for (keys, message) in [
        (
            &["lora.targets=[\"q_proj\"]"][..],
            "`lora.targets` = [\"q_proj\"]: `q_proj` is no linear layer of this model: they are c_attn, c_fc, c_proj",
        ),
        (&["lora.alpha=0"], "`lora.alpha` = 0: must be larger than 0"),
        (
            &["train.optimizer=muon"],
            "`train.optimizer` = \"muon\": the matrices of an adapter (lora.rank) are trained by \"adamw\"",
        ),
        (
            &["train.prior=l2", "train.prior_weight=0.1"],
            "`train.prior_weight` = 0.1: an adapter (lora.rank) is trained without a prior",
        ),
    ] {
        let error = failure(&mut train(&place, "lora.toml", "run", keys), 2);
        assert!(error.contains(message), "{keys:?}: {error}");
        assert!(!place.join("run").exists());
    }
    let error = failure(place.tinygpt().args(["train", "--config", "lora.toml", "--out", "run"]), 2);
    assert!(error.contains("`lora.rank` = 4: an adapter is trained over the weights of a model: give one"), "{error}");
    let error = failure(place.tinygpt().args(["generate", "--adapter", "run/adapter"]), 2);
    assert!(error.contains("--checkpoint"), "{error}");
    let error = failure(place.tinygpt().args(["eval", "--adapter", "run/adapter"]), 2);
    assert!(error.contains("--adapter needs the model that it is for"), "{error}");
}

#[test]
fn a_merged_model_is_a_folder_of_its_own() {
    let place = place();
    stdout(&mut train(&place, "lora.toml", "run", &LEARN));
    let export = |args: &[&str]| {
        let mut command = place.tinygpt();
        command.args(["export", "base"]).args(args);
        command
    };
    let merge = ["--adapter", "run/adapter", "--merge", "--out", "merged"];
    let said = stdout(&mut export(&merge));
    assert!(said.starts_with("merged: ") && said.ends_with(" parameters in f32\n"), "{said}");
    let names =
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    assert_eq!(place.names("merged"), names);
    assert!(place.read("merged/model.safetensors") == place.read("run/model.safetensors"), "the run's best weights");
    assert_eq!(greedy(&place, &["--checkpoint", "merged"]), greedy(&place, &["--checkpoint", "run"]));
    let error = failure(&mut export(&merge), 1);
    assert!(error.contains("merged is not empty: give another --out"), "{error}");
    assert!(failure(&mut export(&["--merge"]), 2).contains("--out"));
    // The same without the word, in 16 bits.
    for (dtype, torch) in [("bf16", "bfloat16"), ("f16", "float16")] {
        let said = stdout(&mut export(&["--adapter", "run/adapter", "--out", dtype, "--dtype", dtype]));
        assert!(said.ends_with(&format!(" parameters in {dtype}\n")), "{said}");
        assert_eq!(place.json(&format!("{dtype}/config.json"))["torch_dtype"], torch);
        let [half, whole] = [dtype, "merged"].map(|name| place.read(&format!("{name}/model.safetensors")).len());
        assert!(half < whole * 3 / 5, "{half} of {whole} bytes");
        greedy(&place, &["--checkpoint", dtype]);
    }
    let params = |name: &str| ModelFolder::new(&place.join(name)).read().unwrap().1;
    let rounded = params("merged").concat().into_iter().map(|x| f32::from_bits(u32::from(to_bf16(x)) << 16));
    assert!(rounded.eq(params("bf16").concat()));
    let error = failure(&mut export(&["--out", "blocks", "--dtype", "q8_0"]), 2);
    assert!(
        error.contains("a model folder is of --dtype f32, f16 or bf16") && !place.join("blocks").exists(),
        "{error}"
    );
    assert!(failure(&mut export(&["--adapter", "run/adapter"]), 2).contains("--gguf"));
}

/// The process of a chat waits for the next line, and what it has needed so far is its peak.
#[test]
#[cfg(target_os = "linux")]
fn an_adapter_is_added_while_weights_are_rounded_and_takes_no_more_memory_than_they() {
    use std::{
        io::{BufRead, BufReader, Write},
        process::Stdio,
    };

    let place = Place::new();
    let tokenizer = Tokenizer::train_char([Ok::<_, TokenizerError>("abc\n")]).unwrap();
    let config = GptConfig { vocab_size: 4, n_layer: 5, n_head: 8, n_embd: 512, ..GptConfig::default() };
    for folder in ["base", "merged"] {
        let folder = ModelFolder::new(&place.join(folder));
        std::fs::create_dir_all(folder.path()).unwrap();
        folder.write_description(&config, &tokenizer, &GenerationDefaults::default()).unwrap();
    }
    let mut params = init_params(&config, 1);
    ModelFolder::new(&place.join("base")).write_weights(&config, &params).unwrap();
    let shape = AdapterShape::new(&config, 4, 8.0, &[]).unwrap();
    let values =
        shape.specs().into_iter().map(|spec| (0..spec.len()).map(|i| (i % 13) as f32 / 100.0 - 0.06).collect());
    let adapter = Adapter::new(shape.clone(), values.collect()).unwrap();
    adapter.write(place.join("adapter"), &config, "base").unwrap();
    adapter.merge_into(&config, &mut params).unwrap();
    ModelFolder::new(&place.join("merged")).write_weights(&config, &params).unwrap();

    let peak_mib = |args: &[&str]| {
        let mut command = place.process(&["chat", "--temperature", "0", "-n", "20", "--threads", "1"]);
        let mut chat = command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdin = chat.stdin.take().unwrap();
        stdin.write_all(b"ab\n").unwrap();
        let mut text = Vec::new();
        // The texts of the vocabulary may have line breaks of their own: twenty letters and the prompt are the first answer.
        let mut stdout = BufReader::new(chat.stdout.take().unwrap());
        while text.len() < "ab".len() + 20 {
            assert!(stdout.read_until(b'\n', &mut text).unwrap() > 0, "{text:?}");
        }
        let status = std::fs::read_to_string(format!("/proc/{}/status", chat.id())).unwrap();
        drop(stdin);
        assert!(chat.wait().unwrap().success());
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        (text, peak.trim().strip_suffix(" kB").unwrap().parse::<f64>().unwrap() / 1024.0)
    };
    // 12 L C^2 of matrices: 60 MiB in f32.
    let matrices = 4.0 * 12.0 * 5.0 * 512.0 * 512.0 / f64::from(1 << 20);
    let (exact, of_f32) = peak_mib(&["base", "--adapter", "adapter"]);
    assert_eq!(exact, peak_mib(&["merged"]).0);
    for (weights, share) in [("bf16", 0.5), ("int8", 0.25), ("int4", 0.15)] {
        let (text, peak) = peak_mib(&["base", "--adapter", "adapter", "--weights", weights]);
        assert_eq!(text, peak_mib(&["merged", "--weights", weights]).0, "rounded from the effective weights");
        let saved = (of_f32 - peak) / matrices;
        assert!(saved > 1.0 - share - 0.25, "{weights}: {saved} of {of_f32} MiB");
    }
}

#[test]
fn a_damaged_or_foreign_adapter_is_named() {
    let place = place();
    stdout(&mut train(&place, "lora.toml", "run", &[]));
    let refused = || failure(place.tinygpt().args(["generate", "--checkpoint", "base", "--adapter", "run/adapter"]), 1);
    let (keys, weights) = ("run/adapter/adapter_config.json", "run/adapter/adapter_model.safetensors");
    let (whole_keys, whole) = (place.text(keys), place.read(weights));
    place.write(weights, &whole[..whole.len() - 5]);
    assert!(refused().contains("adapter_model.safetensors: truncated, or not a safetensors file"), "{}", refused());
    place.write(weights, [&u64::MAX.to_le_bytes(), &whole[8..]].concat());
    assert!(refused().contains("adapter_model.safetensors: truncated, or not a safetensors file"), "{}", refused());
    place.write(weights, &whole).write(keys, whole_keys.replace("\"r\": 4", "\"r\": 5"));
    assert!(refused().contains("lora_A.weight has shape [4, 16], the model needs [5, 16]"), "{}", refused());
    place.write(keys, whole_keys.replace("\"use_dora\": false", "\"use_dora\": true"));
    assert!(refused().contains("`use_dora` is true, which this program does not support"), "{}", refused());
    place.write(keys, "{}");
    assert!(refused().contains("`peft_type` is null; this program supports \"LORA\" only"), "{}", refused());
    std::fs::remove_file(place.join(weights)).unwrap();
    place.write(keys, whole_keys);
    assert!(refused().contains("adapter_model.safetensors: it is missing"), "{}", refused());
    let other = trained();
    let error = failure(other.tinygpt().args(["generate", "--checkpoint", "run", "--adapter", "run"]), 1);
    assert!(error.contains("run/adapter_config.json"), "{error}");
}

/// `scripts/check_peft.py` made the fixtures: models of transformers, adapters of peft with other ranks, targets and scales, and
/// the losses that peft computes.
#[test]
fn an_adapter_that_peft_made_computes_here_what_it_does_there() {
    let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/peft");
    let place = Place::new();
    for name in ["gpt2", "qwen3"] {
        let expected: Value =
            serde_json::from_slice(&std::fs::read(fixtures.join(name).join("expected.json")).unwrap()).unwrap();
        place.write("text.txt", expected["text"].as_str().unwrap());
        let of = |folder: &str| fixtures.join(name).join(folder).to_str().unwrap().to_owned();
        let (base, adapter) = (of("base"), of("adapter"));
        for (args, key) in [(&[&*base][..], "base_loss"), (&[&base, "--adapter", &adapter], "loss")] {
            let found = loss(&place, &[args, &["--data", "text.txt"]].concat());
            let expected = expected[key].as_f64().unwrap();
            assert!((found - expected).abs() < 1e-5, "{name}, {key}: {found} {expected}");
        }
    }
}

#[test]
fn documents_need_a_tokenizer_that_can_end_them() {
    let place = Place::new().with_run("base");
    place.write("fine.toml", FINE).write("texts.jsonl", "{\"text\": \"One day\"}\n".repeat(60));
    let train = |data: &str| {
        let mut command = place.tinygpt();
        command.args(["train", "--config", "fine.toml", "--init-from", "base", "--out", "run", "--data", data]);
        command
    };
    let message = failure(&mut train("texts.jsonl"), 1);
    assert!(message.contains("texts.jsonl") && message.contains("no token that ends one"), "{message}");
    place.write("text.txt", "One day\n".repeat(60));
    stdout(&mut train("text.txt"));
}
