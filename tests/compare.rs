//! `tinygpt compare`: how far two distributions of the next token are from each other.

use std::fs;

use serde_json::Value;

use crate::common::{Place, failure, json, stdout, trained};

/// The shared run as `run`, and one of the same corpus and fewer updates as `other`.
fn two_runs() -> Place {
    let place = Place::new().with_run("run");
    place.train().args(["--out", "other"]).assert().success();
    place
}

fn field(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("{key} of {value}"))
}

#[test]
fn cross_entropies_are_entropies_and_divergences_and_losses_are_those_of_eval() {
    let place = two_runs();
    let value = json(place.tinygpt().args(["compare", "run", "other", "--json"]));
    let [h_a, h_b] = ["entropy_a", "entropy_b"].map(|key| field(&value, key));
    let [kl_ab, kl_ba] = ["kl_ab", "kl_ba"].map(|key| field(&value, key));
    assert!(kl_ab > 1e-4 && kl_ba > 1e-4, "{value}");
    assert!((field(&value, "cross_entropy_ab") - h_a - kl_ab).abs() < 1e-9);
    assert!((field(&value, "cross_entropy_ba") - h_b - kl_ba).abs() < 1e-9);
    for (run, key) in [("run", "loss_a"), ("other", "loss_b")] {
        let report = &json(place.tinygpt().args(["eval", run, "--json"]));
        assert!((field(&value, key) - field(report, "loss")).abs() < 1e-5, "{key}");
        assert_eq!(value["contexts"], report["tokens"]);
    }
    // The means by position, each with its number of contexts, are those of all.
    let positions = value["positions"].as_array().unwrap();
    assert_eq!((positions.len(), &value["context"]), (16, &16.into()));
    let sum: f64 = positions.iter().map(|position| field(position, "contexts") * field(position, "kl_ab")).sum();
    assert!((sum / field(&value, "contexts") - kl_ab).abs() < 1e-9);
}

#[test]
fn a_run_is_no_distance_from_itself_and_the_order_of_two_changes_names_alone() {
    let place = two_runs();
    let value = json(place.tinygpt().args(["compare", "run", "run", "--json"]));
    let zeros = ["kl_ab", "kl_ba", "jensen_shannon"].map(|key| field(&value, key));
    assert_eq!((zeros, field(&value, "top_agreement")), ([0.0; 3], 1.0));
    let ab = json(place.tinygpt().args(["compare", "run", "other", "--windows", "20", "--json"]));
    let ba = json(place.tinygpt().args(["compare", "other", "run", "--windows", "20", "--json"]));
    assert_eq!((&ab["kl_ab"], &ab["calibration"]["b"]), (&ba["kl_ba"], &ba["calibration"]["a"]));
    assert!((field(&ab, "jensen_shannon") - field(&ba, "jensen_shannon")).abs() < 1e-12);
    assert_eq!(ab["contexts"], 20 * 16);
}

#[test]
fn the_loss_of_the_truth_is_the_floor_and_the_divergence_from_it_the_rest_of_the_loss() {
    let place = Place::new().with_run("run");
    place
        .train()
        .args(["--out", "bpe", "--set", "data.tokenizer=\"bpe\"", "--set", "data.vocab_size=400"])
        .assert()
        .success();
    for run in ["run", "bpe"] {
        let value = json(place.tinygpt().args(["compare", "truth", run, "--json"]));
        let report = &json(place.tinygpt().args(["eval", run, "--json"]));
        assert!((field(&value, "loss_a") - field(report, "floor")).abs() < 1e-9, "{run}");
        assert!((field(&value, "loss_b") - field(report, "loss")).abs() < 1e-5, "{run}");
        // What the truth expects of the run is what happens to it, but for chance.
        let (expected, loss) = (field(&value, "entropy_a") + field(&value, "kl_ab"), field(&value, "loss_b"));
        assert!((expected - loss).abs() < 0.02 * loss, "{run}: {expected} {loss}");
        // The run gives some probability to what no story holds.
        assert!(value["kl_ba"].is_null() && value["cross_entropy_ba"].is_null());
        // The truth is calibrated, but for chance.
        assert!(field(&value["calibration"]["a"], "top_error") < 0.05, "{value}");
    }
}

#[test]
fn people_get_a_table_by_context_and_a_chart() {
    let place = two_runs();
    let text = stdout(place.tinygpt().args(["compare", "run", "other", "--plot", "compare.svg"]));
    let parts = [
        "A run\n",
        "B other\n",
        "contexts of up to 16 tokens",
        "cross-entropy H(P,Q)",
        "Jensen-Shannon",
        "calibration error",
    ];
    assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    let octaves: Vec<&str> = text.lines().rev().take(5).map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(octaves, ["9-16", "5-8", "3-4", "2", "1"]);
    assert!(!text.contains("truth"));
    let chart = place.text("compare.svg");
    assert!(["divergence", "entropy", "calibration", "KL(A||B)", "KL(B||A)"].iter().all(|part| chart.contains(part)));
    let text = stdout(trained().tinygpt().args(["compare", "truth", "run", "--windows", "9"]));
    assert!(text.contains("sees each story from its beginning") && text.contains(" inf"), "{text}");
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let place = two_runs();
    place
        .train()
        .args(["--out", "bpe", "--set", "data.tokenizer=\"bpe\"", "--set", "data.vocab_size=300"])
        .assert()
        .success();
    place
        .write("prose.txt", "Once there was no story at all.\n")
        .write("empty.txt", "")
        .write("umlaut.txt", "Mia wäscht");
    // A model without a corpus, as one of Hugging Face.
    let place = place.with_run("alone");
    for name in ["train.toml", "metrics.jsonl"] {
        fs::remove_file(place.join("alone").join(name)).unwrap();
    }
    for (args, code, message) in [
        (&["run", "bpe"][..], 1, "have different tokenizers"),
        (&["truth", "truth"], 2, "one of the two must be a run"),
        (&["run", "nowhere"], 1, "nowhere is not a run or a model folder"),
        (&["run", "truth", "--data", "prose.txt"], 1, "line 1 of the text cannot be told by the built-in grammar"),
        (&["run", "other", "--data", "empty.txt"], 1, "is empty"),
        (&["run", "other", "--data", "umlaut.txt"], 1, "character 'ä' (U+00E4) at character index 5"),
        (&["run", "other", "--data", "none.txt"], 1, "there is no corpus at `none.txt`"),
        (&["run", "other", "--context", "17"], 2, "--context must be from 1 to 16"),
        (&["run", "other", "--windows", "0"], 2, "--windows"),
        (&["run", "other", "--plot", "a.gif"], 2, "a.gif"),
        (&["alone", "other"], 1, "train.toml"),
        (&["run"], 2, "<B>"),
    ] {
        let error = failure(place.tinygpt().arg("compare").args(args), code);
        assert!(error.contains(message), "{args:?}: {error}");
    }
    let error = failure(place.tinygpt().args(["compare", "alone", "other"]), 1);
    assert!(error.contains("--data"), "what to do: {error}");
}
