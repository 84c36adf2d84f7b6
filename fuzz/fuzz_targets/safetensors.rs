//! Any `model.safetensors` beside the `config.json` of a small GPT-2 opens, or has an error that names a file.
#![no_main]

mod folder;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| folder::open_with("model.safetensors", file));
