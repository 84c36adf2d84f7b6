//! Progress of training: a bar on a terminal, plain lines elsewhere. Always on standard error.

use std::{
    io::{IsTerminal, stderr},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use tinygpt_trainer::{RunConfig, metrics::Metrics, samples::Sample, train::Event};

use crate::{output::harmless, progress_bar::WorkProgress, units};

/// Plain lines come no more often than this.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);
/// What a line may take of a terminal, and what of that is the bar at least.
const COLUMNS: usize = 80;
const BAR: usize = 10;

/// Shows [`Event`]s as they come.
pub struct Progress {
    bar: Option<ProgressBar>,
    max_steps: u64,
    max_minutes: f64,
    /// A moving average of tokens a second; single updates are noisy.
    tokens_per_s: Option<f64>,
    seconds_per_step: Option<f64>,
    tokens_per_step: f64,
    last_line: Option<Instant>,
    /// Loss and norm as last read.
    figures_read: (Option<f64>, Option<f64>),
    final_evaluation: Option<WorkProgress>,
}

impl Progress {
    /// The progress of a run that starts, or goes on, at update `step`.
    pub fn new(config: &RunConfig, step: u64) -> anyhow::Result<Self> {
        let max_steps = config.train.max_steps;
        let bar = if stderr().is_terminal() {
            let style = ProgressStyle::with_template("{wide_bar:.blue} {pos}/{len}  {msg}")?;
            Some(ProgressBar::new(max_steps).with_style(style).with_position(step))
        } else {
            None
        };
        Ok(Self {
            bar,
            max_steps,
            max_minutes: config.train.max_minutes,
            tokens_per_s: None,
            seconds_per_step: None,
            tokens_per_step: config.tokens_per_step() as f64,
            last_line: None,
            figures_read: (None, None),
            final_evaluation: None,
        })
    }

    /// Shows an event.
    pub fn on(&mut self, event: Event<'_>) {
        match event {
            Event::Step { metrics, .. } => self.step(metrics),
            Event::Eval { metrics, best } => self.eval(metrics, best),
            Event::Sample(sample) => self.sample(sample),
            Event::FinalEvaluation { done, tokens } => self.final_evaluation(done, tokens),
        }
    }

    fn step(&mut self, metrics: &Metrics) {
        // On a GPU only what is logged is read: until then, the figures before stay.
        let metrics = &Metrics {
            loss: metrics.loss.or(self.figures_read.0),
            grad_norm: metrics.grad_norm.or(self.figures_read.1),
            ..metrics.clone()
        };
        self.figures_read = (metrics.loss, metrics.grad_norm);
        if let Some(now) = metrics.tokens_per_s {
            let mean = self.tokens_per_s.map_or(now, |mean| 0.95 * mean + 0.05 * now);
            self.tokens_per_s = Some(mean);
            self.seconds_per_step = Some(self.tokens_per_step / mean);
        }
        let figures = self.figures(metrics);
        match &self.bar {
            Some(bar) => {
                bar.set_position(metrics.step);
                let count = format!(" {}/{}  ", metrics.step, self.max_steps);
                bar.set_message(fitting(figures, COLUMNS.saturating_sub(BAR + count.len())));
            }
            None if metrics.step == self.max_steps || self.last_line.is_none_or(|t| t.elapsed() >= PLAIN_INTERVAL) => {
                self.last_line = Some(Instant::now());
                notice!("step {}/{}  {}", metrics.step, self.max_steps, fitting(figures, usize::MAX));
            }
            None => {}
        }
    }

    fn eval(&mut self, metrics: &Metrics, best: bool) {
        let figures = present([
            (0, Some(format!("eval {}/{}", metrics.step, self.max_steps))),
            (0, metrics.val_loss.map(|x| format!("loss {x:.4}"))),
            (4, metrics.perplexity.map(|x| format!("ppl {}", units::perplexity(x)))),
            (3, metrics.bits_per_byte.map(|x| format!("{x:.4} bits/byte"))),
            (2, metrics.floor.map(|x| format!("floor {x:.4}"))),
            (1, best.then(|| "best".to_owned())),
        ]);
        match &self.bar {
            Some(bar) => bar.println(fitting(figures, COLUMNS)),
            None => notice!("{}", fitting(figures, usize::MAX)),
        }
    }

    /// The beginning of a sample, for who looks on; all of it is in the run.
    fn sample(&self, sample: &Sample) {
        if let Some(bar) = &self.bar {
            let Sample { step, prompt, text, .. } = sample;
            bar.println(in_one_line(&format!("sample {step}/{}  {prompt}{text}", self.max_steps), COLUMNS));
        }
    }

    /// The evaluation of the best weights, which has a bar of its own.
    fn final_evaluation(&mut self, done: u64, tokens: u64) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        let what = || WorkProgress::new(format!("evaluating the best weights on {tokens} validation tokens"));
        self.final_evaluation.get_or_insert_with(what).at(done as usize, tokens as usize);
    }

    /// Takes the bar away.
    pub fn finish(&mut self) {
        self.final_evaluation = None;
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// What is known of an update, in the order in which it is shown, each with its rank: the least important has the
    /// largest.
    fn figures(&self, m: &Metrics) -> Vec<(u8, String)> {
        present([
            (0, m.loss.map(|x| format!("loss {x:.4}"))),
            (3, m.lr.map(|x| format!("lr {x:.2e}"))),
            (4, m.grad_norm.map(|x| format!("norm {x:.3}"))),
            (2, self.tokens_per_s.map(|x| format!("{x:.0} tok/s"))),
            (1, self.time_left(m).map(|left| format!("{} left", human_time(left)))),
        ])
    }

    fn time_left(&self, m: &Metrics) -> Option<f64> {
        let steps = self.seconds_per_step? * (self.max_steps - m.step.min(self.max_steps)) as f64;
        let limit = if self.max_minutes > 0.0 { 60.0 * self.max_minutes - m.seconds } else { f64::INFINITY };
        Some(steps.min(limit).max(0.0))
    }
}

fn present<const N: usize>(figures: [(u8, Option<String>); N]) -> Vec<(u8, String)> {
    figures.into_iter().filter_map(|(rank, text)| Some((rank, text?))).collect()
}

/// The figures in one line, without the least important ones that do not fit.
fn fitting(mut figures: Vec<(u8, String)>, columns: usize) -> String {
    loop {
        let line = figures.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join("  ");
        if line.len() <= columns || figures.len() <= 1 {
            return line;
        }
        let least = figures.iter().map(|(rank, _)| *rank).max();
        figures.retain(|(rank, _)| Some(*rank) != least);
    }
}

/// The beginning of a text, with spaces for its line breaks and tabs, and without what would drive the terminal.
fn in_one_line(text: &str, columns: usize) -> String {
    let spaced = text.replace(['\t', '\n'], " ");
    let shown = harmless(&spaced);
    match shown.char_indices().nth(columns) {
        Some(_) => shown.chars().take(columns - 3).chain("...".chars()).collect(),
        None => shown.into_owned(),
    }
}

/// `1h02m`, `3m05s`, `42s`.
pub fn human_time(seconds: f64) -> String {
    let s = seconds.round() as u64;
    match (s / 3600, s / 60 % 60, s % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s:02}s"),
        (h, m, _) => format!("{h}h{m:02}m"),
    }
}

/// 1234567 as 1,234,567.
pub fn in_thousands(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_come_in_groups_of_three() {
        let numbers = [0, 12, 999, 1000, 786_432, 1_234_567].map(in_thousands);
        assert_eq!(numbers, ["0", "12", "999", "1,000", "786,432", "1,234,567"]);
    }

    #[test]
    fn what_does_not_fit_goes_by_its_rank() {
        let figures =
            || [(0, "loss 1"), (2, "lr 2"), (1, "3 left")].map(|(rank, text)| (rank, text.to_owned())).to_vec();
        for (columns, line) in [(20, "loss 1  lr 2  3 left"), (19, "loss 1  3 left"), (13, "loss 1"), (0, "loss 1")] {
            assert_eq!(fitting(figures(), columns), line);
        }
    }

    #[test]
    fn a_sample_is_cut_to_one_line_that_does_not_drive_the_terminal() {
        assert_eq!(in_one_line("sample 1/2  To be\nor\tnot\x1b", 40), "sample 1/2  To be or not\\x1b");
        assert_eq!(in_one_line(&"ä".repeat(9), 8), "äääää...");
        assert_eq!(in_one_line(&"ä".repeat(8), 8), "ä".repeat(8));
    }

    #[test]
    fn times_are_short_and_readable() {
        for (seconds, text) in [(0.2, "0s"), (59.6, "1m00s"), (185.0, "3m05s"), (3720.0, "1h02m"), (90000.0, "25h00m")]
        {
            assert_eq!(human_time(seconds), text);
        }
    }
}
