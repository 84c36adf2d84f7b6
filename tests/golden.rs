//! Short runs of the program end with the bytes that an earlier version left: weights, optimizer state, metrics, texts
//! and losses, as hashes in `fixtures/golden.json`. These tests guard refactorings, which must not change results.
//! `crates/trainer/tests/golden.rs` does the same for the tensor engine, which a GPU runs, and for logits.
//!
//! A change that is meant to change results records them anew, on a processor with AVX512-BF16, and commits the file
//! with the reason:
//!
//!     rm tests/fixtures/golden.json
//!     TINYGPT_RECORD_GOLDEN=1 cargo test -p tinygpt-cli --test cli golden::
//!
//! `TINYGPT_GOLDEN_PROGRAM=/path/to/tinygpt` runs (or records) another build of the program instead.

use std::env;

use crate::common::{PROGRAM, Place, json, stdout};
use crate::recorded::{self, Found, differences, has_bf16, hash};
use assert_cmd::Command;
use serde_json::{Value, json};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/golden.json");

/// The recipe `tiny` when it was a GPT-2.
const TINY_GPT2: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/tiny-gpt2.toml");

/// Overrides of every run: a small corpus, a line of metrics for each update, short samples.
const SHORT: [&str; 7] = [
    "data.stories_bytes=20000",
    "data.val_fraction=0.1",
    "train.warmup_steps=2",
    "train.eval_every=4",
    "train.eval_batches=2",
    "train.log_every=1",
    "generate.max_new_tokens=20",
];

/// The program under test, in the folder of `place`.
fn tinygpt(place: &Place) -> Command {
    let program = env::var_os("TINYGPT_GOLDEN_PROGRAM").unwrap_or_else(|| PROGRAM.into());
    let mut command = Command::new(program);
    for name in ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS", "RUST_BACKTRACE"] {
        command.env_remove(name);
    }
    command
        .current_dir(place.path())
        .env("TINYGPT_CACHE", place.join("cache"))
        .env("HOME", place.path())
        .timeout(std::time::Duration::from_secs(120));
    command
}

/// Trains a recipe with overrides into the folder `run`; returns what `--json` prints.
fn train(place: &Place, recipe: &str, set: &[&str], more: &[&str]) -> Value {
    let mut command = tinygpt(place);
    command.args(["train", "--config", recipe, "--data", "stories", "--device", "cpu", "--out", "run", "--json"]);
    command.args(SHORT.iter().chain(set).flat_map(|item| ["--set", item]));
    json(command.args(more))
}

/// Hashes of the run's weights, optimizer state, tokenizer and metrics, and of what training printed.
fn of_run(place: &Place, mut printed: Value) -> Found {
    let mut found = Found::new();
    let mut add = |name: &str, bytes: &[u8]| found.insert(name.to_owned(), hash(bytes));
    for (name, bytes) in place.timeless("run") {
        // Configurations and plots may change without a change of results.
        if name.ends_with(".safetensors") || name == "tokenizer.json" {
            add(&name, &bytes);
        }
    }
    let metrics: String = place.text("run/metrics.jsonl").lines().map(|line| timeless(line) + "\n").collect();
    add("metrics.jsonl", metrics.as_bytes());
    printed.as_object_mut().unwrap().shift_remove("seconds");
    add("printed", printed.to_string().as_bytes());
    found
}

/// A line of `metrics.jsonl` without its timings.
fn timeless(line: &str) -> String {
    let mut row: Value = serde_json::from_str(line).unwrap();
    for key in ["seconds", "tokens_per_s"] {
        row.as_object_mut().unwrap().shift_remove(key);
    }
    row.to_string()
}

/// Trains and compares the run with the recorded case.
fn check_run(case: &str, recipe: &str, set: &[&str]) -> (Place, Found) {
    let place = Place::new();
    let printed = train(&place, recipe, set, &[]);
    let found = of_run(&place, printed);
    recorded::check(FILE, case, &found);
    (place, found)
}

/// Arguments of `tinygpt generate`: every sampling rule, context policy and weight format.
const TEXTS: [&str; 16] = [
    "--seed=0 --prompt=Once --temperature=0",
    "--seed=1 --num-samples=18 --first-sample=5 --max-new-tokens=12",
    "--seed=2 --num-samples=3 --top-k=5 --temperature=0.8",
    "--seed=2 --num-samples=3 --top-p=0.7 --temperature=1.3",
    "--seed=2 --num-samples=3 --top-k=40 --top-p=0.9 --min-p=0.01",
    "--seed=3 --repetition-penalty=1.2 --presence-penalty=0.3 --frequency-penalty=0.1",
    "--seed=3 --logit-bias=1=-inf --logit-bias=2=1.5",
    "--seed=4 --temperature=2 --temperature-end=0.1",
    "--seed=4 --num-samples=3 --adaptive=0.2 --stop=e",
    "--seed=5 --prompt-file=longer-than-the-context.txt",
    "--seed=6 --prompt=Once --max-new-tokens=150 --window=slide --weights=f32",
    "--seed=6 --prompt=Once --max-new-tokens=150 --window=slide --weights=bf16",
    "--seed=6 --prompt=Once --max-new-tokens=150 --window=slide --weights=int8",
    "--seed=6 --prompt=Once --max-new-tokens=150 --window=half --weights=f32",
    "--seed=6 --prompt=Once --max-new-tokens=150 --window=half --weights=bf16",
    "--seed=6 --prompt=Once --max-new-tokens=150 --window=half --weights=int8",
];

/// Hashes of the texts that the run generates, and its losses as they are.
fn of_texts_and_losses(place: &Place, threads: Option<&str>) -> Found {
    let text = "Once there was a boy who had a dog. ".repeat(30);
    place.write("longer-than-the-context.txt", &text).write("other.txt", &text);
    let run = |args: &str| stdout(tinygpt(place).args(args.split_whitespace()).args(["--device", "cpu"]).args(threads));
    let mut found = Found::new();
    for args in TEXTS {
        found.insert(args.into(), hash(run(&format!("generate --checkpoint run --json {args}")).as_bytes()));
    }
    found.insert("streamed".into(), hash(run("generate --checkpoint run --seed 6").as_bytes()));
    for (name, args) in [("loss of its split", ""), ("loss of another text", "--data other.txt")] {
        let mut printed: Value = serde_json::from_str(&run(&format!("eval run --json {args}"))).unwrap();
        for key in ["run", "data", "stderr", "stride", "context"] {
            printed.as_object_mut().unwrap().shift_remove(key).unwrap();
        }
        found.insert(name.into(), printed.to_string());
    }
    found
}

/// A shape whose sizes are no multiples of a vector or a tile. The learning rate is high enough to make some tokens
/// likely.
const ODD: [&str; 11] = [
    "model.n_layer=3",
    "model.n_head=2",
    "model.n_embd=20",
    "model.block_size=17",
    "model.dropout=0.1",
    "model.bias=true",
    "train.batch_size=5",
    "train.lr=0.01",
    "train.grad_accum=3",
    "train.max_steps=24",
    "train.decay_steps=24",
];

/// Two layers of shakespeare-baby at full width with its dropout, on short windows.
const BABY: [&str; 5] =
    ["model.n_layer=2", "model.block_size=48", "train.batch_size=5", "train.max_steps=4", "train.decay_steps=5000"];

#[test]
fn tiny_with_its_subwords_trains_generates_and_evaluates_as_recorded() {
    let (place, _) = check_run("tiny", TINY_GPT2, &["train.max_steps=8", "train.batch_size=4"]);
    recorded::check(FILE, "tiny, texts and losses", &of_texts_and_losses(&place, None));
}

/// What GPT-2 and AdamW have not, at odd sizes.
const MODERN: [&str; 11] = [
    "model.n_head=4",
    "model.n_kv_head=2",
    "model.n_embd=40",
    "model.mlp_hidden=43",
    "model.block_size=19",
    "model.dropout=0.1",
    "model.logit_cap=12",
    "train.batch_size=5",
    "train.grad_accum=2",
    "train.max_steps=12",
    "train.warmup_steps=2",
];

#[test]
fn a_modern_network_with_muon_trains_generates_and_evaluates_as_recorded_with_any_number_of_threads() {
    let (place, run) = check_run("modern", "shakespeare-small-fast", &MODERN);
    recorded::check(FILE, "modern, texts and losses", &of_texts_and_losses(&place, None));
    for threads in ["--threads=1", "--threads=3"] {
        let other = Place::new();
        let printed = train(&other, "shakespeare-small-fast", &MODERN, &[threads]);
        assert_eq!(differences(&run, &of_run(&other, printed)), "", "{threads}");
    }
    // Interrupted on the way, with the schedule of all its updates.
    let place = Place::new();
    let most = [&MODERN[..], &["train.max_steps=8", "train.decay_steps=12"]].concat();
    train(&place, "shakespeare-small-fast", &most, &[]);
    let mut resume = tinygpt(&place);
    resume.args(["train", "--resume", "--out", "run", "--device", "cpu", "--json", "--set", "train.max_steps=12"]);
    let printed = json(&mut resume);
    assert_eq!(differences(&run, &of_run(&place, printed)), "", "resumed");
}

#[test]
fn an_odd_shape_trains_generates_and_evaluates_as_recorded_with_any_number_of_threads() {
    let (place, run) = check_run("odd", "shakespeare-small", &ODD);
    let texts = of_texts_and_losses(&place, None);
    recorded::check(FILE, "odd, texts and losses", &texts);
    let one_thread = of_texts_and_losses(&place, Some("--threads=1"));
    assert_eq!(differences(&texts, &one_thread), "");
    for threads in ["--threads=1", "--threads=3"] {
        let other = Place::new();
        let printed = train(&other, "shakespeare-small", &ODD, &[threads]);
        assert_eq!(differences(&run, &of_run(&other, printed)), "", "{threads}");
    }
}

#[test]
fn a_resumed_run_ends_as_one_without_a_break_was_recorded() {
    let place = Place::new();
    train(&place, "shakespeare-small", &[&ODD[..], &["train.max_steps=12"]].concat(), &[]);
    let mut resume = tinygpt(&place);
    resume.args(["train", "--resume", "--out", "run", "--device", "cpu", "--json", "--set", "train.max_steps=24"]);
    let printed = json(&mut resume);
    recorded::check(FILE, "odd", &of_run(&place, printed));
}

#[test]
fn shakespeare_small_trains_as_recorded_with_and_without_bias_dropout_and_either_activation() {
    check_run("small", "shakespeare-small", &["train.max_steps=3"]);
    for (bias, activation, dropout) in
        [("true", "gelu", "0.0"), ("true", "gelu_new", "0.2"), ("false", "gelu_new", "0.0")]
    {
        let case = format!("small, bias {bias}, {activation}, dropout {dropout}");
        let set = [("bias", bias), ("activation", activation), ("dropout", dropout)];
        let set = set.map(|(key, value)| format!("model.{key}={value}"));
        let set: Vec<&str> = set.iter().map(String::as_str).chain(["train.max_steps=3"]).collect();
        check_run(&case, "shakespeare-small", &set);
    }
}

#[test]
fn shakespeare_baby_at_its_full_width_trains_as_recorded() {
    check_run("baby", "shakespeare-baby", &BABY);
}

#[test]
fn a_long_context_and_a_step_without_clipping_or_decay_train_as_recorded() {
    let set = ["model.n_layer=1", "model.n_head=1", "model.n_embd=33", "model.block_size=300", "train.batch_size=2"];
    let more = ["max_steps=5", "decay_steps=2000", "clip=0", "weight_decay=0", "grad_accum=2"]
        .map(|key| format!("train.{key}"));
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    check_run("long", "shakespeare-small", &[&set[..], &more].concat());
}

#[test]
fn bf16_trains_as_recorded_where_the_processor_has_it() {
    let bf16 = ["train.precision=bf16"];
    for (case, recipe, set) in [
        ("tiny, bf16", TINY_GPT2, &["train.max_steps=5", "train.batch_size=4"][..]),
        ("modern, bf16", "shakespeare-small-fast", &MODERN),
        ("odd, bf16", "shakespeare-small", &ODD),
        ("baby, bf16", "shakespeare-baby", &BABY),
    ] {
        if !has_bf16() {
            recorded::not_run(case, "training in bf16 needs AVX512-BF16, which this processor does not have");
            continue;
        }
        check_run(case, recipe, &[set, &bf16].concat());
    }
}

#[test]
fn every_path_of_the_sampler_keeps_and_draws_as_recorded() {
    let place = Place::new();
    let logits: Vec<f64> = (0..300).map(|n| f64::from(n * 7919 % 1000) / 100.0).collect();
    let input = json!({ "rows": [logits, vec![0.0; 50], [5.0, 5.0, -1.0]] }).to_string();
    let mut found = Found::new();
    for (name, rules) in [
        ("no rules", &[][..]),
        ("temperature", &["--temperature=0.3"]),
        ("top-k", &["--top-k=7"]),
        ("top-p", &["--top-p=0.9", "--temperature=2"]),
        ("min-p", &["--min-p=0.05"]),
        ("penalties", &["--history=1,1,2", "--repetition-penalty=1.5", "--frequency-penalty=0.2"]),
        ("adaptive", &["--adaptive=0.4"]),
    ] {
        for path in ["oracle", "host", "device"] {
            let mut command = tinygpt(&place);
            command.args(["sample", "--input", "-", "--num-samples=40", "--seed=7", "--json", "--path", path]);
            let printed = stdout(command.args(rules).write_stdin(input.clone()));
            found.insert(format!("{name}, {path}"), hash(printed.as_bytes()));
        }
    }
    recorded::check(FILE, "sample", &found);
}
