//! One row of `sample`.

use anyhow::bail;
use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use tinygpt_sampler::{
    DeviceRow, DeviceSampler, MultinomialOptions, Row, Sampler, SamplingError, SamplingParams, TensorSamplingError,
    multinomial_row, oracle, uniform,
};

use crate::{
    args::{Kind, SampleArgs, SamplePath},
    device::DeviceChoice,
    output::Usage,
};

/// The most rows of a batch on a device, and about how many logits.
const MOST_ROWS: usize = 1024;
const BATCH_LOGITS: usize = 1 << 20;

/// What a row may give, and what was drawn from it.
pub struct Drawn {
    /// The tokens that may be drawn: in falling probability for logits, in their order for weights.
    pub kept: Vec<u32>,
    /// Their probabilities.
    pub probs: Vec<f64>,
    /// The drawn tokens.
    pub samples: Vec<u32>,
    /// How many numbers the row has.
    pub vocab: usize,
}

impl Drawn {
    /// In nats.
    pub fn entropy(&self) -> f64 {
        // The sum starts at 0, and -0 of a single token is turned into 0.
        0.0 - self.probs.iter().filter(|&&p| p > 0.0).map(|p| p * p.ln()).sum::<f64>()
    }

    /// What `--json` prints for the row.
    pub fn json(&self, kind: Kind) -> Value {
        match kind {
            Kind::Logits => json!({
                "kept": self.kept, "probs": self.probs, "entropy": self.entropy(), "samples": self.samples,
            }),
            Kind::Weights => json!({ "probs": self.probs, "samples": self.samples }),
        }
    }
}

/// The implementation that draws from logits.
pub enum Path {
    /// The definition.
    Oracle(SamplingParams),
    /// The fast path on the CPU.
    Host(Sampler),
    /// Tensor operations on a device.
    Device(DeviceSampler, Device),
}

impl Path {
    /// The one that was asked for; rules outside their range and what it cannot do are refused.
    pub fn new(args: &SampleArgs, params: &SamplingParams) -> anyhow::Result<Self> {
        // All rules are checked here, those of the oracle and of the device too.
        let host = args.rules.sampler(params.clone())?;
        if args.device.is_some() && args.path != SamplePath::Device {
            bail!(Usage("--device is where --path device draws; the other paths are the CPU's".into()));
        }
        match args.path {
            SamplePath::Oracle => Ok(Self::Oracle(params.clone())),
            SamplePath::Host => Ok(Self::Host(host)),
            SamplePath::Device => {
                let device = args.device.unwrap_or(DeviceChoice::Cpu).open()?;
                Ok(Self::Device(DeviceSampler::from(&host), device))
            }
        }
    }

    /// Draws from logits.
    pub fn draw(&mut self, args: &SampleArgs, numbers: &[f64], row: usize) -> Result<Drawn, String> {
        let logits: Vec<f32> = numbers.iter().map(|&x| x as f32).collect();
        let sequence = args.sequence.wrapping_add(row as u64);
        let here = Row { logits: &logits, history: &args.history, sequence, position: args.position };
        let drawn = match self {
            Self::Host(sampler) => on_host(args, sampler, &here),
            Self::Oracle(params) => by_definition(args, params, &here),
            Self::Device(sampler, device) => match on_device(args, sampler, device, &here) {
                Err(TensorSamplingError::Sampling(error)) => Err(error),
                Err(other) => return Err(format!("row {row}: {other}")),
                Ok(drawn) => Ok(drawn),
            },
        };
        drawn.map_err(|error| error.at_row(row).to_string())
    }
}

fn on_device(
    args: &SampleArgs,
    sampler: &mut DeviceSampler,
    device: &Device,
    row: &Row<'_>,
) -> Result<Drawn, TensorSamplingError> {
    let vocab = row.logits.len();
    let logits = Tensor::from_slice(row.logits, (1, vocab), device)?;
    let at =
        |draw| DeviceRow { history: row.history, sequence: row.sequence, position: row.position.wrapping_add(draw) };
    let distribution = sampler.distributions(&logits, &[at(0)])?.remove(0)?;
    let mut samples = Vec::new();
    while (samples.len() as u64) < args.num_samples {
        // A batch of the same row at successive positions.
        let first = samples.len() as u64;
        let rows: Vec<_> = (first..args.num_samples).take((BATCH_LOGITS / vocab).clamp(1, MOST_ROWS)).map(at).collect();
        let batch = logits.broadcast_as((rows.len(), vocab))?.contiguous()?;
        for token in sampler.sample(&batch, &rows)? {
            samples.push(token?);
        }
    }
    let (kept, probs) = (distribution.kept().to_vec(), distribution.probs().to_vec());
    Ok(Drawn { kept, probs, samples, vocab })
}

fn on_host(args: &SampleArgs, sampler: &mut Sampler, row: &Row<'_>) -> Result<Drawn, SamplingError> {
    let distribution = sampler.distribution(row)?;
    let samples = sampler.sample_row_repeatedly(row, args.num_samples as usize)?;
    let (kept, probs) = (distribution.kept().to_vec(), distribution.probs().to_vec());
    Ok(Drawn { kept, probs, samples, vocab: row.logits.len() })
}

fn by_definition(args: &SampleArgs, params: &SamplingParams, row: &Row<'_>) -> Result<Drawn, SamplingError> {
    let mut params = params.clone();
    let mut at = |position| {
        let u = uniform(params.seed, row.sequence, position);
        let outcome = oracle::sample(row.logits, &params, row.history, u)?;
        if args.rules.adaptive.is_some_and(|threshold| outcome.probs[0] > threshold) {
            params.temperature = 0.0;
            return oracle::sample(row.logits, &params, row.history, u);
        }
        Ok(outcome)
    };
    let first = at(row.position)?;
    let positions = (0..args.num_samples).map(|draw| row.position.wrapping_add(draw));
    let samples = positions.map(|position| Ok(at(position)?.token)).collect::<Result<_, SamplingError>>()?;
    Ok(Drawn { kept: first.kept, probs: first.probs, samples, vocab: row.logits.len() })
}

/// Draws from weights.
pub fn from_weights(args: &SampleArgs, weights: &[f64], row: usize) -> Result<Drawn, String> {
    let options = MultinomialOptions {
        num_samples: args.num_samples as usize,
        replacement: args.replacement,
        seed: args.seed,
        sequence: args.sequence,
        position: args.position,
    };
    let samples = multinomial_row(weights, row, options).map_err(|error| error.to_string())?;
    let kept: Vec<u32> = (0..weights.len() as u32).filter(|&n| weights[n as usize] > 0.0).collect();
    // Relative to the largest, so that no sum overflows.
    let max = weights.iter().copied().fold(0.0, f64::max);
    let mut probs: Vec<f64> = kept.iter().map(|&n| weights[n as usize] / max).collect();
    let total: f64 = probs.iter().sum();
    probs.iter_mut().for_each(|p| *p /= total);
    Ok(Drawn { kept, probs, samples, vocab: weights.len() })
}
