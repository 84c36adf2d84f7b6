//! The charts of a page.

use tinygpt_trainer::{
    calibration::Calibration,
    chart::{Axis, Color, Figure, Mark, Panel, loss_curve},
    metrics::Metrics,
    statistics::mean,
};

use crate::commands::baseline::Row;

/// Width and height: what a page shows on a small screen without making letters much smaller.
const SIZE: (u32, u32) = (440, 300);
/// More lines of the metrics than this are drawn as means.
const MOST_ROWS: usize = 800;

fn one(panel: Panel) -> Figure {
    Figure::new(vec![panel]).panel_size(SIZE.0, SIZE.1)
}

/// Means of so many neighbouring lines that at most [`MOST_ROWS`] are left.
pub fn thinned(rows: &[Metrics]) -> Vec<Metrics> {
    let mean_of = |rows: &[&Metrics]| {
        let of =
            |value: fn(&Metrics) -> Option<f64>| mean(&rows.iter().filter_map(|row| value(row)).collect::<Vec<f64>>());
        let last = rows[rows.len() - 1];
        Metrics {
            loss: of(|row| row.loss),
            val_loss: of(|row| row.val_loss),
            update_ratio: of(|row| row.update_ratio),
            lr: of(|row| row.lr),
            grad_norm: of(|row| row.grad_norm),
            tokens_per_s: of(|row| row.tokens_per_s),
            ..last.clone()
        }
    };
    let (evaluations, updates): (Vec<&Metrics>, Vec<&Metrics>) = rows.iter().partition(|row| row.val_loss.is_some());
    let mut thin = Vec::new();
    for rows in [evaluations, updates] {
        let n = rows.len().div_ceil(MOST_ROWS).max(1);
        thin.extend(rows.chunks(n).map(mean_of));
    }
    thin.sort_by_key(|row| row.step);
    thin
}

/// Training and validation loss, and the floor.
pub fn losses(rows: &[Metrics]) -> Option<Figure> {
    loss_curve("", rows).map(|figure| figure.panel_size(SIZE.0, SIZE.1))
}

/// A figure of each update over the updates; none where no line has it.
fn over_steps(rows: &[Metrics], y: Axis, value: fn(&Metrics) -> Option<f64>) -> Option<Panel> {
    let points: Vec<(f64, f64)> = rows.iter().filter_map(|row| Some((row.step as f64, value(row)?))).collect();
    let last = points.last()?.0;
    let x = Axis::linear("step").range(0.0, last.max(1.0));
    Some(Panel::new("", x, y).mark(Mark::line("", points).width(1.5).color(Color::Series(0))))
}

/// The learning rate of each update.
pub fn learning_rate(rows: &[Metrics]) -> Option<Figure> {
    over_steps(rows, Axis::linear("learning rate"), |row| row.lr).map(one)
}

/// The norm of the gradients before clipping, and where they are clipped.
pub fn gradient_norm(rows: &[Metrics], clip: f64) -> Option<Figure> {
    let panel = over_steps(rows, Axis::log("norm of the gradient"), |row| row.grad_norm)?;
    let clip = (clip > 0.0).then(|| Mark::reference("clipped above", clip).color(Color::Neutral));
    Some(one(panel.marks(clip)))
}

/// The size of updates beside that of the weights.
pub fn update_ratio(rows: &[Metrics]) -> Option<Figure> {
    over_steps(rows, Axis::log("update / weights"), |row| row.update_ratio).map(one)
}

/// Training tokens a second.
pub fn throughput(rows: &[Metrics]) -> Option<Figure> {
    over_steps(rows, Axis::linear("tokens per second"), |row| row.tokens_per_s).map(one)
}

/// A bar for each model.
pub fn baselines(rows: &[Row]) -> Figure {
    let short = |row: &Row| row.name.replace("Kneser-Ney", "KN");
    let x = Axis::categories("", rows.iter().map(short));
    let bits = rows.iter().map(|row| row.bits_per_byte).collect();
    one(Panel::new("", x, Axis::linear("bits per byte")).mark(Mark::bars("", bits).color(Color::Series(0))))
}

/// What was predicted against what happened.
pub fn calibration(curve: &Calibration) -> Figure {
    let share = |label: &str| Axis::linear(label).range(0.0, 1.0);
    let panel = Panel::new("", share("predicted probability"), share("share that happened"))
        .mark(Mark::diagonal("perfect"))
        .mark(Mark::line("model", curve.curve()).color(Color::Series(0)));
    Figure::new(vec![panel]).panel_size(SIZE.0, 380)
}

/// Where a head looks: the first `n` positions of its map.
pub fn attention(tokens: &[String], map: &[Vec<f64>], n: usize) -> Figure {
    // Beside a map the space that a token begins with is in the way.
    let name = |token: &String| match token.trim_start_matches('␣') {
        "" => token.clone(),
        word => word.to_owned(),
    };
    let axis = || Axis::categories("", tokens[..n].iter().map(name));
    let rows = map.iter().take(n).map(|row| row[..n].to_vec()).collect();
    Figure::new(vec![Panel::new("", axis(), axis()).mark(Mark::heat_map(rows))]).panel_size(340, 280)
}

#[cfg(test)]
mod tests {
    use tinygpt_trainer::metrics::RowKind;

    use super::*;

    #[test]
    fn long_metrics_are_drawn_as_means_of_neighbours_and_short_ones_as_they_are() {
        let row = |step: u64| Metrics { loss: Some(step as f64), ..Metrics::new(RowKind::Train, step) };
        let eval = |step: u64| Metrics { val_loss: Some(1.0), ..Metrics::new(RowKind::Eval, step) };
        let mut rows: Vec<Metrics> = (1..=2400).map(row).collect();
        rows.extend([eval(0), eval(1200)]);
        let thin = thinned(&rows);
        assert_eq!(thin.iter().filter(|row| row.val_loss.is_some()).count(), 2, "evaluations are few");
        let losses: Vec<f64> = thin.iter().filter_map(|row| row.loss).collect();
        assert_eq!((losses.len(), losses[0], losses[799]), (800, 2.0, 2399.0));
        assert_eq!(thinned(&rows[..5]), rows[..5]);
    }

    #[test]
    fn figures_that_no_line_has_have_no_chart() {
        let row = Metrics { lr: Some(1e-3), grad_norm: Some(2.0), ..Metrics::new(RowKind::Train, 1) };
        let rows = [row];
        assert!(learning_rate(&rows).is_some() && throughput(&rows).is_none() && update_ratio(&rows).is_none());
        assert!(losses(&rows).is_none());
        let clipped = |clip| gradient_norm(&rows, clip).unwrap().svg().unwrap().contains("clipped above");
        assert!(clipped(1.0) && !clipped(0.0));
    }
}
