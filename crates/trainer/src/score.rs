//! The chain rule made visible: what a model makes of each token of a text, given those before it.

use std::cmp::Ordering;

use tinygpt_model::{
    LanguageModel, ModelError, Tokenizer, TokenizerError, Windows,
    language_model::{NextToken, each_row},
};
use tinygpt_sampler::{RngDomain, philox_at};

use crate::{
    Result, TrainError,
    sliding::{Sliding, SlidingWindow, batches},
};

/// How many of the most probable tokens are kept where nobody asks for more.
pub const TOP: usize = 5;

/// A token of a text, under the distribution of the next token that a model gives for the tokens before it.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenScore {
    /// The token.
    pub id: u32,
    /// The logarithm of its probability, in nats.
    pub logprob: f64,
    /// Its place among all tokens, 1 for the most probable one; of equally probable tokens, the one with the smaller id comes
    /// first.
    pub rank: usize,
    /// The entropy of the distribution, in nats: the surprisal that the model expects.
    pub entropy: f64,
    /// The most probable tokens with the logarithms of their probabilities, by rank; all, where there are fewer.
    pub top: Vec<(u32, f64)>,
}

/// The figures of a whole text.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct TextScore {
    /// The logarithm of the text's probability, in nats: the sum over its tokens.
    pub logprob: f64,
    /// The inverse of the tokens' geometric mean probability.
    pub perplexity: f64,
    /// The surprisal in bits per byte of UTF-8 text; comparable between tokenizers.
    pub bits_per_byte: f64,
}

impl TextScore {
    /// The figures of a text of `bytes` bytes with these tokens.
    pub fn new(tokens: &[TokenScore], bytes: usize) -> Self {
        let logprob: f64 = tokens.iter().map(|token| token.logprob).sum();
        Self {
            logprob,
            perplexity: (-logprob / tokens.len() as f64).exp(),
            bits_per_byte: -logprob / std::f64::consts::LN_2 / bytes as f64,
        }
    }
}

/// Scores every token of a text. The first is predicted from `start`, so that the probabilities multiply to that of the whole
/// text; each is predicted once, in sliding windows. Of each distribution the `top` most probable tokens are kept. `on_progress(scored, all)` is told how many tokens are scored, and may end
/// the work by an error.
///
/// # Errors
/// When there is no token, one is outside the vocabulary, the windows do not fit the model, its logits hold a NaN, or the model or
/// `on_progress` fails.
pub fn score(
    model: &mut dyn LanguageModel,
    start: u32,
    ids: &[u32],
    sliding: Sliding,
    top: usize,
    on_progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Vec<TokenScore>> {
    if ids.is_empty() {
        return Err(TrainError::EmptyText);
    }
    sliding.check(model.block_size())?;
    let vocab_size = model.vocab_size();
    if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
        return Err(ModelError::TokenOutOfRange { id, vocab_size }.into());
    }
    let text = [&[start], ids].concat();
    let windows: Vec<SlidingWindow> = sliding.windows(text.len()).collect();
    let mut scores = Vec::with_capacity(ids.len());
    for group in batches(&windows) {
        let SlidingWindow { cols, from, .. } = group[0];
        let read: Vec<u32> = group.iter().flat_map(|window| &text[window.start..][..cols]).copied().collect();
        let targets: Vec<u32> = group.iter().flat_map(|window| &text[window.start + 1..][..cols]).copied().collect();
        let windows = Windows { ids: &read, cols, from };
        scores.extend(each_row(model, windows, |place, logits| token_score(logits, targets[place], top))?);
        on_progress(scores.len(), ids.len())?;
    }
    match scores.iter().position(|token| token.logprob.is_nan()) {
        Some(position) => Err(TrainError::NanLogits { position }),
        None => Ok(scores),
    }
}

/// The score of a token whose prediction has these logits `(V)`.
fn token_score(logits: &[f32], id: u32, top: usize) -> TokenScore {
    let (next, own) = (NextToken::of(logits), logits[id as usize]);
    // Of equals, the token with the smaller id is the more probable one.
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal).then(a.0.cmp(&b.0));
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(top.min(logits.len()) + 1);
    let mut rank = 1;
    for token in (0..).zip(logits.iter().copied()) {
        rank += usize::from(order(&token, &(id, own)) == Ordering::Less);
        if best.len() < top || best.last().is_some_and(|last| order(&token, last) == Ordering::Less) {
            let place = best.partition_point(|other| order(other, &token) == Ordering::Less);
            best.insert(place, token);
            best.truncate(top);
        }
    }
    TokenScore {
        id,
        logprob: next.logprob(own),
        rank,
        entropy: next.entropy,
        top: best.into_iter().map(|(id, logit)| (id, next.logprob(logit))).collect(),
    }
}

/// The text with its words (what stands between white space) in an order that the seed decides, all being equally probable; white
/// space stays in its place.
pub fn shuffled_words(text: &str, seed: u64) -> String {
    let mut words: Vec<&str> = text.split_whitespace().collect();
    // Fisher and Yates, in Durstenfeld's form (1964, Algorithm 235).
    for i in (1..words.len()).rev() {
        words.swap(i, below(i as u64 + 1, seed, i as u64, 0));
    }
    let mut words = words.into_iter();
    let mut shuffled = String::with_capacity(text.len());
    let mut in_word = false;
    for ch in text.chars() {
        if ch.is_whitespace() {
            shuffled.push(ch);
        } else if !in_word {
            shuffled.push_str(words.next().unwrap_or_default());
        }
        in_word = !ch.is_whitespace();
    }
    shuffled
}

/// `n` characters, each drawn with equal probability from those that are tokens of the tokenizer, control characters other than
/// the line break left out. None where no token is a single character.
///
/// # Errors
/// When the tokenizer cannot show one of its tokens.
pub fn random_chars(tokenizer: &Tokenizer, n: usize, seed: u64) -> Result<Option<String>> {
    let mut chars = Vec::new();
    for id in 0..tokenizer.vocab_size() as u32 {
        let text = match tokenizer.token_text(id) {
            Ok(text) => text,
            // Vocabularies may have gaps.
            Err(TokenizerError::UnknownId { .. }) => continue,
            Err(error) => return Err(error.into()),
        };
        let mut rest = text.chars();
        if let (Some(ch), None) = (rest.next(), rest.next())
            && (!ch.is_control() || ch == '\n')
        {
            chars.push(ch);
        }
    }
    let draw = |i: usize| chars[below(chars.len() as u64, seed, i as u64, 1)];
    Ok((!chars.is_empty()).then(|| (0..n).map(draw).collect()))
}

/// A uniform number below `n`, of a place.
fn below(n: u64, seed: u64, a: u64, b: u32) -> usize {
    let [w0, w1, ..] = philox_at(seed, RngDomain::Text, a, b);
    let bits = u64::from(w1) << 32 | u64::from(w0);
    // The high half of a 64 x 64 bit product is uniform to within 2^-64 * n.
    ((u128::from(bits) * u128::from(n)) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tinygpt_sampler::entropy;

    use super::*;
    use crate::test_models::Hashing;

    fn scores(model: Hashing, ids: &[u32], context: usize, stride: usize) -> Vec<TokenScore> {
        let sliding = Sliding { context, stride };
        score(&mut { model }, 0, ids, sliding, TOP, &mut |_, _| Ok(())).unwrap()
    }

    proptest! {
        #[test]
        fn scores_are_those_of_sorted_probabilities(
            vocab_size in 1..20usize,
            ids in prop::collection::vec(0..20u32, 1..60),
            context in 1..20usize,
            stride in 1..20usize,
        ) {
            let ids: Vec<u32> = ids.iter().map(|id| id % vocab_size as u32).collect();
            let stride = stride.min(context);
            let model = Hashing::new(vocab_size, 20, 0);
            let scores = scores(model, &ids, context, stride);
            prop_assert_eq!(scores.len(), ids.len());
            let text = [&[0], &ids[..]].concat();
            for (i, token) in scores.iter().enumerate() {
                let seen = if i < context { i + 1 } else { context - stride + (i - context) % stride + 1 };
                let logits = model.logits_after(&text[i + 1 - seen..=i]);
                let weights: Vec<f64> = logits.iter().map(|&x| f64::from(x).exp()).collect();
                let total: f64 = weights.iter().sum();
                let p: Vec<f64> = weights.iter().map(|w| w / total).collect();
                let mut sorted: Vec<u32> = (0..vocab_size as u32).collect();
                sorted.sort_by(|&a, &b| p[b as usize].total_cmp(&p[a as usize])); // stable
                prop_assert_eq!(token.id, ids[i]);
                prop_assert!((token.logprob - p[ids[i] as usize].ln()).abs() < 1e-9);
                prop_assert_eq!(sorted[token.rank - 1], ids[i]);
                prop_assert!((token.entropy - entropy(&p)).abs() < 1e-9);
                let top: Vec<u32> = token.top.iter().map(|top| top.0).collect();
                prop_assert_eq!(&top[..], &sorted[..TOP.min(vocab_size)]);
                prop_assert!(token.top.iter().all(|&(id, logprob)| (logprob - p[id as usize].ln()).abs() < 1e-9));
            }
        }

        #[test]
        fn a_shuffled_text_has_the_words_and_the_white_space_of_the_text(text in "[ab\n é]{0,40}", seed: u64) {
            let shuffled = shuffled_words(&text, seed);
            let words = |text: &str| {
                let mut words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
                words.sort();
                words
            };
            prop_assert_eq!(words(&shuffled), words(&text));
            let white = |text: &str| text.chars().filter(|ch| ch.is_whitespace()).collect::<String>();
            prop_assert_eq!(white(&shuffled), white(&text));
            prop_assert_eq!(shuffled.len(), text.len());
        }
    }

    #[test]
    fn every_order_of_words_is_equally_probable() {
        let mut counts = std::collections::BTreeMap::new();
        (0..6000).for_each(|seed| *counts.entry(shuffled_words("a b c", seed)).or_insert(0) += 1);
        assert_eq!(counts.len(), 6);
        // The standard deviation of each is 29.
        assert!(counts.values().all(|&n| (850..1150).contains(&n)), "{counts:?}");
    }

    #[test]
    fn random_characters_are_those_of_the_vocabulary() {
        let chars = Tokenizer::train_char([Ok::<_, TrainError>("aé\n\t")]).unwrap();
        let text = random_chars(&chars, 300, 1).unwrap().unwrap();
        assert_eq!(text.chars().count(), 300);
        assert!(['a', 'é', '\n'].iter().all(|&ch| text.matches(ch).count() > 60) && !text.contains('\t'), "{text}");
        assert_ne!(random_chars(&chars, 300, 2).unwrap().unwrap(), text);
        let bytes = Tokenizer::train_bpe([Ok::<_, TrainError>("ab")], 256).unwrap();
        assert!(
            random_chars(&bytes, 300, 1).unwrap().unwrap().chars().all(|ch| (' '..='~').contains(&ch) || ch == '\n')
        );
    }

    #[test]
    fn a_text_of_probability_1_has_perplexity_1_and_a_uniform_model_that_of_its_vocabulary() {
        let token = |logits: &[f32]| vec![token_score(logits, 1, TOP); 3];
        let certain = TextScore::new(&token(&[f32::NEG_INFINITY, 2.0]), 3);
        assert_eq!((certain.logprob, certain.perplexity, certain.bits_per_byte), (0.0, 1.0, 0.0));
        let uniform = TextScore::new(&token(&[0.5; 4]), 6);
        assert!((uniform.perplexity - 4.0).abs() < 1e-12 && (uniform.bits_per_byte - 1.0).abs() < 1e-12);
        let impossible = token_score(&[0.0, f32::NEG_INFINITY], 1, TOP);
        assert_eq!((impossible.logprob, impossible.rank, impossible.entropy), (f64::NEG_INFINITY, 2, 0.0));
    }

    #[test]
    fn what_has_no_score_is_refused() {
        let mut model = Hashing::new(5, 4, 0);
        let mut refused = |ids: &[u32], context| {
            score(&mut model, 0, ids, Sliding { context, stride: 1 }, TOP, &mut |_, _| Ok(())).unwrap_err().to_string()
        };
        assert!(refused(&[], 4).contains("the text is empty"));
        assert!(refused(&[1, 5], 4).contains("token 5 is outside"));
        assert!(refused(&[1], 5).contains("from 1 to 4"));
        assert!(token_score(&[f32::NAN, 1.0], 1, TOP).logprob.is_nan());
    }
}
