//! N-gram models of a split, held to a twin that counts in hash maps.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;
use tinygpt_model::{
    ModelError,
    ngram::{MAX_ORDER, NGRAM_FILE, NGRAM_TABLES, NgramError, NgramModel, Smoothing},
};
use tinygpt_trainer::{
    TrainError,
    data::Split,
    ngram::{self, Method, evaluate},
};

fn split(tokens: &[u32]) -> Split {
    Split::whole(tokens.to_vec().into(), None)
}

fn train(split: &Split, vocab_size: usize, order: usize, method: Method) -> Result<NgramModel, TrainError> {
    ngram::train(split, vocab_size, order, method, &mut |_, _| Ok(()))
}

fn baselines(split: &Split, vocab_size: usize, max_order: usize) -> Result<Vec<NgramModel>, TrainError> {
    ngram::baselines(split, vocab_size, max_order, &mut |_, _| Ok(()))
}

/// The definitions, word by word.
struct Twin {
    vocab_size: usize,
    order: usize,
    smoothing: Smoothing,
    /// How often each n-gram occurs.
    counts: HashMap<Vec<u32>, u32>,
    /// The tokens that precede each n-gram; `None` is the start of the text.
    preceding: HashMap<Vec<u32>, HashSet<Option<u32>>>,
}

impl Twin {
    fn new(text: &[u32], vocab_size: usize, order: usize, smoothing: Smoothing) -> Self {
        let (mut counts, mut preceding) = (HashMap::new(), HashMap::new());
        for start in 0..text.len() {
            for end in start + 1..=text.len().min(start + order) {
                let ngram = text[start..end].to_vec();
                *counts.entry(ngram.clone()).or_insert(0) += 1;
                let before = start.checked_sub(1).map(|at| text[at]);
                preceding.entry(ngram).or_insert_with(HashSet::new).insert(before);
            }
        }
        Self { vocab_size, order, smoothing, counts, preceding }
    }

    fn prob(&self, context: &[u32], token: u32) -> f64 {
        let context = &context[context.len().saturating_sub(self.order - 1)..];
        match &self.smoothing {
            Smoothing::AddK { k } => {
                let count = |token| f64::from(self.counts.get(&[context, &[token]].concat()).copied().unwrap_or(0));
                let total: f64 = (0..self.vocab_size as u32).map(count).sum();
                (count(token) + k) / (total + k * self.vocab_size as f64)
            }
            Smoothing::KneserNey { discounts } => self.kneser_ney(context, token, discounts),
            other => panic!("{other:?}"),
        }
    }

    fn kneser_ney(&self, context: &[u32], token: u32, discounts: &[[f64; 3]]) -> f64 {
        let lower = match context {
            [] => 1.0 / self.vocab_size as f64,
            [_, shorter @ ..] => self.kneser_ney(shorter, token, discounts),
        };
        let n = context.len() + 1;
        let count = |token| {
            let ngram = [context, &[token]].concat();
            if n == self.order {
                self.counts.get(&ngram).copied().unwrap_or(0)
            } else {
                self.preceding.get(&ngram).map_or(0, |before| before.len() as u32)
            }
        };
        let discount = |count: u32| if count == 0 { 0.0 } else { discounts[n - 1][count.min(3) as usize - 1] };
        let all = || (0..self.vocab_size as u32).map(count);
        match all().sum::<u32>() {
            0 => lower,
            total => {
                let taken: f64 = all().map(discount).sum();
                (f64::from(count(token)) - discount(count(token)) + taken * lower) / f64::from(total)
            }
        }
    }

    fn loss(&self, text: &[u32]) -> f64 {
        let sum: f64 = (1..text.len()).map(|at| -self.prob(&text[..at], text[at]).ln()).sum();
        sum / (text.len() - 1) as f64
    }
}

proptest! {
    #[test]
    fn every_probability_is_that_of_the_definition_and_each_distribution_sums_to_one(
        vocab_size in 1_usize..6,
        order in 1..=MAX_ORDER,
        text in prop::collection::vec(0_u32..6, 1..120),
        other in prop::collection::vec(0_u32..6, 2..40),
    ) {
        let fold = |tokens: Vec<u32>| -> Vec<u32> { tokens.iter().map(|&token| token % vocab_size as u32).collect() };
        let (text, other) = (fold(text), fold(other));
        for method in [Method::AddK, Method::KneserNey] {
            let model = train(&split(&text), vocab_size, order, method).unwrap();
            let twin = Twin::new(&text, vocab_size, order, model.smoothing().clone());
            let distinct = twin.counts.len() as u64;
            prop_assert_eq!(model.parameters(), distinct);
            let mut row = vec![0.0; vocab_size];
            let mut scorer = model.scorer();
            for at in 0..other.len() {
                let context = &other[..at];
                model.log_probs_into(context, &mut row).unwrap();
                let sum: f64 = row.iter().map(|&log_prob| f64::from(log_prob).exp()).sum();
                prop_assert!((sum - 1.0).abs() < 1e-6, "the sum is {}", sum);
                for (token, &log_prob) in row.iter().enumerate() {
                    let expected = twin.prob(context, token as u32).ln();
                    prop_assert!((f64::from(log_prob) - expected).abs() < 1e-5, "{} instead of {}", log_prob, expected);
                }
                let scored = scorer.advance(other[at]).unwrap();
                prop_assert!((scored - twin.prob(context, other[at]).ln()).abs() < 1e-10);
            }
            let expected = twin.loss(&other);
            prop_assert!((model.loss(other.iter().copied()).unwrap() - expected).abs() < 1e-9);
            prop_assert!((evaluate(&model, &split(&other)).unwrap().loss - expected).abs() < 1e-9);
        }
    }
}

/// Tokens without a pattern, from a linear congruential generator.
fn noise(n: usize, vocab_size: u32) -> Vec<u32> {
    let next = |state: &mut u32| {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Some((*state >> 16) % vocab_size)
    };
    std::iter::repeat_n((), n).scan(1, |state, ()| next(state)).collect()
}

#[test]
fn a_long_text_has_the_same_loss_in_pieces_as_in_one() {
    let text = noise(150_000, 7);
    for method in [Method::AddK, Method::KneserNey] {
        let model = train(&split(&text[..50_000]), 7, 4, method).unwrap();
        let evaluation = evaluate(&model, &split(&text)).unwrap();
        assert_eq!((evaluation.tokens, evaluation.floor), (149_999, None));
        assert!((evaluation.loss - model.loss(text.iter().copied()).unwrap()).abs() < 1e-10);
    }
}

#[test]
fn a_unigram_model_of_tokens_that_occur_equally_often_has_the_perplexity_of_the_vocabulary() {
    let text: Vec<u32> = (0..200).map(|i| i % 20).collect();
    let model = train(&split(&text), 20, 1, Method::AddK).unwrap();
    let perplexity = evaluate(&model, &split(&text)).unwrap().loss.exp();
    assert!((perplexity - 20.0).abs() < 1e-9, "{perplexity}");
    let loss = train(&split(&text), 20, 1, Method::KneserNey).unwrap().loss(text).unwrap();
    assert!((loss.exp() - 20.0).abs() < 1e-9);
}

#[test]
fn a_model_that_knows_what_comes_approaches_perplexity_1() {
    // Two tokens tell the third: 0 0 1 0 2 and again.
    let text: Vec<u32> = (0..10_000).map(|i| [0, 0, 1, 0, 2][i % 5]).collect();
    for (order, method) in [(3, Method::AddK), (5, Method::AddK), (3, Method::KneserNey), (5, Method::KneserNey)] {
        let model = train(&split(&text), 3, order, method).unwrap();
        let perplexity = evaluate(&model, &split(&text)).unwrap().loss.exp();
        assert!(perplexity < 1.01, "{}: {perplexity}", model.name());
    }
    let bigram = train(&split(&text), 3, 2, Method::AddK).unwrap();
    assert!(bigram.loss(text).unwrap() > 0.5, "one token does not tell the next");
}

#[test]
fn the_baselines_are_the_models_of_each_order_and_better_ones_have_less_loss() {
    let text: Vec<u32> = (0..20_000_u32).map(|i| if i % 3 == 0 { i / 3 % 5 } else { i * i % 11 % 4 }).collect();
    let models = baselines(&split(&text), 5, 4).unwrap();
    let names: Vec<_> = models.iter().map(NgramModel::name).collect();
    assert_eq!(names, ["unigram", "bigram", "trigram", "4-gram", "Kneser-Ney 4-gram"]);
    let mut losses = Vec::new();
    for (i, model) in models.iter().enumerate() {
        let (order, method) = if i < 4 { (i + 1, Method::AddK) } else { (4, Method::KneserNey) };
        let alone = train(&split(&text), 5, order, method).unwrap();
        assert_eq!((model.order(), model.smoothing()), (alone.order(), alone.smoothing()));
        losses.push(evaluate(model, &split(&text)).unwrap().loss);
        assert_eq!(losses[i], evaluate(&alone, &split(&text)).unwrap().loss);
    }
    assert!(losses[..4].is_sorted_by(|a, b| a > b), "{losses:?}");
}

#[test]
fn progress_ends_where_all_is_read_and_its_error_ends_the_work() {
    let text = split(&noise(100_000, 7));
    for method in [Method::AddK, Method::KneserNey] {
        let mut seen = Vec::new();
        ngram::train(&text, 7, 3, method, &mut |done, all| {
            seen.push((done, all));
            Ok(())
        })
        .unwrap();
        assert!(seen.len() > 1 && seen.is_sorted(), "{seen:?}");
        assert!(seen.last().is_some_and(|(done, all)| done == all), "{seen:?}");
        let error = ngram::train(&text, 7, 3, method, &mut |_, _| Err(TrainError::Interrupted)).unwrap_err();
        assert!(matches!(error, TrainError::Interrupted));
    }
}

#[test]
fn texts_shorter_than_the_order_have_a_model() {
    for text in [&[1][..], &[1, 0], &[0, 0, 0]] {
        for method in [Method::AddK, Method::KneserNey] {
            let model = train(&split(text), 2, 5, method).unwrap();
            let mut row = [0.0; 2];
            model.log_probs_into(&[1, 0, 1, 1, 0], &mut row).unwrap();
            assert!(row.iter().all(|log_prob| log_prob.is_finite()));
            let dir = tempfile::tempdir().unwrap();
            model.save(dir.path()).unwrap();
            assert_eq!(NgramModel::open(dir.path()).unwrap().parameters(), model.parameters());
        }
    }
    let model = train(&split(&[1]), 2, 5, Method::AddK).unwrap();
    assert_eq!(model.smoothing(), &Smoothing::AddK { k: 1.0 }, "one token cannot tell k");
}

#[test]
fn orders_that_there_are_not_and_texts_without_a_token_are_refused() {
    for method in [Method::AddK, Method::KneserNey] {
        for text in [&[0][..], &[0; 50]] {
            for wrong in [0, MAX_ORDER + 1, usize::MAX] {
                let error = train(&split(text), 2, wrong, method).unwrap_err();
                let TrainError::Model(ModelError::Ngram(NgramError::Order { order })) = error else {
                    panic!("{error}")
                };
                assert_eq!(order, wrong);
            }
        }
        let error = train(&split(&[]), 2, 3, method).unwrap_err();
        assert!(matches!(error, TrainError::SplitTooShort { tokens: 0, needed: 1, .. }), "{error}");
        let error = train(&split(&[0, 2, 1]), 2, 3, method).unwrap_err();
        assert!(matches!(error, TrainError::Model(ModelError::TokenOutOfRange { id: 2, vocab_size: 2 })), "{error}");
        let model = train(&split(&[0, 1]), 2, 2, method).unwrap();
        let error = evaluate(&model, &split(&[0])).unwrap_err();
        assert!(matches!(error, TrainError::SplitTooShort { tokens: 1, needed: 2, .. }), "{error}");
    }
    assert!(baselines(&split(&[0; 50]), 2, 0).is_err());
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let text = noise(30_000, 40);
    let files = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let models = baselines(&split(&text), 40, 5).unwrap();
            let losses: Vec<_> = models.iter().map(|model| evaluate(model, &split(&text)).unwrap().loss).collect();
            let dir = tempfile::tempdir().unwrap();
            let files: Vec<_> = models
                .iter()
                .flat_map(|model| {
                    model.save(dir.path()).unwrap();
                    [NGRAM_FILE, NGRAM_TABLES].map(|name| std::fs::read(dir.path().join(name)).unwrap())
                })
                .collect();
            (files, losses)
        })
    };
    let one = files(1);
    assert!(one == files(3));
}
