//! The comparison of sampling strategies: completions of the same prompts by each, and what tells the strategies apart.
//!
//! [`Strategy`] is what is compared, and how a file of them is read; `complete` decodes the rows of all strategies in one
//! batch, each by the rules of its own; `beam` is beam search, the counter-example; [`statistics`] has the numbers as pure
//! functions of texts and tokens; [`StrategyReport`] is what is known of a strategy in the end.

mod beam;
mod complete;
mod report;
pub mod statistics;
mod strategy;

use tinygpt_model::{Decoder, GptConfig, LanguageModel, Tokenizer};
use tinygpt_sampler::Sampler;

use self::complete::{Drawn, RowId};
use crate::{Result, stories::Grammar};

pub use report::{Completion, EndedBy, StrategyReport};
pub use strategy::{DEFAULT_STRATEGIES, MAX_BEAM, Strategy, StrategyError, TemperatureSchedule, parse_strategies};

/// The most bytes of keys and values of the rows that are decoded side by side. No text depends on it.
const CACHE_BYTES: usize = 512 << 20;
/// The most rows that are decoded side by side.
const MAX_ROWS: usize = 256;

/// A text to complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The text; where it is empty, a completion begins behind [`Tokenizer::start_token`].
    pub text: String,
    tokens: Vec<u32>,
}

impl Prompt {
    /// A prompt of this text.
    ///
    /// # Errors
    /// When the tokenizer does not know a character.
    pub fn new(text: String, tokenizer: &Tokenizer) -> Result<Self> {
        Ok(Self { tokens: tokenizer.encode_prompt(&text)?, text })
    }
}

/// A comparison: every strategy completes every prompt as often.
#[derive(Debug, Clone, Copy)]
pub struct Lab<'a> {
    /// What is compared.
    pub strategies: &'a [Strategy],
    /// What is completed.
    pub prompts: &'a [Prompt],
    /// Completions of a prompt by each strategy. Completion `i` is the text of sequence `i`.
    pub samples: usize,
    /// The most tokens of a completion, at least 1.
    pub max_new_tokens: usize,
    /// The seed of the draws.
    pub seed: u64,
    /// How many texts are decoded side by side, at least 1; no text depends on it. [`rows_at_once`] has a sensible number.
    pub rows_at_once: usize,
    /// From tokens to text.
    pub tokenizer: &'a Tokenizer,
    /// The grammar that the text is from, if it is known.
    pub grammar: Option<&'a Grammar>,
}

impl Lab<'_> {
    /// Completes every prompt by every strategy. A draw is that of `generate` with the same rules, seed and sequence, whatever
    /// else is compared; `model` is asked by beam search alone. `on_progress(done, all)` is told how many tokens are done, and
    /// may end the work by an error.
    ///
    /// # Errors
    /// When a strategy's rules are refused, a logit is not a number, the device fails, or `on_progress` does.
    pub fn run(
        &self,
        decoder: &mut dyn Decoder,
        model: &mut dyn LanguageModel,
        on_progress: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<Vec<StrategyReport>> {
        let rows = self.rows();
        let beams: Vec<usize> = (0..self.strategies.len()).filter(|&s| self.strategies[s].beam.is_some()).collect();
        let all = self.prompts.len() * self.max_new_tokens * (rows.len() + beams.len());
        let mut done = 0;
        let mut on_tokens = |tokens: usize| {
            done += tokens;
            on_progress(done.min(all), all)
        };
        // Each strategy's completions, prompt after prompt.
        let mut completions: Vec<Vec<Completion>> = vec![Vec::new(); self.strategies.len()];
        for (number, prompt) in self.prompts.iter().enumerate() {
            let mut drawn: Vec<(RowId, Drawn)> = Vec::new();
            for batch in rows.chunks(self.rows_at_once.max(1)) {
                let texts = complete::complete(self, decoder, &prompt.tokens, batch, &mut on_tokens)?;
                drawn.extend(batch.iter().copied().zip(texts));
            }
            for &strategy in &beams {
                let width = self.strategies[strategy].beam.unwrap_or(1);
                let text = beam::beam_search(self, model, &prompt.tokens, width, &mut on_tokens)?;
                drawn.push((RowId { strategy, sample: 0 }, text));
            }
            for (RowId { strategy, sample }, text) in drawn {
                let completion = Completion::new(number, sample, text, self.tokenizer)?;
                // What draws nothing says the same again and again; it is computed once.
                let times = if self.strategies[strategy].is_deterministic() { self.samples } else { 1 };
                let samples = sample..sample + times as u64;
                completions[strategy].extend(samples.map(|sample| completion.clone().of_sample(sample)));
            }
        }
        let reports = self.strategies.iter().zip(completions);
        Ok(reports.map(|(strategy, completions)| StrategyReport::new(self, strategy, completions)).collect())
    }

    /// The rows to decode for each prompt, strategy after strategy.
    fn rows(&self) -> Vec<RowId> {
        let drawing = self.strategies.iter().enumerate().filter(|(_, strategy)| strategy.beam.is_none());
        let samples = |strategy: &Strategy| if strategy.is_deterministic() { 1 } else { self.samples };
        drawing
            .flat_map(|(at, strategy)| (0..samples(strategy) as u64).map(move |sample| RowId { strategy: at, sample }))
            .collect()
    }

    /// Whether a token ends a text.
    fn ends(&self, token: u32) -> bool {
        self.tokenizer.ends_text(token)
    }

    /// The sampler of a strategy for a prompt of `prompt_len` tokens.
    fn sampler(&self, strategy: usize, prompt_len: usize) -> tinygpt_model::Result<Sampler> {
        Ok(self.strategies[strategy].sampler(self.seed, prompt_len, self.max_new_tokens)?)
    }
}

/// How many texts of a network are decoded side by side: as many as have 512 MiB of keys and values, at most 256.
pub fn rows_at_once(config: &GptConfig) -> usize {
    let heads = config.heads();
    let cached = 2 * config.n_layer * config.block_size * heads.n_kv_head * heads.head_size * size_of::<f32>();
    (CACHE_BYTES / cached.max(1)).clamp(1, MAX_ROWS)
}

#[cfg(test)]
mod tests;
