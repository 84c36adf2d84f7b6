//! What `bench sampling` prints.

use serde::Serialize;

use super::{super::flag_name, measure::Times};
use crate::args::Rule;

/// One contender in one cell of the sweep.
#[derive(Debug, Clone, Serialize)]
pub struct Cell {
    /// Who.
    pub contender: &'static str,
    /// Where the logits are.
    pub device: &'static str,
    /// Rows of a batch.
    pub rows: u32,
    /// Logits of a row.
    pub vocab: u32,
    /// The name of the rule, as the flag takes it.
    pub rule: String,
    /// The median time.
    pub us_per_row: f64,
    /// The median time of one read of the row.
    pub limit_us_per_row: f64,
    /// The second in units of the first.
    pub share_of_limit: f64,
}

/// What is not measured here.
#[derive(Debug, Clone, Serialize)]
pub struct Absent {
    /// Its name, under the key `device` or `contender`.
    #[serde(flatten)]
    pub what: Missing,
    /// Why.
    pub reason: String,
}

/// A device or a contender.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    Device(&'static str),
    Contender(&'static str),
}

impl Missing {
    fn name(self) -> &'static str {
        match self {
            Self::Device(name) | Self::Contender(name) => name,
        }
    }
}

/// The cells of one batch, vocabulary and rule.
pub fn cells(rows: u32, vocab: u32, rule: Rule, times: &Times) -> Vec<Cell> {
    let rule = flag_name(rule);
    let cell = |&(contender, device, us_per_row): &(&'static str, &'static str, f64)| Cell {
        contender,
        device,
        rows,
        vocab,
        rule: rule.clone(),
        us_per_row,
        limit_us_per_row: times.limit,
        share_of_limit: times.limit / us_per_row,
    };
    times.contenders.iter().map(cell).collect()
}

/// What is not here, and the heads of the columns.
pub fn header(absent: &[Absent]) -> String {
    let absent: String = absent.iter().map(|a| format!("absent: {}: {}\n", a.what.name(), a.reason)).collect();
    absent
        + &format!(
            "{:>4}  {:>6}  {:<11}  {:<9}  {:<6}  {:>10}  {:>10}  {:>8}  {:>8}  {:>8}  {:>7}\n",
            "rows",
            "vocab",
            "rule",
            "contender",
            "device",
            "us/row",
            "rows/s",
            "limit us",
            "of limit",
            "x candle",
            "x host",
        )
}

/// The lines of one batch, vocabulary and rule: the speed-ups over candle and over our host path, both on the CPU.
pub fn lines(cells: &[Cell]) -> String {
    let speed_up = |over: &str, us: f64, decimals: usize| {
        let found = cells.iter().find(|cell| cell.device == "cpu" && cell.contender == over);
        found.map_or("-".to_owned(), |cell| format!("{:.decimals$}", cell.us_per_row / us))
    };
    let line = |cell: &Cell| {
        let us = cell.us_per_row;
        format!(
            "{:>4}  {:>6}  {:<11}  {:<9}  {:<6}  {us:>10.2}  {:>10.0}  {:>8.2}  {:>7.1}%  {:>8}  {:>7}\n",
            cell.rows,
            cell.vocab,
            cell.rule,
            cell.contender,
            cell.device,
            1e6 / us,
            cell.limit_us_per_row,
            100.0 * cell.share_of_limit,
            speed_up("candle", us, 1),
            speed_up("host", us, 2),
        )
    };
    cells.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_speed_ups_are_those_of_the_times() {
        let contenders = vec![("host", "cpu", 20.0), ("candle", "cpu", 300.0), ("host", "cuda:0", 5.0)];
        let cells = cells(16, 50257, Rule::TopKTopP, &Times { limit: 10.0, contenders });
        assert_eq!(cells[0].share_of_limit, 0.5);
        let text = header(&[]) + &lines(&cells);
        let without = Times { limit: 10.0, contenders: vec![("host", "cpu", 20.0)] };
        let alone = lines(&super::cells(16, 50257, Rule::Greedy, &without));
        assert!(alone.ends_with("     50.0%         -     1.00\n"), "{alone}");
        assert_eq!(
            text,
            "rows   vocab  rule         contender  device      us/row      rows/s  limit us  of limit  x candle   x host\n  \
             16   50257  top-k+top-p  host       cpu          20.00       50000     10.00     50.0%      15.0     1.00\n  \
             16   50257  top-k+top-p  candle     cpu         300.00        3333     10.00      3.3%       1.0     0.07\n  \
             16   50257  top-k+top-p  host       cuda:0        5.00      200000     10.00    200.0%      60.0     4.00\n"
        );
    }
}
