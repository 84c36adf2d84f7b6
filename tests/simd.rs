//! `TINYGPT_SIMD`: the program computes the same bytes with any vector instructions, and refuses those that are not there.

use std::collections::BTreeMap;

use assert_cmd::Command;
use serde_json::Value;
use tinygpt_sampler::simd::SimdLevel;

use crate::common::{Place, failure, json, stdout};

/// The levels of this processor, the best first.
fn levels() -> Vec<&'static str> {
    SimdLevel::available().into_iter().map(SimdLevel::name).collect()
}

fn with(place: &Place, level: &str) -> Command {
    let mut command = place.tinygpt();
    command.env("TINYGPT_SIMD", level);
    command
}

#[test]
fn the_instructions_of_the_variable_are_in_use_and_without_it_the_best() {
    let place = Place::new();
    let cpu = |level: &str| json(with(&place, level).args(["devices", "--json"]))["backends"][0]["devices"][0].clone();
    let levels = levels();
    for level in &levels {
        let cpu = cpu(level);
        assert_eq!(cpu["simd"], Value::from(*level));
        assert!(*level == "avx512" || cpu["bf16"] == false, "{cpu}");
    }
    for best in ["auto", ""] {
        assert_eq!(cpu(best)["simd"], Value::from(levels[0]));
    }
}

#[test]
fn names_of_nothing_and_of_what_the_processor_lacks_are_refused() {
    let place = Place::new();
    let message = failure(with(&place, "sse9").arg("devices"), 2);
    assert_eq!(
        message,
        "error: TINYGPT_SIMD: `sse9` names no vector instructions; auto, avx512, avx2, neon, scalar do\n"
    );
    let foreign = if cfg!(target_arch = "aarch64") { "avx2" } else { "neon" };
    let message = failure(with(&place, foreign).args(["bench", "train", "small"]), 2);
    let present = levels().join(", ");
    assert_eq!(message, format!("error: TINYGPT_SIMD: this processor has no {foreign}; it has {present}\n"));
}

/// Everything that a run leaves and that is generated from it: by name, the bytes.
fn results(level: &str, recipe: &str, set: &[&str]) -> BTreeMap<String, Vec<u8>> {
    let place = Place::new();
    let shared = ["data.stories_bytes=20000", "train.eval_every=2", "train.eval_batches=1", "train.max_steps=4"];
    let mut train = with(&place, level);
    train.args(["train", "--config", recipe, "--data", "stories", "--device", "cpu", "--out", "run", "--json"]);
    let mut printed = json(train.args(shared.iter().chain(set).flat_map(|item| ["--set", item])));
    printed.as_object_mut().unwrap().shift_remove("seconds").unwrap();
    let mut results = place.timeless("run");
    results.insert("what training printed".into(), printed.to_string().into_bytes());
    for args in [
        "--seed=1 --num-samples=5 --top-p=0.9 --max-new-tokens=40 --weights=f32",
        "--seed=1 --num-samples=5 --top-k=20 --max-new-tokens=40 --weights=bf16",
        "--seed=2 --temperature=0.7 --max-new-tokens=40 --weights=int8 --kv-cache=bf16",
        "--seed=2 --temperature=0.7 --max-new-tokens=40 --weights=int4",
    ] {
        let mut generate = with(&place, level);
        generate.args(["generate", "--checkpoint", "run", "--device", "cpu", "--json", "--prompt=Once upon a time"]);
        results.insert(args.into(), stdout(generate.args(args.split_whitespace())).into_bytes());
    }
    let eval = stdout(with(&place, level).args(["eval", "run", "--device", "cpu", "--json"]));
    results.insert("eval".into(), eval.into_bytes());
    results
}

#[test]
fn a_run_and_its_texts_are_the_same_bytes_with_any_vector_instructions() {
    let gpt2 = ["model.n_layer=1", "model.n_head=2", "model.n_embd=20", "model.block_size=37", "model.dropout=0.1"];
    let modern =
        ["model.n_head=4", "model.n_kv_head=2", "model.n_embd=40", "model.mlp_hidden=43", "model.block_size=19"];
    for (recipe, set) in [("shakespeare-small", gpt2), ("shakespeare-small-fast", modern)] {
        let set = [&set[..], &["train.batch_size=3", "train.warmup_steps=1"]].concat();
        let levels = levels();
        let expected = results(levels[0], recipe, &set);
        for level in &levels[1..] {
            let found = results(level, recipe, &set);
            assert!(found.keys().eq(expected.keys()), "{level}: {:?}", found.keys());
            for (name, bytes) in &found {
                assert!(*bytes == expected[name], "{recipe}: {name} of {level} is another than that of {}", levels[0]);
            }
        }
    }
}

#[test]
fn training_in_bf16_is_for_the_instructions_that_multiply_it() {
    let place = Place::new();
    let mut train = with(&place, "scalar");
    let message = failure(train.args(["train", "--config", "small.toml", "--set", "train.precision=bf16"]), 1);
    assert!(message.contains("bf16 needs a CPU with AVX512-BF16"), "{message}");
}
