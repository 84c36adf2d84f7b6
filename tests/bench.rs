//! `tinygpt bench`, as a user sees it. Times are not asserted: they are the machine's.

use std::{fs, process::Output};

use crate::common::{Place, failure, json, stdout};
use serde_json::Value;
use tinygpt_model::{
    GenerationDefaults, GptConfig, ModelFolder, Tokenizer, TokenizerError,
    gguf::{TensorType, write_gguf},
    init_params,
};

/// The contenders of this build.
fn contenders() -> Vec<&'static str> {
    let all = ["host", "device", "candle"];
    all[..if cfg!(feature = "bench-candle") { 3 } else { 2 }].to_vec()
}

fn bench(args: &[&str]) -> Output {
    Place::new().tinygpt().args(["bench", "sampling"]).args(args).output().unwrap()
}

/// `tinygpt bench ARGS --json`.
fn json_of(place: &Place, args: &[&str]) -> Value {
    json(place.tinygpt().arg("bench").args(args).arg("--json"))
}

/// Numbers of a result by their names, all of them positive.
fn positive<const N: usize>(value: &Value, keys: [&str; N]) -> [f64; N] {
    keys.map(|key| match value[key].as_f64() {
        Some(number) if number > 0.0 && number.is_finite() => number,
        _ => panic!("{key}: {value}"),
    })
}

/// A number that cannot be measured while something else runs on the machine.
fn positive_or_null(value: &Value, key: &str) -> Option<f64> {
    match value.get(key) {
        Some(Value::Null) => None,
        _ => Some(positive(value, [key])[0]),
    }
}

fn assert_about(got: f64, expected: f64) {
    assert!((got / expected - 1.0).abs() < 1e-9, "{got}, expected {expected}");
}

#[test]
fn limits_are_measured_on_one_thread_and_on_all_or_named_as_absent() {
    let place = Place::new();
    let value = json_of(&place, &["limits", "--threads", "2"]);
    assert_eq!((&value["work"], &value["threads"]), (&Value::from("limits"), &Value::from(2)));
    let names = |list: &str| -> Vec<String> {
        value[list].as_array().unwrap().iter().map(|limit| limit["limit"].as_str().unwrap().to_owned()).collect()
    };
    let (present, absent) = (names("limits"), names("absent"));
    for limit in ["f32", "bf16", "int8", "read"] {
        let [here, not_here] = [&present, &absent].map(|list| list.iter().any(|name| name == limit));
        assert!(here != not_here, "{limit}: {value}");
    }
    assert!(present.contains(&"f32".into()) && present.contains(&"read".into()), "{value}");
    for limit in value["limits"].as_array().unwrap() {
        for key in ["one_thread", "all_threads"] {
            positive_or_null(limit, key);
        }
        assert!(["GFLOP/s", "Gop/s", "GB/s"].contains(&limit["unit"].as_str().unwrap()), "{limit}");
    }
    assert!(value["absent"].as_array().unwrap().iter().all(|limit| limit["reason"].is_string()), "{value}");

    let text = stdout(place.tinygpt().args(["bench", "limits"]));
    for word in ["one thread", "fused multiply-adds of f32", "streaming read of memory", "GB/s"] {
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn updates_are_timed_and_set_against_the_peak() {
    let place = Place::new();
    let value = json_of(&place, &["train", "small.toml", "--iters", "3", "--batch", "4"]);
    assert_eq!(value["work"], "train small.toml");
    assert_eq!((&value["iters"], &value["batch"]), (&Value::from(3), &Value::from(4)));
    assert_eq!((&value["precision"], &value["device"]), (&Value::from("f32"), &Value::from("cpu")));
    let keys = ["median_ms", "tokens_per_s", "gflop_per_update", "min_ms", "loss"];
    let [ms, tokens, gflop, fastest, loss] = positive(&value, keys);
    assert_about(tokens, 4.0 * 16.0 / (ms / 1e3));
    let [share, peak] = ["share_of_peak", "peak_gflops"].map(|key| positive_or_null(&value, key));
    assert_eq!(share.is_some(), peak.is_some(), "{value}");
    if let (Some(share), Some(peak)) = (share, peak) {
        assert_about(share, gflop / (ms / 1e3) / peak);
        assert!(share <= 1.0, "{value}");
    }
    assert!(fastest <= ms, "{value}");
    // One block of 16 channels, 4 windows of 16 tokens, 65 characters.
    assert_about(gflop * 1e9, 6.0 * (12.0 * 256.0 * 64.0 + 4.0 * 16.0 * 16.0 * 17.0 + 65.0 * 16.0 * 64.0));
    // Of random tokens nothing can be known.
    assert!((loss - 65f64.ln()).abs() < 0.3, "{loss}");
    if cfg!(target_os = "linux") {
        positive(&value, ["peak_memory_mib"]);
    }
    assert_eq!(place.names("."), ["small.toml"], "a benchmark leaves nothing behind");
}

#[test]
fn the_named_recipes_are_trained_and_people_get_lines() {
    let text = stdout(Place::new().tinygpt().args(["bench", "train", "small", "--iters", "1", "--batch", "1"]));
    let first = "train small: 4 layers, 4 heads, 128 channels, context 64, vocabulary 65, dropout 0; batch 1, f32";
    assert!(text.contains("% of the peak of") || text.contains("the peak cannot be measured now"), "{text}");
    for word in [first, "ms (median of 1;", "tokens/s", "GFLOP/s in products, "] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn tokens_are_timed_and_set_against_the_bandwidth() {
    let place = Place::new();
    for (weights, bytes) in [("f32", 4.0), ("bf16", 2.0), ("int8", 1.0), ("int4", 0.5625)] {
        let args = ["decode", "small", "--rows", "2", "--tokens", "3", "--weights", weights];
        let value = json_of(&place, &args);
        assert_eq!(value["work"], "decode small");
        assert_eq!((&value["rows"], &value["tokens"]), (&Value::from(2), &Value::from(3)));
        assert_eq!((&value["weights"], &value["device"]), (&Value::from(weights), &Value::from("cpu")));
        let [ms, tokens, read] = positive(&value, ["median_ms", "tokens_per_s", "weight_bytes"]);
        assert_about(tokens, 2.0 / (ms / 1e3));
        let [share, rate] = ["share_of_bandwidth", "read_gb_per_s"].map(|key| positive_or_null(&value, key));
        assert_eq!(share.is_some(), rate.is_some(), "{value}");
        if let (Some(share), Some(rate)) = (share, rate) {
            // Both are medians, of stretches between which the machine may change.
            let of_medians = read / (ms / 1e3) / (rate * 1e9);
            assert!((0.2..5.0).contains(&(share / of_medians)), "{value}");
        }
        // 12 C^2 L + V C of matrices; norms and scales are small beside them.
        let matrices = 12.0 * 128.0 * 128.0 * 4.0 + 65.0 * 128.0;
        assert!((1.0..1.05).contains(&(read / bytes / matrices)), "{value}");
        if weights == "f32" {
            assert!(value.get("loss").is_none(), "{value}");
        } else {
            let [exact, rounded] = positive(&value, ["loss_f32", "loss"]);
            assert!((exact - 65f64.ln()).abs() < 0.5 && (rounded - exact).abs() < 0.01, "{value}");
        }
    }
}

#[test]
fn a_run_is_decoded_up_to_its_context() {
    let place = Place::new().with_run("run");
    let value = json_of(&place, &["decode", "run", "--tokens", "1000", "--weights", "int8"]);
    assert_eq!((&value["work"], &value["tokens"]), (&Value::from("decode run"), &Value::from(16)));
    let text = stdout(place.tinygpt().args(["bench", "decode", "run", "--weights", "bf16"]));
    for word in ["decode run: 1 layers, 2 heads, 16 channels, context 16", "ms (median of", "MB of weights a step: "] {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert!(text.contains("128 tokens that f32 drew"), "{text}");
    // So small a model fits the caches: no share above 100% is left without a word on why.
    let (_, told) = text.split_once("MB of weights a step: ").unwrap();
    let told = told.lines().next().unwrap();
    match told.split_once("% of a streaming read of ") {
        Some((share, _)) => assert!(share.parse::<f64>().unwrap() <= 100.0, "{told}"),
        None => assert!(
            told.contains("since the caches hold some of them") || told.contains("cannot be measured now"),
            "{told}"
        ),
    }
}

/// The peak is that of generating: neither the random weights' making nor the comparison with f32 is in it.
#[test]
#[cfg(target_os = "linux")]
fn rounded_weights_take_less_memory_than_the_weights_as_they_are() {
    let place = Place::new();
    let tokenizer = Tokenizer::train_char([Ok::<_, TokenizerError>("abc\n")]).unwrap();
    let config = GptConfig { vocab_size: 4, n_layer: 5, n_head: 8, n_embd: 512, ..GptConfig::default() };
    let params = init_params(&config, 1);
    let slices: Vec<&[f32]> = params.iter().map(Vec::as_slice).collect();
    let folder = ModelFolder::new(place.path());
    folder.write_description(&config, &tokenizer, &GenerationDefaults::default()).unwrap();
    folder.write_weights(&config, &params).unwrap();
    write_gguf(&place.join("q8_0.gguf"), &config, &slices, &tokenizer, "wide", TensorType::Q8_0).unwrap();

    // 12 L C^2 of matrices: 60 MiB in f32, and no other part of the process grows with them.
    let matrices = 4.0 * 12.0 * 5.0 * 512.0 * 512.0 / f64::from(1 << 20);
    let peak = |model: &str, weights: &str| {
        let args = ["decode", model, "--rows", "1", "--tokens", "2", "--weights", weights];
        positive(&json_of(&place, &args), ["peak_memory_mib"])[0]
    };
    let exact = peak(".", "f32");
    assert!(exact > matrices, "{exact}");
    for (weights, share) in [("bf16", 0.5), ("int8", 0.25), ("int4", 0.15)] {
        for model in [".", "q8_0.gguf"] {
            let saved = (exact - peak(model, weights)) / matrices;
            // What is being rounded is there beside it, and pages around what stays in the file.
            assert!(saved > 1.0 - share - 0.25, "{model} in {weights}: {saved} of {exact} MiB");
        }
    }
    let random = peak("small", "int8");
    assert!(random < exact - 0.5 * matrices, "{random}");
}

#[test]
fn work_that_makes_no_sense_is_refused() {
    for args in [
        &["train"][..],
        &["train", "small", "--iters", "0"],
        &["train", "small", "--batch", "0"],
        &["train", "small", "--precision", "f64"],
        &["train", "no-such-recipe"],
        &["decode", "small", "--rows", "0"],
        &["decode", "small", "--tokens", "0"],
        &["decode", "small", "--weights", "int3"],
        &["limits", "--rows", "1"],
        &["train", "small", "--device", "tpu"],
        &["decode", "small", "--device", "tpu"],
    ] {
        failure(Place::new().tinygpt().arg("bench").args(args), 2);
    }
    let message = failure(Place::new().tinygpt().args(["bench", "decode", "no-such-run"]), 1);
    assert!(message.contains("no-such-run"), "{message}");
    let message = failure(Place::new().tinygpt().args(["bench", "train", "small", "--batch", "100000000"]), 1);
    assert!(message.contains("memory"), "{message}");
}

#[test]
fn the_cells_that_were_asked_for_come_as_json_with_what_is_absent() {
    let output = bench(&["--quick", "--rows", "1,3", "--vocab", "1,500", "--rule", "greedy,top-k+top-p", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let value: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let cells = value["cells"].as_array().unwrap();
    for rows in [1, 3] {
        for vocab in [1, 500] {
            for rule in ["greedy", "top-k+top-p"] {
                for contender in contenders() {
                    let found: Vec<_> = cells
                        .iter()
                        .filter(|c| c["rows"] == rows && c["vocab"] == vocab && c["rule"] == rule)
                        .filter(|c| c["contender"] == contender && c["device"] == "cpu")
                        .collect();
                    let [cell] = found.as_slice() else { panic!("{rows} {vocab} {rule} {contender}: {text}") };
                    let [us, limit, share] =
                        ["us_per_row", "limit_us_per_row", "share_of_limit"].map(|key| cell[key].as_f64().unwrap());
                    assert!(us > 0.0 && limit > 0.0 && (share - limit / us).abs() < 1e-9 * share, "{cell}");
                }
            }
        }
    }
    if !cfg!(any(feature = "cuda", feature = "metal")) {
        let absent = value["absent"].as_array().unwrap();
        let devices: Vec<&str> = absent.iter().filter_map(|a| a["device"].as_str()).collect();
        assert_eq!(devices, ["cuda:0", "metal"]);
        assert!(absent[0]["reason"].as_str().unwrap().contains("built without CUDA"));
    }
    if !cfg!(feature = "bench-candle") {
        let candle = value["absent"].as_array().unwrap().iter().find(|a| a["contender"] == "candle").unwrap();
        assert!(
            candle["reason"].as_str().unwrap().ends_with("`cargo build --release --features bench-candle`"),
            "{candle}"
        );
    }
}

#[test]
fn people_get_a_table_and_a_plot() {
    let dir = tempfile::tempdir().unwrap();
    let plot = dir.path().join("plot.svg");
    let args = ["--quick", "--rows", "2,4", "--vocab", "1000,2000", "--rule", "top-p", "--plot"];
    let output = bench(&[&args[..], &[plot.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("of limit  x candle"), "{text}");
    assert_eq!(text.lines().filter(|line| line.contains("  top-p        ")).count(), 4 * contenders().len(), "{text}");
    let svg = fs::read_to_string(plot).unwrap();
    for contender in contenders() {
        assert!(svg.contains(&format!("top-p, {contender} on cpu")), "{contender}");
    }
    for word in ["one read", "sampling from 2000 logits"] {
        assert!(svg.contains(word), "{word}");
    }
    let output = bench(&["--quick", "--plot", "plot.pdf"]);
    assert_eq!(output.status.code(), Some(2), "refused before anything is measured");
}

#[test]
fn cells_that_make_no_sense_are_refused() {
    for args in
        [&["--rows", "0"][..], &["--rows", "1025"], &["--vocab", "0"], &["--vocab", "262145"], &["--rule", "best"]]
    {
        assert_eq!(bench(args).status.code(), Some(2), "{args:?}");
    }
}
