//! `tinygpt eval`: the loss on the run's held-out text, or on any text.

use crate::common::{Place, failure, json, stdout, trained};

#[test]
fn the_loss_on_the_runs_split_is_the_one_that_training_reported() {
    let place = Place::new();
    let trained = json(place.train().args(["--out", "run", "--json"]));
    let evaluated = json(place.tinygpt().args(["eval", "run", "--json"]));
    assert_eq!((&evaluated["run"], &evaluated["data"]), (&"run".into(), &serde_json::Value::Null));
    for key in [
        "loss",
        "perplexity",
        "bits_per_token",
        "bits_per_byte",
        "bits_per_char",
        "floor",
        "gap",
        "gap_bits_per_byte",
        "tokens",
    ] {
        let (of_training, of_eval) = (trained["report"][key].as_f64().unwrap(), evaluated[key].as_f64().unwrap());
        assert!((of_training - of_eval).abs() < 1e-5, "{key}");
    }
}

#[test]
fn people_get_the_loss_the_perplexity_the_bits_per_byte_the_floor_and_the_gap() {
    let text = stdout(trained().tinygpt().args(["eval", "run"]));
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 5, "{text}");
    for (line, parts) in lines.iter().zip([
        &["validation loss ", " nats/token", "perplexity ", " bits/byte", "whole split"][..],
        &["floor ", " nats/token", "no model can do better"],
        &["gap ", " nats/token", "% of the floor", " bits/byte"],
        &["standard error ", "a context of 16 tokens every 16"],
        &["perplexities of different tokenizers cannot be compared, bits a byte can"],
    ]) {
        assert!(parts.iter().all(|part| line.contains(part)), "{parts:?} in {line}");
    }
}

#[test]
fn any_text_of_known_characters_has_a_loss_but_no_floor() {
    let place = Place::new().with_run("run");
    place.tinygpt().args(["data", "synth", "--bytes", "3000", "--seed", "9", "--out", "other.txt"]).assert().success();
    let value = json(place.tinygpt().args(["eval", "run", "--data", "other.txt", "--json"]));
    let report = &value;
    assert_eq!(value["data"], "other.txt");
    assert_eq!(report["tokens"].as_u64().unwrap() as usize, place.read("other.txt").len() - 1);
    assert!(report["floor"].is_null());
    // In ASCII a character is a byte.
    let (loss, bits) = (report["loss"].as_f64().unwrap(), report["bits_per_byte"].as_f64().unwrap());
    assert!((bits - loss / std::f64::consts::LN_2).abs() < 1e-9);
    // The same model knows stories as well as others of the same grammar.
    let own = json(place.tinygpt().args(["eval", "run", "--json"]))["loss"].as_f64().unwrap();
    assert!((own - loss).abs() < 0.3, "{own} {loss}");
}

#[test]
fn evaluation_refuses_what_it_cannot_evaluate() {
    let place = Place::new().with_run("run");
    place.write("umlaut.txt", "Once there wäs").write("one.txt", "O").write("empty.txt", "");
    for (data, message) in [
        ("umlaut.txt", "character 'ä' (U+00E4) at character index 12"),
        ("one.txt", "the evaluated split has 1 tokens"),
        ("empty.txt", "is empty"),
        ("none.txt", "there is no corpus at `none.txt`"),
    ] {
        let error = failure(place.tinygpt().args(["eval", "run", "--data", data]), 1);
        assert!(error.contains(message), "{data}: {error}");
    }
    let error = failure(place.tinygpt().args(["eval", "nowhere"]), 1);
    assert!(error.contains("nowhere is not a run or a model folder: there is no such folder"), "{error}");
    let error = failure(place.tinygpt().arg("eval"), 1);
    assert!(error.contains("there is no run in runs/ yet"), "{error}");
    for flags in [["--context", "17"], ["--context", "0"], ["--stride", "0"], ["--stride", "17"]] {
        let error = failure(place.tinygpt().args(["eval", "run"]).args(flags), 2);
        assert!(error.contains("the context must be from 1 to 16"), "{flags:?}: {error}");
    }
}

#[test]
fn without_a_run_the_newest_is_evaluated_and_named() {
    let place = Place::new().with_run("runs/small-1");
    let output = place.tinygpt().args(["eval", "--json"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("run: runs/small-1"));
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()["run"], "runs/small-1");
}

#[test]
fn the_built_in_corpus_is_a_text_to_evaluate_any_run_on() {
    let place = Place::new().with_run("run");
    let of = |args: &[&str]| json(place.tinygpt().args(["eval", "--json"]).args(args));
    // Of a run that was trained on it, it is what was held out.
    let (own, stories) = (of(&["run"]), of(&["run", "--data", "stories"]));
    for key in ["loss", "tokens", "floor", "gap"] {
        assert_eq!(own[key], stories[key], "{key}");
    }
    assert_eq!(stories["data"], "stories");
    let key = ["eval", "run", "--data", "stories", "--text-key", "content"];
    let message = failure(place.tinygpt().args(key), 2);
    assert!(message.contains("no --text-key"), "{message}");
    // Of any other, as much as that has by default.
    let text = place.read("run/train.toml");
    assert!(String::from_utf8(text).unwrap().contains("stories_bytes = 20000"));
    std::fs::remove_file(place.join("run/train.toml")).unwrap();
    let folder = of(&["run", "--data", "stories"]);
    assert!(folder["tokens"].as_u64() > stories["tokens"].as_u64() && folder["floor"].is_f64(), "{folder}");
}

#[test]
fn a_smaller_stride_counts_the_same_tokens_with_more_context() {
    let evaluated = |flags: &[&str]| {
        let value = json(trained().tinygpt().args(["eval", "run", "--json"]).args(flags));
        let number = |value: &serde_json::Value| value.as_f64().unwrap();
        (number(&value["loss"]), number(&value["tokens"]), value)
    };
    let (whole, tokens, value) = evaluated(&[]);
    assert_eq!((&value["stride"], &value["context"]), (&16.into(), &16.into()));
    let stderr = value["stderr"].as_f64().unwrap();
    assert!(stderr > 0.0 && stderr < 0.2, "{stderr}");
    let (single, of_single, value) = evaluated(&["--stride", "1"]);
    assert_eq!((of_single, &value["stride"], &value["context"]), (tokens, &1.into(), &16.into()));
    let (short, of_short, _) = evaluated(&["--context", "2"]);
    assert_eq!(of_short, tokens);
    assert!(single < whole && whole < short, "{single} {whole} {short}");
}

#[test]
fn evaluation_changes_nothing_in_the_run() {
    let place = Place::new().with_run("run");
    let before = (place.timeless("run"), place.read("run/metrics.jsonl"), place.read("run/last/state.json"));
    place.tinygpt().args(["eval", "run"]).assert().success();
    assert_eq!(before, (place.timeless("run"), place.read("run/metrics.jsonl"), place.read("run/last/state.json")));
}
