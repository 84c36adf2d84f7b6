//! The rules that look at sequences of the history: DRY and the ban of repeated n-grams. Both are biases of a few tokens,
//! which every path adds to the logits as it adds those of the caller.

use crate::SamplingParams;
use crate::params::Dry;
use std::collections::BTreeMap;

/// What the sequences of the history add to the logits of its tokens, in this order: the penalties of DRY, then -inf for
/// banned tokens; each by token. The rules of `params` are checked.
pub(crate) fn history_biases(params: &SamplingParams, history: &[u32]) -> Vec<(u32, f32)> {
    let mut biases = Vec::new();
    if params.dry.multiplier > 0.0 {
        biases.extend(dry_penalties(&params.dry, history).into_iter().map(|(token, penalty)| (token, -penalty)));
    }
    biases.extend(banned_tokens(params.no_repeat_ngram_size, history).into_iter().map(|t| (t, f32::NEG_INFINITY)));
    biases
}

/// The tokens that complete a sequence of `size` tokens that the history has, ascending; none for a size of 0.
fn banned_tokens(size: usize, history: &[u32]) -> Vec<u32> {
    if size == 0 || history.len() < size {
        return Vec::new();
    }
    let end = &history[history.len() + 1 - size..];
    let completes = |ngram: &&[u32]| &ngram[..size - 1] == end;
    let mut banned: Vec<u32> = history.windows(size).filter(completes).map(|ngram| ngram[size - 1]).collect();
    banned.sort_unstable();
    banned.dedup();
    banned
}

/// The penalty of each token that would prolong a repetition, by token.
fn dry_penalties(dry: &Dry, history: &[u32]) -> BTreeMap<u32, f32> {
    let last_n = if dry.last_n == 0 { history.len() } else { dry.last_n.min(history.len()) };
    let window = &history[history.len() - last_n..];
    let limit = since_breaker(&dry.breakers, window);
    let mut longest: BTreeMap<u32, usize> = BTreeMap::new();
    if window.len() > dry.allowed_length && limit >= dry.allowed_length {
        for (distance, repeated) in (1..).zip(repeated_ends(window)) {
            // No repetition reaches across a breaker.
            let repeated = repeated.min(limit);
            let next = window[window.len() - distance];
            if repeated >= dry.allowed_length && !dry.breakers.iter().any(|breaker| breaker[..] == [next]) {
                let longest = longest.entry(next).or_default();
                *longest = repeated.max(*longest);
            }
        }
    }
    let penalty = |repeated: usize| {
        let power = (repeated - dry.allowed_length) as f64;
        (dry.multiplier * dry.base.powf(power)).min(f64::from(f32::MAX)) as f32
    };
    longest.into_iter().map(|(token, repeated)| (token, penalty(repeated))).collect()
}

/// How many tokens follow the last breaker of the window: of those that begin at one token, the longest. The length of
/// the window if it has none.
fn since_breaker(breakers: &[Vec<u32>], window: &[u32]) -> usize {
    for start in (0..window.len()).rev() {
        let ends = breakers.iter().filter(|breaker| window[start..].starts_with(breaker)).map(|breaker| breaker.len());
        if let Some(length) = ends.max() {
            return window.len() - start - length;
        }
    }
    window.len()
}

/// For each distance from 1 to `window.len() - 1`: how many of the last tokens of the window are those that end this far
/// before its end.
///
/// That is the Z-function of the window read backwards, in linear time: `left..right` is the match that reaches furthest,
/// inside of which a value repeats one from the beginning.
fn repeated_ends(window: &[u32]) -> Vec<usize> {
    let len = window.len();
    let backwards = |n: usize| window[len - 1 - n];
    let mut matches = vec![0; len];
    let (mut left, mut right) = (0, 0);
    for at in 1..len {
        let mut length = if at < right { matches[at - left].min(right - at) } else { 0 };
        while at + length < len && backwards(length) == backwards(at + length) {
            length += 1;
        }
        if at + length > right {
            (left, right) = (at, at + length);
        }
        matches[at] = length;
    }
    matches.split_off(1.min(len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_rows::TestRng;

    fn penalties(dry: &Dry, history: &[u32]) -> Vec<(u32, f32)> {
        dry_penalties(dry, history).into_iter().collect()
    }

    #[test]
    fn an_ngram_that_the_history_has_is_not_completed_again() {
        assert_eq!(banned_tokens(2, &[1, 2, 3, 1]), [2]);
        assert_eq!(banned_tokens(3, &[1, 2, 3, 1, 2, 4, 1, 2]), [3, 4]);
        assert_eq!(banned_tokens(1, &[5, 3, 5]), [3, 5]);
        assert!(banned_tokens(0, &[1, 1]).is_empty());
        assert!(banned_tokens(4, &[1, 1, 1]).is_empty());
        assert!(banned_tokens(1, &[]).is_empty());
    }

    #[test]
    fn a_token_that_prolongs_a_repetition_is_penalised_by_its_length() {
        let dry = Dry { multiplier: 2.0, base: 3.0, allowed_length: 2, ..Dry::default() };
        // The end [1, 2, 3] came before a 4: three tokens are one more than is free.
        assert_eq!(penalties(&dry, &[1, 2, 3, 4, 1, 2, 3]), [(4, 6.0)]);
        assert_eq!(penalties(&dry, &[1, 2, 3, 4, 2, 3]), [(4, 2.0)]);
        assert_eq!(penalties(&dry, &[2, 3, 5, 3]), []);
        assert_eq!(penalties(&Dry { last_n: 6, ..dry.clone() }, &[1, 2, 3, 4, 1, 2, 3]), [(4, 2.0)]);
        assert_eq!(penalties(&Dry { last_n: 4, ..dry }, &[1, 2, 3, 4, 1, 2, 3]), []);
    }

    #[test]
    fn no_repetition_reaches_across_a_breaker_and_a_breaker_has_no_penalty() {
        let dry = |breakers| Dry { multiplier: 1.0, base: 2.0, allowed_length: 1, breakers, ..Dry::default() };
        assert_eq!(penalties(&dry(vec![]), &[1, 2, 3, 4, 1, 2, 3]), [(4, 4.0)]);
        assert_eq!(penalties(&dry(vec![vec![2]]), &[1, 2, 3, 4, 1, 2, 3]), [(4, 1.0)]);
        assert_eq!(penalties(&dry(vec![vec![1, 2]]), &[1, 2, 3, 4, 1, 2, 3]), [(4, 1.0)]);
        assert_eq!(penalties(&dry(vec![vec![4]]), &[1, 2, 3, 4, 1, 2, 3]), []);
        assert_eq!(penalties(&dry(vec![vec![3]]), &[1, 2, 3, 4, 1, 2, 3]), []);
    }

    #[test]
    fn a_penalty_stays_finite() {
        let dry = Dry { multiplier: 1.0, base: 1e30, ..Dry::default() };
        assert_eq!(penalties(&dry, &[7; 100]), [(7, f32::MAX)]);
    }

    #[test]
    fn repeated_ends_are_those_of_a_comparison_token_by_token() {
        for case in 0..2000 {
            let mut rng = TestRng::new(case);
            let kinds = 1 + rng.below(4);
            let window: Vec<u32> = (0..rng.below(40)).map(|_| rng.below(kinds) as u32).collect();
            let naive = |distance: usize| {
                let (earlier, end) = (window[..window.len() - distance].iter().rev(), window.iter().rev());
                earlier.zip(end).take_while(|(a, b)| a == b).count()
            };
            let expected: Vec<usize> = (1..window.len()).map(naive).collect();
            assert_eq!(repeated_ends(&window), expected, "{window:?}");
        }
    }
}
