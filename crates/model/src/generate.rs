//! The token loop: logits, sampler, token, and again.

use std::{borrow::Cow, ops::ControlFlow};

use tinygpt_sampler::{DeviceRow, DeviceSampler, Row, Sampler, TextState};

use crate::{Decoder, Logits, ModelError, Result};

/// A request for generated sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation<'a> {
    /// The tokens every sequence starts from; at least one.
    pub prompt: &'a [u32],
    /// The id of the first sequence. A sequence draws the same tokens in any batch.
    pub first_sequence: u64,
    /// The number of sequences, whose ids are `first_sequence..first_sequence + rows`.
    pub rows: usize,
    /// The most tokens to generate for each sequence.
    pub max_new_tokens: usize,
}

/// What is told of the rows of a generation as they grow, and may steer them; see [`generate_with`].
pub trait GenerationHooks {
    /// Whether [`GenerationHooks::logits`] is called. Logits on a device are then read back at every step.
    fn reads_logits(&self) -> bool {
        false
    }

    /// The model's logits of the next token of a row, `[V]`, before any rule. What is set to -inf is not drawn. `Break` ends
    /// the row without a further token.
    ///
    /// # Errors
    /// What ends the generation of all rows.
    fn logits(&mut self, row: usize, logits: &mut [f32]) -> Result<ControlFlow<()>> {
        let _ = (row, logits);
        Ok(ControlFlow::Continue(()))
    }

    /// A token that was drawn for a row. `Break` ends the row.
    ///
    /// # Errors
    /// What ends the generation of all rows.
    fn token(&mut self, row: usize, token: u32) -> Result<ControlFlow<()>>;
}

/// A function of rows and tokens, as hooks.
struct OnToken<F>(F);

impl<F: FnMut(usize, u32) -> ControlFlow<()>> GenerationHooks for OnToken<F> {
    fn token(&mut self, row: usize, token: u32) -> Result<ControlFlow<()>> {
        Ok((self.0)(row, token))
    }
}

/// Generates a batch of sequences. `on_token(row, token)` is called with every token as soon as it is drawn, and ends its
/// sequence by returning [`ControlFlow::Break`].
///
/// The token at position `p` of sequence `s` is drawn with a uniform number that depends only on the sampler's seed, `s` and
/// `p`. Logits on a device are sampled there by the same rules, and a step reads back only the tokens, where
/// [`draws_on_host`](tinygpt_sampler::SamplingParams::draws_on_host) says nothing else.
///
/// # Errors
/// When the prompt is empty, a token is outside the vocabulary, or logits have a NaN, a +inf or nothing finite.
pub fn generate(
    decoder: &mut dyn Decoder,
    sampler: &mut Sampler,
    request: Generation<'_>,
    on_token: impl FnMut(usize, u32) -> ControlFlow<()>,
) -> Result<()> {
    generate_with(decoder, sampler, request, &mut OnToken(on_token))
}

/// [`generate`] with hooks that see the logits too.
///
/// # Errors
/// As for [`generate`], and those of the hooks.
pub fn generate_with(
    decoder: &mut dyn Decoder,
    sampler: &mut Sampler,
    request: Generation<'_>,
    hooks: &mut dyn GenerationHooks,
) -> Result<()> {
    let Generation { prompt, first_sequence, rows, max_new_tokens } = request;
    if max_new_tokens == 0 || rows == 0 {
        return Ok(());
    }
    let vocab_size = decoder.vocab_size();
    let mut texts = Texts::new(request, sampler.begin_text());
    let mut tokens = vec![0; rows];
    let mut on_device = DeviceSampler::from(&*sampler);
    let reads_back = hooks.reads_logits() || sampler.params().draws_on_host();
    let mut logits = decoder.start(prompt, rows)?;
    for n in 1..=max_new_tokens {
        // Unfinished rows have equal lengths, hence one position serves all.
        let position = (prompt.len() + n - 1) as u64;
        let mut drawn = match logits {
            Logits::Device(logits) if !reads_back => {
                let row = |(row, history)| DeviceRow { history, sequence: first_sequence + row as u64, position };
                let rows: Vec<_> = texts.histories.iter().map(Vec::as_slice).enumerate().map(row).collect();
                on_device.sample(logits, &rows).map_err(|error| ModelError::from(error).on(logits.device()))?
            }
            _ => Vec::new(),
        };
        let on_host = if drawn.is_empty() { logits.to_host()? } else { Cow::default() };
        for row in 0..rows {
            if !texts.running[row] {
                continue;
            }
            let token = if drawn.is_empty() {
                let logits = &on_host[row * vocab_size..(row + 1) * vocab_size];
                match texts.draw(row, logits, position, sampler, hooks)? {
                    Some(token) => token,
                    None => continue,
                }
            } else {
                std::mem::replace(&mut drawn[row], Ok(0))?
            };
            texts.histories[row].push(token);
            // A finished row stays in the batch with its last token, which does not affect the other rows.
            tokens[row] = token;
            texts.running[row] = hooks.token(row, token)?.is_continue();
        }
        if n == max_new_tokens || !texts.running.contains(&true) {
            break;
        }
        drop(on_host);
        logits = decoder.step(&tokens)?;
    }
    Ok(())
}

/// The rows of a generation.
struct Texts {
    first_sequence: u64,
    /// Prompt and drawn tokens of each.
    histories: Vec<Vec<u32>>,
    states: Vec<TextState>,
    running: Vec<bool>,
    /// The logits of a row that hooks may change, `[V]`.
    steered: Vec<f32>,
}

impl Texts {
    fn new(request: Generation<'_>, state: TextState) -> Self {
        let Generation { prompt, first_sequence, rows, max_new_tokens } = request;
        let mut history = Vec::with_capacity(prompt.len() + max_new_tokens.min(1 << 20));
        history.extend_from_slice(prompt);
        let (histories, states) = (vec![history; rows], vec![state; rows]);
        Self { first_sequence, histories, states, running: vec![true; rows], steered: Vec::new() }
    }

    /// Draws on the host. None where a hook ends the row.
    fn draw(
        &mut self,
        row: usize,
        logits: &[f32],
        position: u64,
        sampler: &mut Sampler,
        hooks: &mut dyn GenerationHooks,
    ) -> Result<Option<u32>> {
        let logits = if hooks.reads_logits() {
            self.steered.clear();
            self.steered.extend_from_slice(logits);
            if hooks.logits(row, &mut self.steered)?.is_break() {
                self.running[row] = false;
                return Ok(None);
            }
            &self.steered
        } else {
            logits
        };
        let here = Row { logits, history: &self.histories[row], sequence: self.first_sequence + row as u64, position };
        let token = sampler.sample_next(&here, &mut self.states[row]).map_err(|error| error.at_row(row))?;
        Ok(Some(token))
    }
}
