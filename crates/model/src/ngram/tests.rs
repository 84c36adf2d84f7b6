use std::{collections::BTreeMap, fs, path::Path};

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{file::hex, *};
use crate::{ModelError, files::FileError};

const DISCOUNTS: [f64; 3] = [0.5, 1.0, 1.5];

/// The counts of a text; the end of the text is the largest token, as the builder has it.
fn count(text: &[u32], vocab_size: usize, order: usize) -> NgramCounts {
    let mut ngrams: BTreeMap<Vec<u32>, u32> = BTreeMap::new();
    for start in 0..text.len() {
        let mut ngram: Vec<u32> = text[start..].iter().copied().take(order).collect();
        ngram.resize(order, u32::MAX);
        *ngrams.entry(ngram).or_default() += 1;
    }
    let mut builder = NgramCountsBuilder::new(vocab_size, order).unwrap();
    for (ngram, count) in ngrams {
        let len = ngram.iter().take_while(|&&token| token != u32::MAX).count();
        builder.push(&ngram[..len], count).unwrap();
    }
    builder.finish()
}

pub(super) fn add_k(text: &[u32], vocab_size: usize, order: usize, k: f64) -> NgramModel {
    NgramModel::new(count(text, vocab_size, order), Smoothing::AddK { k }).unwrap()
}

pub(super) fn kneser_ney(text: &[u32], vocab_size: usize, order: usize) -> NgramModel {
    let counts = count(text, vocab_size, order).continuation(&text[..text.len().min(order - 1)]).unwrap();
    NgramModel::new(counts, Smoothing::KneserNey { discounts: vec![DISCOUNTS; order] }).unwrap()
}

fn probs(model: &NgramModel, context: &[u32]) -> Vec<f32> {
    let mut row = vec![0.0; model.vocab_size()];
    model.log_probs_into(context, &mut row).unwrap();
    row.into_iter().map(f32::exp).collect()
}

fn assert_close(got: &[f32], expected: &[f64]) {
    assert_eq!(got.len(), expected.len());
    assert!(got.iter().zip(expected).all(|(&a, b)| (f64::from(a) - b).abs() < 1e-6), "{got:?}, expected {expected:?}");
}

/// "01" twice, "10" and "00" once each.
const TEXT: [u32; 5] = [0, 1, 0, 0, 1];

#[test]
fn add_k_is_what_the_formula_gives_by_hand() {
    let model = add_k(&TEXT, 3, 2, 0.5);
    assert_close(&probs(&model, &[0]), &[1.5 / 4.5, 2.5 / 4.5, 0.5 / 4.5]);
    // The second "1" ends the text, so that "1" has one follower.
    assert_close(&probs(&model, &[0, 1]), &[1.5 / 2.5, 0.5 / 2.5, 0.5 / 2.5]);
    assert_close(&probs(&model, &[2]), &[1.0 / 3.0; 3]);
    assert_close(&probs(&model, &[]), &[3.5 / 6.5, 2.5 / 6.5, 0.5 / 6.5]);
    assert_eq!((model.parameters(), model.name().as_str()), (2 + 3, "bigram"));
    let loss = model.loss([0, 1, 0]).unwrap();
    assert!((loss - -((2.5_f64 / 4.5).ln() + (1.5_f64 / 2.5).ln()) / 2.0).abs() < 1e-12);
}

#[test]
fn kneser_ney_is_what_the_formula_gives_by_hand() {
    let model = kneser_ney(&TEXT, 3, 2);
    // "0" stands behind "0", "1" and the start, "1" behind "0": the counts are 3 and 1.
    assert_eq!(model.counts().counts(1), [3, 1]);
    let unigram = [1.5 / 4.0 + 0.5 / 3.0, 0.5 / 4.0 + 0.5 / 3.0, 0.5 / 3.0];
    assert_close(&probs(&model, &[]), &unigram);
    // "01" twice and "00" once: the discounts take 1 and 0.5 of 3.
    assert_close(&probs(&model, &[0]), &[0.5 / 3.0 + 0.5 * unigram[0], 1.0 / 3.0 + 0.5 * unigram[1], 0.5 * unigram[2]]);
    assert_close(&probs(&model, &[1, 2]), &unigram);
    assert_eq!(model.name(), "Kneser-Ney bigram");
}

#[test]
fn the_counts_of_every_order_at_a_place_are_those_of_the_tokens_before_it() {
    let model = add_k(&TEXT, 3, 3, 1.0);
    let mut scorer = model.scorer();
    assert_eq!(scorer.counts(0), [(3, 5); 3], "nothing stands before the first token");
    scorer.advance(0).unwrap();
    scorer.advance(1).unwrap();
    assert_eq!(scorer.counts(0), [(3, 5), (1, 1), (1, 1)]);
    assert_eq!(scorer.counts(2), [(0, 5), (0, 1), (0, 1)]);
    scorer.advance(1).unwrap();
    assert_eq!(scorer.counts(0), [(3, 5), (1, 1), (0, 0)], "\"11\" never occurs");
}

#[test]
fn orders_vocabularies_and_parameters_that_no_model_has_are_refused() {
    let order = |order| match NgramCountsBuilder::new(3, order).unwrap_err() {
        ModelError::Ngram(NgramError::Order { order }) => order,
        other => panic!("{other}"),
    };
    assert_eq!((order(0), order(6)), (0, 6));
    assert!(matches!(
        NgramCountsBuilder::new(0, 1).unwrap_err(),
        ModelError::Ngram(NgramError::VocabSize { vocab_size: 0 })
    ));
    let refused = |smoothing| match NgramModel::new(count(&TEXT, 3, 2), smoothing).unwrap_err() {
        ModelError::Ngram(NgramError::Smoothing { parameter, .. }) => parameter,
        other => panic!("{other}"),
    };
    for k in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert_eq!(refused(Smoothing::AddK { k }), "k");
    }
    assert!(refused(Smoothing::KneserNey { discounts: vec![DISCOUNTS] }).contains("number of lengths"));
    for (discounts, j) in [([0.0, 1.0, 1.5], 1), ([0.5, 2.5, 1.5], 2), ([0.5, 1.0, f64::NAN], 3)] {
        let parameter = refused(Smoothing::KneserNey { discounts: vec![DISCOUNTS, discounts] });
        assert_eq!(parameter, format!("the discount of counts of {j} for n-grams of length 2"));
    }
}

#[test]
fn ngrams_out_of_order_or_of_no_use_are_refused() {
    let pushed = |ngrams: &[&[u32]]| {
        let mut builder = NgramCountsBuilder::new(3, 2).unwrap();
        ngrams.iter().try_for_each(|ngram| builder.push(ngram, 1))
    };
    assert!(pushed(&[&[0, 1], &[0, 1], &[0], &[1, 0], &[2]]).is_ok());
    for ngrams in [&[&[0, 1][..], &[0, 0]][..], &[&[0], &[0, 1]], &[&[1, 0], &[0, 2]], &[&[]], &[&[0, 1, 2]]] {
        let error = pushed(ngrams).unwrap_err();
        assert!(matches!(error, ModelError::Ngram(NgramError::NotAscending { .. })), "{ngrams:?}: {error}");
    }
    assert!(matches!(pushed(&[&[0, 3]]).unwrap_err(), ModelError::TokenOutOfRange { id: 3, vocab_size: 3 }));
    let mut builder = NgramCountsBuilder::new(3, 1).unwrap();
    builder.push(&[0], u32::MAX - 1).unwrap();
    assert!(matches!(builder.push(&[1], 1).unwrap_err(), ModelError::Ngram(NgramError::TooManyTokens)));
}

#[test]
fn tokens_outside_the_vocabulary_and_texts_and_rows_of_a_wrong_length_are_refused() {
    let model = add_k(&TEXT, 3, 2, 1.0);
    assert!(matches!(model.loss([0, 3]).unwrap_err(), ModelError::TokenOutOfRange { id: 3, .. }));
    assert!(matches!(model.log_probs_into(&[3], &mut [0.0; 3]).unwrap_err(), ModelError::TokenOutOfRange { .. }));
    for tokens in [&[][..], &[1]] {
        let error = model.loss(tokens.iter().copied()).unwrap_err();
        assert!(matches!(error, ModelError::Ngram(NgramError::NothingToPredict { tokens: n }) if n == tokens.len()));
    }
    let error = model.log_probs_into(&[0], &mut [0.0; 2]).unwrap_err();
    assert!(matches!(error, ModelError::Ngram(NgramError::RowLength { got: 2, vocab_size: 3 })));
}

#[test]
fn continuation_counts_of_another_text_are_refused() {
    let counts = count(&TEXT, 3, 2);
    assert!(matches!(counts.continuation(&[2]).unwrap_err(), ModelError::Ngram(NgramError::Contradiction(_))));
    assert!(matches!(counts.continuation(&[]).unwrap_err(), ModelError::Ngram(NgramError::Contradiction(_))));
}

/// Models with several lengths, each in a folder.
fn saved() -> Vec<(NgramModel, tempfile::TempDir)> {
    let text: Vec<u32> = (0..60_u32).map(|i| i * i % 7 % 4).collect();
    let save = |model: NgramModel| {
        let folder = tempfile::tempdir().unwrap();
        model.save(folder.path()).unwrap();
        (model, folder)
    };
    [add_k(&text, 5, 1, 0.1), add_k(&text, 5, 3, 0.1), kneser_ney(&text, 5, 3), kneser_ney(&[1, 2], 5, 5)]
        .map(save)
        .into()
}

#[test]
fn a_saved_model_is_the_same_when_it_is_opened_and_the_same_bytes_when_it_is_saved_again() {
    for (model, folder) in saved() {
        let opened = NgramModel::open(folder.path()).unwrap();
        assert_eq!((opened.order(), opened.vocab_size()), (model.order(), model.vocab_size()));
        assert_eq!((opened.smoothing(), opened.parameters()), (model.smoothing(), model.parameters()));
        for context in [&[][..], &[0], &[1, 2], &[4, 0], &[3, 1, 2]] {
            assert_eq!(probs(&opened, context), probs(&model, context));
        }
        let again = tempfile::tempdir().unwrap();
        opened.save(again.path()).unwrap();
        for file in [NGRAM_FILE, NGRAM_TABLES] {
            assert_eq!(fs::read(folder.path().join(file)).unwrap(), fs::read(again.path().join(file)).unwrap());
        }
    }
}

/// The message of a file that does not hold what it should; any other outcome fails.
fn refusal(folder: &Path) -> String {
    match NgramModel::open(folder).unwrap_err() {
        ModelError::File(error @ FileError::Content { .. }) => error.to_string(),
        other => panic!("{other}"),
    }
}

#[test]
fn a_file_that_is_missing_or_cut_anywhere_or_has_another_byte_anywhere_is_refused() {
    for (_, folder) in saved().drain(2..) {
        for file in [NGRAM_TABLES, NGRAM_FILE] {
            let path = folder.path().join(file);
            let bytes = fs::read(&path).unwrap();
            for len in 0..bytes.len() - 1 {
                fs::write(&path, &bytes[..len]).unwrap();
                assert!(NgramModel::open(folder.path()).is_err(), "{len} bytes of {file}");
            }
            // A digit that becomes another one describes another model, and no broken one: no bit of ASCII is changed.
            let bits = if file == NGRAM_FILE { 0x80 } else { 0x11 };
            for at in 0..bytes.len() {
                let mut damaged = bytes.clone();
                damaged[at] ^= bits;
                fs::write(&path, damaged).unwrap();
                assert!(NgramModel::open(folder.path()).is_err(), "byte {at} of {file}");
            }
            fs::write(&path, &bytes).unwrap();
        }
        fs::remove_file(folder.path().join(NGRAM_TABLES)).unwrap();
        assert!(refusal(folder.path()).ends_with("ngram.safetensors: it is missing"));
        fs::remove_file(folder.path().join(NGRAM_FILE)).unwrap();
        assert!(matches!(NgramModel::open(folder.path()).unwrap_err(), ModelError::File(FileError::Io { .. })));
    }
}

/// Changes `ngram.json`.
fn describe(folder: &Path, change: impl FnOnce(&mut Value)) {
    let path = folder.join(NGRAM_FILE);
    let mut value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

#[test]
fn a_description_of_another_model_or_format_is_refused() {
    let of = |change: fn(&mut Value)| {
        let (_, folder) = saved().remove(1);
        describe(folder.path(), change);
        NgramModel::open(folder.path()).unwrap_err().to_string()
    };
    let message = of(|json| json["format"] = 2.into());
    assert!(message.ends_with("has format 2, this program reads format 1: use the version of tinygpt that wrote it"));
    assert!(of(|json| *json = 3.into()).contains("it has no format"));
    assert!(of(|json| json["more"] = 1.into()).contains("unknown field `more`"));
    assert!(of(|json| json["order"] = 2.into()).contains("has n-grams of 3 lengths, not 2"));
    assert!(of(|json| json["order"] = 0.into()).contains("no n-gram model of order 0"));
    assert!(of(|json| json["vocab_size"] = 2.into()).contains("a token outside the vocabulary"));
    assert!(of(|json| json["distinct"][1] = u64::MAX.into()).contains("2.first_child is U32"));
    assert!(of(|json| json["smoothing"]["k"] = 0.into()).contains("k = 0"));
    assert!(of(|json| json["smoothing"]["method"] = "none".into()).contains("unknown variant `none`"));
    assert!(of(|json| json["tables_sha256"] = "".into()).contains("its SHA-256 is not the one in ngram.json"));
    // Its counts are those of the text, and not of what precedes.
    let message = of(|json| {
        json["smoothing"] = serde_json::json!({ "method": "kneser-ney", "discounts": vec![DISCOUNTS; 3] });
    });
    assert!(message.contains("continue another number of tokens"), "{message}");
}

#[test]
fn tables_that_contradict_themselves_are_refused_though_their_hash_is_right() {
    for (model, folder) in saved().drain(1..3) {
        let path = folder.path().join(NGRAM_TABLES);
        let whole = fs::read(&path).unwrap();
        let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
        let n_words = (whole.len() - header) / 4;
        // The counts of the longest n-grams, with Kneser-Ney, contradict nothing: no other count depends on them.
        let free = match model.smoothing() {
            Smoothing::AddK { .. } => 0..0,
            Smoothing::KneserNey { .. } => n_words - model.counts().distinct(3)..n_words,
        };
        for word in 0..n_words {
            for change in [|x: u32| x + 1, |x: u32| x.wrapping_sub(1), |_| u32::MAX] {
                let mut bytes = whole.clone();
                let place = &mut bytes[header + 4 * word..][..4];
                let value = change(u32::from_le_bytes(place.try_into().unwrap()));
                place.copy_from_slice(&value.to_le_bytes());
                fs::write(&path, &bytes).unwrap();
                describe(folder.path(), |json| json["tables_sha256"] = hex(&Sha256::digest(&bytes)).into());
                let opened = NgramModel::open(folder.path());
                let is_allowed = free.contains(&word) && (1..1000).contains(&value);
                assert!(opened.is_err() || is_allowed, "word {word} of {n_words} as {value}");
            }
        }
    }
}
