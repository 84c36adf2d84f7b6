//! `tinygpt baseline`: n-gram models beside a run, and what works with a saved one.

use std::{collections::HashMap, fmt::Write as _};

use serde_json::Value;

use crate::common::{Place, failure, json, stderr, stdout, trained};

fn rows(value: &Value) -> HashMap<String, Value> {
    let rows = value["models"].as_array().unwrap();
    rows.iter().map(|row| (row["name"].as_str().unwrap().to_owned(), row.clone())).collect()
}

fn loss(row: &Value) -> f64 {
    row["loss"].as_f64().unwrap()
}

#[test]
fn every_order_the_run_and_the_floor_stand_beside_each_other_on_the_same_tokens() {
    let place = trained();
    let value = json(place.tinygpt().args(["baseline", "run", "--json"]));
    let names: Vec<_> = value["models"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
    let expected = ["uniform", "unigram", "bigram", "trigram", "4-gram", "5-gram", "Kneser-Ney 5-gram", "GPT", "floor"];
    assert_eq!(names, expected);
    let rows = rows(&value);
    let vocab_size = value["vocab_size"].as_f64().unwrap();
    assert_eq!(loss(&rows["uniform"]), vocab_size.ln());
    let losses: Vec<f64> = expected.iter().map(|name| loss(&rows[*name])).collect();
    assert!(losses[..4].is_sorted_by(|a, b| a > b), "{losses:?}");
    assert!(losses[..8].iter().all(|&loss| loss > losses[8]), "nothing is below the floor: {losses:?}");
    for row in rows.values() {
        let near = |key: &str, expected: f64| (row[key].as_f64().unwrap() / expected - 1.0).abs() < 1e-9;
        assert!(near("perplexity", loss(row).exp()), "{row}");
        // In ASCII a token is a byte.
        let bits = loss(row) / std::f64::consts::LN_2;
        assert!(near("bits_per_byte", bits) && near("bits_per_char", bits), "{row}");
    }
    let evaluated = json(place.tinygpt().args(["eval", "run", "--json"]));
    let report = &evaluated;
    assert_eq!((&rows["GPT"]["loss"], &rows["floor"]["loss"]), (&report["loss"], &report["floor"]));
    assert_eq!(value["tokens"], report["tokens"]);
    assert_eq!(rows["GPT"]["parameters"], json(place.tinygpt().args(["info", "run", "--json"]))["parameters"]);
    assert_eq!(rows["floor"]["parameters"], Value::Null);
}

#[test]
fn a_unigram_baseline_is_what_counting_characters_by_hand_gives() {
    let place = Place::new();
    let text = "the cat sat on the mat and the dog sat on the log\n".repeat(40);
    place.write("text.txt", &text);
    place.train().args(["--data", "text.txt", "--out", "run"]).assert().success();
    let value = json(place.tinygpt().args(["baseline", "run", "--order", "1", "--json"]));
    let rows = rows(&value);
    let train_tokens = value["train_tokens"].as_u64().unwrap() as usize;
    let k = rows["unigram"]["smoothing"]["k"].as_f64().unwrap();
    let mut counts: HashMap<char, f64> = HashMap::new();
    text.chars().take(train_tokens).for_each(|c| *counts.entry(c).or_default() += 1.0);
    let sum = train_tokens as f64 + k * value["vocab_size"].as_f64().unwrap();
    let predicted: Vec<char> = text.chars().skip(train_tokens + 1).collect();
    let expected = predicted.iter().map(|c| -((counts.get(c).unwrap_or(&0.0) + k) / sum).ln()).sum::<f64>();
    assert!((loss(&rows["unigram"]) - expected / predicted.len() as f64).abs() < 1e-12);
    assert_eq!(rows["unigram"]["parameters"].as_u64().unwrap() as usize, counts.len());
    assert!(rows.contains_key("Kneser-Ney unigram") && !rows.contains_key("bigram"));
}

#[test]
fn people_get_a_table_with_a_line_for_each_model() {
    let text = stdout(trained().tinygpt().args(["baseline", "run", "--order", "2"]));
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 1 + 6, "{text}");
    assert!(lines[0].starts_with("model ") && lines[0].contains("nats/token"), "{text}");
    for (line, name) in lines[1..].iter().zip(["uniform", "unigram", "bigram", "Kneser-Ney bigram", "GPT", "floor"]) {
        assert!(line.starts_with(name), "{name} in {line}");
    }
}

#[test]
fn a_saved_model_is_evaluated_to_the_loss_of_its_row_and_generates() {
    let place = Place::new();
    let mut text = String::new();
    (0..400).for_each(|i| writeln!(text, "{} and {}", i * i % 97, i * 7 % 31).unwrap());
    place.write("text.txt", &text);
    place.train().args(["--data", "text.txt", "--out", "run"]).assert().success();
    for (smoothing, name) in [("kneser-ney", "Kneser-Ney 4-gram"), ("add-k", "4-gram")] {
        let mut baseline = place.tinygpt();
        baseline.args(["baseline", "run", "--order", "4", "--save", smoothing, "--smoothing", smoothing, "--json"]);
        let value = json(&mut baseline);
        let val: String = text.chars().skip(value["train_tokens"].as_u64().unwrap() as usize).collect();
        place.write("val.txt", &val);
        let evaluated = json(place.tinygpt().args(["eval", smoothing, "--data", "val.txt", "--json"]));
        let (expected, found) = (loss(&rows(&value)[name]), loss(&evaluated));
        assert!((expected - found).abs() < 1e-6, "{expected} {found}");
        let generate = |args: &[&str]| {
            let mut command = place.tinygpt();
            command
                .args(["generate", "--checkpoint", smoothing, "--prompt", "12", "--max-new-tokens", "80"])
                .args(args);
            stdout(&mut command)
        };
        let greedy = generate(&["--temperature", "0"]);
        assert!(greedy.starts_with("12") && greedy.contains(" and "), "{greedy}");
        let one = generate(&["--seed", "3", "--first-sample", "1"]);
        let two = generate(&["--seed", "3", "--num-samples", "2", "--separator", ""]);
        assert!(two.ends_with(&one), "a sample does not depend on those beside it: {one} {two}");
    }
    let said = stderr(place.tinygpt().args(["baseline", "run", "--order", "1", "--save", "unigram"]));
    assert!(said.contains("Kneser-Ney unigram written to unigram"), "{said}");
}

#[test]
fn what_cannot_be_counted_saved_or_opened_is_refused() {
    let place = Place::new().with_run("run");
    for order in ["0", "6", "-1", "two"] {
        let message = failure(place.tinygpt().args(["baseline", "run", &format!("--order={order}")]), 2);
        assert!(message.contains("must be a whole number from 1 (unigrams) to 5"), "{message}");
    }
    let message = failure(place.tinygpt().args(["baseline", "run", "--save", "run"]), 1);
    assert!(message.contains("run is not an empty folder: give another --save"), "{message}");
    failure(place.tinygpt().args(["baseline", "run", "--smoothing", "add-k"]), 2);
    let message = failure(place.tinygpt().args(["baseline", "nowhere"]), 1);
    assert!(message.contains("nowhere is not a run or a model folder"), "{message}");

    place.tinygpt().args(["baseline", "run", "--order", "2", "--save", "bigram"]).assert().success();
    for command in ["eval", "baseline"] {
        let message = failure(place.tinygpt().args([command, "bigram"]), 1);
        assert!(message.contains("bigram is an n-gram model and no run, so it has no corpus"), "{message}");
    }
    let message = failure(place.tinygpt().args(["generate", "--checkpoint", "bigram", "--weights", "bf16"]), 2);
    assert!(message.contains("leave --weights out"), "{message}");
    let message = failure(place.tinygpt().args(["generate", "--checkpoint", "bigram", "--kv-cache", "bf16"]), 2);
    assert!(message.contains("leave --kv-cache out"), "{message}");
    let message = failure(place.tinygpt().args(["generate", "--checkpoint", "bigram", "--device", "cuda"]), 2);
    assert!(message.contains("leave --device out"), "{message}");

    let tables = place.read("bigram/ngram.safetensors");
    place.write("bigram/ngram.safetensors", &tables[..tables.len() - 4]);
    let message = failure(place.tinygpt().args(["generate", "--checkpoint", "bigram"]), 1);
    assert!(message.contains("ngram.safetensors: truncated, or not a safetensors file"), "{message}");
    place.write("bigram/ngram.safetensors", &tables);
    place.write("other.txt", "abcabcabc\n".repeat(60));
    place.train().args(["--data", "other.txt", "--out", "other"]).assert().success();
    place.write("bigram/tokenizer.json", place.read("other/tokenizer.json"));
    let message = failure(place.tinygpt().args(["generate", "--checkpoint", "bigram"]), 1);
    assert!(message.contains("tokenizer.json: it has 4 tokens, and the n-gram model "), "{message}");
}
