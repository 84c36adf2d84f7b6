//! `sample --plot`: expected and observed frequencies, and what softmax does to the numbers.

use std::{collections::HashMap, error::Error};

use anyhow::anyhow;
use plotters::{coord::Shift, prelude::*};

use super::draw::Drawn;
use crate::args::{InputKind, SampleArgs};

/// Tokens that are drawn as bars.
const SHOWN: usize = 32;
const BLUE: RGBColor = RGBColor(31, 98, 196);
const RED: RGBColor = RGBColor(196, 49, 31);
const GREY: RGBColor = RGBColor(150, 150, 150);

/// Two values for each of some tokens.
struct Pairs {
    title: String,
    tokens: Vec<u32>,
    names: [&'static str; 2],
    values: [Vec<f64>; 2],
}

/// The plot of a row: its numbers, and what was drawn.
pub fn svg(args: &SampleArgs, row: usize, numbers: &[f64], drawn: &Drawn) -> anyhow::Result<String> {
    let panels = [frequencies(args, row, drawn), weightings(numbers)];
    let mut svg = String::new();
    draw(&mut svg, &panels).map_err(|e| anyhow!("cannot draw the plot: {e}"))?;
    Ok(svg)
}

fn frequencies(args: &SampleArgs, row: usize, drawn: &Drawn) -> Pairs {
    let mut counts: HashMap<u32, f64> = HashMap::new();
    for &token in &drawn.samples {
        *counts.entry(token).or_default() += 1.0 / drawn.samples.len() as f64;
    }
    let mut order: Vec<usize> = (0..drawn.kept.len()).collect();
    order.sort_by(|&a, &b| drawn.probs[b].total_cmp(&drawn.probs[a]));
    order.truncate(SHOWN);
    let tokens: Vec<u32> = order.iter().map(|&n| drawn.kept[n]).collect();
    let observed = tokens.iter().map(|token| counts.get(token).copied().unwrap_or(0.0)).collect();
    let without = args.kind == InputKind::Weights && !args.replacement && drawn.samples.len() > 1;
    // Each token comes at most once then, so frequencies are not to be compared with probabilities.
    let how = if without { " without replacement" } else { "" };
    Pairs {
        title: format!("row {row}: {} draws{how}", drawn.samples.len()),
        tokens,
        names: [if without { "probability of the first draw" } else { "expected" }, "observed"],
        values: [order.iter().map(|&n| drawn.probs[n]).collect(), observed],
    }
}

/// The numbers as weights, negative ones counting nothing, and as logits.
fn weightings(numbers: &[f64]) -> Pairs {
    let mut order: Vec<usize> = (0..numbers.len()).collect();
    order.sort_by(|&a, &b| numbers[b].total_cmp(&numbers[a]));
    let max = order.first().map_or(0.0, |&n| numbers[n]);
    let share = |weight: &dyn Fn(f64) -> f64| -> Vec<f64> {
        let total: f64 = numbers.iter().map(|&x| weight(x)).sum();
        let share = |&n: &usize| if total > 0.0 { weight(numbers[n]) / total } else { 0.0 };
        order.iter().take(SHOWN).map(share).collect()
    };
    // Relative to the largest, so that no sum overflows.
    let linear = share(&|x| if max > 0.0 { x.max(0.0) / max } else { 0.0 });
    let softmax = share(&|x| (x - max).exp());
    Pairs {
        title: "the same numbers as weights (negative: 0) and as logits".into(),
        tokens: order.iter().take(SHOWN).map(|&n| n as u32).collect(),
        names: ["linear", "softmax"],
        values: [linear, softmax],
    }
}

fn draw(svg: &mut String, panels: &[Pairs; 2]) -> Result<(), Box<dyn Error>> {
    let root = SVGBackend::with_string(svg, (1200, 440)).into_drawing_area();
    root.fill(&WHITE)?;
    for (area, pairs) in root.split_evenly((1, 2)).iter().zip(panels) {
        bars(area, pairs)?;
    }
    root.present()?;
    Ok(())
}

fn bars(area: &DrawingArea<SVGBackend<'_>, Shift>, pairs: &Pairs) -> Result<(), Box<dyn Error>> {
    let top = pairs.values.iter().flatten().copied().fold(0.0, f64::max);
    let count = pairs.tokens.len().max(1);
    let mut chart = ChartBuilder::on(area)
        .caption(&pairs.title, ("sans-serif", 18))
        .margin(16)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(-0.5..count as f64 - 0.5, 0.0..(1.1 * top).max(f64::MIN_POSITIVE))?;
    // A label at each whole number only: between two tokens there is none.
    let label = |x: &f64| {
        let whole = (x - x.round()).abs() < 1e-6 && *x > -0.4;
        let token = if whole { pairs.tokens.get(x.round() as usize) } else { None };
        token.map(ToString::to_string).unwrap_or_default()
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(WHITE)
        .x_labels(count.min(16) + 1)
        .x_label_formatter(&label)
        .x_desc("token")
        .y_desc("probability")
        .draw()?;
    for (n, (colour, values)) in [BLUE, RED].into_iter().zip(&pairs.values).enumerate() {
        let left = 0.4 * n as f64 - 0.4;
        let bar = |(x, &y): (usize, &f64)| {
            let x = x as f64 + left;
            Rectangle::new([(x, 0.0), (x + 0.4, y)], colour.filled())
        };
        chart
            .draw_series(values.iter().enumerate().map(bar))?
            .label(pairs.names[n])
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE)
        .border_style(GREY)
        .draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_linear_and_logits_exponential() {
        let pairs = weightings(&[1.0, 3.0, -2.0, f64::NEG_INFINITY]);
        assert_eq!(pairs.tokens, [1, 0, 2, 3]);
        assert_eq!(pairs.values[0], [0.75, 0.25, 0.0, 0.0]);
        let total = 1.0 + (-2f64).exp() + (-5f64).exp();
        assert!((pairs.values[1][0] - 1.0 / total).abs() < 1e-15);
        assert_eq!(pairs.values[1][3], 0.0);
        assert_eq!(weightings(&[-1.0, -2.0]).values[0], [0.0, 0.0]);
    }
}
