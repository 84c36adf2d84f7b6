//! `tinygpt plan`, as a user sees it. Times are the machine's: what is asserted is how they go together.

use std::{fs, path::Path};

use serde_json::Value;

use crate::common::{Place, failure, json, stdout};

/// Minutes that were enough for the smallest size on two cores with other work, where the program is not optimised; nothing is trained
/// in them. On a machine that is several times slower no size would fit, and these tests would fail.
const MINUTES: &str = "5";

/// A text of about 60,000 characters.
fn with_text() -> Place {
    let place = Place::new();
    let mut command = place.tinygpt();
    command.args(["data", "synth", "--bytes", "60000", "--out", "my.txt"]).assert().success();
    place
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("{key}: {value}"))
}

#[test]
fn the_best_of_the_candidates_fits_the_time_and_is_written_as_a_configuration_that_trains() {
    let place = with_text();
    let args = ["plan", "--minutes", MINUTES, "--data", "my.txt", "--write", "my-plan.toml", "--json"];
    let value = json(place.tinygpt().args(args));
    let minutes = MINUTES.parse::<f64>().unwrap();
    assert_eq!((number(&value, "minutes"), &value["device"]), (minutes, &Value::from("cpu")));
    let corpus = &value["corpus"];
    let bytes = fs::metadata(place.join("my.txt")).unwrap().len() as f64;
    assert_eq!((number(corpus, "bytes"), number(corpus, "characters")), (bytes, bytes));
    assert_eq!((&corpus["law_of"], &corpus["law_is_its_own"]), (&"tinyshakespeare".into(), &false.into()));

    let (best, candidates) = (&value["best"], value["candidates"].as_array().unwrap());
    assert!(candidates.contains(best), "{value}");
    for candidate in candidates {
        assert!(number(candidate, "minutes") <= minutes, "{candidate}");
        assert!(number(candidate, "loss") >= number(best, "loss"), "{candidate}");
        assert_eq!(number(candidate, "tokens"), 1024.0 * number(candidate, "updates"), "{candidate}");
    }
    assert_eq!(value["command"], "tinygpt train --config my-plan.toml");
    assert_eq!(value["config"]["train"]["max_steps"], best["updates"]);

    let text = place.text("my-plan.toml");
    let first = text.lines().next().unwrap();
    assert!(first.starts_with("# Made by `tinygpt plan`: ") && first.contains("parameters"), "{first}");
    let mut train = place.tinygpt();
    train.args(["train", "--config", "my-plan.toml", "--set", "train.max_steps=2", "--out", "run", "--json"]);
    assert_eq!(json(&mut train)["step"], 2);
    assert!(place.text("run/train.toml").contains("name = \"my-plan\""));
}

#[test]
fn people_get_a_table_with_the_best_marked_and_hear_that_the_loss_of_another_text_is_an_estimate() {
    let place = with_text();
    let text = stdout(place.tinygpt().args(["plan", "--minutes", MINUTES, "--data", "my.txt"]));
    for word in
        ["corpus    my.txt: ", "machine   cpu, ", "expected loss", "so it is an estimate", "exponents are borrowed"]
    {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert_eq!(text.lines().filter(|line| line.starts_with("* ") && line.contains("x4 ")).count(), 1, "{text}");
    assert!(text.contains("give --write FILE to keep this configuration"), "{text}");
    assert_eq!(place.names("."), ["cache", "my.txt", "small.toml"], "a plan leaves nothing behind");
}

#[test]
fn the_stories_have_a_law_of_their_own_and_are_made_as_they_are_needed() {
    let place = Place::new();
    let value = json(place.tinygpt().args(["plan", "--minutes", MINUTES, "--data", "stories", "--json"]));
    assert_eq!((&value["corpus"]["law_of"], &value["corpus"]["law_is_its_own"]), (&"stories".into(), &true.into()));
    assert_eq!((&value["command"], &value["written"]), (&Value::Null, &Value::Null));
    assert!(number(&value["config"]["data"], "stories_bytes") > number(&value["best"], "tokens"), "{value}");
    assert!(number(&value["best"], "loss") > number(&value["law"], "e"), "{value}");
}

/// `docs/scaling/laws.json` is what `scripts/fit_scaling.py` made of the runs.
#[test]
fn the_laws_are_those_that_were_fitted() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/scaling/laws.json");
    let fitted: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    use tinygpt_trainer::scaling::ScalingLaw;
    for (name, law) in [("tinyshakespeare", ScalingLaw::SHAKESPEARE), ("stories", ScalingLaw::STORIES)] {
        assert_eq!(serde_json::to_value(law).unwrap(), fitted[name], "{name}");
    }
}

#[test]
fn what_cannot_be_planned_says_what_to_do() {
    let place = with_text();
    place.write("short.txt", "too short").write("there.toml", "precious");
    let refused = |args: &[&str], code| failure(place.tinygpt().arg("plan").args(args), code);
    for minutes in ["0", "-1", "nan", "inf"] {
        let message = refused(&["--minutes", minutes, "--data", "my.txt"], 2);
        assert!(message.contains("is no time to train in: give a number above 0"), "{message}");
    }
    refused(&["--data", "my.txt"], 2);
    refused(&["--minutes", "1"], 2);
    let message = refused(&["--minutes", "1", "--data", "none.txt"], 1);
    assert!(message.contains("there is no corpus at `none.txt`"), "{message}");
    let message = refused(&["--minutes", "1", "--data", "tinyshakespeare"], 1);
    assert!(message.contains("`tinygpt data fetch tinyshakespeare` downloads it"), "{message}");
    let message = refused(&["--minutes", "1", "--data", "short.txt"], 1);
    assert!(message.contains("use a larger corpus"), "{message}");
    let message = refused(&["--minutes", "1", "--data", "my.txt", "--write", "there.toml"], 1);
    assert!(message.contains("there.toml exists already: give --overwrite"), "{message}");
    let message = refused(&["--minutes", "0.0001", "--data", "my.txt"], 1);
    assert!(message.contains("too short for any size on this machine: give --minutes "), "{message}");
    assert_eq!(place.text("there.toml"), "precious");
}
