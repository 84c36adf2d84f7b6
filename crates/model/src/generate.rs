//! The token loop: logits, sampler, token, and again.

use std::ops::ControlFlow;

use tinygpt_sampler::{DeviceRow, DeviceSampler, Sampler};

use crate::{Decoder, Logits, Result};

/// What to generate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation<'a> {
    /// The tokens every sequence starts from; at least one.
    pub prompt: &'a [u32],
    /// The id of the first sequence. Sequence `s` draws the same tokens in whatever batch it is computed.
    pub first_sequence: u64,
    /// How many sequences, with ids `first_sequence..first_sequence + rows`.
    pub rows: usize,
    /// How many tokens each sequence gets at most.
    pub max_new_tokens: usize,
}

/// Generates `rows` sequences side by side. `on_token(row, token)` gets every token as soon as it is drawn, and ends its
/// row by breaking.
///
/// The token at index `p` of sequence `s` is drawn with a uniform that depends on the sampler's seed, `s` and `p` alone:
/// by the sampler itself where logits are on the host; where they are on a device, there and by the same rules, and of a
/// step only the tokens are read back.
///
/// # Errors
/// When the prompt is empty, a token is unknown to the model, or logits are not finite.
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
    let vocab_size = decoder.config().vocab_size;
    let mut history = Vec::with_capacity(prompt.len() + max_new_tokens.min(1 << 20));
    history.extend_from_slice(prompt);
    let mut histories = vec![history; rows];
    let mut running = vec![true; rows];
    let mut tokens = vec![0; rows];
    let mut on_device = DeviceSampler::from(&*sampler);
    let mut logits = decoder.start(prompt, rows)?;
    for n in 1..=max_new_tokens {
        // That of every row that still runs.
        let position = (prompt.len() + n - 1) as u64;
        let drawn = match logits {
            Logits::Host(_) => Vec::new(),
            Logits::Device(logits) => {
                let place = |(row, history)| DeviceRow { history, sequence: first_sequence + row as u64, position };
                let places: Vec<_> = histories.iter().map(Vec::as_slice).enumerate().map(place).collect();
                on_device.sample(logits, &places)?
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
                // A finished row keeps its place and its token; what it is fed does not matter to the others.
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
