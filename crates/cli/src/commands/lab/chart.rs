//! `lab --plot`: how diverse the texts of each strategy are, and what that costs.

use tinygpt_trainer::{
    chart::{Axis, Figure, Mark, Panel},
    lab::StrategyReport,
};

/// Bars of diversity, and diversity against acceptance where stories can be judged, else against perplexity.
pub fn figure(reports: &[StrategyReport]) -> Figure {
    let names = || reports.iter().map(|report| report.name.as_str());
    // What is not known is no number, and not drawn.
    let values = |value: fn(&StrategyReport) -> Option<f64>| -> Vec<f64> {
        reports.iter().map(|report| value(report).unwrap_or(f64::NAN)).collect()
    };
    let diversity = Panel::new("diversity", Axis::categories("", names()), Axis::linear("share").range(0.0, 1.0))
        .mark(Mark::bars("distinct words", values(|report| report.distinct_1)))
        .mark(Mark::bars("distinct pairs of words", values(|report| report.distinct_2)))
        .mark(Mark::bars(
            "4-grams that are new to their text",
            values(|report| report.repeated_4_grams.map(|share| 1.0 - share)),
        ));
    let judged = reports.iter().any(|report| report.accepted.is_some());
    let (title, axis, y) = if judged {
        let axis = Axis::linear("stories accepted").range(0.0, 1.05);
        ("diversity and acceptance", axis, values(|report| report.accepted))
    } else {
        let axis = Axis::log("perplexity under the model");
        ("diversity and perplexity", axis, values(|report| Some(report.perplexity)))
    };
    // Points with colours and shapes of their own, named in the legend: beside them, the names of close ones would overlap.
    let points = values(|report| report.distinct_2).into_iter().zip(y);
    let trade_off = Panel::new(title, Axis::linear("distinct pairs of words").range(0.0, 1.0), axis)
        .marks(names().zip(points).map(|(name, point)| Mark::points(name, vec![point])));
    Figure::new(vec![diversity, trade_off]).columns(1).panel_size(1100, 440)
}
