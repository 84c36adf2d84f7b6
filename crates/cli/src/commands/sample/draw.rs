//! One row of `sample`.

use anyhow::bail;
use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use tinygpt_sampler::{
    DeviceRow, DeviceSampler, MultinomialOptions, NoiseSource, Row, Sampler, SamplingError, SamplingParams,
    TensorSamplingError, entropy, gumbel_max, gumbel_top_k, multinomial_row,
    oracle::{self, DrawNumbers, Outcome},
};

use crate::{
    args::{DrawMethod, InputKind, SampleArgs, SamplePath},
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
    /// What `--json` prints for the row.
    pub fn json(&self, kind: InputKind) -> Value {
        match kind {
            InputKind::Logits => json!({
                "kept": self.kept, "probs": self.probs, "entropy": entropy(&self.probs), "samples": self.samples,
            }),
            InputKind::Weights => json!({ "probs": self.probs, "samples": self.samples }),
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
        // By noise, the path shows what the rules keep, and draws nothing.
        let inverse = if args.method == DrawMethod::Inverse { args.num_samples } else { 0 };
        let drawn = match self {
            Self::Host(sampler) => on_host(inverse, sampler, &here),
            Self::Oracle(params) => by_definition(args, inverse, params, &here),
            Self::Device(sampler, device) => match on_device(inverse, sampler, device, &here) {
                Err(TensorSamplingError::Sampling(error)) => Err(error),
                Err(other) => return Err(format!("row {row}: {other}")),
                Ok(drawn) => Ok(drawn),
            },
        };
        let drawn = drawn.and_then(|drawn| match args.method {
            DrawMethod::Inverse => Ok(drawn),
            DrawMethod::Gumbel => {
                let samples = gumbel_draws(args, sequence, &log_probabilities(&drawn))?;
                Ok(Drawn { samples, ..drawn })
            }
        });
        drawn.map_err(|error| error.at_row(row).to_string())
    }
}

/// The logarithms of the probabilities of all tokens; -inf for those that the rules leave out.
fn log_probabilities(drawn: &Drawn) -> Vec<f32> {
    let mut logs = vec![f32::NEG_INFINITY; drawn.vocab];
    for (&token, p) in drawn.kept.iter().zip(&drawn.probs) {
        logs[token as usize] = p.ln() as f32;
    }
    logs
}

/// Draws with replacement by the Gumbel-max trick: draw j has the noise of position + j.
fn gumbel_draws(args: &SampleArgs, sequence: u64, logs: &[f32]) -> Result<Vec<u32>, SamplingError> {
    let noise = |draw| NoiseSource { seed: args.seed, sequence, position: args.position.wrapping_add(draw) };
    (0..args.num_samples).map(|draw| gumbel_max(logs, 1.0, noise(draw))).collect()
}

fn on_device(
    num_samples: u64,
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
    while (samples.len() as u64) < num_samples {
        // A batch of the same row at successive positions.
        let first = samples.len() as u64;
        let rows: Vec<_> = (first..num_samples).take((BATCH_LOGITS / vocab).clamp(1, MOST_ROWS)).map(at).collect();
        let batch = logits.broadcast_as((rows.len(), vocab))?.contiguous()?;
        for token in sampler.sample(&batch, &rows)? {
            samples.push(token?);
        }
    }
    let (kept, probs) = (distribution.kept().to_vec(), distribution.probs().to_vec());
    Ok(Drawn { kept, probs, samples, vocab })
}

fn on_host(num_samples: u64, sampler: &mut Sampler, row: &Row<'_>) -> Result<Drawn, SamplingError> {
    let distribution = sampler.distribution(row)?;
    let samples = sampler.sample_row_repeatedly(row, num_samples as usize)?;
    let (kept, probs) = (distribution.kept().to_vec(), distribution.probs().to_vec());
    Ok(Drawn { kept, probs, samples, vocab: row.logits.len() })
}

fn by_definition(
    args: &SampleArgs,
    num_samples: u64,
    params: &SamplingParams,
    row: &Row<'_>,
) -> Result<Drawn, SamplingError> {
    let at = |position| {
        let numbers = DrawNumbers::at(params, row.sequence, position);
        let outcome = oracle::sample_with(row.logits, params, row.history, numbers)?;
        if args.rules.adaptive.is_some_and(|threshold| outcome.probs[0] > threshold) {
            // Greedy over what the rules keep, of which the most probable is the first.
            let greedy = outcome.kept[0];
            return Ok(Outcome { kept: vec![greedy], probs: vec![1.0], token: greedy, margin: outcome.margin });
        }
        Ok(outcome)
    };
    let first = at(row.position)?;
    let positions = (0..num_samples).map(|draw| row.position.wrapping_add(draw));
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
    let multinomial = |options| multinomial_row(weights, row, options).map_err(|error| error.to_string());
    let samples = match args.method {
        DrawMethod::Inverse => multinomial(options)?,
        DrawMethod::Gumbel => {
            // One draw with replacement is refused for the reasons for which many are.
            let few = if args.replacement { options.num_samples.min(1) } else { options.num_samples };
            multinomial(MultinomialOptions { num_samples: few, ..options })?;
            gumbel_from_weights(args, weights, row)?
        }
    };
    let kept: Vec<u32> = (0..weights.len() as u32).filter(|&n| weights[n as usize] > 0.0).collect();
    // Relative to the largest, so that no sum overflows.
    let max = weights.iter().copied().fold(0.0, f64::max);
    let mut probs: Vec<f64> = kept.iter().map(|&n| weights[n as usize] / max).collect();
    let total: f64 = probs.iter().sum();
    probs.iter_mut().for_each(|p| *p /= total);
    Ok(Drawn { kept, probs, samples, vocab: weights.len() })
}

/// Draws from weights by Gumbel noise. What multinomial refuses is refused here.
fn gumbel_from_weights(args: &SampleArgs, weights: &[f64], row: usize) -> Result<Vec<u32>, String> {
    let sequence = args.sequence.wrapping_add(row as u64);
    // Relative to the largest, where f32 is the most exact.
    let max = weights.iter().copied().fold(0.0, f64::max).ln();
    let logs: Vec<f32> = weights.iter().map(|weight| (weight.ln() - max) as f32).collect();
    let drawn = if args.replacement {
        gumbel_draws(args, sequence, &logs)
    } else {
        let noise = NoiseSource { seed: args.seed, sequence, position: args.position };
        gumbel_top_k(&logs, args.num_samples as usize, 1.0, noise)
    };
    drawn.map_err(|error| error.at_row(row).to_string())
}
