//! A token file of any bytes is refused, or has as many tokens as it has room for, each of which can be read or is named; and no
//! memory is taken for a number that the file alone says.
#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;
use tinygpt_trainer::token_files::TokenFile;

fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::Builder::new().suffix(".bin").tempfile().expect("a temporary file");
    file.write_all(bytes).expect("room for it");
    let Ok(tokens) = TokenFile::open(file.path()) else { return };
    assert!(tokens.len() * tokens.bits() / 8 <= bytes.len());
    let Ok(store) = tokens.into_store(50_257) else { return };
    let mut ids = vec![0; store.len()];
    store.read(0, &mut ids).expect("they were checked");
    assert!(ids.iter().all(|&id| id < 50_257));
});
