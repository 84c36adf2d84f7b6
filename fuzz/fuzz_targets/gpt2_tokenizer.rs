//! Any `vocab.json` with `merges.txt`, and a `tokenizer_config.json` beside them, have an error, or are a tokenizer.
#![no_main]

mod tokenizer;

use std::fs;

use libfuzzer_sys::fuzz_target;
use tinygpt_model::Tokenizer;

fuzz_target!(|files: (&str, &str, &str)| {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, content) in ["vocab.json", "merges.txt", "tokenizer_config.json"].into_iter().zip([files.0, files.1, files.2]) {
        fs::write(folder.path().join(name), content).expect("room");
    }
    if let Ok(tokenizer) = Tokenizer::from_folder(folder.path()) {
        tokenizer::use_it(&tokenizer);
    }
});
