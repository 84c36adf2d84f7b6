//! `tinygpt score`: the probability of a text, token by token.

use serde_json::Value;

use crate::common::{Place, failure, json, stderr, stdout, trained};

const STORY: &str = "Mia got a big red kite. She was glad.";

fn numbers(value: &Value, key: &str) -> Vec<f64> {
    value["tokens"].as_array().unwrap().iter().map(|token| token[key].as_f64().unwrap()).collect()
}

#[test]
fn the_probabilities_of_tokens_multiply_to_that_of_the_text() {
    let value = json(trained().tinygpt().args(["score", "run", STORY, "--json"]));
    let tokens = value["tokens"].as_array().unwrap();
    let text: String = tokens.iter().map(|token| token["text"].as_str().unwrap()).collect();
    assert_eq!(
        (text.as_str(), &value["run"], &value["stride"], &value["context"]),
        (STORY, &"run".into(), &8.into(), &16.into())
    );
    let sum: f64 = numbers(&value, "logprob").iter().sum();
    let field = |key: &str| value[key].as_f64().unwrap();
    assert!((field("logprob") - sum).abs() < 1e-9);
    assert!((field("perplexity") - (-sum / STORY.len() as f64).exp()).abs() < 1e-9);
    assert!((field("bits_per_byte") + sum / STORY.len() as f64 / std::f64::consts::LN_2).abs() < 1e-9);
    for token in tokens {
        let top = token["top"].as_array().unwrap();
        let logprobs: Vec<f64> = top.iter().map(|top| top["logprob"].as_f64().unwrap()).collect();
        assert!(logprobs.len() == 5 && logprobs.is_sorted_by(|a, b| a >= b), "{token}");
        let rank = token["rank"].as_u64().unwrap() as usize;
        // A token is among the most probable ones exactly at its rank.
        let place = top.iter().position(|top| top["id"] == token["id"]);
        assert_eq!(place, (rank <= 5).then(|| rank - 1), "{token}");
        if let Some(place) = place {
            assert_eq!((&top[place]["logprob"], &top[place]["text"]), (&token["logprob"], &token["text"]));
        }
        let entropy = token["entropy"].as_f64().unwrap();
        assert!((0.0..=(57f64).ln()).contains(&entropy), "{token}");
    }
}

#[test]
fn the_most_probable_tokens_are_as_many_as_are_asked_for_up_to_the_whole_vocabulary() {
    for (top, shown) in [("0", 0), ("1", 1), ("1000", 57)] {
        let value = json(trained().tinygpt().args(["score", "run", "Mia", "--json", "--top", top]));
        for token in value["tokens"].as_array().unwrap() {
            let logprobs = token["top"].as_array().unwrap().iter().map(|top| top["logprob"].as_f64().unwrap());
            assert_eq!(logprobs.len(), shown, "{token}");
            let sum: f64 = logprobs.map(f64::exp).sum();
            assert!(shown < 57 || (sum - 1.0).abs() < 1e-6, "{sum}");
        }
    }
}

#[test]
fn a_text_behind_a_line_break_has_the_loss_that_eval_gives_it() {
    let place = Place::new().with_run("run");
    place.write("story.txt", STORY).write("with_start.txt", format!("\n{STORY}"));
    for stride in ["1", "5", "16"] {
        let score = json(place.tinygpt().args(["score", "run", "--file", "story.txt", "--stride", stride, "--json"]));
        let eval =
            json(place.tinygpt().args(["eval", "run", "--data", "with_start.txt", "--stride", stride, "--json"]));
        let (score, eval) = (&score["bits_per_byte"], &eval["bits_per_byte"]);
        assert!((score.as_f64().unwrap() - eval.as_f64().unwrap()).abs() < 1e-5, "{stride}: {score} {eval}");
    }
}

#[test]
fn the_text_comes_from_an_argument_a_file_or_standard_input_and_the_run_is_the_newest() {
    let place = Place::new().with_run("runs/only-1");
    place.write("story.txt", STORY);
    let expected = stdout(place.tinygpt().args(["score", "runs/only-1", STORY]));
    for args in
        [&["score", STORY][..], &["score", "--file", "story.txt"], &["score", "runs/only-1", "--file", "story.txt"]]
    {
        assert_eq!(stdout(place.tinygpt().args(args)), expected, "{args:?}");
    }
    for args in [&["score", "-"][..], &["score", "runs/only-1", "-"]] {
        assert_eq!(stdout(place.tinygpt().args(args).write_stdin(STORY)), expected, "{args:?}");
    }
    assert!(stderr(place.tinygpt().args(["score", STORY])).contains("run: runs/only-1"));
}

#[test]
fn people_get_a_line_for_each_token_and_the_figures() {
    let text = stdout(trained().tinygpt().args(["score", "run", "a b\n"]));
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("token  probability  logprob    rank  entropy  most probable"), "{text}");
    let shown: Vec<&str> = lines[1..5].iter().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(shown, ["a", "␣", "b", "⏎"]);
    assert!(lines[6].contains("log-probability -") && lines[6].contains("(4 tokens)"), "{text}");
    assert!(!text.contains('\x1b'));
}

#[test]
fn a_text_stands_beside_its_shuffled_words_and_random_characters() {
    let compare =
        |seed: &str| json(trained().tinygpt().args(["score", "run", STORY, "--compare", "--seed", seed, "--json"]));
    let value = compare("1");
    let texts = value["compare"].as_array().unwrap();
    let names: Vec<&str> = texts.iter().map(|text| text["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["text", "shuffled words", "random characters"]);
    assert_eq!((&texts[0]["logprob"], &texts[0]["text"]), (&value["logprob"], &STORY.into()));
    for text in texts {
        assert_eq!(text["text"].as_str().unwrap().chars().count(), STORY.len());
        assert_eq!(text["tokens"], STORY.len());
        // Each has the figures that it has alone.
        let alone = json(trained().tinygpt().args(["score", "run", text["text"].as_str().unwrap(), "--json"]));
        assert_eq!((&alone["perplexity"], &alone["bits_per_byte"]), (&text["perplexity"], &text["bits_per_byte"]));
    }
    let random = &texts[2]["bits_per_byte"];
    assert!(random.as_f64().unwrap() > texts[0]["bits_per_byte"].as_f64().unwrap());
    assert_eq!(compare("1"), value);
    assert_ne!(compare("2")["compare"][2]["text"], texts[2]["text"]);
    let text = stdout(trained().tinygpt().args(["score", "run", STORY, "--compare"]));
    assert!(
        ["tokens  bits/byte  perplexity", "shuffled words", "random characters"].iter().all(|part| text.contains(part))
    );
}

#[test]
fn a_plot_is_a_page_or_a_chart() {
    let place = Place::new().with_run("run");
    for name in ["a.html", "a.svg", "a.PNG"] {
        place.tinygpt().args(["score", "run", STORY, "--plot", name]).assert().success();
    }
    let page = place.text("a.html");
    assert_eq!(page.matches("data-tip=\"").count(), STORY.len());
    assert!(
        page.starts_with("<!DOCTYPE html>") && page.contains("prefers-color-scheme: dark") && !page.contains("http")
    );
    let chart = place.text("a.svg");
    assert!(["surprisal", "expected (entropy)", "bits/byte"].iter().all(|part| chart.contains(part)), "{chart}");
    assert!(place.read("a.PNG").starts_with(b"\x89PNG"));
    let error = failure(place.tinygpt().args(["score", "run", STORY, "--plot", "a.gif"]), 2);
    assert!(error.contains("a.gif: --plot writes .html, .svg or .png"), "{error}");
}

#[test]
fn parts_of_characters_are_shown_as_bytes() {
    let place = Place::new();
    let mut train = place.train();
    train.args(["--out", "bpe", "--set", "data.tokenizer=\"bpe\"", "--set", "data.vocab_size=300"]).assert().success();
    let value = json(place.tinygpt().args(["score", "bpe", "the é", "--json"]));
    let texts: Vec<&str> =
        value["tokens"].as_array().unwrap().iter().map(|token| token["text"].as_str().unwrap()).collect();
    assert!(texts.ends_with(&[r"\xC3", r"\xA9"]), "{texts:?}");
    assert!(
        (value["bits_per_byte"].as_f64().unwrap() * 6.0 * std::f64::consts::LN_2 + value["logprob"].as_f64().unwrap())
            .abs()
            < 1e-9
    );
}

#[test]
fn scoring_refuses_what_it_cannot_score() {
    let place = Place::new().with_run("run");
    place.write("empty.txt", "").write("bytes.txt", b"\xff");
    for (args, code, message) in [
        (&["run", ""][..], 1, "the text is empty"),
        (&["run", "--file", "empty.txt"], 1, "the text is empty"),
        (&["run", "--file", "bytes.txt"], 1, "bytes.txt is not UTF-8"),
        (&["run", "--file", "none.txt"], 1, "cannot read none.txt"),
        (&["run", "Mia ä"], 1, "character 'ä' (U+00E4) at character index 4"),
        (&["nowhere", "Mia"], 1, "nowhere is not a run or a model folder"),
        (&["Mia"], 1, "there is no run"),
        (&["run"], 2, "run is a folder: give the text behind it"),
        (&[], 2, "give a text"),
        (&["run", "Mia", "--file", "empty.txt"], 2, "not both"),
        (&["run", "Mia", "--context", "17"], 2, "the context must be from 1 to 16"),
        (&["run", "Mia", "--stride", "0"], 2, "the stride from 1 to the context"),
        (&["run", "Mia", "--seed", "1"], 2, "--compare"),
    ] {
        let error = failure(place.tinygpt().arg("score").args(args), code);
        assert!(error.contains(message), "{args:?}: {error}");
    }
}
