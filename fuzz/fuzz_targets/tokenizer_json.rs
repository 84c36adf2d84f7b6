//! Any `tokenizer.json` has an error, or is a tokenizer that encodes a text and decodes its own tokens.
#![no_main]

mod tokenizer;

use libfuzzer_sys::fuzz_target;
use tinygpt_model::Tokenizer;

fuzz_target!(|json: &[u8]| {
    if let Ok(tokenizer) = Tokenizer::from_bytes(json) {
        tokenizer::use_it(&tokenizer);
    }
});
