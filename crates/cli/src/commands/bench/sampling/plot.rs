//! `bench sampling --plot`: microseconds a row over the rows of a batch.

use std::error::Error;

use anyhow::anyhow;
use plotters::{coord::Shift, prelude::*};

use super::report::Cell;

/// Colours of rules.
const COLOURS: [RGBColor; 5] = [
    RGBColor(31, 98, 196),
    RGBColor(196, 49, 31),
    RGBColor(36, 143, 72),
    RGBColor(200, 130, 20),
    RGBColor(125, 60, 170),
];
const GREY: RGBColor = RGBColor(150, 150, 150);

/// A line of the plot.
struct Line {
    name: String,
    style: ShapeStyle,
    /// (rows, microseconds).
    points: Vec<(f64, f64)>,
}

/// A panel for each vocabulary, a line for each contender, device and rule. A colour is a rule; candle's lines are thin, the host
/// path's thick.
pub fn svg(cells: &[Cell]) -> anyhow::Result<String> {
    let mut svg = String::new();
    draw(&mut svg, cells).map_err(|e| anyhow!("cannot draw the plot: {e}"))?;
    Ok(svg)
}

fn draw(svg: &mut String, cells: &[Cell]) -> Result<(), Box<dyn Error>> {
    let mut vocabs: Vec<u32> = cells.iter().map(|cell| cell.vocab).collect();
    vocabs.sort_unstable();
    vocabs.dedup();
    let root = SVGBackend::with_string(svg, (800 * vocabs.len().max(1) as u32, 560)).into_drawing_area();
    root.fill(&WHITE)?;
    for (area, vocab) in root.split_evenly((1, vocabs.len().max(1))).iter().zip(vocabs) {
        let cells: Vec<&Cell> = cells.iter().filter(|cell| cell.vocab == vocab).collect();
        panel(area, vocab, &cells)?;
    }
    root.present()?;
    Ok(())
}

fn panel(area: &DrawingArea<SVGBackend<'_>, Shift>, vocab: u32, cells: &[&Cell]) -> Result<(), Box<dyn Error>> {
    let times = || cells.iter().flat_map(|cell| [cell.us_per_row, cell.limit_us_per_row]);
    let (low, high) = (times().fold(f64::INFINITY, f64::min), times().fold(0.0, f64::max));
    let most = cells.iter().map(|cell| cell.rows).max().unwrap_or(1);
    let mut chart = ChartBuilder::on(area)
        .caption(format!("sampling from {vocab} logits, microseconds a row"), ("sans-serif", 18))
        .margin(16)
        .x_label_area_size(40)
        .y_label_area_size(64)
        // Room for the legend on the right.
        .build_cartesian_2d((0.8..12.0 * f64::from(most)).log_scale(), (low / 2.0..2.0 * high).log_scale())?;
    chart.configure_mesh().x_desc("rows of a batch").y_desc("us/row").light_line_style(WHITE).draw()?;

    let mut rules: Vec<&str> = Vec::new();
    let mut lines: Vec<Line> = Vec::new();
    let mut limit = Vec::new();
    for cell in cells {
        if !rules.contains(&cell.rule.as_str()) {
            rules.push(&cell.rule);
        }
        let rule = rules.iter().position(|rule| *rule == cell.rule).unwrap_or(0);
        let width = match cell.contender {
            "candle" => 1,
            "device" => 2,
            _ => 3,
        };
        let name = format!("{}, {} on {}", cell.rule, cell.contender, cell.device);
        let x = f64::from(cell.rows);
        limit.push((x, cell.limit_us_per_row));
        match lines.iter_mut().find(|line| line.name == name) {
            Some(line) => line.points.push((x, cell.us_per_row)),
            None => {
                let style = COLOURS[rule % COLOURS.len()].stroke_width(width);
                lines.push(Line { name, style, points: vec![(x, cell.us_per_row)] });
            }
        }
    }
    limit.dedup_by_key(|point| point.0);
    lines.push(Line { name: "one read".into(), style: BLACK.stroke_width(1), points: limit });
    for Line { name, style, mut points } in lines {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        chart.draw_series(points.iter().map(|&point| Circle::new(point, 3, style.filled())))?;
        chart
            .draw_series(LineSeries::new(points, style))?
            .label(name)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE)
        .border_style(GREY)
        .draw()?;
    Ok(())
}
