//! `sample --plot`: expected and observed frequencies, and what softmax does to the numbers.

use std::collections::HashMap;

use tinygpt_trainer::chart::{Axis, Figure, Mark, Panel};

use super::draw::Drawn;
use crate::args::{InputKind, SampleArgs};

/// Tokens that are drawn as bars.
const SHOWN: usize = 32;

/// Two values for each of some tokens.
struct Pairs {
    title: String,
    tokens: Vec<u32>,
    names: [&'static str; 2],
    values: [Vec<f64>; 2],
}

/// The plot of a row: its numbers, and what was drawn.
pub fn figure(args: &SampleArgs, row: usize, numbers: &[f64], drawn: &Drawn) -> Figure {
    let panels = [frequencies(args, row, drawn), weightings(numbers)].map(Pairs::panel);
    Figure::new(panels.into()).panel_size(600, 440)
}

fn frequencies(args: &SampleArgs, row: usize, drawn: &Drawn) -> Pairs {
    let mut counts: HashMap<u32, f64> = HashMap::new();
    for &token in &drawn.samples {
        *counts.entry(token).or_default() += 1.0 / drawn.samples.len() as f64;
    }
    let mut order: Vec<usize> = (0..drawn.kept.len()).collect();
    order.sort_by(|&a, &b| drawn.probs[b].total_cmp(&drawn.probs[a]));
    order.truncate(SHOWN);
    let tokens: Vec<u32> = order.iter().map(|&n| drawn.kept[n]).collect();
    let observed = tokens.iter().map(|token| counts.get(token).copied().unwrap_or(0.0)).collect();
    let without = args.kind == InputKind::Weights && !args.replacement && drawn.samples.len() > 1;
    // Each token comes at most once then, so frequencies are not to be compared with probabilities.
    let how = if without { " without replacement" } else { "" };
    Pairs {
        title: format!("row {row}: {} draws{how}", drawn.samples.len()),
        tokens,
        names: [if without { "probability of the first draw" } else { "expected" }, "observed"],
        values: [order.iter().map(|&n| drawn.probs[n]).collect(), observed],
    }
}

/// The numbers as weights, negative ones counting nothing, and as logits.
fn weightings(numbers: &[f64]) -> Pairs {
    let mut order: Vec<usize> = (0..numbers.len()).collect();
    order.sort_by(|&a, &b| numbers[b].total_cmp(&numbers[a]));
    let max = order.first().map_or(0.0, |&n| numbers[n]);
    let share = |weight: &dyn Fn(f64) -> f64| -> Vec<f64> {
        let total: f64 = numbers.iter().map(|&x| weight(x)).sum();
        let share = |&n: &usize| if total > 0.0 { weight(numbers[n]) / total } else { 0.0 };
        order.iter().take(SHOWN).map(share).collect()
    };
    // Relative to the largest, so that no sum overflows.
    let linear = share(&|x| if max > 0.0 { x.max(0.0) / max } else { 0.0 });
    let softmax = share(&|x| (x - max).exp());
    Pairs {
        title: "the same numbers as weights (negative: 0) and as logits".into(),
        tokens: order.iter().take(SHOWN).map(|&n| n as u32).collect(),
        names: ["linear", "softmax"],
        values: [linear, softmax],
    }
}

impl Pairs {
    fn panel(self) -> Panel {
        let [a, b] = self.values;
        Panel::new(
            self.title,
            Axis::categories("token", self.tokens.iter().map(u32::to_string)),
            Axis::linear("probability"),
        )
        .mark(Mark::bars(self.names[0], a))
        .mark(Mark::bars(self.names[1], b))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_linear_and_logits_exponential() {
        let pairs = weightings(&[1.0, 3.0, -2.0, f64::NEG_INFINITY]);
        assert_eq!(pairs.tokens, [1, 0, 2, 3]);
        assert_eq!(pairs.values[0], [0.75, 0.25, 0.0, 0.0]);
        let total = 1.0 + (-2f64).exp() + (-5f64).exp();
        assert!((pairs.values[1][0] - 1.0 / total).abs() < 1e-15);
        assert_eq!(pairs.values[1][3], 0.0);
        assert_eq!(weightings(&[-1.0, -2.0]).values[0], [0.0, 0.0]);
    }
}
