//! The chart of a scored text.

use tinygpt_trainer::chart::{Axis, Color, Figure, Mark, Panel};

use super::{ScoreReport, visible};

/// A text of no more tokens than this has them as the names of the axis.
const NAMED: usize = 100;

/// The surprisal of each token, beside that which the model expected: the entropy.
pub fn figure(report: &ScoreReport) -> Figure {
    let bits: Vec<f64> = report.tokens.iter().map(|token| token.bits()).collect();
    let entropy = report.tokens.iter().map(|token| token.entropy / std::f64::consts::LN_2);
    let entropy = (0..).map(f64::from).zip(entropy).collect();
    let is_named = bits.len() <= NAMED;
    let x = match is_named {
        true => Axis::categories("token", report.tokens.iter().map(|token| visible(&token.text))),
        false => Axis::linear("token"),
    };
    let surprisal = match is_named {
        true => Mark::bars("surprisal", bits),
        false => Mark::line("surprisal", (0..).map(f64::from).zip(bits).collect()).width(1.0),
    };
    let title = format!("{:.4} bits/byte, perplexity {:.3}", report.score.bits_per_byte, report.score.perplexity);
    let panel = Panel::new(title, x, Axis::linear("bits"))
        .mark(surprisal.color(Color::Series(0)))
        .mark(Mark::line("expected (entropy)", entropy).color(Color::Series(1)));
    let width = (report.tokens.len() * 16).clamp(800, 1600) as u32;
    Figure::new(vec![panel]).panel_size(width, 420)
}
