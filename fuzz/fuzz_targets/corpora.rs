//! A corpus of any bytes, of each format, is refused with an error or gives text: nothing panics.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tinygpt_trainer::corpus::Corpus;

/// Names whose endings say what a file holds. Parquet is left out: assertions of its library are caught and told as errors,
/// which a fuzzer takes for crashes; `corpora::a_damaged_table_is_an_error_without_a_panic_on_standard_error` goes through them.
const NAMES: [&str; 5] = ["a.txt", "a.txt.gz", "a.txt.zst", "a.jsonl", "a.jsonl.gz"];

fuzz_target!(|input: (u8, &[u8])| {
    let (name, bytes) = input;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join(NAMES[usize::from(name) % NAMES.len()]);
    std::fs::write(&path, bytes).expect("room for it");
    let Ok(corpus) = Corpus::open(&path) else { return };
    // A small file may decompress to a large one.
    let _ = corpus.pieces().take(64).find(Result::is_err);
});
