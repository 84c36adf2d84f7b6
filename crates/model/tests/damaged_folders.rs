//! Folders of `transformers` with a damaged file: whatever the damage, opening one is a success or an error that names the
//! file, and neither a panic nor an allocation of a length that the file only claims.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tinygpt_model::{Checkpoint, ContextPolicy, Device, Tokenizer, cpu::WeightFormat};

use crate::common::Random;

/// A copy of a fixture that `scripts/check_transformers.py` wrote.
fn fixture(name: &str) -> TempDir {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/transformers").join(name);
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    dir
}

/// Opens the folder, and computes the logits of a token where that is possible. Gives the message where it is not.
fn open(folder: &Path) -> Option<String> {
    let checkpoint = match Checkpoint::open(folder) {
        Ok(checkpoint) => checkpoint,
        Err(error) => return Some(error.to_string()),
    };
    let tokens = checkpoint.config().vocab_size as u32;
    let logits = checkpoint
        .decoder(ContextPolicy::Slide, WeightFormat::F32, &Device::Cpu)
        .and_then(|mut decoder| Ok(decoder.start(&[tokens - 1], 1)?.to_host()?.len()));
    match logits {
        Ok(logits) => {
            assert_eq!(logits, tokens as usize);
            None
        }
        Err(error) => Some(error.to_string()),
    }
}

/// The message of the folder with other content in a file, which is put back.
fn damaged(path: &Path, content: &[u8]) -> Option<String> {
    let whole = fs::read(path).unwrap();
    fs::write(path, content).unwrap();
    let message = open(path.parent().unwrap());
    fs::write(path, whole).unwrap();
    message
}

fn files(folder: &TempDir) -> Vec<PathBuf> {
    let names = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
    names.filter(|path| !path.ends_with("expected.json")).collect()
}

const FIXTURES: [&str; 3] = ["gpt2-bf16-shards", "gpt2-vocab-json-merges-txt", "qwen3-untied-1-kv-head"];

#[test]
fn a_file_that_was_cut_anywhere_is_named() {
    for name in FIXTURES {
        let folder = fixture(name);
        for path in files(&folder) {
            let (whole, file) = (fs::read(&path).unwrap(), path.file_name().unwrap().to_str().unwrap());
            let mut ends: Vec<usize> = (0..40).map(|part| part * whole.len() / 40).collect();
            ends.push(whole.len() - 1);
            for end in ends {
                let message = damaged(&path, &whole[..end]);
                // A text may end earlier and be one still: JSON before its last line break, fewer merges.
                let may_open = whole[end..].trim_ascii().is_empty() || file == "merges.txt";
                assert!(may_open || message.is_some(), "{name}/{file} of {end} bytes opens");
                let named = message.as_ref().is_none_or(|message| message.contains(file) || file == "merges.txt");
                assert!(named, "{name}/{file} of {end} bytes: {message:?}");
            }
        }
    }
}

#[test]
fn a_file_with_a_flipped_bit_opens_or_has_an_error() {
    let mut random = Random::new(11);
    let (mut opened, mut refused) = (0, 0);
    for name in FIXTURES {
        let folder = fixture(name);
        // A byte-level BPE in one file, too.
        let json = Tokenizer::from_folder(&folder).unwrap().json().to_owned();
        fs::write(folder.path().join("tokenizer.json"), json).unwrap();
        for path in files(&folder) {
            let whole = fs::read(&path).unwrap();
            for _ in 0..150 {
                let mut content = whole.clone();
                // Headers are at the begin, and more can go wrong there.
                let at = if random.coin() { whole.len() } else { whole.len().min(600) };
                content[random.between(0, at - 1)] ^= 1 << random.between(0, 7);
                match damaged(&path, &content) {
                    None => opened += 1,
                    Some(message) => {
                        assert!(!message.is_empty());
                        refused += 1;
                    }
                }
            }
        }
    }
    assert!(opened > 100 && refused > 100, "{opened} opened, {refused} refused");
}

#[test]
fn numbers_that_no_file_bears_out_are_refused_before_memory_is_taken_for_them() {
    for name in FIXTURES {
        let folder = fixture(name);
        let path = folder.path().join("config.json");
        let config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let keys = config.as_object().unwrap().iter().filter(|(_, value)| value.is_u64()).map(|(key, _)| key.clone());
        // Of tokens and of windows that are not used any number may be said.
        for key in keys.filter(|key| !key.ends_with("_token_id") && key != "max_window_layers") {
            // The largest that is a shape at all, and what overflows when it is multiplied.
            for huge in [
                json!(1 << 24),
                json!((1 << 24) + 1),
                json!(1u64 << 62),
                json!(u64::MAX),
                json!(-1),
                json!(1e300),
                json!("24"),
            ] {
                let mut config = config.clone();
                config[&key] = huge.clone();
                // Nothing in a folder bears out the context of a model with RoPE, which is free up to the largest.
                if key == "max_position_embeddings" && huge == json!(1 << 24) {
                    continue;
                }
                let message = damaged(&path, config.to_string().as_bytes());
                assert!(message.is_some(), "{name}: {key} = {huge} opens");
            }
        }
    }
}

/// The bytes of a safetensors file with this header.
fn safetensors(length: u64, header: &Value, data: usize) -> Vec<u8> {
    [&length.to_le_bytes()[..], header.to_string().as_bytes(), &vec![0; data]].concat()
}

#[test]
fn headers_that_contradict_themselves_or_their_file_are_refused() {
    let folder = fixture("gpt2-gelu-new");
    let path = folder.path().join("model.safetensors");
    let tensor =
        |shape: Value, start: u64, end: u64| json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, end] });
    let of = |tensor: Value| json!({ "transformer.wte.weight": tensor });
    let whole = |header: &Value, data| safetensors(header.to_string().len() as u64, header, data);
    let good = of(tensor(json!([2]), 0, 8));
    for (what, content) in [
        ("a header longer than any", safetensors(u64::MAX, &good, 8)),
        ("a header longer than the file", safetensors(1 << 20, &good, 8)),
        ("a header of 100 MB", safetensors(100_000_000, &good, 8)),
        ("more data than the header says", whole(&good, 9)),
        ("less data than the header says", whole(&good, 7)),
        ("a shape of more elements than bytes", whole(&of(tensor(json!([3]), 0, 8)), 8)),
        ("a shape whose product overflows", whole(&of(tensor(json!([u64::MAX, u64::MAX]), 0, 8)), 8)),
        ("a tensor that ends before it begins", whole(&of(tensor(json!([2]), 8, 0)), 8)),
        ("a tensor far behind the file", whole(&of(tensor(json!([2]), 1 << 60, (1 << 60) + 8)), 8)),
        ("tensors that overlap", whole(&json!({ "a": tensor(json!([2]), 0, 8), "b": tensor(json!([2]), 4, 12) }), 12)),
        ("an unknown type", whole(&json!({ "a": { "dtype": "F31", "shape": [2], "data_offsets": [0, 8] } }), 8)),
        ("no object", whole(&json!([1]), 0)),
    ] {
        let message = damaged(&path, &content).unwrap_or_else(|| panic!("{what} opens"));
        assert!(message.contains("model.safetensors: truncated, or not a safetensors file"), "{what}: {message}");
    }
}

#[test]
fn an_index_and_shards_that_contradict_each_other_are_refused_by_name() {
    let folder = fixture("gpt2-shards");
    let index = folder.path().join("model.safetensors.index.json");
    let whole: Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    let (bias, first, second) =
        ("transformer.h.0.attn.c_attn.bias", "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors");
    assert_eq!(whole["weight_map"][bias], first);
    for (tensor, shard, reason) in [
        (bias, json!(second), format!("{bias} should be in {second}, but is in {first}")),
        (bias, json!(null), format!("{first} has {bias}, which is not listed")),
        ("transformer.more", json!(first), format!("transformer.more should be in {first}, which has no such tensor")),
        (bias, json!("model-9.safetensors"), "model-9.safetensors".into()),
        (bias, json!("../../secret"), "\"../../secret\" is not the name of a file in the same folder".into()),
        (bias, json!("/etc/passwd"), "\"/etc/passwd\" is not the name of a file in the same folder".into()),
        (bias, json!(7), "not an index of shards".into()),
    ] {
        let mut index_json = whole.clone();
        if shard.is_null() {
            index_json["weight_map"].as_object_mut().unwrap().remove(tensor);
        } else {
            index_json["weight_map"][tensor] = shard;
        }
        let message = damaged(&index, index_json.to_string().as_bytes()).unwrap();
        assert!(message.contains(&reason), "{message}");
    }
    fs::remove_file(folder.path().join(second)).unwrap();
    let message = open(folder.path()).unwrap();
    assert!(message.ends_with(&format!("{second}: it is missing")), "{message}");
}
