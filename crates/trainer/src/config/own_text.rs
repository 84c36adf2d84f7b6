//! A configuration for a text of which nothing is known but its size.

use std::collections::HashSet;

use tinygpt_model::GptConfig;

use super::{RunConfig, TokenizerKind, load, recipe};
use crate::{
    Result,
    corpus::{Corpus, CorpusError},
    data::Source,
};

/// What its sizes have in common: network, optimizer and schedule of the recipe that learns fastest here.
const RECIPE: &str = "shakespeare-fast";
/// Up to this size a text is read to count its characters; longer ones are trained on by pieces of words in any case.
const COUNTED_BYTES: u64 = 5_000_000;
/// Scripts with more different characters than this make a large vocabulary, most of which is rare.
const MOST_CHARACTERS: usize = 300;
/// What is held out of a long text: more says little more of a loss, and takes long to evaluate.
const HELD_OUT_BYTES: f64 = 500_000.0;
/// Evaluations on the way.
const EVALUATIONS: u64 = 8;
/// How many characters a token of byte-pair encoding stands for, about.
const CHARACTERS_PER_PIECE: f64 = 3.0;

/// The size of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextSize {
    /// Bytes of text; of compressed files, and of tables and records beyond some megabytes, bytes of files.
    pub bytes: u64,
    /// Different characters; `None` of a text that is too long to count them, or that is tokens already.
    pub characters: Option<usize>,
    /// Tokens of a text that is tokens already.
    pub tokens: Option<usize>,
}

impl TextSize {
    /// Looks at a text: at all of a short one, and at the size of its files otherwise.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of(source: &Source) -> Result<Self> {
        match source {
            Source::Text(corpus) => Ok(Self::of_corpus(corpus)?),
            Source::Tokens(file) => {
                let bytes = (file.len() as f64 * CHARACTERS_PER_PIECE) as u64;
                Ok(Self { bytes, characters: None, tokens: Some(file.len()) })
            }
        }
    }

    fn of_corpus(corpus: &Corpus) -> std::result::Result<Self, CorpusError> {
        let (mut bytes, mut characters) = (0, HashSet::new());
        for text in corpus.texts() {
            let text = text?;
            bytes += text.len() as u64;
            if bytes > COUNTED_BYTES {
                return Ok(Self { bytes: bytes.max(corpus.len_bytes()), characters: None, tokens: None });
            }
            characters.extend(text.chars());
        }
        Ok(Self { bytes, characters: Some(characters.len()), tokens: None })
    }

    /// The share that is held out.
    pub(super) fn held_out_fraction(self) -> f64 {
        (HELD_OUT_BYTES / self.bytes.max(1) as f64).min(0.1)
    }

    /// How many tokens it is: of a text that is no tokens yet about so many, of characters or of pieces of words.
    pub(super) fn tokens_for(self, by_pieces: bool) -> f64 {
        let of_text = || self.bytes as f64 * if by_pieces { 1.0 / CHARACTERS_PER_PIECE } else { 1.0 };
        self.tokens.map_or_else(of_text, |tokens| tokens as f64)
    }

    /// A configuration for a text of this size: the larger it is, the larger the model and the longer it trains. Small models
    /// learn by characters, which they can spell with few examples, and are kept from learning the text by heart.
    ///
    /// # Errors
    /// Never: the recipe that it starts from is compiled in.
    pub fn recipe(self) -> Result<RunConfig> {
        let mut config = load(recipe(RECIPE).unwrap_or_default(), &[], false)?;
        let bytes = self.bytes;
        let by_pieces = self.characters.is_none_or(|characters| characters > MOST_CHARACTERS);
        let RunConfig { data, model, train, .. } = &mut config;
        if by_pieces {
            data.tokenizer = TokenizerKind::Bpe;
            data.vocab_size = match bytes {
                0..1_000_000 => 512,
                1_000_000..5_000_000 => 1024,
                5_000_000..20_000_000 => 2048,
                _ => 4096,
            };
        }
        data.val_fraction = self.held_out_fraction();
        let GptConfig { n_layer, n_head, n_embd, block_size, dropout, .. } = model;
        (*n_layer, *n_head, *n_embd, *block_size) = match bytes {
            0..300_000 => (4, 2, 64, 128),
            300_000..5_000_000 => (4, 4, 128, 256),
            5_000_000..20_000_000 => (6, 6, 192, 256),
            _ => (6, 4, 256, 256),
        };
        *dropout = if bytes < 800_000 { 0.1 } else { 0.0 };
        train.batch_size = match bytes {
            0..300_000 => 8,
            300_000..5_000_000 => 4,
            _ => 8,
        };
        let tokens_per_step = train.batch_size * *block_size;
        let tokens = self.tokens_for(by_pieces);
        let epochs = |epochs: f64| (epochs * tokens / tokens_per_step as f64) as u64;
        train.max_steps = match bytes {
            0..300_000 => epochs(12.0).clamp(600, 1500),
            300_000..800_000 => 2000,
            800_000..5_000_000 => epochs(2.4).clamp(2600, 6000),
            5_000_000..20_000_000 => 4000,
            _ => 6000,
        };
        train.eval_every = train.max_steps.div_ceil(EVALUATIONS);
        Ok(config.resolved()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe_of(bytes: u64, characters: Option<usize>) -> RunConfig {
        TextSize { bytes, characters, tokens: None }.recipe().unwrap()
    }

    #[test]
    fn larger_texts_get_larger_models_that_train_longer() {
        let mut last = (0, 0);
        for bytes in [3_000, 30_000, 100_000, 1_000_000, 10_000_000, 50_000_000, 10_000_000_000] {
            let config = recipe_of(bytes, (bytes < COUNTED_BYTES).then_some(65));
            let compute = config.tokens_per_step() as u64 * config.train.max_steps;
            let parameters = config.gpt(1).n_params();
            assert!(parameters >= last.0 && compute >= last.1, "{bytes}: {parameters} parameters, {compute} tokens");
            last = (parameters, compute);
            assert!(config.data.val_fraction * bytes as f64 <= HELD_OUT_BYTES, "{bytes}");
        }
    }

    #[test]
    fn short_texts_of_few_characters_are_learned_by_characters_and_others_by_pieces() {
        assert_eq!(recipe_of(100_000, Some(65)).data.tokenizer, TokenizerKind::Char);
        for (bytes, characters) in [(100_000, Some(3000)), (50_000_000, None)] {
            assert_eq!(recipe_of(bytes, characters).data.tokenizer, TokenizerKind::Bpe);
        }
    }

    #[test]
    fn a_text_is_measured_in_bytes_of_text_and_different_characters() {
        let size = TextSize::of(&Source::Text(Corpus::from_text("aäb a").unwrap())).unwrap();
        assert_eq!(size, TextSize { bytes: 6, characters: Some(4), tokens: None });
        let long = Corpus::from_text("ab ".repeat(2_000_000)).unwrap();
        assert_eq!(TextSize::of(&Source::Text(long)).unwrap().characters, None);
    }
}
