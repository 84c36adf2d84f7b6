//! candle's sampler.

use std::hint::black_box;

use candle_core::{IndexOp, Tensor};
use candle_transformers::generation::{LogitsProcessor, Sampling};

use super::{Contender, TEMPERATURE, TOP_K, TOP_P};
use crate::args::Rule;

/// candle's `LogitsProcessor`. It takes one row at a time, on one thread.
pub struct Candle {
    processor: LogitsProcessor,
    rows: Vec<Tensor>,
}

impl Candle {
    /// Draws from the first `rows` rows of `logits` `(B, V)`.
    pub fn new(logits: &Tensor, rows: usize, rule: Rule) -> anyhow::Result<Self> {
        let (k, p, temperature) = (TOP_K, TOP_P, TEMPERATURE);
        let sampling = match rule {
            Rule::Greedy => Sampling::ArgMax,
            Rule::Temperature => Sampling::All { temperature },
            Rule::TopK => Sampling::TopK { k, temperature },
            Rule::TopP => Sampling::TopP { p, temperature },
            Rule::TopKTopP => Sampling::TopKThenTopP { k, p, temperature },
        };
        let rows = (0..rows).map(|row| logits.i(row)).collect::<Result<_, _>>()?;
        Ok(Self { processor: LogitsProcessor::from_sampling(0, sampling), rows })
    }
}

impl Contender for Candle {
    fn name(&self) -> &'static str {
        "candle"
    }

    fn rows(&self) -> usize {
        self.rows.len()
    }

    fn step(&mut self) -> anyhow::Result<()> {
        for row in &self.rows {
            black_box(self.processor.sample(row)?);
        }
        Ok(())
    }
}
