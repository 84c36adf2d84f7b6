//! The token loop: logits, sampler, token, and again.

use std::ops::ControlFlow;

use tinygpt_sampler::{DeviceRow, DeviceSampler, Sampler};

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

/// Generates a batch of sequences. `on_token(row, token)` is called with every token as soon as it is drawn, and ends its
/// sequence by returning [`ControlFlow::Break`].
///
/// The token at position `p` of sequence `s` is drawn with a uniform number that depends only on the sampler's seed, `s` and
/// `p`. Logits on a device are sampled there by the same rules, and a step reads back only the tokens.
///
/// # Errors
/// When the prompt is empty, a token is outside the vocabulary, or logits have a NaN, a +inf or nothing finite.
pub fn generate(
    decoder: &mut dyn Decoder,
    sampler: &mut Sampler,
    request: Generation<'_>,
    mut on_token: impl FnMut(usize, u32) -> ControlFlow<()>,
) -> Result<()> {
    let Generation { prompt, first_sequence, rows, max_new_tokens } = request;
    if max_new_tokens == 0 || rows == 0 {
        return Ok(());
    }
    let vocab_size = decoder.vocab_size();
    let mut history = Vec::with_capacity(prompt.len() + max_new_tokens.min(1 << 20));
    history.extend_from_slice(prompt);
    let mut histories = vec![history; rows];
    let mut running = vec![true; rows];
    let mut tokens = vec![0; rows];
    let mut on_device = DeviceSampler::from(&*sampler);
    let mut logits = decoder.start(prompt, rows)?;
    for n in 1..=max_new_tokens {
        // Unfinished rows have equal lengths, hence one position serves all.
        let position = (prompt.len() + n - 1) as u64;
        let drawn = match logits {
            Logits::Host(_) => Vec::new(),
            Logits::Device(logits) => {
                let row = |(row, history)| DeviceRow { history, sequence: first_sequence + row as u64, position };
                let rows: Vec<_> = histories.iter().map(Vec::as_slice).enumerate().map(row).collect();
                on_device.sample(logits, &rows).map_err(|error| ModelError::from(error).on(logits.device()))?
            }
        };
        for (row, history) in histories.iter_mut().enumerate() {
            if running[row] {
                let token = match logits {
                    Logits::Host(all) => {
                        let logits = &all[row * vocab_size..(row + 1) * vocab_size];
                        let drawn = sampler.sample_row(logits, history, first_sequence + row as u64, position);
                        drawn.map_err(|error| error.at_row(row))
                    }
                    Logits::Device(_) => drawn[row].clone(),
                }?;
                history.push(token);
                // A finished row stays in the batch with its last token, which does not affect the other rows.
                tokens[row] = token;
                running[row] = on_token(row, token).is_continue();
            }
        }
        if n == max_new_tokens || !running.contains(&true) {
            break;
        }
        logits = decoder.step(&tokens)?;
    }
    Ok(())
}
