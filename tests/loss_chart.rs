//! `loss.svg` and `loss.png` of a run: what their axes show of its losses.

use serde_json::Value;

use crate::common::{Place, trained};

/// A piece of text of a chart.
struct Label {
    text: String,
    /// How it is set: `end` for the numbers of a vertical axis, `start` for names in a legend.
    anchor: String,
    y: f64,
}

fn labels(svg: &str) -> Vec<Label> {
    let attribute = |tag: &str, name: &str| {
        let value = tag.split_once(&format!(" {name}=\"")).map_or("", |(_, rest)| rest);
        value.split('"').next().unwrap_or_default().to_owned()
    };
    let label = |part: &str| {
        let (tag, rest) = part.split_once('>').unwrap();
        let text = rest.split('<').next().unwrap().trim().to_owned();
        Label { text, anchor: attribute(tag, "text-anchor"), y: attribute(tag, "y").parse().unwrap() }
    };
    svg.split("<text").skip(1).map(label).collect()
}

fn texts<'l>(labels: &'l [Label], anchor: &str) -> Vec<&'l str> {
    labels.iter().filter(|label| label.anchor == anchor).map(|label| label.text.as_str()).collect()
}

/// The numbers of the vertical axis, and how far down each stands.
fn ticks(labels: &[Label]) -> Vec<(f64, f64)> {
    let numbers = labels.iter().filter(|label| label.anchor == "end");
    numbers.map(|label| (label.text.parse().unwrap(), label.y)).collect()
}

/// The labels of the losses and those of the gap, which has a panel below them.
fn panels(labels: Vec<Label>) -> (Vec<Label>, Vec<Label>) {
    let at = labels.iter().position(|label| label.text == "gap to the floor").unwrap();
    let mut losses = labels;
    let gap = losses.split_off(at);
    (losses, gap)
}

/// How far the ticks are from places that depend linearly on `value` of their number, as a share of their distance.
fn error_of_scale(ticks: &[(f64, f64)], value: fn(f64) -> f64) -> f64 {
    let (first, last) = (ticks[0], ticks[ticks.len() - 1]);
    let slope = (last.1 - first.1) / (value(last.0) - value(first.0));
    let error = |&(number, y): &(f64, f64)| (first.1 + slope * (value(number) - value(first.0)) - y).abs();
    ticks.iter().map(error).fold(0.0, f64::max) / (last.1 - first.1).abs()
}

#[test]
fn every_curve_has_its_own_entry_and_the_gap_to_the_floor_a_panel_with_a_logarithmic_axis() {
    let (losses, gap) = panels(labels(&trained().text("run/loss.svg")));
    assert_eq!(texts(&losses, "start"), ["a batch", "training", "validation", "floor"]);
    assert_eq!(texts(&gap, "start"), ["validation"]);
    assert!(losses.iter().any(|label| label.text == "loss (nats per token)"));
    assert!(gap.iter().any(|label| label.text == "loss - floor (nats per token)"));
    let identity = |x: f64| x;
    let (of_losses, of_gap) = (ticks(&losses), ticks(&gap));
    assert!(of_losses.len() > 2 && of_gap.len() > 2, "{of_losses:?} {of_gap:?}");
    // Places are rounded to a three-hundredth of the panel.
    assert!(error_of_scale(&of_losses, identity) < 0.005, "{of_losses:?}");
    assert!(error_of_scale(&of_gap, f64::ln) < 0.25 * error_of_scale(&of_gap, identity), "{of_gap:?}");
}

#[test]
fn the_axis_shows_where_the_curves_live_and_not_the_fall_at_the_beginning() {
    let place = Place::new();
    place.write("a.txt", "the cat sat on the mat and saw the dog. ".repeat(60));
    let set = ["train.max_steps=200", "train.lr=0.02", "train.eval_every=20"].map(|key| ["--set", key]).concat();
    place.train().args(["--data", "a.txt", "--out", "run"]).args(set).assert().success();
    let metrics = place.text("run/metrics.jsonl");
    let rows: Vec<Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let losses = |from: u64| -> Vec<f64> {
        let rows = rows.iter().filter(move |row| row["step"].as_u64() >= Some(from));
        rows.filter_map(|row| row["val_loss"].as_f64()).collect()
    };
    let (start, late) = (losses(0)[0], losses(40));
    let highest = late.iter().copied().fold(0.0, f64::max);
    assert!(start > 2.0 * highest, "it falls: {start}, {late:?}");
    let labels = labels(&place.text("run/loss.svg"));
    assert_eq!(texts(&labels, "start"), ["a batch", "training", "validation"], "no floor, and no gap to it");
    let ticks = ticks(&labels);
    assert!(ticks.len() > 2 && ticks.iter().all(|tick| tick.0 < 0.7 * start), "{ticks:?}, from {start}");
}

#[test]
fn a_picture_for_those_who_show_no_svg_is_beside_it() {
    let (png, svg) = (trained().read("run/loss.png"), trained().text("run/loss.svg"));
    assert!(png.starts_with(b"\x89PNG\r\n\x1a\n"));
    let size = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
    let in_svg = |name: &str| -> u32 {
        let (_, rest) = svg.split_once(&format!(" {name}=\"")).unwrap();
        rest.split('"').next().unwrap().parse().unwrap()
    };
    let (width, height) = (size(16), size(20));
    assert!(width >= in_svg("width"), "{width}");
    assert_eq!(width * in_svg("height"), height * in_svg("width"), "the same shape");
}
