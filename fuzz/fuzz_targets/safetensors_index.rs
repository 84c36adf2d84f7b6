//! Any index of shards opens, or has an error that names a file.
#![no_main]

mod folder;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &[u8]| folder::open_with("model.safetensors.index.json", json));
