//! The numbers of a comparison, as pure functions.
//!
//! Words are what white space separates, and n-grams are of words within one text: what a reader counts in the printed
//! completions, and the same for models of any tokenizer. Loops are of tokens, since it is tokens that a model goes round in.

use std::collections::HashSet;

use serde::Serialize;

/// The share of different n-grams among all n-grams of some texts: `distinct_n` of Li et al., 2016, "A Diversity-Promoting
/// Objective Function for Neural Conversation Models". `None` where no text has `n` words.
pub fn distinct<'t>(texts: impl IntoIterator<Item = &'t str>, n: usize) -> Option<f64> {
    let mut all = 0;
    let mut different: HashSet<Vec<&str>> = HashSet::new();
    for text in texts {
        let words: Vec<&str> = text.split_whitespace().collect();
        for ngram in words.windows(n) {
            all += 1;
            different.insert(ngram.to_vec());
        }
    }
    (all > 0).then(|| different.len() as f64 / all as f64)
}

/// The share of n-grams that their own text has already had, over all n-grams of some texts: `seq-rep-n` of Welleck et al., 2020,
/// "Neural Text Generation with Unlikelihood Training". `None` where no text has `n` words.
pub fn repeated<'t>(texts: impl IntoIterator<Item = &'t str>, n: usize) -> Option<f64> {
    let (mut all, mut repeated) = (0, 0);
    for text in texts {
        let words: Vec<&str> = text.split_whitespace().collect();
        let ngrams = words.windows(n);
        all += ngrams.len();
        repeated += ngrams.len() - ngrams.collect::<HashSet<_>>().len();
    }
    (all > 0).then(|| repeated as f64 / all as f64)
}

/// A loop that a sequence of tokens ends in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Loop {
    /// The tokens of one round.
    pub period: usize,
    /// The first token of the first round, counted from 0.
    pub start: usize,
}

/// The loop that tokens end in: the least period of which two whole rounds or more, and at least a quarter of all tokens, stand
/// at the end. A doubled letter there is no loop.
pub fn find_loop(tokens: &[u32]) -> Option<Loop> {
    let n = tokens.len();
    (1..=n / 2).find_map(|period| {
        // Tokens from the end on that equal the one a period later.
        let equal = (0..n - period).rev().take_while(|&i| tokens[i] == tokens[i + period]).count();
        let covered = equal + period;
        (equal >= period && 4 * covered >= n).then_some(Loop { period, start: n - covered })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn distinct_n_is_what_one_counts() {
        // 8 words, of which 3 differ; 3 pairs in each text.
        let texts = ["the cat the cat", " the\tcat\nthe  dog "];
        assert_eq!(distinct(texts, 1), Some(3.0 / 8.0));
        assert_eq!(
            distinct(texts, 2),
            Some(3.0 / 6.0),
            "the cat, cat the, the dog: none goes from one text to the next"
        );
        assert_eq!(distinct(["one two three", "one two three"], 2), Some(0.5), "the same text twice");
        assert_eq!(distinct(["", " \n"], 1), None);
        assert_eq!(distinct(["one"], 2), None);
    }

    #[test]
    fn repeated_n_grams_are_those_that_their_own_text_has_had() {
        // abcd bcda cdab dabc abcd: the fifth repeats the first.
        assert_eq!(repeated(["a b c d a b c d"], 4), Some(1.0 / 5.0));
        assert_eq!(repeated(["a b c d", "a b c d"], 4), Some(0.0), "two texts do not repeat each other");
        assert_eq!(repeated(["x x x x x x x", "a b c d"], 4), Some(3.0 / 5.0));
        assert_eq!(repeated(["a b c"], 4), None);
    }

    #[test]
    fn a_loop_has_its_period_and_its_start() {
        let found = |tokens: &[u32]| find_loop(tokens).map(|Loop { period, start }| (period, start));
        assert_eq!(found(&[9, 8, 1, 2, 3, 1, 2, 3, 1, 2]), Some((3, 2)));
        assert_eq!(found(&[5; 6]), Some((1, 0)));
        assert_eq!(found(&[1, 2, 1, 2, 3]), None, "a loop that was left");
        assert_eq!(found(&[1, 2, 3, 4, 1, 2, 3]), None, "not two whole rounds");
        assert_eq!(found(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 9]), None, "two equal tokens of ten");
        assert_eq!(found(&[1, 2, 3, 4, 5, 6, 9, 9]), Some((1, 6)), "a quarter");
        assert_eq!(found(&[1, 1, 2, 1, 1, 2]), Some((3, 0)), "the ends of rounds equal by chance are no round");
        assert_eq!((found(&[]), found(&[1])), (None, None));
    }

    proptest! {
        #[test]
        fn the_loop_is_the_first_that_a_search_of_all_finds(tokens in prop::collection::vec(0..3u32, 0..24)) {
            let n = tokens.len();
            let loops = |period: usize, start: usize| (start..n - period).all(|i| tokens[i] == tokens[i + period]);
            let expected = (1..=n).find_map(|period| {
                let start = (0..=n - period).find(|&start| loops(period, start))?;
                (n - start >= 2 * period && 4 * (n - start) >= n).then_some(Loop { period, start })
            });
            prop_assert_eq!(find_loop(&tokens), expected);
        }

        #[test]
        fn shares_are_those_of_a_count_of_pairs(words in prop::collection::vec("[ab]{1,2}", 0..12)) {
            let text = words.join(" ");
            for n in [1, 2, 4] {
                let ngrams: Vec<&[String]> = words.windows(n).collect();
                let first = (0..ngrams.len()).filter(|&i| !ngrams[..i].contains(&ngrams[i])).count();
                let share = |count: usize| (!ngrams.is_empty()).then(|| count as f64 / ngrams.len() as f64);
                prop_assert_eq!(distinct([text.as_str()], n), share(first));
                prop_assert_eq!(repeated([text.as_str()], n), share(ngrams.len() - first));
            }
        }
    }
}
