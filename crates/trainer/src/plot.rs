//! `loss.svg`: the losses of a run over its updates, for looking at.

use plotters::prelude::*;

use crate::metrics::Metrics;

/// The format of the file, in a comment of it.
const PLOT_FORMAT: u64 = 1;

/// Draws training and validation loss, and the floor where it is known, as an SVG. `None` while there is nothing to
/// draw.
pub fn loss_svg(title: &str, rows: &[Metrics]) -> Option<String> {
    let points = |value: fn(&Metrics) -> Option<f64>| -> Vec<(f64, f64)> {
        rows.iter().filter_map(|r| Some((r.step as f64, value(r).filter(|y| y.is_finite())?))).collect()
    };
    let (train, val) = (points(|r| r.loss), points(|r| r.val_loss));
    let floor = rows.iter().rev().find_map(|r| r.floor);
    let all = || train.iter().chain(&val);
    let last = all().map(|p| p.0).fold(f64::NAN, f64::max);
    let top = all().map(|p| p.1).fold(f64::NAN, f64::max);
    let bottom = all().map(|p| p.1).chain(floor).fold(f64::NAN, f64::min);
    if last.is_nan() {
        return None;
    }
    let margin = 0.05 * (top - bottom).max(0.1);
    let mut svg = String::new();
    draw(&mut svg, title, 0.0..last.max(1.0), (bottom - margin)..(top + margin), &train, &val, floor).ok()?;
    Some(svg.replacen('>', &format!(">\n<!-- tinygpt loss plot, format {PLOT_FORMAT} -->"), 1))
}

type Points = [(f64, f64)];

/// Each point with the mean of the fiftieth of all points around it: single batches are noisy.
fn smoothed(points: &Points) -> impl Iterator<Item = (f64, f64)> {
    let reach = points.len() / 100;
    points.iter().enumerate().map(move |(i, &(x, _))| {
        let near = &points[i.saturating_sub(reach)..(i + reach + 1).min(points.len())];
        (x, near.iter().map(|p| p.1).sum::<f64>() / near.len() as f64)
    })
}

fn draw(
    svg: &mut String,
    title: &str,
    x: std::ops::Range<f64>,
    y: std::ops::Range<f64>,
    train: &Points,
    val: &Points,
    floor: Option<f64>,
) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, (800, 480)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 18))
        .margin(16)
        .margin_right(32)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(x.clone(), y)?;
    chart
        .configure_mesh()
        .x_desc("step")
        .x_label_formatter(&|step| format!("{step:.0}"))
        .y_desc("loss (nats per token)")
        .light_line_style(WHITE)
        .draw()?;
    let legend = |colour: RGBColor| move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], colour.stroke_width(2));
    let (faint, grey) = (RGBColor(205, 205, 205), RGBColor(110, 110, 110));
    let (blue, red) = (RGBColor(31, 98, 196), RGBColor(196, 49, 31));
    chart.draw_series(LineSeries::new(train.iter().copied(), &faint))?;
    chart.draw_series(LineSeries::new(smoothed(train), &grey))?.label("training").legend(legend(grey));
    chart
        .draw_series(LineSeries::new(val.iter().copied(), blue.stroke_width(2)))?
        .label("validation")
        .legend(legend(blue));
    if let Some(floor) = floor {
        let line = [(x.start, floor), (x.end, floor)];
        chart.draw_series(DashedLineSeries::new(line, 6, 4, red.into()))?.label("floor").legend(legend(red));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE)
        .border_style(grey)
        .draw()?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_smoothed_curve_is_the_mean_of_the_points_around() {
        let points: Vec<(f64, f64)> = (0..120).map(|i| (f64::from(i), f64::from(i % 3))).collect();
        let smooth: Vec<_> = smoothed(&points).collect();
        assert_eq!((smooth[0], smooth[119]), ((0.0, 0.5), (119.0, 1.5)));
        assert!(smooth[1..119].iter().all(|&(_, y)| y == 1.0), "120 points: three at a time");
        assert!(smoothed(&points[..99]).eq(points[..99].iter().copied()), "few points are left as they are");
    }
}
