//! What `sample` prints for people.

use std::collections::HashMap;

use tinygpt_sampler::entropy;

use super::draw::Drawn;

/// Tokens of a row that are listed.
const LISTED: usize = 20;
/// Draws of a row that are listed.
const DRAWS: usize = 24;
/// The length of the largest probability's bar, in characters.
const BAR: f64 = 32.0;

/// The table of a row.
pub fn of(row: usize, drawn: &Drawn) -> String {
    let mut counts: HashMap<u32, usize> = HashMap::new();
    for &token in &drawn.samples {
        *counts.entry(token).or_default() += 1;
    }
    let mut text = format!(
        "row {row}: {} of {} tokens kept, entropy {:.4} nats\n{:>8}  {:>11}  {:>9}\n",
        drawn.kept.len(),
        drawn.vocab,
        entropy(&drawn.probs),
        "token",
        "probability",
        "drawn",
    );
    // Weights come in their own order; a table is read from the top.
    let mut order: Vec<usize> = (0..drawn.kept.len()).collect();
    order.sort_by(|&a, &b| drawn.probs[b].total_cmp(&drawn.probs[a]));
    let largest = order.first().map_or(1.0, |&n| drawn.probs[n]);
    for &n in order.iter().take(LISTED) {
        let (token, p) = (drawn.kept[n], drawn.probs[n]);
        let count = counts.get(&token).copied().unwrap_or(0);
        text += &format!("{token:>8}  {p:>11.6}  {count:>9}  {}\n", bar(p / largest));
    }
    if order.len() > LISTED {
        let rest = &order[LISTED..];
        let p: f64 = rest.iter().map(|&n| drawn.probs[n]).sum();
        let count: usize = rest.iter().filter_map(|&n| counts.get(&drawn.kept[n])).sum();
        text += &format!("{:>8}  {p:>11.6}  {count:>9}  ({} more tokens)\n", "...", rest.len());
    }
    let shown: Vec<String> = drawn.samples.iter().take(DRAWS).map(ToString::to_string).collect();
    let more = match drawn.samples.len().saturating_sub(DRAWS) {
        0 => String::new(),
        more => format!(" ... and {more} more; --json lists all"),
    };
    text + &format!("samples: {}{more}\n\n", shown.join(" "))
}

/// A bar for a share of the largest, to an eighth of a character.
fn bar(share: f64) -> String {
    let eighths = (8.0 * BAR * share).round() as usize;
    let part = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][eighths % 8];
    "█".repeat(eighths / 8) + part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_long_as_its_share() {
        assert_eq!(bar(1.0), "█".repeat(32));
        assert_eq!(bar(0.0), "");
        assert_eq!(bar(1.5 / 32.0), "█▌");
    }

    #[test]
    fn many_tokens_and_draws_are_summed_up() {
        let samples = vec![24; 30];
        let text = of(3, &Drawn { kept: (0..25).collect(), probs: vec![0.04; 25], samples, vocab: 99 });
        assert!(text.starts_with("row 3: 25 of 99 tokens kept, entropy 3.2189 nats\n"), "{text}");
        assert!(text.contains("     ...     0.200000         30  (5 more tokens)\n"), "{text}");
        assert!(text.ends_with("24 24 ... and 6 more; --json lists all\n\n"), "{text}");
    }
}
