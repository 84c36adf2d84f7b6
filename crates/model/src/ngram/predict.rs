//! An n-gram model where a network may stand: measured by windows, and generated from.

use rayon::prelude::*;

use super::{NgramModel, Scorer};
use crate::{
    Decoder, LanguageModel, Logits, ModelError, Result, Windows,
    language_model::{VisitLogits, check_targets},
};

/// The longest window. A prediction depends on its last few tokens, and what measures a model keeps a row for each of the rest.
const BLOCK_SIZE: usize = 1024;

impl LanguageModel for NgramModel {
    fn vocab_size(&self) -> usize {
        self.counts.vocab_size()
    }

    fn block_size(&self) -> usize {
        BLOCK_SIZE
    }

    fn reach(&self) -> usize {
        self.order() - 1
    }

    fn logits(&mut self, windows: Windows<'_>, visit: VisitLogits<'_>) -> Result<()> {
        let v = self.vocab_size();
        windows.check(BLOCK_SIZE, v)?;
        let Windows { ids, cols, from } = windows;
        let rows = || (vec![0.0; v], vec![0.0; v]);
        ids.par_chunks(cols).enumerate().try_for_each_init(rows, |(probs, logits), (row, ids)| {
            let mut scorer = self.scorer_behind(&ids[..from])?;
            for (col, &id) in ids.iter().enumerate().skip(from) {
                scorer.advance(id)?;
                scorer.logits_into(probs, logits);
                visit(row * cols + col, logits);
            }
            Ok(())
        })
    }

    fn losses(&mut self, windows: Windows<'_>, targets: &[u32]) -> Result<Vec<f32>> {
        windows.check(BLOCK_SIZE, self.vocab_size())?;
        check_targets(windows, targets, self.vocab_size())?;
        let Windows { ids, cols, from } = windows;
        let of_window = |(ids, targets): (&[u32], &[u32])| {
            let mut scorer = self.scorer_behind(&ids[..from])?;
            let predicted = ids[from..].iter().zip(&targets[from..]);
            predicted.map(|(&id, &target)| scorer.advance(id).map(|_| -scorer.log_prob(target) as f32)).collect()
        };
        let losses: Vec<Vec<f32>> =
            ids.par_chunks(cols).zip(targets.par_chunks(cols)).map(of_window).collect::<Result<_>>()?;
        Ok(losses.concat())
    }
}

impl NgramModel {
    /// A decoder, for [`generate()`](crate::generate()).
    pub fn decoder(&self) -> NgramDecoder<'_> {
        NgramDecoder { model: self, rows: Vec::new(), probs: vec![0.0; self.vocab_size()], logits: Vec::new() }
    }
}

/// Generation from an n-gram model. The logits are the logarithms of its probabilities.
#[derive(Debug)]
pub struct NgramDecoder<'a> {
    model: &'a NgramModel,
    /// Each row's place in its text.
    rows: Vec<Scorer<'a>>,
    /// Probabilities of one row, `(V)`.
    probs: Vec<f64>,
    /// Logits of all rows, `(rows, V)`.
    logits: Vec<f32>,
}

impl NgramDecoder<'_> {
    /// Refused before a row is changed.
    fn check_tokens(&self, tokens: &[u32]) -> Result<()> {
        let vocab_size = self.probs.len();
        match tokens.iter().find(|&&id| id as usize >= vocab_size) {
            Some(&id) => Err(ModelError::TokenOutOfRange { id, vocab_size }),
            None => Ok(()),
        }
    }

    fn compute(&mut self) -> Logits<'_> {
        for (scorer, logits) in self.rows.iter().zip(self.logits.chunks_mut(self.probs.len())) {
            scorer.logits_into(&mut self.probs, logits);
        }
        Logits::Host(&self.logits)
    }
}

impl Decoder for NgramDecoder<'_> {
    fn vocab_size(&self) -> usize {
        self.probs.len()
    }

    fn start(&mut self, prompt: &[u32], rows: usize) -> Result<Logits<'_>> {
        if prompt.is_empty() {
            return Err(ModelError::EmptyPrompt);
        }
        if rows == 0 {
            return Err(ModelError::NoRows);
        }
        self.check_tokens(prompt)?;
        self.rows = vec![self.model.scorer_behind(prompt)?; rows];
        self.logits = vec![0.0; rows * self.probs.len()];
        Ok(self.compute())
    }

    fn step(&mut self, tokens: &[u32]) -> Result<Logits<'_>> {
        if tokens.is_empty() || tokens.len() != self.rows.len() {
            return Err(ModelError::RowCount { expected: self.rows.len(), got: tokens.len() });
        }
        self.check_tokens(tokens)?;
        for (scorer, &token) in self.rows.iter_mut().zip(tokens) {
            scorer.advance(token)?;
        }
        Ok(self.compute())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        language_model::{cross_entropy_of, each_row},
        ngram::tests::{add_k, kneser_ney},
    };

    fn models() -> Vec<NgramModel> {
        let text: Vec<u32> = (0..90_u32).map(|i| i * i % 7 % 4).collect();
        vec![add_k(&text, 5, 1, 0.2), add_k(&text, 5, 4, 0.2), kneser_ney(&text, 5, 3)]
    }

    #[test]
    fn logits_at_each_place_of_windows_are_the_log_probabilities_behind_the_tokens_before_it_in_its_window() {
        let ids: Vec<u32> = (0..30).map(|i| i * 7 % 5).collect();
        for mut model in models() {
            let (cols, from) = (10, 6);
            let rows =
                each_row(&mut model, Windows { ids: &ids, cols, from }, |place, row| (place, row.to_vec())).unwrap();
            assert_eq!(rows.len(), 3 * 4);
            for (place, row) in rows {
                let mut expected = vec![0.0; 5];
                model.log_probs_into(&ids[place / cols * cols..=place], &mut expected).unwrap();
                assert_eq!(row, expected, "place {place}");
            }
        }
    }

    #[test]
    fn losses_are_those_of_the_logits_for_any_targets() {
        let ids: Vec<u32> = (0..24).map(|i| i * 7 % 5).collect();
        let targets: Vec<u32> = (0..24).map(|i| i * 3 % 5).collect();
        for mut model in models() {
            for from in [0, 1, 7] {
                let windows = Windows { ids: &ids, cols: 8, from };
                let losses = model.losses(windows, &targets).unwrap();
                let by_logits =
                    each_row(&mut model, windows, |place, row| cross_entropy_of(row, targets[place]) as f32).unwrap();
                assert_eq!(losses.len(), 3 * (8 - from));
                assert!(losses.iter().zip(&by_logits).all(|(a, b)| (a - b).abs() < 1e-5));
            }
            assert!(model.losses(Windows { ids: &ids, cols: 8, from: 0 }, &[5; 24]).is_err());
            assert!(model.losses(Windows { ids: &[5], cols: 1, from: 0 }, &[0]).is_err());
        }
    }

    #[test]
    fn a_decoder_gives_each_row_the_distribution_behind_its_own_tokens() {
        for model in models() {
            let mut decoder = model.decoder();
            let expected = |context: &[u32]| {
                let mut row = vec![0.0; 5];
                model.log_probs_into(context, &mut row).unwrap();
                row
            };
            let first = decoder.start(&[3, 1, 2], 2).unwrap().to_host().unwrap().into_owned();
            assert_eq!(first, [expected(&[3, 1, 2]), expected(&[3, 1, 2])].concat());
            decoder.step(&[0, 1]).unwrap();
            let third = decoder.step(&[2, 4]).unwrap().to_host().unwrap().into_owned();
            assert_eq!(third, [expected(&[3, 1, 2, 0, 2]), expected(&[3, 1, 2, 1, 4])].concat());
            assert!(matches!(decoder.step(&[0]).unwrap_err(), ModelError::RowCount { expected: 2, got: 1 }));
            assert!(matches!(decoder.step(&[0, 5]).unwrap_err(), ModelError::TokenOutOfRange { id: 5, .. }));
            assert!(matches!(decoder.start(&[5, 0, 0, 0, 0], 1).unwrap_err(), ModelError::TokenOutOfRange { .. }));
            assert!(matches!(decoder.start(&[], 1).unwrap_err(), ModelError::EmptyPrompt));
            assert!(matches!(decoder.start(&[1], 0).unwrap_err(), ModelError::NoRows));
        }
    }
}
