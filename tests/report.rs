//! `tinygpt report`: the page of a run, read as the well-formed XML that it is.

use roxmltree::{Document, Node, ParsingOptions};
use serde_json::Value;

use crate::common::{Place, failure, json, stderr, stdout};

const SECTIONS: [&str; 9] =
    ["summary", "losses", "gap", "updates", "baselines", "samples", "attention", "calibration", "configuration"];

/// Runs `report` with `--json` and returns the page with what was printed.
fn report(place: &Place, args: &[&str]) -> (String, Value) {
    let value = json(place.tinygpt().args(["report", "--json", "--device", "cpu"]).args(args));
    (place.text(value["page"].as_str().unwrap()), value)
}

fn parse(page: &str) -> Document<'_> {
    let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
    Document::parse_with_options(page, options).unwrap()
}

fn section<'a>(page: &'a Document<'_>, id: &str) -> Node<'a, 'a> {
    page.descendants().find(|node| node.has_tag_name("section") && node.attribute("id") == Some(id)).unwrap()
}

fn text(node: Node<'_, '_>) -> String {
    node.descendants().filter(Node::is_text).filter_map(|node| node.text()).collect()
}

/// The charts below a node, each of which must have a label and marks.
fn charts<'a>(node: Node<'a, 'a>) -> Vec<Node<'a, 'a>> {
    let charts: Vec<Node<'_, '_>> = node.descendants().filter(|node| node.tag_name().name() == "svg").collect();
    for chart in &charts {
        let label = chart.parent().unwrap().attribute("aria-label").unwrap();
        assert!(!label.is_empty() && chart.parent().unwrap().attribute("role") == Some("img"));
        // The background is a rectangle, and the border of a frame is a line.
        let marks = chart.descendants().filter(|node| ["rect", "polyline", "circle"].contains(&node.tag_name().name()));
        assert!(marks.count() > 4 && !text(*chart).contains("no data"), "{label}");
    }
    charts
}

/// Whether everything that a browser would fetch or run is absent.
fn assert_stands_alone(page: &str) {
    assert!(page.len() < 2_000_000, "{} bytes", page.len());
    let others = page.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
    for fetched in ["http:", "https:", "url(", "@import", "src=", "srcset="] {
        assert!(!others.contains(fetched), "{fetched}");
    }
    let page = parse(page);
    for node in page.descendants().filter(Node::is_element) {
        let name = node.tag_name().name();
        assert!(!["script", "link", "iframe", "img", "object", "embed", "base", "form"].contains(&name), "{name}");
        for attribute in node.attributes() {
            assert!(!attribute.name().starts_with("on"), "{name} {}", attribute.name());
            assert!(attribute.name() != "href" || attribute.value().starts_with('#'));
        }
    }
}

#[test]
fn a_page_has_every_part_with_its_figures_and_stands_alone() {
    let place = Place::new().with_run("run");
    let (page, value) = report(&place, &["run"]);
    assert_eq!((&value["page"], &value["run"]), (&"run/report.html".into(), &"run".into()));
    assert_eq!(value["left_out"], Value::Array(Vec::new()));
    assert_stands_alone(&page);
    let page = parse(&page);
    for id in SECTIONS {
        assert!(page.descendants().any(|node| node.attribute("href") == Some(format!("#{id}").as_str())), "{id}");
        let heading = section(&page, id).attribute("aria-labelledby").unwrap();
        assert!(page.descendants().any(|node| node.attribute("id") == Some(heading)));
    }
    let config = json(place.tinygpt().args(["info", "run", "--json"]));
    let shape = place.json("run/config.json");
    let heads = shape["n_layer"].as_u64().unwrap() * shape["n_head"].as_u64().unwrap();
    let count = |id: &str| charts(section(&page, id)).len() as u64;
    assert_eq!(["losses", "updates", "baselines", "calibration"].map(count), [1, 4, 1, 1]);
    assert_eq!(count("attention"), heads);

    let evaluated = json(place.tinygpt().args(["eval", "run", "--json"]));
    for (key, figure) in value["summary"]["validation"].as_object().unwrap() {
        assert_eq!(figure, &evaluated[key], "{key}");
    }
    assert_eq!(value["summary"]["stderr"], evaluated["stderr"]);
    assert_eq!(value["summary"]["parameters"], config["parameters"]);
    let baselines = json(place.tinygpt().args(["baseline", "run", "--json"]));
    assert_eq!(value["baselines"], baselines["models"]);
    let compared = json(place.tinygpt().args(["compare", "run", "run", "--json"]));
    for (key, expected) in compared["calibration"]["a"].as_object().unwrap() {
        assert_eq!(&value["calibration"][key], expected, "{key}");
    }
    assert_eq!(value["calibration"]["share"], 1.0);
    let gap = &value["generalization"];
    let loss = |of: &str| gap[of]["loss"].as_f64().unwrap();
    assert_eq!(loss("validation") - loss("train"), gap["generalization_gap"].as_f64().unwrap());
    assert_eq!(loss("validation"), evaluated["loss"].as_f64().unwrap());
    let told = text(section(&page, "gap"));
    assert!(told.contains("What limits this model: bias") && gap["limit"] == "bias", "60 updates are few: {told}");
    for shown in [format!("{:.4}", loss("validation")), format!("{:.4}", loss("train"))] {
        assert!(told.contains(&shown), "{shown}: {told}");
    }
    assert!(text(section(&page, "samples")).contains("train.sample_every=100"), "this run took none");
    assert!(text(section(&page, "configuration")).contains("max_steps = 60"));
}

#[test]
fn samples_are_shown_by_their_updates() {
    let place = Place::new();
    let samples = ["--set", "train.sample_every=2", "--set", "train.eval_every=2", "--set", "train.sample_prompt=Once"];
    place.train().args(["--out", "run"]).args(samples).assert().success();
    let (page, _) = report(&place, &["run", "--no-baselines"]);
    let page = parse(&page);
    let section = section(&page, "samples");
    let lines: Vec<Value> =
        place.text("run/samples.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let shown: Vec<String> = section.descendants().filter(|node| node.has_tag_name("pre")).map(text).collect();
    assert!(lines.len() > 2 && lines.len() == shown.len());
    for (line, shown) in lines.iter().zip(&shown) {
        assert_eq!(shown.trim_start_matches('\n'), format!("Once{}", line["text"].as_str().unwrap()));
    }
    let headings: Vec<String> = section.descendants().filter(|node| node.has_tag_name("h3")).map(text).collect();
    assert!(headings[0].starts_with("Update 0, validation loss ") && headings[1].starts_with("Update 2, "));
}

#[test]
fn what_users_and_models_wrote_is_text_and_never_a_tag() {
    let place = Place::new();
    let text_file = "<b>\"it's\" & </b> <script>alert(1)</script> ]]> &amp;\n".repeat(60);
    place.write("text.txt", &text_file);
    let run = "<i>run & 'co'";
    let prompt = ["--set", "train.sample_prompt=\"<b>\""];
    place.train().args(["--data", "text.txt", "--out", run]).args(prompt).assert().success();
    let hostile = "</pre><script>alert(1)</script>\u{1b}[31m & \"x\" ' &lt; \u{202e} <!-- ]]>\u{0}";
    let sample = serde_json::json!({ "format": 1, "step": 0, "prompt": "<p>", "text": hostile, "seed": 1 });
    place.write(&format!("{run}/samples.jsonl"), format!("{sample}\n"));
    let (page, _) = report(&place, &[run]);
    assert_stands_alone(&page);
    let page = parse(&page);
    let heading = page.descendants().find(|node| node.has_tag_name("h1")).unwrap();
    assert_eq!(text(heading), run);
    let seen = text(section(&page, "samples"));
    let expected = hostile.replace('\u{1b}', "\\x1b").replace('\u{0}', "\\x00");
    assert!(seen.contains(&format!("<p>{expected}")), "{seen}");
    // A character a token, on the axes and below the heading.
    let tokens = section(&page, "attention").descendants().find(|node| node.attribute("class") == Some("tokens"));
    assert!(text(tokens.unwrap()).contains('<'));
    assert!(text(section(&page, "configuration")).contains("sample_prompt = \"<b>\""));
}

#[test]
fn without_its_text_a_run_has_a_page_of_what_is_left() {
    let place = Place::new();
    place.write("text.txt", "the cat sat on the mat and the dog sat on the log\n".repeat(40));
    let samples = ["--set", "train.sample_every=5"];
    place.train().args(["--data", "text.txt", "--out", "run"]).args(samples).assert().success();
    std::fs::remove_file(place.join("text.txt")).unwrap();
    let (page, value) = report(&place, &["run", "--out", "left.html"]);
    assert_eq!(value["page"], "left.html");
    assert_stands_alone(&page);
    let left_out = value["left_out"].as_array().unwrap();
    assert_eq!(left_out.len(), 1, "one reason for all: {left_out:?}");
    assert!(left_out[0].as_str().unwrap().contains("text.txt"), "{left_out:?}");
    assert_eq!([&value["baselines"], &value["calibration"], &value["summary"]["validation"]], [&Value::Null; 3]);
    assert_eq!(value["generalization"]["train_in_passing"], true);
    let page = parse(&page);
    for id in ["baselines", "calibration"] {
        assert!(text(section(&page, id)).contains("Left out: the run's text is not there: "), "{id}");
        assert!(charts(section(&page, id)).is_empty());
    }
    assert!(text(section(&page, "gap")).contains("a rough one"));
    assert!(!charts(section(&page, "attention")).is_empty(), "of the last sample");
    assert_eq!(charts(section(&page, "losses")).len(), 1);

    for file in ["samples.jsonl", "metrics.jsonl"] {
        std::fs::remove_file(place.join(&format!("run/{file}"))).unwrap();
    }
    let (page, value) = report(&place, &["run"]);
    assert_eq!(value["left_out"].as_array().unwrap().len(), 3, "{}", value["left_out"]);
    assert!(text(section(&parse(&page), "losses")).contains("Left out: metrics.jsonl of this run has no lines"));
}

#[test]
fn without_baselines_nothing_is_counted_and_metrics_of_an_earlier_version_have_no_update_ratio() {
    let place = Place::new().with_run("run");
    let lines: String = place
        .text("run/metrics.jsonl")
        .lines()
        .map(|line| {
            let mut row: Value = serde_json::from_str(line).unwrap();
            row.as_object_mut().unwrap().shift_remove("update_ratio");
            row.to_string() + "\n"
        })
        .collect();
    place.write("run/metrics.jsonl", lines);
    let (page, value) = report(&place, &["run", "--no-baselines"]);
    assert_eq!((&value["baselines"], &value["generalization"]["best_ngram"]), (&Value::Null, &Value::Null));
    let page = parse(&page);
    assert!(text(section(&page, "baselines")).contains("--no-baselines"));
    let updates = section(&page, "updates");
    assert!(charts(updates).len() == 3 && text(updates).contains("Left out: Update-to-weight ratio, which metrics"));
}

#[test]
fn the_newest_run_is_the_default_and_people_are_told_where_its_page_is() {
    let place = Place::new();
    place.train().assert().success();
    let mut command = place.tinygpt();
    let command = command.args(["report", "--device", "cpu"]);
    let told = stdout(command);
    assert!(told.ends_with("runs/small-1/report.html\n") && told.contains("generalization gap "), "{told}");
    let first = place.read("runs/small-1/report.html");
    assert!(stderr(command).contains("run: runs/small-1"));
    assert!(place.read("runs/small-1/report.html") == first, "the same run gives the same page");
}

#[test]
fn what_is_no_run_and_a_page_of_another_name_are_refused() {
    let place = Place::new().with_run("run");
    place.tinygpt().args(["baseline", "run", "--order", "1", "--save", "unigram"]).assert().success();
    for (folder, reason) in [("nowhere", "there is no such folder"), ("unigram", "it has no train.toml")] {
        let message = failure(place.tinygpt().args(["report", folder]), 1);
        assert!(message.contains(reason), "{message}");
    }
    let message = failure(place.tinygpt().args(["report", "run", "--out", "run/model.safetensors"]), 2);
    assert!(message.contains("a page is written as .html"), "{message}");
    let message = failure(place.tinygpt().args(["report", "run", "--out", "no/such/page.html", "--device", "cpu"]), 1);
    assert!(message.contains("no/such/page.html") && !place.names("run").contains(&"report.html".into()), "{message}");
}
