//! The losses of a run over its updates.

use super::{Axis, Color, Figure, Mark, Panel};
use crate::metrics::Metrics;

/// Updates up to this share of the run do not decide how far up the axis reaches: the fall from the loss of random weights would
/// take nearly all of it.
const FALL: f64 = 0.15;

/// Training and validation loss of a run, and where the floor is known, a second panel with the distance from it. `None` while
/// there is nothing to draw.
pub fn loss_curve(title: &str, rows: &[Metrics]) -> Option<Figure> {
    let points = |value: fn(&Metrics) -> Option<f64>| -> Vec<(f64, f64)> {
        rows.iter().filter_map(|r| Some((r.step as f64, value(r).filter(|y| y.is_finite())?))).collect()
    };
    let (batches, val) = (points(|r| r.loss), points(|r| r.val_loss));
    let floor = rows.iter().rev().find_map(|r| r.floor);
    let last = batches.iter().chain(&val).map(|p| p.0).reduce(f64::max)?.max(1.0);
    let train: Vec<(f64, f64)> = smoothed(&batches).collect();
    // An evaluation has the floor of its own windows. That of a training batch is not known, and differs by more than the gap.
    let gaps = points(|r| Some(r.val_loss? - r.floor?));

    let steps = || Axis::linear("step").range(0.0, last);
    let mut losses = Axis::linear("loss (nats per token)");
    if let Some((low, high)) = settled(&[&train, &val], floor, last) {
        losses = losses.range(low, high);
    }
    // Single batches are noisy: they stay in the background of their mean.
    let loss = Panel::new(title, steps(), losses)
        .mark(Mark::line("a batch", batches).color(Color::Faint).width(1.0))
        .mark(Mark::line("training", train).color(Color::Neutral).width(1.5))
        .mark(Mark::line("validation", val).color(Color::Series(0)))
        .marks(floor.map(|floor| Mark::reference("floor", floor).color(Color::Series(1))));
    let gap = floor.map(|_| {
        Panel::new("gap to the floor", steps(), Axis::log("loss - floor (nats per token)"))
            .mark(Mark::line("validation", gaps).color(Color::Series(0)))
    });
    Some(Figure::new([loss].into_iter().chain(gap).collect()).columns(1).panel_size(800, 400))
}

/// The range that the curves and the floor take after the fall at their beginning, and a margin.
fn settled(curves: &[&[(f64, f64)]], floor: Option<f64>, last: f64) -> Option<(f64, f64)> {
    let after = curves.iter().copied().flatten().filter(|point| point.0 >= FALL * last).map(|point| point.1);
    let high = after.clone().reduce(f64::max)?;
    let low = after.chain(floor).reduce(f64::min)?;
    let margin = 0.05 * (high - low);
    // What is flat has no range, and what has diverged beyond all numbers none either: the axis finds one itself.
    (margin > 0.0 && margin < 1e100).then_some((low - margin, high + margin))
}

/// Each point with the mean of the fiftieth of all points around it.
fn smoothed(points: &[(f64, f64)]) -> impl Iterator<Item = (f64, f64)> {
    let reach = points.len() / 100;
    points.iter().enumerate().map(move |(i, &(x, _))| {
        let near = &points[i.saturating_sub(reach)..(i + reach + 1).min(points.len())];
        (x, near.iter().map(|p| p.1).sum::<f64>() / near.len() as f64)
    })
}

#[cfg(test)]
mod tests {
    use super::{super::figure::Shape, *};
    use crate::metrics::RowKind;

    #[test]
    fn a_smoothed_curve_is_the_mean_of_the_points_around() {
        let points: Vec<(f64, f64)> = (0..120).map(|i| (f64::from(i), f64::from(i % 3))).collect();
        let smooth: Vec<_> = smoothed(&points).collect();
        assert_eq!((smooth[0], smooth[119]), ((0.0, 0.5), (119.0, 1.5)));
        assert!(smooth[1..119].iter().all(|&(_, y)| y == 1.0), "120 points: three at a time");
        assert!(smoothed(&points[..99]).eq(points[..99].iter().copied()), "few points are left as they are");
    }

    #[test]
    fn a_run_without_a_loss_has_no_curve_and_one_without_a_floor_no_line_for_it() {
        let row = |loss, floor| Metrics { loss, floor, ..Metrics::new(RowKind::Train, 3) };
        assert_eq!(loss_curve("run", &[]), None);
        assert_eq!(loss_curve("run", &[row(None, Some(1.0)), row(Some(f64::NAN), None)]), None);
        let legend = |rows: &[Metrics]| {
            let svg = loss_curve("run", rows).unwrap().svg().unwrap();
            ["a batch", "training", "validation", "floor", "gap to the floor"]
                .map(|name| svg.contains(&format!(">\n{name}\n<")))
        };
        assert_eq!(legend(&[row(Some(2.0), None)]), [true, true, true, false, false]);
        assert_eq!(legend(&[row(Some(2.0), Some(1.0))]), [true; 5]);
    }

    #[test]
    fn the_axis_ends_where_the_fall_at_the_beginning_does() {
        // From 5 to 2 over 200 updates, nearly all of it at once.
        let curve: Vec<(f64, f64)> = (0..=200).map(|step| (f64::from(step), 2.0 + 3.0 / f64::from(step + 1))).collect();
        let (low, high) = settled(&[&curve, &[]], Some(1.9), 200.0).unwrap();
        assert!((1.85..1.9).contains(&low) && (2.09..2.12).contains(&high), "{low} {high}");
        let (low, high) = settled(&[&curve], None, 200.0).unwrap();
        assert!((1.98..2.02).contains(&low) && high < 2.12, "{low} {high}");
        // What gets worse stays in view.
        let (_, high) = settled(&[&curve, &[(100.0, 4.0), (200.0, 7.0)]], None, 200.0).unwrap();
        assert!(high > 7.0);
        assert_eq!(settled(&[&[(3.0, 2.0)]], None, 3.0), None);
        assert_eq!(settled(&[&[(0.0, 2.0)]], Some(1.0), 100.0), None);
    }

    #[test]
    fn a_gap_that_is_none_is_left_out_of_its_panel() {
        let row = |step, val_loss, floor| Metrics { val_loss, floor, ..Metrics::new(RowKind::Eval, step) };
        let rows = [row(0, Some(3.0), Some(1.0)), row(5, Some(0.9), Some(1.0)), row(9, Some(1.5), None)];
        let figure = loss_curve("run", &rows).unwrap();
        let Shape::Line(gaps) = &figure.panels[1].marks[0].shape else { panic!("{:?}", figure.panels[1]) };
        assert_eq!(gaps.len(), 2, "an evaluation without a floor has no gap");
        assert!((gaps[0].1 - 2.0).abs() < 1e-12 && gaps[1].1 < 0.0);
        assert!(figure.svg().is_ok(), "what is not positive has no place on a logarithmic axis");
    }
}
