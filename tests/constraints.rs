//! `tinygpt generate` held to a grammar: a regular expression, a grammar in Lark, a JSON schema.

use serde_json::Value;

use crate::common::{Place, SMALL, failure, json, stdout, trained};

const LARK: &str = "start: \"(\" inner \")\"\ninner: \"\" | \"a\" inner \"b\"\n";

/// Samples of the shared run, whose tokens are characters.
fn samples(args: &[&str]) -> Vec<Value> {
    let mut command = trained().tinygpt();
    command.args(["generate", "--checkpoint", "run", "--seed", "5", "--prompt", "Once", "--json"]).args(args);
    json(&mut command)["samples"].as_array().unwrap().clone()
}

fn text(sample: &Value) -> &str {
    sample["text"].as_str().unwrap()
}

#[test]
fn every_text_matches_the_expression_and_ends_when_it_is_complete() {
    let all = samples(&["--regex", "(he|she) [a-d]{3,5}[.]", "--num-samples", "12", "--temperature", "2"]);
    for sample in &all {
        let (who, what) = text(sample).split_once(' ').unwrap();
        assert!(["he", "she"].contains(&who), "{sample}");
        let letters = what.strip_suffix('.').unwrap();
        assert!((3..=5).contains(&letters.len()) && letters.chars().all(|c| ('a'..='d').contains(&c)), "{sample}");
        assert_eq!(sample["ended_by"], "grammar");
    }
    assert!(all.iter().any(|sample| text(sample) != text(&all[0])));
    // A sample is the same alone.
    let alone = samples(&["--regex", "(he|she) [a-d]{3,5}[.]", "--first-sample", "7", "--temperature", "2"]);
    assert_eq!(alone[0], all[7]);
}

#[test]
fn the_rules_of_sampling_choose_among_what_the_grammar_allows() {
    for rules in [
        &["--temperature", "0"][..],
        &["--top-k", "1"],
        &["--top-p", "0.1", "--logit-bias", "0=50"],
        &["--mirostat-tau", "2"],
        &["--typical-p", "0.5", "--xtc-probability", "1", "--xtc-threshold", "0"],
        &["--no-repeat-ngram-size", "3", "--dry-multiplier", "2"],
    ] {
        let all = samples(&[rules, &["--regex", "[a-e]{4}", "--num-samples", "3"]].concat());
        for sample in all {
            assert!(text(&sample).len() == 4 && text(&sample).chars().all(|c| ('a'..='e').contains(&c)), "{sample}");
        }
    }
}

#[test]
fn an_expression_that_can_always_go_on_ends_at_the_length() {
    let all = samples(&["--regex", "[a-z]+", "--max-new-tokens", "9"]);
    assert_eq!((text(&all[0]).len(), &all[0]["ended_by"]), (9, &"length".into()));
    // One that was not complete is told.
    let mut command = trained().tinygpt();
    command.args(["generate", "--checkpoint", "run", "--seed", "1", "--max-new-tokens", "9"]);
    let output = command.args(["--regex", "[a-z]{20}"]).output().unwrap();
    let notice = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && notice.contains("sample 0 was cut before the grammar was complete"), "{notice}");
}

#[test]
fn grammars_and_schemas_are_read_from_files() {
    let place = Place::new();
    place.write("ab.lark", LARK);
    let schema = r#"{"type": "object", "properties": {"name": {"type": "string", "pattern": "^[a-z]{2,5}$"}},
                     "required": ["name"], "additionalProperties": false}"#;
    place.write("name.json", schema);
    // Tokens that are parts of words.
    place.write("small.toml", SMALL.replace("[data]", "[data]\ntokenizer = \"bpe\"\nvocab_size = 300"));
    place.train().args(["--out", "bpe"]).assert().success();
    let of = |flag: &str, file: &str| {
        let mut command = place.tinygpt();
        command.args(["generate", "--checkpoint", "bpe", "--seed", "3", "--num-samples", "4", "--json"]);
        command.args(["--temperature", "1.5", "--max-new-tokens", "400", flag, file]);
        json(&mut command)["samples"].as_array().unwrap().clone()
    };
    for sample in of("--grammar", "ab.lark") {
        let inner = text(&sample).strip_prefix('(').unwrap();
        if sample["ended_by"] == "grammar" {
            let inner = inner.strip_suffix(')').unwrap();
            let half = inner.len() / 2;
            assert_eq!(inner, "a".repeat(half) + &"b".repeat(half));
        }
    }
    let mut complete = 0;
    for sample in of("--json-schema", "name.json").iter().filter(|sample| sample["ended_by"] == "grammar") {
        let object: Value = serde_json::from_str(text(sample)).unwrap();
        let name = object["name"].as_str().unwrap();
        assert!((2..=5).contains(&name.len()) && name.chars().all(|c| c.is_ascii_lowercase()), "{sample}");
        complete += 1;
    }
    assert!(complete > 0);
}

#[test]
fn a_grammar_that_cannot_be_used_is_refused_before_a_token_is_drawn() {
    let place = Place::new();
    for (name, content) in [("bad.lark", "start: missing\n"), ("bad.json", "{"), ("odd.json", r#"{"type": "odd"}"#)] {
        place.write(name, content);
    }
    let refused = |flag: &str, value: &str, code| {
        let mut command = trained().tinygpt();
        failure(command.args(["generate", "--checkpoint", "run", "--prompt", "Once", flag, value]), code)
    };
    let in_place = |name: &str| place.join(name).display().to_string();
    for (flag, value, code, message) in [
        ("--regex", "(", 2, "--regex: this grammar cannot be used"),
        ("--regex", "[€]+", 2, "--regex: no text of this grammar can be written"),
        ("--grammar", &in_place("bad.lark"), 2, "--grammar: this grammar cannot be used"),
        ("--grammar", &in_place("none.lark"), 1, "none.lark"),
        ("--json-schema", &in_place("bad.json"), 1, "is not JSON"),
        ("--json-schema", &in_place("odd.json"), 2, "--json-schema: this grammar cannot be used"),
    ] {
        let told = refused(flag, value, code);
        assert!(told.contains(message), "{flag} {value}: {told}");
    }
    let mut command = trained().tinygpt();
    let both = ["generate", "--checkpoint", "run", "--regex", "a", "--grammar", "b"];
    assert!(failure(command.args(both), 2).contains("cannot be used with"));
    // A grammar that leads to what the tokenizer cannot write.
    let mut command = trained().tinygpt();
    let dead_end = ["generate", "--checkpoint", "run", "--seed", "1", "--regex", "ab€", "--json"];
    let told = failure(command.args(dead_end), 1);
    assert!(told.contains("the grammar allows no token of the vocabulary after 2 tokens"), "{told}");
}

#[test]
fn a_text_is_printed_as_it_is_generated() {
    let mut command = trained().tinygpt();
    command.args(["generate", "--checkpoint", "run", "--seed", "1", "--prompt", "Once", "--regex", " (a|b){2}!?"]);
    let text = stdout(command.args(["--max-new-tokens", "3"]));
    assert!(text.starts_with("Once ") && text.trim_end().len() == 7, "{text:?}");
}
