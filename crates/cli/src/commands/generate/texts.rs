//! The samples of `generate` as they grow.

use std::{io, ops::ControlFlow};

use serde::Serialize;
use tinygpt_model::{GenerationHooks, ModelError, Tokenizer, tokenizer::StopStrings};

use super::{
    Plan,
    logprobs::{Logprobs, TokenLogprob},
};
use crate::growing_text::GrowingText;

/// A finished sample.
#[derive(Debug, Serialize)]
pub struct Sample {
    /// The number of the sample: what its draws depend on, beside the seed.
    sample: u64,
    /// The generated text, without the prompt.
    pub text: String,
    /// The generated tokens, those of the stop included.
    tokens: Vec<u32>,
    /// `stop`, `grammar` (the text is complete) or `length`.
    ended_by: &'static str,
    /// Of each token, where they are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Vec<TokenLogprob>>,
}

/// Is told each piece of a text, and may end the texts behind it.
pub type OnText = fn(&str) -> io::Result<ControlFlow<()>>;

/// Samples side by side. Each piece of text is told as soon as it is settled.
pub struct Texts<'t> {
    tokenizer: &'t Tokenizer,
    rows: Vec<GrowingText<'t>>,
    samples: Vec<Sample>,
    logprobs: Option<Logprobs>,
    on_text: OnText,
    /// Whether who was told has ended the texts.
    is_stopped: bool,
    /// Why a text could not be told.
    failed: Option<io::Error>,
}

impl<'t> Texts<'t> {
    /// The samples from number `first` on, without a token.
    pub fn new(
        tokenizer: &'t Tokenizer,
        plan: &Plan,
        first: u64,
        rows: usize,
        on_text: OnText,
    ) -> anyhow::Result<Self> {
        let sample = |row| Sample {
            sample: first + row,
            text: String::new(),
            tokens: Vec::new(),
            ended_by: "length",
            logprobs: plan.logprobs.map(|_| Vec::new()),
        };
        let stops = StopStrings::new(plan.stops.clone())?;
        let text = |_| GrowingText::new(tokenizer, stops.clone(), plan.constraint.clone());
        Ok(Self {
            tokenizer,
            rows: (0..rows).map(text).collect(),
            samples: (0..rows as u64).map(sample).collect(),
            logprobs: plan.logprobs.map(Logprobs::new),
            on_text,
            is_stopped: false,
            failed: None,
        })
    }

    /// The number of the first sample, and how many there are.
    pub fn place(&self) -> (u64, usize) {
        (self.samples[0].sample, self.samples.len())
    }

    /// Ends the texts: what was held back is told too, unless they were ended by who is told.
    pub fn finish(mut self) -> anyhow::Result<Vec<Sample>> {
        if let Some(error) = self.failed {
            return Err(error.into());
        }
        if self.is_stopped {
            return Ok(self.samples);
        }
        for (text, sample) in self.rows.iter_mut().zip(&mut self.samples) {
            let rest = text.finish()?;
            sample.text += &rest;
            if (self.on_text)(&rest)?.is_break() {
                break;
            }
            if sample.ended_by == "length" && !text.is_complete() {
                notice!("sample {} was cut before the grammar was complete: raise --max-new-tokens", sample.sample);
            }
        }
        Ok(self.samples)
    }
}

impl GenerationHooks for Texts<'_> {
    fn reads_logits(&self) -> bool {
        self.logprobs.is_some() || self.rows.iter().any(GrowingText::is_constrained)
    }

    fn logits(&mut self, row: usize, logits: &mut [f32]) -> Result<ControlFlow<()>, ModelError> {
        // Those of the model, before the grammar's mask.
        if let Some(logprobs) = &mut self.logprobs {
            logprobs.see(logits);
        }
        Ok(self.rows[row].mask(logits)?.map_break(|ending| self.samples[row].ended_by = ending.name()))
    }

    fn token(&mut self, row: usize, token: u32) -> Result<ControlFlow<()>, ModelError> {
        let (text, sample) = (&mut self.rows[row], &mut self.samples[row]);
        sample.tokens.push(token);
        if let (Some(logprobs), Some(told)) = (&self.logprobs, &mut sample.logprobs) {
            told.push(logprobs.of(token, self.tokenizer)?);
        }
        let (piece, next) = text.push(token)?;
        sample.text += &piece;
        match (self.on_text)(&piece) {
            Ok(ControlFlow::Continue(())) => {}
            Ok(ControlFlow::Break(())) => {
                self.is_stopped = true;
                return Ok(ControlFlow::Break(()));
            }
            Err(error) => {
                self.failed = Some(error);
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(next.map_break(|ending| sample.ended_by = ending.name()))
    }
}

#[cfg(test)]
mod tests {
    use tinygpt_model::tokenizer::TokenizerError;

    use super::*;

    #[test]
    fn a_text_that_is_ended_by_who_is_told_keeps_what_was_told() {
        let tokenizer = Tokenizer::train_char([Ok::<_, TokenizerError>("abc")]).unwrap();
        let plan = Plan {
            prompt_text: String::new(),
            prompt: Vec::new(),
            // "c" is held back, since "cc" would end the text.
            stops: vec!["cc".into()],
            max_new_tokens: 4,
            constraint: None,
            logprobs: None,
        };
        let text = |on_text: OnText| {
            let mut texts = Texts::new(&tokenizer, &plan, 0, 1, on_text).unwrap();
            let ids = tokenizer.encode("abc").unwrap();
            let told = ids.iter().take_while(|&&id| texts.token(0, id).unwrap().is_continue()).count();
            (told, texts.finish().unwrap().remove(0).text)
        };
        assert_eq!(text(|_| Ok(ControlFlow::Continue(()))), (3, "abc".into()));
        let until_b = |piece: &str| Ok(if piece == "b" { ControlFlow::Break(()) } else { ControlFlow::Continue(()) });
        assert_eq!(text(until_b), (1, "ab".into()));
        let until_held_back =
            |piece: &str| Ok(if piece.is_empty() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) });
        assert_eq!(text(until_held_back), (2, "ab".into()));
    }
}
