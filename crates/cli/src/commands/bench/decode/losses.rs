//! What rounding the weights costs.

use serde::Serialize;
use tinygpt_model::Decoder;
use tinygpt_sampler::{Sampler, SamplingParams};

/// The texts that are drawn.
const ROWS: usize = 8;
/// The most tokens of each text.
const TOKENS: usize = 128;

/// Mean cross-entropies of the same text, in nats a token.
#[derive(Debug, Clone, Serialize)]
pub struct Losses {
    /// The loss under the weights as they are.
    pub loss_f32: f64,
    /// The loss under the rounded weights.
    pub loss: f64,
    /// `loss - loss_f32`: what rounding costs on text that the weights as they are drew.
    pub loss_difference: f64,
    /// The number of tokens that the means are over.
    pub loss_tokens: usize,
}

impl Losses {
    /// The losses of text that `exact` draws at temperature 1, as long as fits `block_size`. This needs no corpus, and is text as
    /// the model knows it.
    pub fn of_drawn_text(
        exact: &mut dyn Decoder,
        rounded: &mut dyn Decoder,
        block_size: usize,
        seed: u64,
    ) -> anyhow::Result<Self> {
        let vocab_size = exact.vocab_size();
        let tokens = TOKENS.min(block_size);
        let mut sampler = Sampler::new(SamplingParams { seed, ..SamplingParams::default() })?;
        let (mut loss_f32, mut loss) = (0.0, 0.0);
        let mut last = vec![0; ROWS];
        for n in 0..tokens {
            let step = |decoder: &mut dyn Decoder| {
                let logits = if n == 0 { decoder.start(&[0], ROWS)? } else { decoder.step(&last)? };
                Ok::<_, anyhow::Error>(logits.to_host()?.into_owned())
            };
            let (of_exact, of_rounded) = (step(exact)?, step(rounded)?);
            let rows = of_exact.chunks_exact(vocab_size).zip(of_rounded.chunks_exact(vocab_size));
            for (row, ((exact, rounded), last)) in rows.zip(&mut last).enumerate() {
                let token = sampler.sample_row(exact, &[], row as u64, n as u64)?;
                loss_f32 += surprisal(exact, token);
                loss += surprisal(rounded, token);
                *last = token;
            }
        }
        let loss_tokens = ROWS * tokens;
        let [loss_f32, loss] = [loss_f32, loss].map(|sum| sum / loss_tokens as f64);
        Ok(Self { loss_f32, loss, loss_difference: loss - loss_f32, loss_tokens })
    }
}

/// The surprisal `-ln p` of a token under the softmax of some logits, in nats.
fn surprisal(logits: &[f32], token: u32) -> f64 {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&x| (f64::from(x) - largest).exp()).sum();
    largest + sum.ln() - f64::from(logits[token as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_surprisal_of_a_token_is_minus_the_logarithm_of_its_probability() {
        // Probabilities 1/4, 1/4 and 1/2.
        let logits = [100.0, 100.0, 100.0 + std::f32::consts::LN_2];
        assert!((surprisal(&logits, 0) - 4f64.ln()).abs() < 1e-5);
        assert!((surprisal(&logits, 2) - 2f64.ln()).abs() < 1e-5);
    }
}
