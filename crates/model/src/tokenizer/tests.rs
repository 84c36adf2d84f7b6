use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const MIXED: &str =
    "Ein Käse,\r\nthe\tcafé's 🙂🙂 don't  stop;\n\n  12 months!\u{a0}\u{2028}naïve\u{fffd} \"quotes\\\" 日本語。 ";

static BPE: LazyLock<Tokenizer> = LazyLock::new(|| Tokenizer::train_bpe(text(&training_text()), 400).unwrap());

/// A text to train on, in one piece.
fn text(text: &str) -> [Result<&str>; 1] {
    [Ok(text)]
}

fn training_text() -> String {
    let words =
        ["the cat's hat", " and then, they'll", "\n\nOnce upon a time", " 🙂 café\r\n", "\t2024 12 ", "don't  "];
    (0..300).map(|i| words[(i * i + i / 3) % words.len()]).collect()
}

/// The tokenizer.json of a byte-level BPE with one special token, as GPT-2's.
fn with_special_token(json: &[u8]) -> Value {
    let mut value: Value = serde_json::from_slice(json).unwrap();
    let id = value["model"]["vocab"].as_object().unwrap().len();
    value["added_tokens"] = json!([{
        "id": id, "content": END_OF_TEXT, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": true,
    }]);
    value
}

fn load(value: &Value) -> Tokenizer {
    Tokenizer::from_bytes(value.to_string().as_bytes()).unwrap()
}

#[test]
fn char_ids_are_the_distinct_characters_in_order_of_code_point() {
    let tokenizer = Tokenizer::train_char(text("bca\nb🙂é")).unwrap();
    assert_eq!((tokenizer.kind(), tokenizer.vocab_size()), (TokenizerFamily::Char, 6));
    assert_eq!(tokenizer.encode("\nabcé🙂").unwrap(), [0, 1, 2, 3, 4, 5]);
    assert_eq!(tokenizer.decode(&[5, 0, 1]).unwrap(), "🙂\na");
    assert_eq!((tokenizer.token_bytes(5).unwrap(), tokenizer.token_bytes(1).unwrap()), (4, 1));
    assert_eq!((tokenizer.id_of("é"), tokenizer.id_of("z"), tokenizer.id_of("ab")), (Some(4), None, None));
}

#[test]
fn an_unknown_character_is_named_with_its_position_whole_or_in_pieces() {
    let tokenizer = Tokenizer::train_char(text("éa")).unwrap();
    let message = tokenizer.encode("aéZ").unwrap_err().to_string();
    assert!(message.contains("'Z' (U+005A) at character index 2 (counting from 0)"), "{message}");
    let mut encoder = tokenizer.corpus_encoder();
    let mut ids = Vec::new();
    encoder.push("éé", &mut ids).unwrap();
    let error = encoder.push("a🙂", &mut ids).unwrap_err();
    assert!(matches!(error, TokenizerError::UnknownChar { ch: '🙂', index: 3, vocab_size: 2 }), "{error}");
}

#[test]
fn an_unknown_id_is_an_error_for_every_kind() {
    let char = Tokenizer::train_char(text("ab")).unwrap();
    for tokenizer in [&char, &*BPE] {
        let id = tokenizer.vocab_size() as u32;
        let unknown = |error| matches!(error, TokenizerError::UnknownId { id: found, .. } if found == id);
        assert!(unknown(tokenizer.decode(&[0, id]).unwrap_err()));
        assert!(unknown(tokenizer.token_bytes(id).unwrap_err()));
        assert!(unknown(tokenizer.text_stream().push(id).unwrap_err()));
    }
}

#[test]
fn a_saved_tokenizer_loads_as_the_same_kind_with_the_same_ids_and_content() {
    for tokenizer in [Tokenizer::train_char(text(MIXED)).unwrap(), BPE.clone()] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(TOKENIZER_FILE);
        std::fs::write(&path, tokenizer.json()).unwrap();
        let loaded = Tokenizer::from_file(&path).unwrap();
        assert_eq!(loaded.kind(), tokenizer.kind());
        assert_eq!(loaded.vocab_size(), tokenizer.vocab_size());
        assert_eq!(loaded.json(), tokenizer.json());
        assert_eq!(loaded.encode(MIXED).unwrap(), tokenizer.encode(MIXED).unwrap());
    }
}

#[test]
fn the_crate_gives_a_char_tokenizer_the_same_ids_as_the_table() {
    let tokenizer = Tokenizer::train_char(text(MIXED)).unwrap();
    let theirs = tokenizers::Tokenizer::from_bytes(tokenizer.json()).unwrap();
    let ids = tokenizer.encode(MIXED).unwrap();
    assert_eq!(theirs.encode(MIXED, false).unwrap().get_ids(), ids);
    assert_eq!(theirs.decode(&ids, false).unwrap(), MIXED);
    assert!(theirs.encode("Ω", false).is_err(), "an unknown character is refused there too");
}

#[test]
fn a_char_file_that_was_changed_is_run_by_the_crate() {
    let tokenizer = Tokenizer::train_char(text("abAB")).unwrap();
    let mut value: Value = serde_json::from_slice(tokenizer.json()).unwrap();
    value["normalizer"] = json!({ "type": "Lowercase" });
    let changed = load(&value);
    assert_eq!(changed.kind(), TokenizerFamily::Other);
    assert_eq!(changed.encode("AB").unwrap(), tokenizer.encode("ab").unwrap());
    value["normalizer"] = Value::Null;
    value["model"]["vocab"] = json!({ "a": 0, "b": 2 });
    assert_eq!(load(&value).kind(), TokenizerFamily::Other, "ids with a gap are no table");
}

#[test]
fn training_a_bpe_twice_gives_the_same_file() {
    let first = Tokenizer::train_bpe(text(&training_text()), 400).unwrap();
    for _ in 0..5 {
        let again = Tokenizer::train_bpe(text(&training_text()), 400).unwrap();
        assert_eq!(String::from_utf8_lossy(again.json()), String::from_utf8_lossy(first.json()));
    }
}

#[test]
fn bpe_training_agrees_with_the_trainer_fed_by_the_crate_itself() {
    use tokenizers::{models::bpe::*, pre_tokenizers::byte_level::ByteLevel};
    let mut trainer = BpeTrainer::builder()
        .vocab_size(400)
        .min_frequency(2)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .show_progress(false)
        .build();
    let mut theirs = tokenizers::TokenizerImpl::<
        BPE,
        tokenizers::NormalizerWrapper,
        ByteLevel,
        tokenizers::PostProcessorWrapper,
        ByteLevel,
    >::new(BPE::default());
    theirs.with_pre_tokenizer(Some(ByteLevel::default().add_prefix_space(false)));
    theirs.with_decoder(Some(ByteLevel::default().add_prefix_space(false)));
    theirs.train(&mut trainer, std::iter::once(training_text())).unwrap();
    assert_eq!(theirs.to_string(true).unwrap().as_bytes(), BPE.json());
}

#[test]
fn a_bpe_encodes_any_text_and_decodes_it_back() {
    let tokenizer = Tokenizer::train_bpe(text("aaaa bbbb aaaa"), 256).unwrap();
    assert_eq!((tokenizer.kind(), tokenizer.vocab_size()), (TokenizerFamily::Bpe, 256));
    let ids = tokenizer.encode(MIXED).unwrap();
    assert_eq!(ids.len(), MIXED.len(), "256 tokens are the bytes");
    assert_eq!(tokenizer.decode(&ids).unwrap(), MIXED);
}

#[test]
fn a_bpe_stops_growing_when_no_pair_occurs_twice_and_refuses_fewer_tokens_than_bytes() {
    let tokenizer = Tokenizer::train_bpe(text("abab"), 1000).unwrap();
    assert_eq!(tokenizer.vocab_size(), 257);
    assert_eq!(tokenizer.token_bytes(256).unwrap(), 2);
    let message = Tokenizer::train_bpe(text("abab"), 255).unwrap_err().to_string();
    assert!(message.contains("255") && message.contains("at least 256"), "{message}");
}

#[test]
fn token_bytes_add_up_to_the_bytes_of_the_text() {
    let char = Tokenizer::train_char(text(MIXED)).unwrap();
    let special = load(&with_special_token(BPE.json()));
    let marked = format!("{MIXED}{END_OF_TEXT}é");
    for (tokenizer, text) in [(&char, MIXED), (&*BPE, MIXED), (&special, &marked)] {
        let ids = tokenizer.encode(text).unwrap();
        let bytes: usize = ids.iter().map(|&id| tokenizer.token_bytes(id).unwrap()).sum();
        assert_eq!(bytes, text.len());
    }
}

#[test]
fn another_tokenizer_runs_as_the_general_kind() {
    let value = json!({
        "version": "1.0", "truncation": { "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0 },
        "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true },
        "post_processor": null,
        "decoder": { "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true },
        "model": { "type": "WordLevel", "vocab": { "▁the": 0, "▁cat": 1, "[UNK]": 2 }, "unk_token": "[UNK]" },
    });
    let tokenizer = load(&value);
    assert_eq!((tokenizer.kind(), tokenizer.vocab_size()), (TokenizerFamily::Other, 3));
    let ids = tokenizer.encode("the cat the cat").unwrap();
    assert_eq!(ids, [0, 1, 0, 1], "the file's truncation is not applied");
    assert_eq!(tokenizer.token_bytes(0).unwrap(), 4, "the space counts");
    let mut encoder = tokenizer.corpus_encoder();
    let mut streamed = Vec::new();
    encoder.push("the c", &mut streamed).unwrap();
    encoder.push("at the cat", &mut streamed).unwrap();
    encoder.finish(&mut streamed).unwrap();
    assert_eq!(streamed, ids);
    let mut stream = tokenizer.text_stream();
    let mut text: String = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    text += &stream.finish().unwrap();
    assert_eq!(text, "the cat the cat");
}

#[test]
fn a_special_token_is_found_named_and_written_into_the_configuration() {
    let special = load(&with_special_token(BPE.json()));
    let id = BPE.vocab_size() as u32;
    assert_eq!(special.kind(), TokenizerFamily::Bpe);
    assert_eq!((special.end_of_text(), special.id_of(END_OF_TEXT)), (Some(id), Some(id)));
    assert_eq!(special.vocab_size(), BPE.vocab_size() + 1);
    assert!(special.encode("a<|endoftext|>b").unwrap().contains(&id));
    assert_eq!(special.tokenizer_config(64)["eos_token"], END_OF_TEXT);
    assert_eq!(special.tokenizer_config(64)["pad_token"], END_OF_TEXT);
    let ours = BPE.tokenizer_config(64);
    assert_eq!((BPE.end_of_text(), &ours["bos_token"], &ours["model_max_length"]), (None, &Value::Null, &json!(64)));
}

/// Documents, each in pieces of its own.
fn documents<'a>(documents: &[&'a [&'a str]]) -> Vec<Result<Piece<&'a str>>> {
    let pieces = |document: &&'a [&'a str]| -> Vec<_> {
        (1..).zip(*document).map(|(n, &text)| Ok(Piece { text, ends_document: n == document.len() })).collect()
    };
    documents.iter().flat_map(pieces).collect()
}

#[test]
fn tokenizers_of_documents_have_a_last_token_that_ends_a_text_and_nothing_else_is_it() {
    let text = training_text();
    let chars = Tokenizer::train_char_on_documents(documents(&[&["ba"], &["c<|endoftext|>"]])).unwrap();
    let bpe = Tokenizer::train_bpe_on_documents(documents(&[&[&text], &[&text]]), 400).unwrap();
    for (tokenizer, family) in [(&chars, TokenizerFamily::Char), (&bpe, TokenizerFamily::Bpe)] {
        let end = tokenizer.vocab_size() as u32 - 1;
        let loaded = Tokenizer::from_bytes(tokenizer.json()).unwrap();
        for tokenizer in [tokenizer, &loaded] {
            assert_eq!((tokenizer.kind(), tokenizer.vocab_size() as u32), (family, end + 1));
            assert_eq!((tokenizer.end_of_text(), tokenizer.start_token()), (Some(end), end));
            assert_eq!(tokenizer.id_of(END_OF_TEXT), Some(end));
            assert_eq!(tokenizer.decode(&[end]).unwrap(), END_OF_TEXT);
            assert_eq!(tokenizer.text_stream().push(end).unwrap(), END_OF_TEXT);
            let spelled = tokenizer.encode_ordinary("c<|endoftext|>").unwrap();
            assert!(!spelled.contains(&end));
            assert_eq!(tokenizer.decode(&spelled).unwrap(), "c<|endoftext|>");
        }
    }
    // In a prompt a BPE knows it, as Python's library does; a table of characters has characters only.
    assert_eq!(bpe.encode("a<|endoftext|>").unwrap().last(), bpe.end_of_text().as_ref());
    assert_eq!(chars.encode("a<|endoftext|>").unwrap().len(), 1 + END_OF_TEXT.len());
    assert!(Tokenizer::train_bpe_on_documents(documents(&[&["ab"]]), 256).is_err());
    assert_eq!(Tokenizer::train_bpe_on_documents(documents(&[&["ab"]]), 257).unwrap().vocab_size(), 257);
}

#[test]
fn the_crate_opens_characters_with_an_end_of_text_as_we_do() {
    let tokenizer = Tokenizer::train_char_on_documents(documents(&[&[MIXED]])).unwrap();
    let theirs = tokenizers::Tokenizer::from_bytes(tokenizer.json()).unwrap();
    assert_eq!(theirs.token_to_id(END_OF_TEXT), tokenizer.end_of_text());
    assert_eq!(theirs.encode(MIXED, false).unwrap().get_ids(), tokenizer.encode(MIXED).unwrap());
}

#[test]
fn documents_end_with_their_token_and_are_encoded_one_by_one() {
    let bpe = Tokenizer::train_bpe_on_documents(documents(&[&[&training_text()]]), 400).unwrap();
    let chars = Tokenizer::train_char_on_documents(documents(&[&["the cat"]])).unwrap();
    for tokenizer in [&bpe, &chars, &*BPE] {
        let mut encoder = tokenizer.corpus_encoder();
        let mut ids = Vec::new();
        encoder.push("the c", &mut ids).unwrap();
        encoder.push("at", &mut ids).unwrap();
        encoder.end_document(&mut ids).unwrap();
        encoder.push("hat", &mut ids).unwrap();
        encoder.finish(&mut ids).unwrap();
        let mut expected = tokenizer.encode("the cat").unwrap();
        expected.extend(tokenizer.end_of_text());
        expected.extend(tokenizer.encode("hat").unwrap());
        assert_eq!(ids, expected);
    }
}

#[test]
fn no_merge_reaches_from_one_document_into_the_next() {
    let split = [&["xy"][..], &["zq"][..]].repeat(9);
    let tokenizer = Tokenizer::train_bpe_on_documents(documents(&split), 400).unwrap();
    assert_eq!(tokenizer.encode("xyzq").unwrap().len(), 2);
}

#[test]
fn what_is_no_tokenizer_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(TOKENIZER_FILE);
    let missing = Tokenizer::from_file(&path).unwrap_err().to_string();
    assert!(missing.contains("cannot read") && missing.contains(TOKENIZER_FILE), "{missing}");
    for content in ["", "{}", "[1]", r#"{"model":{"type":"WordLevel","vocab":{"ab":0}}}"#, r#"{"model":{"vocab":7}}"#] {
        std::fs::write(&path, content).unwrap();
        let message = Tokenizer::from_file(&path).unwrap_err().to_string();
        assert!(message.contains(TOKENIZER_FILE) && message.contains("not a tokenizer.json"), "{message}");
    }
}

#[test]
fn a_stream_gives_whole_characters_and_the_broken_rest_at_the_end() {
    let bytes = Tokenizer::train_bpe(text("ab"), 256).unwrap();
    let ids = bytes.encode("a🙂é").unwrap();
    let mut stream = bytes.text_stream();
    let pieces: Vec<String> = ids[..6].iter().map(|&id| stream.push(id).unwrap()).collect();
    assert_eq!(pieces, ["a", "", "", "", "🙂", ""]);
    assert_eq!(stream.finish().unwrap(), "\u{fffd}");
}

#[test]
fn the_texts_of_tokens_join_to_the_text_but_for_parts_of_characters() {
    let bytes = Tokenizer::train_bpe(text("ab"), 256).unwrap();
    let shown = |tokenizer: &Tokenizer, text: &str| -> Vec<String> {
        tokenizer.encode(text).unwrap().iter().map(|&id| tokenizer.token_text(id).unwrap()).collect()
    };
    assert_eq!(shown(&bytes, "a\n é"), ["a", "\n", " ", r"\xC3", r"\xA9"]);
    assert_eq!(shown(&BPE, "the cat").concat(), "the cat");
    assert_eq!(shown(&load(&with_special_token(BPE.json())), "a<|endoftext|>").concat(), "a<|endoftext|>");
    let chars = Tokenizer::train_char(text("aé")).unwrap();
    assert_eq!(shown(&chars, "éa"), ["é", "a"]);
    assert!(matches!(chars.token_text(2), Err(TokenizerError::UnknownId { id: 2, vocab_size: 2 })));
}

#[test]
fn the_content_of_a_token_is_its_bytes_and_a_special_token_has_none() {
    let special = load(&with_special_token(BPE.json()));
    let joined = |text: &str| -> Vec<u8> {
        special.encode(text).unwrap().iter().flat_map(|&id| special.token_content(id).unwrap()).collect()
    };
    assert_eq!(joined(MIXED), MIXED.as_bytes());
    assert_eq!(special.token_content(special.end_of_text().unwrap()), None);
    assert_eq!(special.token_content(special.vocab_size() as u32), None);
    let chars = Tokenizer::train_char(text("aé")).unwrap();
    assert_eq!([0, 1, 2].map(|id| chars.token_content(id)), [Some(b"a".to_vec()), Some("é".into()), None]);
}

#[test]
fn a_text_is_written_by_tokens_that_have_it_or_begin_it() {
    let chars = Tokenizer::train_char(text("abc")).unwrap();
    assert_eq!(chars.sequences_with("b").unwrap(), [[1]]);
    assert_eq!(chars.sequences_with("bca").unwrap(), [[1, 2, 0]]);
    assert!(chars.sequences_with("x").unwrap().is_empty());
    let sequences = BPE.sequences_with("the").unwrap();
    // Whatever stands before it.
    for before in ["", "a ", "x", "\n"] {
        let ids = BPE.encode(&format!("{before}the")).unwrap();
        assert!(sequences.iter().any(|sequence| ids.ends_with(sequence)), "{before:?}: {ids:?}");
    }
}

/// Texts in which white space, contractions, digits, letters and special tokens meet in every way.
fn texts() -> impl Strategy<Value = String> {
    let parts = [
        "a",
        "the",
        "'s",
        "'",
        "l",
        " ",
        "  ",
        "\n",
        "\n\n",
        "\r\n",
        "\t",
        "12",
        "é",
        "🙂",
        ".,",
        "日本",
        "<|endoftext|>",
        "\u{a0}",
        "\u{85}",
        "\u{3000}",
    ];
    prop::collection::vec(prop::sample::select(parts.to_vec()), 0..24).prop_map(|parts| parts.concat())
}

fn stream_in_pieces(tokenizer: &Tokenizer, text: &str, size: usize) -> Vec<u32> {
    let mut encoder = tokenizer.corpus_encoder();
    let mut ids = Vec::new();
    let chars: Vec<char> = text.chars().collect();
    for piece in chars.chunks(size) {
        encoder.push(&piece.iter().collect::<String>(), &mut ids).unwrap();
    }
    encoder.finish(&mut ids).unwrap();
    ids
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn ids_of_a_text_in_pieces_are_the_ids_of_the_whole(text in prop_oneof![texts(), any::<String>()], size in 1usize..7) {
        let special = load(&with_special_token(BPE.json()));
        for tokenizer in [&*BPE, &special] {
            let ids = stream_in_pieces(tokenizer, &text, size);
            prop_assert_eq!(&ids, &tokenizer.encode_ordinary(&text).unwrap());
            prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text.clone());
        }
    }

    #[test]
    fn streamed_text_is_the_decoded_text_for_any_ids(
        ids in prop_oneof![
            prop::collection::vec(prop_oneof![0u32..256, 120u32..256, 256u32..300], 0..40),
            texts().prop_map(|text| BPE.encode(&text).unwrap()),
        ]
    ) {
        let mut stream = BPE.text_stream();
        let mut text: String = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        text += &stream.finish().unwrap();
        prop_assert_eq!(text, BPE.decode(&ids).unwrap());
    }
}

#[test]
fn tokens_beside_the_vocabulary_or_in_it_are_the_same_tokenizer_and_others_are_not() {
    let pieces = || [Ok::<_, TokenizerError>(Piece { text: "low lower lowest low", ends_document: true })];
    let trained = Tokenizer::train_bpe_on_documents(pieces(), 260).unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(trained.json()).unwrap();
    let added = json["added_tokens"][0].clone();
    json["model"]["vocab"][added["content"].as_str().unwrap()] = added["id"].clone();
    let listed = Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap();
    assert!(trained.json() != listed.json() && trained.is_same(&listed) && listed.is_same(&trained));
    let other = Tokenizer::train_bpe_on_documents(pieces(), 259).unwrap();
    assert!(!trained.is_same(&other));
}
