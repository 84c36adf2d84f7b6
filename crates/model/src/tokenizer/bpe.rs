//! Training a byte-level BPE with the `tokenizers` crate.

use std::collections::HashMap;

use tokenizers::{
    AddedToken, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
    models::bpe::{BPE, BpeTrainer},
    pre_tokenizers::byte_level::ByteLevel,
};

use super::{END_OF_TEXT, Piece, Result, TokenizerError, segment::Segmenter};

/// How many distinct segments are counted before they are reduced to words, which are far fewer.
const MAX_SEGMENTS: usize = 1 << 20;

/// A pair must occur twice to be merged: a token that was seen once teaches a model nothing.
const MIN_FREQUENCY: u64 = 2;

/// Trains a byte-level BPE of at most `vocab_size` tokens on a text that comes in pieces. With `end_of_text` the last of them is
/// the special token that ends a document.
pub(super) fn train<S: AsRef<str>, E: From<TokenizerError>>(
    pieces: impl IntoIterator<Item = std::result::Result<Piece<S>, E>>,
    vocab_size: usize,
    end_of_text: bool,
) -> std::result::Result<tokenizers::Tokenizer, E> {
    let special = usize::from(end_of_text);
    if vocab_size < 256 + special {
        return Err(TokenizerError::VocabTooSmall { vocab_size, least: 256 + special }.into());
    }
    let (words, bytes) = count_words(pieces)?;
    // The trainer counts pairs in 32 bits. There are fewer pairs than bytes, so counts are halved until all bytes fit.
    let halvings = (0..u64::BITS).find(|&n| bytes >> n <= i32::MAX as u64).unwrap_or(0);
    let counts = words.into_iter().map(|(word, count)| (word.into(), (count >> halvings).max(1))).collect();

    let trainer = BpeTrainer::builder()
        .vocab_size(vocab_size - special)
        .min_frequency(MIN_FREQUENCY)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .show_progress(false)
        .build();
    let mut model = BPE::default();
    trainer.do_train(&counts, &mut model).map_err(TokenizerError::library)?;

    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(byte_level()));
    tokenizer.with_decoder(Some(byte_level()));
    if end_of_text {
        // Its id is the one after the last of the model.
        tokenizer.add_special_tokens([AddedToken::from(END_OF_TEXT, true)]).map_err(TokenizerError::library)?;
    }
    Ok(tokenizer)
}

/// GPT-2's pre-tokenizer: no space is put before the text.
fn byte_level() -> ByteLevel {
    ByteLevel::default().add_prefix_space(false)
}

/// How often each word of GPT-2's pattern occurs, its bytes written in the byte-level alphabet; and how many bytes the
/// text has.
///
/// Distinct segments are counted first: that is one look-up for each of them in the text, where the library's
/// pre-tokenizer takes microseconds.
fn count_words<S: AsRef<str>, E: From<TokenizerError>>(
    pieces: impl IntoIterator<Item = std::result::Result<Piece<S>, E>>,
) -> std::result::Result<(HashMap<String, u64>, u64), E> {
    let mut bytes = 0;
    let mut words = HashMap::new();
    let mut segments: HashMap<String, u64> = HashMap::new();
    let mut count = |segment: &str| {
        if let Some(count) = segments.get_mut(segment) {
            *count += 1;
        } else {
            if segments.len() == MAX_SEGMENTS {
                reduce_to_words(&mut segments, &mut words)?;
            }
            segments.insert(segment.to_owned(), 1);
        }
        Ok::<(), TokenizerError>(())
    };
    let mut segmenter = Segmenter::default();
    for piece in pieces {
        let Piece { text, ends_document } = piece?;
        bytes += text.as_ref().len() as u64;
        segmenter.push(text.as_ref(), &mut count)?;
        if ends_document {
            // No word goes on in the next document.
            std::mem::take(&mut segmenter).finish(&mut count)?;
        }
    }
    segmenter.finish(&mut count)?;
    reduce_to_words(&mut segments, &mut words)?;
    Ok((words, bytes))
}

fn reduce_to_words(segments: &mut HashMap<String, u64>, words: &mut HashMap<String, u64>) -> Result<()> {
    for (segment, count) in segments.drain() {
        let mut split = PreTokenizedString::from(segment);
        byte_level().pre_tokenize(&mut split).map_err(TokenizerError::library)?;
        for (word, _, _) in split.get_splits(OffsetReferential::Normalized, OffsetType::Byte) {
            *words.entry(word.to_owned()).or_default() += count;
        }
    }
    Ok(())
}
