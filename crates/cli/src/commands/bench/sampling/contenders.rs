//! Who is measured.

#[cfg(feature = "bench-candle")]
mod candle;

use std::{borrow::Cow, hint::black_box};

use candle_core::{Storage, Tensor};
use tinygpt_sampler::{DeviceRow, DeviceSampler, Row, Sampler, SamplingError, SamplingParams};

use crate::args::Rule;
#[cfg(feature = "bench-candle")]
pub use candle::Candle;

const TEMPERATURE: f64 = 1.0;
const TOP_K: usize = 50;
const TOP_P: f64 = 0.9;

/// Draws one token for each of its rows.
pub trait Contender {
    /// Its name in the report.
    fn name(&self) -> &'static str;
    /// Rows of one step.
    fn rows(&self) -> usize;
    /// One token for each row.
    fn step(&mut self) -> anyhow::Result<()>;
}

/// Our host path; logits on another device are copied first.
pub struct Host {
    sampler: Sampler,
    logits: Tensor,
    position: u64,
    tokens: Vec<Result<u32, SamplingError>>,
}

impl Host {
    /// Draws from these rows of logits, `(B, V)`.
    pub fn new(logits: Tensor, rule: Rule) -> anyhow::Result<Self> {
        Ok(Self { sampler: Sampler::new(params(rule))?, logits, position: 0, tokens: Vec::new() })
    }
}

fn params(rule: Rule) -> SamplingParams {
    let mut params = SamplingParams { temperature: TEMPERATURE, ..SamplingParams::default() };
    match rule {
        Rule::Greedy => params.temperature = 0.0,
        Rule::Temperature => {}
        Rule::TopK => params.top_k = TOP_K,
        Rule::TopP => params.top_p = TOP_P,
        Rule::TopKTopP => (params.top_k, params.top_p) = (TOP_K, TOP_P),
    }
    params
}

impl Contender for Host {
    fn name(&self) -> &'static str {
        "host"
    }

    fn rows(&self) -> usize {
        self.logits.dim(0).unwrap_or(0)
    }

    fn step(&mut self) -> anyhow::Result<()> {
        let Self { sampler, logits, position, tokens } = self;
        with_rows(logits, |rows| {
            let row = |(sequence, &logits)| Row { logits, history: &[], sequence, position: *position };
            let rows: Vec<Row<'_>> = (0..).zip(rows).map(row).collect();
            sampler.sample_batch_into(&rows, tokens);
        })?;
        *position += 1;
        black_box(tokens.iter().try_for_each(|token| token.as_ref().map(drop).map_err(Clone::clone))?);
        Ok(())
    }
}

/// Our device path: tensor operations where the logits are.
pub struct OnDevice {
    sampler: DeviceSampler,
    logits: Tensor,
    position: u64,
}

impl OnDevice {
    /// Draws from these rows of logits, `(B, V)`.
    pub fn new(logits: Tensor, rule: Rule) -> anyhow::Result<Self> {
        Ok(Self { sampler: DeviceSampler::new(params(rule))?, logits, position: 0 })
    }
}

impl Contender for OnDevice {
    fn name(&self) -> &'static str {
        "device"
    }

    fn rows(&self) -> usize {
        self.logits.dim(0).unwrap_or(0)
    }

    fn step(&mut self) -> anyhow::Result<()> {
        let row = |sequence| DeviceRow { history: &[], sequence, position: self.position };
        let rows: Vec<_> = (0..self.rows() as u64).map(row).collect();
        for token in self.sampler.sample(&self.logits, &rows)? {
            black_box(token?);
        }
        self.position += 1;
        Ok(())
    }
}

/// Calls `work` with the rows of `[B, V]` logits, where they are if that is the CPU's memory.
pub fn with_rows<T>(logits: &Tensor, work: impl FnOnce(&[&[f32]]) -> T) -> anyhow::Result<T> {
    let (rows, vocab) = logits.dims2()?;
    let (storage, layout) = logits.storage_and_layout();
    let values = match &*storage {
        Storage::Cpu(values) => Cow::Borrowed(&values.as_slice::<f32>()?[layout.start_offset()..][..rows * vocab]),
        _ => Cow::Owned(logits.flatten_all()?.to_vec1::<f32>()?),
    };
    Ok(work(&values.chunks_exact(vocab).collect::<Vec<_>>()))
}
