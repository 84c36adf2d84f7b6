//! One row of `sample`.

use serde_json::{Value, json};
use tinygpt_sampler::{
    MultinomialOptions, Row, Sampler, SamplingError, SamplingParams, multinomial_row, oracle, uniform,
};

use crate::args::{Kind, SampleArgs, SamplePath};

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

/// Draws from logits with the rules.
pub fn from_logits(args: &SampleArgs, sampler: &mut Sampler, numbers: &[f64], row: usize) -> Result<Drawn, String> {
    let logits: Vec<f32> = numbers.iter().map(|&x| x as f32).collect();
    let sequence = args.sequence.wrapping_add(row as u64);
    let here = Row { logits: &logits, history: &args.history, sequence, position: args.position };
    let drawn = match args.path {
        SamplePath::Host => on_host(args, sampler, &here),
        SamplePath::Oracle => by_definition(args, sampler.params(), &here),
    };
    drawn.map_err(|error| error.at_row(row).to_string())
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
