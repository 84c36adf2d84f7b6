//! A comparison for people.

use std::fmt::Write as _;

use tinygpt_trainer::compare::{Comparison, Divergence};

use super::{CompareReport, TRUTH, octaves::octaves};

pub fn text(report: &CompareReport) -> String {
    let CompareReport { a, b, context, comparison, .. } = report;
    let Comparison { mean, positions, calibration } = comparison;
    let mut text = format!("A {a}\nB {b}\n{} contexts of up to {context} tokens, in nats a token\n", mean.contexts);
    if [a, b].iter().any(|name| *name == TRUTH) {
        text += "the truth is the grammar's, and sees each story from its beginning, whatever the window\n";
    }
    let _ = writeln!(text, "\n{:28}{:>10}{:>10}", "", "A", "B");
    for (name, [a, b]) in [
        ("entropy", [mean.entropy_a, mean.entropy_b]),
        ("loss on the text", [mean.loss_a, mean.loss_b]),
        ("calibration error", [calibration.a.error, calibration.b.error]),
        ("  of the most probable token", [calibration.a.top_error, calibration.b.top_error]),
    ] {
        let _ = writeln!(text, "{name:28}{a:>10.4}{b:>10.4}");
    }
    let _ = writeln!(text, "\n{:28}{:>10}{:>10}", "", "A then B", "B then A");
    for (name, [ab, ba]) in [
        ("cross-entropy H(P,Q)", [mean.cross_entropy_ab, mean.cross_entropy_ba]),
        ("divergence KL(P||Q)", [mean.kl_ab, mean.kl_ba]),
    ] {
        let _ = writeln!(text, "{name:28}{ab:>10.4}{ba:>10.4}");
    }
    text += "H(P,Q) = H(P) + KL(P||Q); it is infinite where Q rules out what P does not\n\n";
    let (js, most) = (mean.jensen_shannon, std::f64::consts::LN_2);
    text += &format!("Jensen-Shannon divergence {js:.4} (of at most {most:.4})\n");
    text += &format!("the most probable token is the same in {:.1}% of the contexts\n\n", 100.0 * mean.top_agreement);

    text += "  context  entropy A  entropy B   KL(A||B)   KL(B||A)  Jensen-Shannon  same top\n";
    for (tokens, divergence) in octaves(positions) {
        let Divergence { entropy_a, entropy_b, kl_ab, kl_ba, jensen_shannon, top_agreement, .. } = divergence;
        let (first, last) = (tokens.start(), tokens.end());
        let name = if first == last { first.to_string() } else { format!("{first}-{last}") };
        let _ = writeln!(
            text,
            "{name:>9}  {entropy_a:>9.4}  {entropy_b:>9.4}  {kl_ab:>9.4}  {kl_ba:>9.4}  {jensen_shannon:>14.4}  {:>7.1}%",
            100.0 * top_agreement
        );
    }
    text
}
