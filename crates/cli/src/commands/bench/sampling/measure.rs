//! The times of one cell.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use candle_core::Tensor;
use tinygpt_sampler::one_read;

#[cfg(feature = "bench-candle")]
use super::contenders::Candle;
use super::{
    super::median,
    contenders::{Contender, Host, OnDevice, with_rows},
};
use crate::args::Rule;

/// A measurement is repeated until it lasts this long: a clock and a sleeping thread cost microseconds.
const SHORTEST: Duration = Duration::from_millis(2);
/// Rounds of a whole sweep.
const ROUNDS: usize = 15;
/// What `--quick` takes: the rounds, and the time after which no round is started.
const QUICK: (usize, Duration) = (25, Duration::from_secs(12));
/// The most rows that `--quick` times candle on, which takes them one at a time: its time a row does not depend on their number.
#[cfg(feature = "bench-candle")]
const QUICK_CANDLE_ROWS: usize = 16;

/// How long to measure.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    rounds: usize,
    /// No round is started after so long in a cell.
    longest: Duration,
    #[cfg(feature = "bench-candle")]
    candle_rows: usize,
}

impl Effort {
    /// The effort for each of `cells` cells.
    pub fn new(quick: bool, cells: usize) -> Self {
        let (rounds, longest) = if quick { (QUICK.0, QUICK.1 / cells.max(1) as u32) } else { (ROUNDS, Duration::MAX) };
        Self {
            rounds,
            longest,
            #[cfg(feature = "bench-candle")]
            candle_rows: if quick { QUICK_CANDLE_ROWS } else { usize::MAX },
        }
    }
}

/// Medians of a cell, in microseconds a row.
pub struct Times {
    /// One read of the rows on the CPU.
    pub limit: f64,
    /// (contender, device, time).
    pub contenders: Vec<(&'static str, &'static str, f64)>,
}

/// Measures all contenders on the first `rows` rows of the logits, which are there once for each device. The first
/// device is the CPU.
pub fn measure(logits: &[(&'static str, Tensor)], rows: usize, rule: Rule, effort: Effort) -> anyhow::Result<Times> {
    let mut contenders: Vec<(&'static str, Box<dyn Contender>)> = Vec::new();
    for (device, logits) in logits {
        let logits = logits.narrow(0, 0, rows)?;
        contenders.push((device, Box::new(Host::new(logits.clone(), rule)?)));
        contenders.push((device, Box::new(OnDevice::new(logits.clone(), rule)?)));
        #[cfg(feature = "bench-candle")]
        contenders.push((device, Box::new(Candle::new(&logits, rows.min(effort.candle_rows), rule)?)));
    }
    let on_cpu = logits[0].1.narrow(0, 0, rows)?;
    let mut limits = Vec::new();
    let mut times = vec![Vec::new(); contenders.len()];
    let start = Instant::now();
    for round in 0..effort.rounds {
        limits.push(with_rows(&on_cpu, limit)?);
        for n in 0..contenders.len() {
            // In another order each round.
            let n = (n + round) % contenders.len();
            // All find the rows in the caches in the same way: as a read leaves them.
            with_rows(&on_cpu, |rows| black_box(one_read(rows)))?;
            times[n].push(time(contenders[n].1.as_mut())?);
        }
        if start.elapsed() > effort.longest {
            break;
        }
    }
    let contenders = contenders.iter().zip(times);
    let contenders =
        contenders.map(|((device, contender), times)| (contender.name(), *device, median(times))).collect();
    Ok(Times { limit: median(limits), contenders })
}

fn limit(rows: &[&[f32]]) -> f64 {
    black_box(one_read(rows));
    let (start, mut calls) = (Instant::now(), 0);
    while calls == 0 || start.elapsed() < SHORTEST {
        black_box(one_read(black_box(rows)));
        calls += 1;
    }
    1e6 * start.elapsed().as_secs_f64() / f64::from(calls) / rows.len() as f64
}

fn time(contender: &mut dyn Contender) -> anyhow::Result<f64> {
    let (start, mut calls) = (Instant::now(), 0);
    while calls == 0 || start.elapsed() < SHORTEST {
        contender.step()?;
        calls += 1;
    }
    Ok(1e6 * start.elapsed().as_secs_f64() / f64::from(calls) / contender.rows() as f64)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    #[test]
    fn every_rule_of_every_contender_draws_on_every_shape() {
        let logits = Tensor::from_vec(super::super::logits::normal(3, 60), (3, 60), &Device::Cpu).unwrap();
        for rule in [Rule::Greedy, Rule::Temperature, Rule::TopK, Rule::TopP, Rule::TopKTopP] {
            let times = measure(&[("cpu", logits.clone())], 2, rule, Effort::new(true, 1000)).unwrap();
            assert!(times.limit > 0.0 && times.contenders.iter().all(|(_, _, us)| *us > 0.0));
        }
    }
}
