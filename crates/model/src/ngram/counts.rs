//! The counts of n-grams: one sorted table for each length, linked from context to followers.

use std::{ops::Range, sync::Arc};

use super::{MAX_ORDER, NgramError};
use crate::{ModelError, Result};

/// The counts of all n-grams of a text up to a length, the order.
///
/// It is a trie by levels. Level `n` has the distinct n-grams in ascending order, each as its last token and its count;
/// those that share their first `n - 1` tokens lie side by side, and the (n-1)-gram on the level above knows where. The
/// place of an n-gram on its level is its *node*. The empty n-gram is node 0 of length 0.
///
/// A node takes 8 bytes on the last level and 12 above it. The arrays are shared between clones and truncations.
#[derive(Debug, Clone)]
pub struct NgramCounts {
    vocab_size: usize,
    /// One for each length from 1 to the order.
    levels: Vec<Level>,
}

/// The distinct n-grams of one length.
#[derive(Debug, Clone, Default)]
pub(super) struct Level {
    /// The last token of each.
    pub tokens: Arc<Vec<u32>>,
    /// How often each occurs; at least 1.
    pub counts: Arc<Vec<u32>>,
    /// The first follower of each on the next level, and at the end the length of that level. Unused on the last level.
    pub first_child: Arc<Vec<u32>>,
}

impl NgramCounts {
    /// The tables of a file.
    ///
    /// # Errors
    /// When they are not sorted, reach out of bounds or contradict each other in their structure.
    pub(super) fn from_levels(vocab_size: usize, levels: Vec<Level>) -> Result<Self> {
        check_shape(vocab_size, levels.len())?;
        let counts = Self { vocab_size, levels };
        counts.check_structure().map_err(NgramError::Contradiction)?;
        Ok(counts)
    }

    /// The number of tokens in the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The length of the longest n-grams.
    pub fn order(&self) -> usize {
        self.levels.len()
    }

    /// The number of distinct n-grams of length `n`, from 1 to the order.
    pub fn distinct(&self, n: usize) -> usize {
        self.levels[n - 1].tokens.len()
    }

    /// The counts of the n-grams of length `n`, in ascending order of the n-grams.
    pub fn counts(&self, n: usize) -> &[u32] {
        &self.levels[n - 1].counts
    }

    pub(super) fn level(&self, n: usize) -> &Level {
        &self.levels[n - 1]
    }

    /// The nodes on level `n + 1` that follow a node of length `n`, which is below the order.
    pub(super) fn followers(&self, n: usize, node: u32) -> Range<usize> {
        match n {
            0 => 0..self.distinct(1),
            _ => {
                let first = &self.level(n).first_child;
                first[node as usize] as usize..first[node as usize + 1] as usize
            }
        }
    }

    /// The node on level `n + 1` that follows a node of length `n` by `token`, if it occurs.
    pub(super) fn find(&self, n: usize, node: u32, token: u32) -> Option<u32> {
        let range = self.followers(n, node);
        let tokens = &self.level(n + 1).tokens[range.clone()];
        // Behind a frequent context most of the vocabulary occurs, and a token then lies at or just before its own index.
        let at = match tokens.get(token as usize) {
            Some(&found) if found == token => token as usize,
            _ => tokens[..tokens.len().min(token as usize)].binary_search(&token).ok()?,
        };
        Some((range.start + at) as u32)
    }

    /// The counts of the n-grams up to a smaller length; shares the arrays.
    ///
    /// # Errors
    /// When `order` is 0 or above that of these counts.
    pub fn truncated(&self, order: usize) -> Result<Self> {
        if order == 0 || order > self.order() {
            return Err(NgramError::Order { order }.into());
        }
        Ok(Self { vocab_size: self.vocab_size, levels: self.levels[..order].to_vec() })
    }

    /// The counts of Kneser-Ney: below the order, each n-gram has the number of distinct tokens that precede it in place of
    /// the number of times that it occurs. `start` are the first tokens of the text, as many as the order less one if there
    /// are that many; the start of the text counts as one more token that precedes.
    ///
    /// # Errors
    /// When the n-grams are not all those of a text that begins with `start`.
    pub fn continuation(&self, start: &[u32]) -> Result<Self> {
        let mut continued = self.clone();
        let mut preceding = self.preceding(|_, _| 1).map_err(NgramError::Contradiction)?;
        let mut node = 0;
        for (n, (counts, &token)) in preceding.iter_mut().zip(start).enumerate() {
            node = self
                .find(n, node, token)
                .ok_or_else(|| NgramError::Contradiction("the start of the text does not occur in it".into()))?;
            counts[node as usize] += 1;
        }
        for (level, counts) in continued.levels.iter_mut().zip(preceding) {
            level.counts = Arc::new(counts);
        }
        continued.check_continuation().map_err(NgramError::Contradiction)?;
        Ok(continued)
    }

    /// For each length `n` below the order, the sum of `weight(n + 1, node)` over the nodes of one token more that end with each
    /// n-gram.
    fn preceding(&self, weight: impl Fn(usize, usize) -> u32) -> std::result::Result<Vec<Vec<u32>>, String> {
        // The node of each n-gram without its first token, on the level above.
        let mut suffixes = vec![0; self.distinct(1)];
        (1..self.order())
            .map(|n| {
                let mut preceding = vec![0; self.distinct(n)];
                let is_needed = n + 1 < self.order();
                let mut longer = Vec::with_capacity(if is_needed { self.distinct(n + 1) } else { 0 });
                for (node, &suffix) in suffixes.iter().enumerate() {
                    for child in self.followers(n, node as u32) {
                        let token = self.level(n + 1).tokens[child];
                        let found = self
                            .find(n - 1, suffix, token)
                            .ok_or_else(|| format!("the end of an n-gram of length {} does not occur", n + 1))?;
                        preceding[found as usize] += weight(n + 1, child);
                        if is_needed {
                            longer.push(found);
                        }
                    }
                }
                suffixes = longer;
                Ok(preceding)
            })
            .collect()
    }

    /// Sorted, within bounds, positive; what every other function relies on.
    fn check_structure(&self) -> std::result::Result<(), String> {
        for n in 1..=self.order() {
            let Level { tokens, counts, first_child } = self.level(n);
            if tokens.len() != counts.len() {
                return Err(format!("{} n-grams of length {n}, and {} counts", tokens.len(), counts.len()));
            }
            if u32::try_from(tokens.len()).is_err()
                || counts.iter().map(|&count| u64::from(count)).sum::<u64>() >= MAX_SUM
            {
                return Err(format!("more n-grams of length {n} than can be counted"));
            }
            if counts.contains(&0) {
                return Err(format!("an n-gram of length {n} that never occurs"));
            }
            if tokens.iter().any(|&token| token as usize >= self.vocab_size) {
                return Err(format!("an n-gram of length {n} with a token outside the vocabulary"));
            }
            if n < self.order() {
                let ends = (first_child.first().copied(), first_child.last().map(|&last| last as usize));
                if first_child.len() != tokens.len() + 1
                    || ends != (Some(0), Some(self.distinct(n + 1)))
                    || !first_child.is_sorted()
                {
                    return Err(format!(
                        "the followers of the n-grams of length {n} are not those of length {}",
                        n + 1
                    ));
                }
            }
            let parents = if n == 1 { 1 } else { self.distinct(n - 1) };
            let is_ascending = |parent| self.level(n).tokens[self.followers(n - 1, parent)].is_sorted_by(|a, b| a < b);
            if !(0..parents as u32).all(is_ascending) {
                return Err(format!("the n-grams of length {n} are not in ascending order"));
            }
        }
        Ok(())
    }

    /// Refuses counts that are not those of one text: a token follows every n-gram each time that it occurs, but for the last of
    /// the text, and a token precedes it, but for the first.
    pub(super) fn check_occurrences(&self) -> std::result::Result<(), String> {
        for (n, preceded) in (1..).zip(self.preceding(|n, node| self.counts(n)[node])?) {
            let followed = (0..self.distinct(n) as u32).map(|node| {
                self.level(n + 1).counts[self.followers(n, node)].iter().map(|&count| u64::from(count)).sum()
            });
            let preceded = preceded.into_iter().map(u64::from);
            one_more(self.counts(n), followed).and_then(|()| one_more(self.counts(n), preceded)).ok_or_else(|| {
                format!("n-grams of length {n} occur another number of times than those of length {} say", n + 1)
            })?;
        }
        Ok(())
    }

    /// Refuses counts below the order that are not the numbers of preceding tokens.
    pub(super) fn check_continuation(&self) -> std::result::Result<(), String> {
        for (n, preceding) in (1..).zip(self.preceding(|_, _| 1)?) {
            one_more(self.counts(n), preceding.into_iter().map(u64::from)).ok_or_else(|| {
                format!("n-grams of length {n} continue another number of tokens than those of length {} say", n + 1)
            })?;
        }
        Ok(())
    }
}

/// The sum of the counts of a level lies below this, so that sums fit 32 bits.
const MAX_SUM: u64 = u32::MAX as u64 + 1;

/// Whether the counts are the given numbers, but for one that is greater by one: the end or the start of the text.
fn one_more(counts: &[u32], numbers: impl Iterator<Item = u64>) -> Option<()> {
    let mut more = 0;
    for (&count, number) in counts.iter().zip(numbers) {
        more += u64::from(count).checked_sub(number)?;
    }
    (more == u64::from(!counts.is_empty())).then_some(())
}

pub(super) fn check_shape(vocab_size: usize, order: usize) -> Result<(), NgramError> {
    if !(1..=MAX_ORDER).contains(&order) {
        return Err(NgramError::Order { order });
    }
    if vocab_size == 0 || u32::try_from(vocab_size).is_err() {
        return Err(NgramError::VocabSize { vocab_size });
    }
    Ok(())
}

/// Makes [`NgramCounts`] from the n-grams of a text in ascending order.
///
/// What is pushed is the n-gram that starts at each token of the text, with the number of such starts: of the length of the
/// order, but for the last ones, which the end of the text cuts off. The shorter n-grams follow as their beginnings. The
/// order is that of dictionaries, except that a cut-off n-gram comes behind all that begin with it, as if the end of the text
/// were the largest token.
#[derive(Debug)]
pub struct NgramCountsBuilder {
    vocab_size: usize,
    /// One for each length from 1 to the order; the end of `first_child` is still missing.
    levels: Vec<GrowingLevel>,
    previous: Vec<u32>,
    total: u64,
}

impl NgramCountsBuilder {
    /// A builder without an n-gram yet.
    ///
    /// # Errors
    /// When there is no such order or no such vocabulary.
    pub fn new(vocab_size: usize, order: usize) -> Result<Self> {
        check_shape(vocab_size, order)?;
        Ok(Self { vocab_size, levels: vec![Default::default(); order], previous: Vec::with_capacity(order), total: 0 })
    }

    /// Adds `count` occurrences of an n-gram. The one before may be given again.
    ///
    /// # Errors
    /// When the n-gram is not behind the one before, empty or too long, `count` is 0, a token is outside the vocabulary, or
    /// there are too many to be counted.
    pub fn push(&mut self, ngram: &[u32], count: u32) -> Result<()> {
        let previous = &self.previous;
        let common = ngram.iter().zip(previous).take_while(|(a, b)| a == b).count();
        let is_behind = match (ngram.get(common), previous.get(common)) {
            (Some(token), Some(before)) => token > before,
            (Some(_), None) => previous.is_empty(),
            (None, _) => true,
        };
        if !is_behind || !(1..=self.levels.len()).contains(&ngram.len()) || count == 0 {
            return Err(NgramError::NotAscending { ngram: ngram.to_vec(), previous: previous.clone() }.into());
        }
        if let Some(&id) = ngram.iter().find(|&&token| token as usize >= self.vocab_size) {
            return Err(ModelError::TokenOutOfRange { id, vocab_size: self.vocab_size });
        }
        self.total += u64::from(count);
        // One less than 32 bits hold, since the start of the text counts as a token that precedes.
        if self.total >= MAX_SUM - 1 {
            return Err(NgramError::TooManyTokens.into());
        }
        for level in &mut self.levels[..common] {
            if let Some(last) = level.counts.last_mut() {
                *last += count;
            }
        }
        for (n, &token) in ngram.iter().enumerate().skip(common) {
            let followers = self.levels.get(n + 1).map(|next| next.tokens.len() as u32);
            let level = &mut self.levels[n];
            level.tokens.push(token);
            level.counts.push(count);
            level.first_child.extend(followers);
        }
        self.previous.clear();
        self.previous.extend_from_slice(ngram);
        Ok(())
    }

    /// The counts.
    pub fn finish(mut self) -> NgramCounts {
        for n in 0..self.levels.len() {
            let followers = self.levels.get(n + 1).map(|next| next.tokens.len() as u32);
            self.levels[n].first_child.extend(followers);
        }
        NgramCounts { vocab_size: self.vocab_size, levels: self.levels.into_iter().map(Level::from).collect() }
    }
}

/// A level that n-grams are still added to.
#[derive(Debug, Clone, Default)]
struct GrowingLevel {
    tokens: Vec<u32>,
    counts: Vec<u32>,
    first_child: Vec<u32>,
}

impl From<GrowingLevel> for Level {
    fn from(level: GrowingLevel) -> Self {
        let whole = |mut array: Vec<u32>| {
            array.shrink_to_fit();
            Arc::new(array)
        };
        Self { tokens: whole(level.tokens), counts: whole(level.counts), first_child: whole(level.first_child) }
    }
}
