//! Samples that a run writes while it trains, so that one sees the model learn: `samples.jsonl`, one JSON object a line.

use std::{
    ops::ControlFlow,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use serde::{Deserialize, Serialize};
use tinygpt_model::{Decoder, Generation, ModelError, Tokenizer, generate};
use tinygpt_sampler::{Sampler, SamplingParams};

use crate::{
    Result, TrainError,
    config::{ConfigError, RunConfig},
    json_lines::{self, JsonLines, Line},
    run::LoopState,
};

/// The file of the samples in a run.
pub const SAMPLES_FILE: &str = "samples.jsonl";
/// The format of a line of `samples.jsonl`.
pub const SAMPLES_FORMAT: u64 = 1;

/// One line of `samples.jsonl`: a text by the weights of one update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// [`SAMPLES_FORMAT`].
    pub format: u64,
    /// The number of updates made.
    pub step: u64,
    /// The text that was continued; where it is empty, the model began after its start token.
    pub prompt: String,
    /// The continuation.
    pub text: String,
    /// The seed of the draws, which are those of the first sequence: `tinygpt generate --seed` draws the same.
    pub seed: u64,
}

impl Line for Sample {
    const FORMAT: u64 = SAMPLES_FORMAT;
    const REMEDY: &'static str = "delete that line, on which nothing but pages and logs depends";

    fn format(&self) -> u64 {
        self.format
    }
}

/// Reads the samples of a run; none where it took none.
///
/// # Errors
/// When the file cannot be read, or a line of it is broken or of another format.
pub fn read(run: &Path) -> Result<Vec<Sample>> {
    json_lines::read(&run.join(SAMPLES_FILE))
}

/// Opens the samples of a run, without the lines of updates that `state` has not seen: these are made again. A run that
/// takes no samples, and has none, gets no file.
///
/// # Errors
/// When the file is broken, or the disk is full.
pub(crate) fn open(run: &Path, config: &RunConfig, state: &LoopState) -> Result<Option<JsonLines<Sample>>> {
    let path = run.join(SAMPLES_FILE);
    if config.train.sample_every == 0 && !path.exists() {
        return Ok(None);
    }
    let mut rows = read(run)?;
    rows.retain(|row| row.step <= state.step);
    Ok(Some(JsonLines::create(&path, rows)?))
}

/// The tokens of `train.sample_prompt`; of an empty one, the start token.
///
/// # Errors
/// [`ConfigError::Range`], where the tokenizer does not know the prompt.
pub(crate) fn prompt(config: &RunConfig, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let text = &config.train.sample_prompt;
    let refused =
        |reason: String| ConfigError::Range { key: "train.sample_prompt".into(), value: format!("{text:?}"), reason };
    Ok(tokenizer.encode_prompt(text).map_err(|error| refused(error.to_string()))?)
}

/// Draws the sample of an update by the rules of `[generate]`. The draws depend on the seed and the position alone, so that
/// samples of different updates differ by the weights alone.
///
/// # Errors
/// [`TrainError::Interrupted`] when `stop` was set; when logits are not numbers any more, or the device fails.
pub(crate) fn draw(
    decoder: &mut dyn Decoder,
    tokenizer: &Tokenizer,
    config: &RunConfig,
    step: u64,
    stop: &AtomicBool,
) -> Result<Sample> {
    let prompt = prompt(config, tokenizer)?;
    let (rules, seed) = (&config.generate, config.seed);
    let (temperature, top_k, top_p) = (rules.temperature, rules.top_k, rules.top_p);
    let rules = SamplingParams { temperature, top_k, top_p, seed, ..SamplingParams::default() };
    let mut sampler = Sampler::new(rules).map_err(ModelError::from)?;
    let max_new_tokens = config.train.sample_tokens;
    let request = Generation { prompt: &prompt, first_sequence: 0, rows: 1, max_new_tokens };
    let (mut tokens, mut interrupted) = (Vec::new(), false);
    generate(decoder, &mut sampler, request, |_, token| {
        interrupted = stop.load(Ordering::Relaxed);
        if interrupted || tokenizer.ends_text(token) {
            return ControlFlow::Break(());
        }
        tokens.push(token);
        ControlFlow::Continue(())
    })?;
    if interrupted {
        return Err(TrainError::Interrupted);
    }
    let (prompt, text) = (config.train.sample_prompt.clone(), tokenizer.decode(&tokens)?);
    Ok(Sample { format: SAMPLES_FORMAT, step, prompt, text, seed })
}
