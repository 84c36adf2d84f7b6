//! The losses of a run over its updates.

use super::{Axis, Color, Figure, Mark, Panel};
use crate::metrics::Metrics;

/// Training and validation loss of a run, and the floor where it is known. `None` while there is nothing to draw.
pub fn loss_curve(title: &str, rows: &[Metrics]) -> Option<Figure> {
    let points = |value: fn(&Metrics) -> Option<f64>| -> Vec<(f64, f64)> {
        rows.iter().filter_map(|r| Some((r.step as f64, value(r).filter(|y| y.is_finite())?))).collect()
    };
    let (train, val) = (points(|r| r.loss), points(|r| r.val_loss));
    let floor = rows.iter().rev().find_map(|r| r.floor);
    let last = train.iter().chain(&val).map(|p| p.0).reduce(f64::max)?;
    let smooth = smoothed(&train).collect();
    // Single batches are noisy: they stay in the background of their mean.
    let panel =
        Panel::new(title, Axis::linear("step").range(0.0, last.max(1.0)), Axis::linear("loss (nats per token)"))
            .mark(Mark::line("", train).color(Color::Faint).width(1.0))
            .mark(Mark::line("training", smooth).color(Color::Neutral).width(1.5))
            .mark(Mark::line("validation", val).color(Color::Series(0)))
            .marks(floor.map(|floor| Mark::reference("floor", floor).color(Color::Series(1))));
    Some(Figure::new(vec![panel]))
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
    use super::*;
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
            ["training", "validation", "floor"].map(|name| svg.contains(&format!(">\n{name}\n<")))
        };
        assert_eq!(legend(&[row(Some(2.0), None)]), [true, true, false]);
        assert_eq!(legend(&[row(Some(2.0), Some(1.0))]), [true, true, true]);
    }
}
