//! `bench sampling --plot`: microseconds a row over the rows of a batch.

use tinygpt_trainer::chart::{Axis, Color, Figure, Mark, Panel};

use super::report::Cell;

/// A line of the plot.
struct Line {
    name: String,
    color: Color,
    width: f64,
    /// (rows, microseconds).
    points: Vec<(f64, f64)>,
}

/// A panel for each vocabulary, a line for each contender, device and rule. A colour is a rule; candle's lines are thin, the host
/// path's thick.
pub fn figure(cells: &[Cell]) -> Figure {
    let mut vocabs: Vec<u32> = cells.iter().map(|cell| cell.vocab).collect();
    vocabs.sort_unstable();
    vocabs.dedup();
    let of = |vocab: u32| -> Vec<&Cell> { cells.iter().filter(|cell| cell.vocab == vocab).collect() };
    Figure::new(vocabs.into_iter().map(|vocab| panel(vocab, &of(vocab))).collect()).panel_size(800, 560)
}

fn panel(vocab: u32, cells: &[&Cell]) -> Panel {
    let mut rules: Vec<&str> = Vec::new();
    let mut lines: Vec<Line> = Vec::new();
    let mut limit = Vec::new();
    for cell in cells {
        if !rules.contains(&cell.rule.as_str()) {
            rules.push(&cell.rule);
        }
        let rule = rules.iter().position(|rule| *rule == cell.rule).unwrap_or(0);
        let width = match cell.contender {
            "candle" => 1.0,
            "device" => 2.0,
            _ => 3.0,
        };
        let name = format!("{}, {} on {}", cell.rule, cell.contender, cell.device);
        let x = f64::from(cell.rows);
        limit.push((x, cell.limit_us_per_row));
        match lines.iter_mut().find(|line| line.name == name) {
            Some(line) => line.points.push((x, cell.us_per_row)),
            None => lines.push(Line { name, color: Color::Series(rule), width, points: vec![(x, cell.us_per_row)] }),
        }
    }
    limit.dedup_by_key(|point| point.0);
    lines.push(Line { name: "one read".into(), color: Color::Neutral, width: 1.0, points: limit });
    let title = format!("sampling from {vocab} logits, microseconds a row");
    Panel::new(title, Axis::log("rows of a batch"), Axis::log("us/row")).marks(lines.into_iter().map(|mut line| {
        line.points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Mark::line(line.name, line.points).color(line.color).width(line.width)
    }))
}
