//! Scores for people: coloured text on a terminal, a table elsewhere.

use std::fmt::Write as _;

use super::{
    Compared, ScoreReport, TextScore, Token,
    shade::{SHADES, legend, shade},
    visible,
};
use crate::{output::harmless, units};

/// Background and foreground of each shade, of the 256 colours of terminals. Both are set, so that the text is legible whatever
/// the terminal's own are.
const COLORS: [(u8, u8); SHADES] = [(255, 16), (230, 16), (222, 16), (214, 16), (166, 16), (88, 231)];

/// The text in colours with a legend, then the figures.
pub fn colored(report: &ScoreReport) -> String {
    let mut text = String::new();
    for token in &report.tokens {
        let shade = shade(token.bits());
        for line in harmless(&token.text).split_inclusive('\n') {
            match line.strip_suffix('\n') {
                // A colour that is on at the end of a line fills the rest of it.
                Some(line) => text += &(paint(&format!("{line}⏎"), shade) + "\n"),
                None => text += &paint(line, shade),
            }
        }
    }
    if !text.ends_with('\n') {
        text.push('\n');
    }
    let shades: String = (0..SHADES).map(|shade| paint(&format!(" {} ", legend(shade)), shade)).collect();
    text += &format!("\nsurprisal in bits: {shades}\n");
    text + &harmless(&summary(report))
}

fn paint(text: &str, shade: usize) -> String {
    let (background, foreground) = COLORS[shade];
    format!("\x1b[48;5;{background};38;5;{foreground}m{text}\x1b[0m")
}

/// A line for each token, then the figures.
pub fn table(report: &ScoreReport) -> String {
    let width = report.tokens.iter().map(|token| visible(&token.text).chars().count()).max().unwrap_or(0).max(5);
    let mut text = format!(
        "{:width$}  {:>11}  {:>7}  {:>6}  {:>7}  most probable\n",
        "token", "probability", "logprob", "rank", "entropy"
    );
    for token in &report.tokens {
        let Token { text: own, logprob, rank, entropy, .. } = token;
        let own = visible(own);
        let pad = " ".repeat(width - own.chars().count());
        let _ = writeln!(
            text,
            "{own}{pad}  {:>11.6}  {logprob:>7.3}  {rank:>6}  {entropy:>7.3}  {}",
            logprob.exp(),
            most_probable(token)
        );
    }
    text + "\n" + &summary(report)
}

/// The most probable tokens with their probabilities.
pub fn most_probable(token: &Token) -> String {
    let top = token.top.iter().map(|top| format!("{} {:.3}", visible(&top.text), top.logprob.exp()));
    top.collect::<Vec<_>>().join("  ")
}

/// The figures of the text, and of those beside it.
fn summary(report: &ScoreReport) -> String {
    let TextScore { logprob, perplexity, bits_per_byte } = report.score;
    let tokens = report.tokens.len();
    let mut text = format!(
        "log-probability {logprob:.3} nats, perplexity {}, {bits_per_byte:.4} bits/byte ({tokens} tokens)\n",
        units::perplexity(perplexity)
    );
    if tokens > report.context {
        text += &format!("read in windows of {} tokens every {}\n", report.context, report.stride);
    }
    if let Some(compare) = &report.compare {
        text += "\n                   tokens  bits/byte  perplexity\n";
        for Compared { name, tokens, score, .. } in compare {
            let _ = writeln!(text, "{name:17}  {tokens:>6}  {:>9.4}  {:>10.3}", score.bits_per_byte, score.perplexity);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;
    use super::*;

    #[test]
    fn colours_are_reset_before_a_line_ends_and_control_characters_are_shown() {
        let text = colored(&report());
        assert!(text.starts_with("\x1b[48;5;255;38;5;16ma\x1b[0m\x1b[48;5;88;38;5;231m⏎\x1b[0m\n"), "{text:?}");
        assert!(text.contains("16m\\x1b<\x1b[0m"), "{text:?}");
        assert!(text.contains("surprisal in bits: ") && text.contains("perplexity"));
    }

    #[test]
    fn a_table_has_no_colours_and_a_line_for_each_token() {
        let text = table(&report());
        assert!(!text.contains("\x1b[4"), "{text:?}");
        assert!(
            text.lines().nth(2).is_some_and(|line| line.starts_with("⏎      ") && line.contains("a 0.500")),
            "{text}"
        );
    }
}
