//! The charts of a comparison.

use std::ops::RangeInclusive;

use tinygpt_trainer::{
    calibration::Calibration,
    chart::{Axis, Color, Figure, Mark, Panel},
    compare::Divergence,
};

use super::{CompareReport, octaves::octaves};

/// One of the numbers at a position.
type Value = fn(&Divergence) -> f64;

/// The lines of the first panel, with the numbers of their colours.
const DIVERGENCES: [(&str, usize, Value); 3] =
    [("KL(A||B)", 2, |d| d.kl_ab), ("KL(B||A)", 3, |d| d.kl_ba), ("Jensen-Shannon", 4, |d| d.jensen_shannon)];

/// The divergences and the entropies by the tokens of context, and the calibration of both.
pub fn figure(report: &CompareReport) -> Figure {
    // Each position by itself is noise; most of the change lies in the first tokens.
    let octaves = octaves(&report.comparison.positions);
    let line = |name: &str, color, value: Value| {
        let point = |(tokens, mean): &(RangeInclusive<usize>, Divergence)| {
            (((tokens.start() * tokens.end()) as f64).sqrt(), value(mean))
        };
        Mark::line(name, octaves.iter().map(point).collect()).color(Color::Series(color))
    };
    let context = || Axis::log("tokens of context");
    let mut divergence = Panel::new("divergence", context(), Axis::linear("nats a token"));
    for (name, color, value) in DIVERGENCES {
        // Infinite divergences have no line.
        if octaves.iter().any(|(_, mean)| value(mean).is_finite()) {
            divergence = divergence.mark(line(name, color, value));
        }
    }
    let entropy = Panel::new("entropy", context(), Axis::linear("nats a token"))
        .mark(line("A", 0, |d| d.entropy_a))
        .mark(line("B", 1, |d| d.entropy_b));
    let share = |label: &str| Axis::linear(label).range(0.0, 1.0);
    let mut calibration = Panel::new("calibration", share("predicted probability"), share("observed share"))
        .mark(Mark::diagonal("perfect"));
    for (color, (name, curve)) in
        [("A", &report.comparison.calibration.a), ("B", &report.comparison.calibration.b)].into_iter().enumerate()
    {
        calibration = calibration.mark(curve_of(name, curve).color(Color::Series(color)));
    }
    Figure::new(vec![divergence, entropy, calibration])
        .title(format!("A {}, B {}", report.a, report.b))
        .panel_size(480, 400)
}

fn curve_of(name: &str, curve: &Calibration) -> Mark {
    Mark::line(name, curve.curve())
}
