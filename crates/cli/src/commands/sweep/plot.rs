//! The plot of a sweep: the validation loss against each key that varies, the parameters and the time.

use tinygpt_trainer::{
    chart::{Axis, Color, Figure, Mark, Panel},
    statistics::{mean, standard_deviation},
    sweep::{Grid, Setting, Summary, SweepResult},
};

const LOSS: &str = "nats per token";

/// A panel for each key that varies, one for parameters where their number does, and one for seconds.
pub fn figure(grid: &Grid, results: &[SweepResult], summaries: &[Summary]) -> Figure {
    let mut panels: Vec<Panel> =
        grid.varied().map(|setting| by_setting(setting, results, grid.varied().count() == 1)).collect();
    if summaries.iter().any(|summary| summary.parameters != summaries[0].parameters) {
        panels.push(by_number("parameters", "parameters", summaries, |summary| summary.parameters as f64));
    }
    panels.push(by_number("training time", "seconds", summaries, |summary| summary.seconds));
    let columns = panels.len().min(2);
    Figure::new(panels).columns(columns)
}

/// The loss of every run against the values of a setting, and the mean over all runs of a value, whatever their other settings
/// and seeds; with its standard deviation where the setting is the `only` one, so that it is over seeds alone.
fn by_setting(setting: &Setting, results: &[SweepResult], only: bool) -> Panel {
    let Setting { key, values } = setting;
    let numbers: Option<Vec<f64>> = values.iter().map(|value| value.replace('_', "").parse().ok()).collect();
    // Numbers that span more than a factor of ten are seen on a logarithmic axis; what is no number stands side by side.
    let (axis, places) = match numbers {
        Some(numbers) => {
            let (min, max) = numbers.iter().fold((f64::INFINITY, 0.0f64), |(min, max), &x| (min.min(x), max.max(x)));
            let axis = if min > 0.0 && max / min >= 10.0 { Axis::log(key) } else { Axis::linear(key) };
            (axis, numbers)
        }
        None => (Axis::categories(key, values.iter().cloned()), (0..values.len()).map(|n| n as f64).collect()),
    };
    let losses = |value: &str, of: fn(&SweepResult) -> Option<f64>| -> Vec<f64> {
        let has = |result: &&SweepResult| result.values.iter().any(|(k, v)| k == key && v == value);
        results.iter().filter(has).filter_map(of).collect()
    };
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| places[a].total_cmp(&places[b]));
    let (mut means, mut training, mut runs, mut spread) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for n in order {
        let (x, validation) = (places[n], losses(&values[n], |result| Some(result.report?.loss)));
        let Some(mean_validation) = mean(&validation) else { continue };
        means.push((x, mean_validation));
        let std = standard_deviation(&validation).filter(|_| only);
        spread.extend(std.map(|std| (x, mean_validation - std, mean_validation + std)));
        let of_training = losses(&values[n], |result| result.report.and(result.train_loss));
        training.extend(mean(&of_training).map(|loss| (x, loss)));
        runs.extend(validation.iter().map(|&y| (x, y)));
    }
    Panel::new(format!("validation loss by {key}"), axis, Axis::linear(LOSS))
        .mark(Mark::points("a run", runs).color(Color::Neutral))
        .mark(Mark::error_bars("", spread).color(Color::Series(0)))
        .mark(Mark::line("validation, mean", means).color(Color::Series(0)))
        .mark(Mark::line("training, mean", training).color(Color::Series(1)))
}

/// The mean loss of each combination against a number of it, with its spread over seeds.
fn by_number(title: &str, label: &str, summaries: &[Summary], number: impl Fn(&Summary) -> f64) -> Panel {
    let name = |summary: &Summary| {
        let short = |(key, value): &(String, String)| {
            format!("{}={value}", key.rsplit_once('.').map_or(key.as_str(), |(_, name)| name))
        };
        summary.values.iter().map(short).collect::<Vec<_>>().join(", ")
    };
    let (mut points, mut names, mut spread) = (Vec::new(), Vec::new(), Vec::new());
    for summary in summaries {
        let Some(loss) = summary.val_loss else { continue };
        points.push((number(summary), loss));
        names.push(name(summary));
        if let Some(std) = summary.val_loss_std {
            spread.push((number(summary), loss - std, loss + std));
        }
    }
    Panel::new(format!("validation loss by {title}"), Axis::linear(label), Axis::linear(LOSS))
        .mark(Mark::error_bars("", spread).color(Color::Series(0)))
        .mark(Mark::points("", points).labels(names).color(Color::Series(0)))
}
