//! Counting n-grams by sorting: runs of bounded length, merged into the tables of a model.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    fs::File,
    io::{self, BufReader, BufWriter, Read, Seek, Write},
    ops::Range,
};

use rayon::prelude::*;
use tinygpt_model::{
    ModelError,
    ngram::{MAX_ORDER, NgramCounts, NgramCountsBuilder, NgramError},
};

use crate::{Result, TrainError, data::Split};

/// The n-grams that are sorted at a time.
pub const RUN_TOKENS: usize = 1 << 23;

/// The bytes of a run that are read at a time.
const RUN_BUFFER: usize = 1 << 15;

/// How an n-gram becomes a number whose order is that of the n-grams: the first token in the highest bits. Behind the end of the
/// text stands a token of its own, above all others: the size of the vocabulary.
#[derive(Debug, Clone, Copy)]
struct Packing {
    order: u32,
    /// The bits of a token.
    bits: u32,
    end: u32,
}

impl Packing {
    fn new(vocab_size: usize, order: usize) -> Result<Self> {
        // `NgramCountsBuilder::new` says what is wrong with other orders and sizes.
        let order = u32::try_from(order).unwrap_or(u32::MAX);
        let end = u32::try_from(vocab_size).unwrap_or(u32::MAX);
        let bits = u32::BITS - end.leading_zeros();
        if order.saturating_mul(bits) > u128::BITS {
            return Err(TrainError::NgramVocabulary {
                vocab_size,
                order: order as usize,
                most: (1 << (u128::BITS / order)) - 1,
            });
        }
        Ok(Self { order, bits, end })
    }

    /// The key of the n-gram of `key` without its first token and with `token` behind it.
    fn shift_in(self, key: u128, token: u32) -> u128 {
        let mask = u128::MAX >> (u128::BITS - self.order * self.bits);
        (key << self.bits | u128::from(token)) & mask
    }

    /// The tokens of a key before the end of the text.
    fn unpack(self, key: u128, ngram: &mut [u32; MAX_ORDER]) -> &[u32] {
        let mask = (1_u128 << self.bits) - 1;
        let mut len = 0;
        for place in (0..self.order).rev() {
            let token = (key >> (place * self.bits) & mask) as u32;
            if token == self.end {
                break;
            }
            ngram[len] = token;
            len += 1;
        }
        &ngram[..len]
    }
}

/// Counts the n-grams of some tokens of a split, `run_tokens` at a time. `on_read` is told how many tokens are read.
///
/// # Errors
/// When there is no such order or vocabulary, there are no tokens or too many to be counted, one is outside the vocabulary, or
/// files cannot be read or written; and the errors of `on_read`.
pub fn count(
    split: &Split,
    tokens: Range<usize>,
    vocab_size: usize,
    order: usize,
    run_tokens: usize,
    on_read: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<NgramCounts> {
    /// The tokens that are read at a time.
    const PIECE: usize = 1 << 16;
    let builder = NgramCountsBuilder::new(vocab_size, order)?;
    if tokens.is_empty() {
        return Err(TrainError::SplitTooShort { split: "training", tokens: 0, needed: 1 });
    }
    if tokens.len() >= u32::MAX as usize {
        return Err(NgramError::TooManyTokens.into());
    }
    let mut counter = Counter::new(Packing::new(vocab_size, order)?, run_tokens.min(tokens.len()));
    let mut piece = vec![0; PIECE.min(tokens.len())];
    for start in tokens.clone().step_by(PIECE) {
        let piece = &mut piece[..PIECE.min(tokens.end - start)];
        split.read(start, piece)?;
        for &token in &*piece {
            if token as usize >= vocab_size {
                return Err(ModelError::TokenOutOfRange { id: token, vocab_size }.into());
            }
            counter.push(token)?;
        }
        on_read(start + piece.len() - tokens.start)?;
    }
    counter.finish(builder)
}

/// Takes the tokens of a text one by one.
struct Counter {
    packing: Packing,
    /// The last tokens, as many as the order.
    last: u128,
    /// Tokens that are still to come before `last` is full.
    missing: u32,
    /// The n-grams of the run that is being filled.
    keys: Vec<u128>,
    run_tokens: usize,
    runs: Vec<Run>,
}

impl Counter {
    fn new(packing: Packing, run_tokens: usize) -> Self {
        let keys = Vec::with_capacity(run_tokens);
        Self { packing, last: 0, missing: packing.order - 1, keys, run_tokens, runs: Vec::new() }
    }

    fn push(&mut self, token: u32) -> Result<()> {
        self.last = self.packing.shift_in(self.last, token);
        if self.missing > 0 {
            self.missing -= 1;
            return Ok(());
        }
        if self.keys.len() == self.run_tokens {
            self.runs.push(Run::write(&mut self.keys).map_err(in_temporary_folder)?);
            self.keys.clear();
        }
        self.keys.push(self.last);
        Ok(())
    }

    fn finish(mut self, mut builder: NgramCountsBuilder) -> Result<NgramCounts> {
        for _ in 1..self.packing.order {
            self.push(self.packing.end)?;
        }
        let mut ngram = [0; MAX_ORDER];
        if self.runs.is_empty() {
            self.keys.par_sort_unstable();
            for (key, count) in distinct(&self.keys) {
                builder.push(self.packing.unpack(key, &mut ngram), count)?;
            }
        } else {
            self.runs.push(Run::write(&mut self.keys).map_err(in_temporary_folder)?);
            // The tables grow while runs are merged.
            drop(self.keys);
            merge(self.runs, |key, count| Ok(builder.push(self.packing.unpack(key, &mut ngram), count)?))?;
        }
        Ok(builder.finish())
    }
}

/// The distinct keys among sorted ones, and how often each is there.
fn distinct(keys: &[u128]) -> impl Iterator<Item = (u128, u32)> {
    keys.chunk_by(|a, b| a == b).map(|equal| (equal[0], equal.len() as u32))
}

/// Sorted keys with their counts, in a temporary file that has no name and is gone when it is closed.
struct Run {
    file: BufReader<File>,
    /// The keys that are still to be read.
    left: u64,
}

impl Run {
    fn write(keys: &mut [u128]) -> io::Result<Self> {
        keys.par_sort_unstable();
        let mut file = BufWriter::with_capacity(RUN_BUFFER, tempfile::tempfile()?);
        let mut left = 0;
        for (key, count) in distinct(keys) {
            file.write_all(&key.to_le_bytes())?;
            file.write_all(&count.to_le_bytes())?;
            left += 1;
        }
        let mut file = file.into_inner()?;
        file.rewind()?;
        Ok(Self { file: BufReader::with_capacity(RUN_BUFFER, file), left })
    }

    fn next(&mut self) -> io::Result<Option<(u128, u32)>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let (mut key, mut count) = ([0; size_of::<u128>()], [0; size_of::<u32>()]);
        self.file.read_exact(&mut key)?;
        self.file.read_exact(&mut count)?;
        Ok(Some((u128::from_le_bytes(key), u32::from_le_bytes(count))))
    }
}

/// Gives each key of all runs, in ascending order, with the sum of its counts.
fn merge(mut runs: Vec<Run>, mut sink: impl FnMut(u128, u32) -> Result<()>) -> Result<()> {
    let mut heads = BinaryHeap::with_capacity(runs.len());
    for (i, run) in runs.iter_mut().enumerate() {
        heads.extend(run.next().map_err(in_temporary_folder)?.map(|(key, count)| Reverse((key, i, count))));
    }
    let mut sum: Option<(u128, u32)> = None;
    while let Some(Reverse((key, i, count))) = heads.pop() {
        match &mut sum {
            // At most as many as there are tokens, which 32 bits can tell.
            Some((same, sum)) if *same == key => *sum += count,
            _ => {
                if let Some((key, count)) = sum.replace((key, count)) {
                    sink(key, count)?;
                }
            }
        }
        heads.extend(runs[i].next().map_err(in_temporary_folder)?.map(|(key, count)| Reverse((key, i, count))));
    }
    sum.map_or(Ok(()), |(key, count)| sink(key, count))
}

fn in_temporary_folder(source: io::Error) -> TrainError {
    TrainError::NgramRuns { folder: std::env::temp_dir(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The counts of each length, in the order of the n-grams.
    fn all(counts: &NgramCounts) -> Vec<Vec<u32>> {
        (1..=counts.order()).map(|n| counts.counts(n).to_vec()).collect()
    }

    #[test]
    fn runs_of_any_length_give_the_same_counts() {
        let tokens: Vec<u32> = (0..500_u32).map(|i| i * i % 7 + i % 3).collect();
        let split = Split::whole(tokens.into(), None);
        for order in 1..=MAX_ORDER {
            let whole = count(&split, 0..500, 9, order, RUN_TOKENS, &mut |_| Ok(())).unwrap();
            assert_eq!(whole.counts(1).iter().sum::<u32>(), 500);
            for run_tokens in [1, 7, 250, 499, 500] {
                let runs = count(&split, 0..500, 9, order, run_tokens, &mut |_| Ok(())).unwrap();
                assert_eq!(all(&runs), all(&whole), "order {order}, runs of {run_tokens}");
            }
        }
    }

    #[test]
    fn a_packed_ngram_is_unpacked_up_to_the_end_of_the_text_for_every_width_of_a_token() {
        for vocab_size in [1, 2, 3, 65, 50_257, (1 << 25) - 1] {
            let packing = Packing::new(vocab_size, 5).unwrap();
            let largest = vocab_size as u32 - 1;
            let mut key = u128::MAX;
            for token in [largest, 0, largest, packing.end, packing.end] {
                key = packing.shift_in(key, token);
            }
            assert_eq!(packing.unpack(key, &mut [0; MAX_ORDER]), [largest, 0, largest]);
        }
        let packing = Packing::new(u32::MAX as usize, 4).unwrap();
        let key = [1, u32::MAX - 1, 2, 3].into_iter().fold(0, |key, token| packing.shift_in(key, token));
        assert_eq!(packing.unpack(key, &mut [0; MAX_ORDER]), [1, u32::MAX - 1, 2, 3]);
    }

    #[test]
    fn a_vocabulary_too_large_for_a_key_is_refused_and_the_largest_is_named() {
        let message = Packing::new(1 << 25, 5).unwrap_err().to_string();
        assert!(message.contains("33554431"), "{message}");
    }
}
