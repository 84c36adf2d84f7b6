//! `tinygpt lab`: sampling strategies side by side.

use std::collections::HashSet;

use serde_json::Value;

use crate::common::{Place, failure, json, stdout, trained};

/// Of each kind one.
const STRATEGIES: &str = r#"
[[strategy]]
name = "greedy"
temperature = 0
[[strategy]]
name = "everything"
temperature = 1.7
temperature_end = 0.5
temperature_schedule = "exponential"
top_k = 30
top_p = 0.95
min_p = 0.01
repetition_penalty = 1.1
presence_penalty = 0.1
frequency_penalty = 0.05
logit_bias = [[5, -inf], [7, 0.25]]
adaptive = 0.75
[[strategy]]
name = "plain"
[[strategy]]
name = "beam"
beam = 3
"#;

fn lab(place: &Place, args: &[&str]) -> assert_cmd::Command {
    let mut command = place.tinygpt();
    command.args(["lab", "run", "--samples", "3", "--max-new-tokens", "12"]).args(args);
    command
}

/// A place with the shared run and a file of strategies.
fn place() -> Place {
    let place = Place::new().with_run("run");
    place.write("lab.toml", STRATEGIES);
    place
}

#[test]
fn json_has_every_number_and_every_completion() {
    let place = place();
    let value = json(&mut lab(&place, &["--config", "lab.toml", "--prompt", "Once", "--prompt", "", "--json"]));
    assert_eq!((&value["run"], &value["seed"], &value["samples"]), (&"run".into(), &1337.into(), &3.into()));
    assert_eq!((&value["prompts"], &value["max_new_tokens"]), (&serde_json::json!(["Once", ""]), &12.into()));
    let strategies = value["strategies"].as_array().unwrap();
    let names: Vec<&str> = strategies.iter().map(|strategy| strategy["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["greedy", "everything", "plain", "beam"]);
    for strategy in strategies {
        let beam = strategy["name"] == "beam";
        assert_eq!(strategy["beam"], if beam { 3.into() } else { Value::Null });
        assert_eq!(strategy["generate"].is_null(), beam);
        for key in ["entropy", "kept"] {
            assert_eq!(strategy[key].is_null(), beam, "{key}");
        }
        for key in ["model_entropy", "perplexity", "looping"] {
            assert!(strategy[key].is_f64(), "{key}: {strategy}");
        }
        assert!(strategy.get("loop").is_some() && strategy.get("accepted").is_some());
        assert!(strategy["stories"].is_u64(), "{strategy}");
        let completions = strategy["completions"].as_array().unwrap();
        let numbers: Vec<_> = completions.iter().map(|c| (c["prompt"].as_u64(), c["sample"].as_u64())).collect();
        let expected: Vec<_> = (0..2).flat_map(|p| (0..3).map(move |s| (Some(p), Some(s)))).collect();
        assert_eq!(numbers, expected);
        for completion in completions {
            assert_eq!(
                (completion["tokens"].as_array().unwrap().len(), &completion["ended_by"]),
                (12, &"length".into())
            );
            assert!(completion["text"].is_string() && completion["perplexity"].is_f64());
            assert!(completion["model_entropy"].is_f64() && completion.get("loop").is_some());
        }
        // Counted anew in the texts as they are printed.
        let texts: Vec<Vec<&str>> =
            completions.iter().map(|c| c["text"].as_str().unwrap().split_whitespace().collect()).collect();
        for (key, n) in [("distinct_1", 1), ("distinct_2", 2), ("repeated_4_grams", 4)] {
            let all: usize = texts.iter().map(|words| words.windows(n).len()).sum();
            let different = texts.iter().flat_map(|words| words.windows(n)).collect::<HashSet<_>>().len();
            let new: usize = texts.iter().map(|words| words.windows(n).collect::<HashSet<_>>().len()).sum();
            let counted = if n == 4 { all - new } else { different };
            let expected = if all == 0 { Value::Null } else { (counted as f64 / all as f64).into() };
            assert_eq!(strategy[key], expected, "{key}");
        }
        let same = completions[..3].iter().all(|completion| completion["tokens"] == completions[0]["tokens"]);
        assert_eq!(strategy["deterministic"], beam || strategy["name"] == "greedy");
        assert!(same || strategy["deterministic"] == false);
    }
}

#[test]
fn a_completion_is_the_text_that_generate_gives_with_the_flags_that_are_named() {
    let place = place();
    let args = ["--config", "lab.toml", "--prompt", "Once", "--prompt", "", "--seed", "7", "--json"];
    let value = json(&mut lab(&place, &args));
    for strategy in value["strategies"].as_array().unwrap().iter().filter(|strategy| strategy["beam"].is_null()) {
        let flags: Vec<&str> = strategy["generate"].as_array().unwrap().iter().map(|f| f.as_str().unwrap()).collect();
        for (prompt, first) in [("Once", 0), ("", 3)] {
            let mut generate = place.tinygpt();
            generate.args(["generate", "--checkpoint", "run", "--prompt", prompt, "--seed", "7", "--json"]);
            generate.args(["--num-samples", "3", "--max-new-tokens", "12"]).args(&flags);
            for (i, sample) in json(&mut generate)["samples"].as_array().unwrap().iter().enumerate() {
                let completion = &strategy["completions"][first + i];
                assert_eq!(completion["tokens"], sample["tokens"], "{flags:?}");
                assert_eq!(completion["text"], sample["text"], "{flags:?}");
            }
        }
    }
}

#[test]
fn the_bytes_are_the_same_for_any_number_of_threads_and_by_default_the_printed_configuration_is_compared() {
    let place = place();
    place.write("default.toml", stdout(place.tinygpt().args(["lab", "--print-config"])));
    let one = stdout(&mut lab(&place, &["--json", "--threads", "1"]));
    for args in [&["--threads", "3"][..], &["--config", "default.toml"]] {
        assert_eq!(one, stdout(lab(&place, &["--json"]).args(args)), "{args:?}");
    }
    let value: Value = serde_json::from_str(&one).unwrap();
    assert_eq!(value["strategies"].as_array().unwrap().len(), 10);
}

#[test]
fn stories_are_judged_where_the_run_learned_them_and_a_completion_starts_one() {
    let place = Place::new().with_run("run");
    let strategies = "[[strategy]]\nname = 'line breaks'\nlogit_bias = [[0, 1000.0]]\n";
    place.write("breaks.toml", strategies).write("text.txt", "one two three\n".repeat(200));
    let told = |command: &mut assert_cmd::Command| {
        let strategy = json(command)["strategies"][0].take();
        (strategy["stories"].clone(), strategy["accepted"].clone())
    };
    let judged = told(&mut lab(&place, &["--config", "breaks.toml", "--json"]));
    assert_eq!(judged, (36.into(), 0.0.into()), "three times twelve line breaks, each of which ends an empty story");
    let prompted = told(&mut lab(&place, &["--config", "breaks.toml", "--prompt", "Once", "--json"]));
    assert_eq!(prompted, (Value::Null, Value::Null));
    place.train().args(["--data", "text.txt", "--out", "other"]).assert().success();
    let mut other = place.tinygpt();
    other.args(["lab", "other", "--samples", "1", "--max-new-tokens", "3", "--config", "breaks.toml", "--json"]);
    assert_eq!(told(&mut other), (Value::Null, Value::Null));
}

#[test]
fn people_get_a_table_of_at_most_100_columns_and_a_completion_of_each_strategy() {
    let place = place();
    let text = stdout(&mut lab(&place, &["--config", "lab.toml", "--prompt", "Once", "--plot", "lab.svg"]));
    assert!(text.starts_with("3 completions, 12 tokens each, seed 1337\n\nstrategy "), "{text}");
    for part in ["\nplain ", "\n--- greedy\nOnce", "\n--- beam\nOnce", "\nlooping     completions that end in a loop"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    let svg = place.text("lab.svg");
    assert!(
        ["everything", "distinct pairs of words", "diversity and perplexity"].iter().all(|part| svg.contains(part))
    );
    lab(&place, &["--config", "lab.toml", "--plot", "lab.png"]).assert().success();
    assert_eq!(&place.read("lab.png")[1..4], b"PNG");
}

#[test]
fn what_cannot_be_compared_is_refused_before_any_work() {
    let place = place();
    place.write("empty.toml", "").write("unknown.toml", "[[strategy]]\nname = 'a'\ntopk = 3\n");
    place.write("bias.toml", "[[strategy]]\nname = 'a'\nlogit_bias = [[4000, 1.0]]\n");
    place.write("both.toml", "[[strategy]]\nname = 'a'\nbeam = 2\ntop_p = 0.5\n");
    place.write("range.toml", "[[strategy]]\nname = 'a'\nmin_p = 2.0\n");
    for (args, message) in [
        (&["--config", "empty.toml"][..], "empty.toml: there are no strategies"),
        (&["--config", "unknown.toml"], "unknown field `topk`"),
        (&["--config", "bias.toml"], "token 4000 of logit_bias is not below the vocabulary size"),
        (&["--config", "both.toml"], "beam stands alone"),
        (&["--config", "range.toml"], "strategy `a`: min_p is 2"),
        (&["--config", "none.toml"], "`tinygpt lab --print-config` prints a file to start from"),
        (&["--plot", "lab.pdf"], "lab.pdf: a plot is written as .svg or .png"),
        (&["--print-config"], "--print-config"),
    ] {
        let error = failure(&mut lab(&place, args), 2);
        assert!(error.contains(message), "{args:?}: {error}");
    }
    let error = failure(&mut lab(&place, &["--prompt", "Wäs"]), 1);
    assert!(error.contains("the prompt: character 'ä' (U+00E4) at character index 1"), "{error}");
    let missing = failure(place.tinygpt().args(["lab", "nowhere"]), 1);
    assert!(missing.contains("nowhere is not a run or a model folder: there is no such folder"), "{missing}");
    let none = failure(Place::new().tinygpt().arg("lab"), 1);
    assert!(none.contains("there is no run"), "{none}");
    failure(trained().tinygpt().args(["lab", "run", "--samples", "0"]), 2);
    failure(trained().tinygpt().args(["lab", "run", "--max-new-tokens", "0"]), 2);
    assert!(!place.join("lab.pdf").exists());
}
