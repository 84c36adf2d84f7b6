//! Reads any bytes as the two files of an adapter: it opens or is refused, without a panic and without an allocation by a length
//! that no byte stands behind. What opens is merged.
//!
//! The first byte says how many of the bytes are `adapter_config.json`; a seed of 0 is a valid one, so that the tensors are
//! reached too.

#![no_main]

use std::{fs, path::PathBuf, sync::LazyLock};

use libfuzzer_sys::fuzz_target;
use tinygpt_model::{
    Adapter, GptConfig,
    adapter::{ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE},
    init_params,
};

/// A folder of this process, whose files each input replaces.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("tinygpt-fuzz-adapter-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a temporary folder");
    folder
});

const VALID: &[u8] = br#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["c_attn"]}"#;

fuzz_target!(|input: &[u8]| {
    let Some((&length, rest)) = input.split_first() else { return };
    let (config, weights) = match length {
        0 => (VALID, rest),
        n => rest.split_at(rest.len().min(usize::from(n) * 4)),
    };
    fs::write(FOLDER.join(ADAPTER_CONFIG_FILE), config).expect("a file");
    fs::write(FOLDER.join(ADAPTER_WEIGHTS_FILE), weights).expect("a file");
    let model = GptConfig { vocab_size: 5, block_size: 4, n_layer: 1, n_head: 2, n_embd: 4, ..GptConfig::default() };
    if let Ok(adapter) = Adapter::open(&*FOLDER, &model) {
        let mut params = init_params(&model, 1);
        adapter.merge_into(&model, &mut params).expect("an adapter that was opened is one of the model");
    }
});
