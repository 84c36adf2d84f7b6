//! Any bytes are a GGUF file with a model, or are refused: nothing panics, and nothing is allocated for a length that was not seen.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tinygpt_model::gguf::GgufFile;

fuzz_target!(|bytes: &[u8]| {
    let file = GgufFile::from_bytes(bytes.to_vec());
    if let Ok(config) = file.config() {
        if let Ok(params) = file.params(&config) {
            let lens: Vec<usize> = params.iter().map(Vec::len).collect();
            assert_eq!(lens.iter().sum::<usize>(), config.n_params());
        }
    }
    if let Ok(tokenizer) = file.tokenizer() {
        assert_eq!(tokenizer.decode(&[]).expect("no tokens are no text"), "");
    }
});
