//! What a corpus is like: its size, its documents, its characters.

use std::collections::BTreeMap;

use tinygpt_model::{Tokenizer, tokenizer::Piece};

use super::Corpus;
use crate::{Result, digest::Hasher};

/// The figures of a corpus.
#[derive(Debug, Clone, PartialEq)]
pub struct CorpusStatistics {
    /// The length of the text in bytes.
    pub bytes: u64,
    /// How often each character occurs, in the order of code points.
    pub characters: Vec<(char, u64)>,
    /// How many documents have a length of so many characters.
    pub lengths: BTreeMap<u64, u64>,
    /// The number of tokens, those that end documents included, where there is a tokenizer.
    pub tokens: Option<u64>,
    /// [`Corpus::sha256`], in hexadecimal.
    pub sha256: String,
}

impl CorpusStatistics {
    /// Reads a corpus once, in bounded memory. `on_progress(read)` is told about how many bytes of the files are read.
    ///
    /// # Errors
    /// When the corpus cannot be read, or a char tokenizer does not know one of its characters.
    pub fn of(corpus: &Corpus, tokenizer: Option<&Tokenizer>, mut on_progress: impl FnMut(u64)) -> Result<Self> {
        let mut counts = vec![0u64; char::MAX as usize + 1];
        let (mut bytes, mut length, mut lengths) = (0, 0, BTreeMap::new());
        let mut encoder = tokenizer.map(Tokenizer::corpus_encoder);
        let (mut ids, mut tokens) = (Vec::new(), 0);
        let mut hasher = Hasher::default();
        let mut pieces = corpus.pieces();
        while let Some(piece) = pieces.next().transpose()? {
            super::hash(&mut hasher, &piece);
            let Piece { text, ends_document } = piece;
            bytes += text.len() as u64;
            for ch in text.chars() {
                counts[ch as usize] += 1;
                length += 1;
            }
            if let Some(encoder) = &mut encoder {
                encoder.push(&text, &mut ids)?;
                if ends_document {
                    encoder.end_document(&mut ids)?;
                }
                tokens += ids.len() as u64;
                ids.clear();
            }
            if ends_document {
                *lengths.entry(std::mem::take(&mut length)).or_default() += 1;
            }
            on_progress(pieces.bytes_read());
        }
        let has_tokenizer = encoder.is_some();
        if let Some(encoder) = encoder {
            encoder.finish(&mut ids)?;
        }
        let characters = ('\0'..=char::MAX).map(|ch| (ch, counts[ch as usize])).filter(|(_, count)| *count > 0);
        Ok(Self {
            bytes,
            characters: characters.collect(),
            lengths,
            tokens: has_tokenizer.then_some(tokens + ids.len() as u64),
            sha256: hasher.finish().to_string(),
        })
    }

    /// The length of the text in characters.
    pub fn len_characters(&self) -> u64 {
        self.characters.iter().map(|(_, count)| count).sum()
    }

    /// The number of documents.
    pub fn documents(&self) -> u64 {
        self.lengths.values().sum()
    }

    /// The length in characters that half of the documents do not exceed, and the largest.
    pub fn median_and_max(&self) -> Option<(u64, u64)> {
        let (&max, _) = self.lengths.last_key_value()?;
        let half = self.documents().div_ceil(2);
        let mut seen = 0;
        let median = self.lengths.iter().find(|(_, count)| {
            seen += **count;
            seen >= half
        });
        Some((median.map_or(max, |(&length, _)| length), max))
    }

    /// The characters that occur fewer than `times` times, rarest first.
    pub fn rare(&self, times: u64) -> Vec<(char, u64)> {
        let mut rare: Vec<(char, u64)> = self.characters.iter().copied().filter(|(_, count)| *count < times).collect();
        rare.sort_by_key(|&(ch, count)| (count, ch));
        rare
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::{CorpusOptions, Documents};

    #[test]
    fn figures_are_those_of_the_documents() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        std::fs::write(&path, "aab\né\naaaa\naa\n").unwrap();
        let options = CorpusOptions { documents: Documents::Line, ..CorpusOptions::default() };
        let corpus = Corpus::open_with(&path, options).unwrap();
        let tokenizer = Tokenizer::train_char_on_documents(corpus.pieces()).unwrap();
        let mut read = 0;
        let figures = CorpusStatistics::of(&corpus, Some(&tokenizer), |bytes| read = bytes).unwrap();
        assert_eq!((figures.bytes, figures.len_characters(), figures.documents()), (11, 10, 4));
        assert_eq!(figures.characters, [('a', 8), ('b', 1), ('é', 1)]);
        assert_eq!(figures.rare(2), [('b', 1), ('é', 1)]);
        assert_eq!(figures.median_and_max(), Some((2, 4)));
        assert_eq!((figures.tokens, read), (Some(14), 15));
        assert_eq!(figures.sha256, corpus.sha256().unwrap().to_string());
        let text = Corpus::from_text("ab").unwrap();
        let figures = CorpusStatistics::of(&text, None, |_| {}).unwrap();
        assert_eq!((figures.documents(), figures.median_and_max(), figures.tokens), (0, None, None));
    }
}
