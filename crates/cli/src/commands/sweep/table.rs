//! The table of a sweep.

use tinygpt_trainer::sweep::{Grid, Summary};

/// A row for each combination of values, the best one marked.
pub fn table(grid: &Grid, summaries: &[Summary]) -> String {
    // Losses by token of different tokenizers cannot be compared, bits a byte can.
    let best = summaries.iter().filter_map(|summary| summary.bits_per_byte).fold(f64::INFINITY, f64::min);
    let mut rows = vec![
        grid.varied()
            .map(|setting| setting.key.clone())
            .chain(
                ["parameters", "validation", "+-", "training", "gap", "bits/byte", "seconds", "seeds"].map(Into::into),
            )
            .collect::<Vec<String>>(),
    ];
    let number = |x: Option<f64>| x.map_or("-".into(), |x| format!("{x:.4}"));
    for summary in summaries {
        let gap = summary.val_loss.zip(summary.train_loss).map(|(val, train)| val - train);
        let mark = if best.is_finite() && summary.bits_per_byte == Some(best) { "*" } else { "" };
        let diverged = match summary.diverged {
            0 => String::new(),
            n => format!(" ({n} diverged)"),
        };
        rows.push(
            (summary.values.iter().map(|(_, value)| value.clone()))
                .chain([
                    summary.parameters.to_string(),
                    number(summary.val_loss),
                    number(summary.val_loss_std),
                    number(summary.train_loss),
                    number(gap),
                    number(summary.bits_per_byte) + mark,
                    format!("{:.1}", summary.seconds),
                    format!("{}{diverged}", summary.seeds),
                ])
                .collect(),
        );
    }
    let mut text = aligned(&rows);
    text += "validation loss in nats a token (whole split, best weights); +- is its standard deviation over seeds.\n";
    if best.is_finite() {
        text += "* the least of all; bits/byte can be compared between tokenizers, nats a token cannot.\n";
    }
    text += "The gap between validation and training loss is variance: what was learned of the training text alone.\n";
    text += "A training loss that stays high is bias: the model is too small, or was trained too little.\n";
    text
}

/// Columns of equal width, numbers to the right.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$}")).collect();
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use tinygpt_trainer::sweep::Setting;

    use super::*;

    #[test]
    fn a_row_for_each_combination_and_the_best_is_marked() {
        let grid = Grid {
            settings: vec![Setting { key: "train.lr".into(), values: vec!["1e-3".into(), "9".into()] }],
            seeds: vec![1, 2],
        };
        let summary = |lr: &str, val_loss: Option<f64>, diverged| Summary {
            values: vec![("train.lr".into(), lr.into())],
            seeds: 2,
            diverged,
            parameters: 1234,
            val_loss,
            val_loss_std: val_loss.map(|_| 0.01),
            train_loss: val_loss.map(|loss| loss - 0.25),
            bits_per_byte: val_loss,
            seconds: 1.25,
        };
        let text = table(&grid, &[summary("1e-3", Some(1.5), 0), summary("9", None, 2)]);
        let lines: Vec<_> = text.lines().take(3).collect();
        assert_eq!(
            lines,
            [
                "train.lr  parameters  validation      +-  training     gap  bits/byte  seconds           seeds",
                "    1e-3        1234      1.5000  0.0100    1.2500  0.2500    1.5000*      1.2               2",
                "       9        1234           -       -         -       -          -      1.2  2 (2 diverged)",
            ]
        );
    }
}
