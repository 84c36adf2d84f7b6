//! A language model for tests whose distributions are easy to compute by hand.

use tinygpt_model::{LanguageModel, Windows, language_model::VisitLogits};
use tinygpt_sampler::{RngDomain, philox_at, unit_f64};

/// Logits, with ties, that depend on all tokens that a position sees.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hashing {
    vocab_size: usize,
    block_size: usize,
    seed: u64,
}

impl Hashing {
    pub(crate) fn new(vocab_size: usize, block_size: usize, seed: u64) -> Self {
        Self { vocab_size, block_size, seed }
    }

    pub(crate) fn logits_after(self, seen: &[u32]) -> Vec<f32> {
        let hash = seen.iter().fold(7u64, |hash, &id| hash.wrapping_mul(0x100_0000_01B3) ^ u64::from(id));
        let number = |id: usize| {
            let [low, high, ..] = philox_at(hash ^ self.seed << 32, RngDomain::Noise, id as u64, 0);
            (unit_f64(low, high) * 8.0).floor() as f32 - 4.0
        };
        (0..self.vocab_size).map(number).collect()
    }
}

impl LanguageModel for Hashing {
    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn block_size(&self) -> usize {
        self.block_size
    }

    fn logits(&mut self, windows: Windows<'_>, visit: VisitLogits<'_>) -> tinygpt_model::Result<()> {
        windows.check(self.block_size, self.vocab_size)?;
        for (row, window) in windows.ids.chunks(windows.cols).enumerate() {
            for col in windows.from..windows.cols {
                visit(row * windows.cols + col, &self.logits_after(&window[..=col]));
            }
        }
        Ok(())
    }
}
