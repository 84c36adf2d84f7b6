//! Weights that are rounded while they are read from a file: the same bits as of weights in memory, whatever the file has.

use std::path::Path;

use candle_core::{DType, Device};
use tinygpt_model::{
    Checkpoint, ContextPolicy, Decoder, GptConfig, Mlp, ModelFolder,
    checkpoint::open_decoder,
    cpu::WeightFormat,
    gguf::{TensorType, write_gguf},
};

use crate::elsewhere::{llama, tensors, tokenizer, write};

/// Logits behind a prompt, and behind some tokens.
fn logits(mut decoder: Box<dyn Decoder + '_>) -> Vec<Vec<f32>> {
    let mut all = vec![decoder.start(&[3, 1, 0], 1).unwrap().to_host().unwrap().into_owned()];
    for token in [2, 0, 1] {
        all.push(decoder.step(&[token]).unwrap().to_host().unwrap().into_owned());
    }
    all
}

/// Opens the model anew for each format: what was converted for one must not be there for the other.
fn assert_as_from_memory(path: &Path) {
    let (config, params) = ModelFolder::new(path).read().unwrap();
    let slices: Vec<&[f32]> = params.iter().map(Vec::as_slice).collect();
    for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8, WeightFormat::Int4] {
        let checkpoint = Checkpoint::open(path).unwrap();
        let read = || logits(checkpoint.decoder(ContextPolicy::Slide, format, &Device::Cpu).unwrap());
        let expected = logits(open_decoder(&config, &slices, ContextPolicy::Slide, format, &Device::Cpu).unwrap());
        assert_eq!(read(), expected, "{format:?} of {}", path.display());
        // Memory that was given up is read again, and what others keep does not show.
        assert_eq!(read(), expected, "{format:?}, once more");
        assert_eq!(checkpoint.weights().slices(), params);
        assert_eq!(read(), expected, "{format:?}, with all of them in memory");
    }
}

fn configs() -> Vec<GptConfig> {
    let gpt2 = GptConfig {
        vocab_size: 4,
        block_size: 8,
        n_layer: 2,
        n_head: 2,
        n_embd: 32,
        bias: true,
        mlp: Mlp::GeluNew,
        ..GptConfig::default()
    };
    let wide = |qk_norm| GptConfig { n_embd: 32, mlp_hidden: 64, ..llama(qk_norm) };
    vec![
        GptConfig { tie_embeddings: false, ..gpt2.clone() },
        // Of the tokens, 10 MB of embeddings: more than are rounded at a time.
        GptConfig { vocab_size: 80_003, ..gpt2 },
        wide(false),
        GptConfig { tie_embeddings: false, ..wide(true) },
    ]
}

#[test]
fn of_a_folder_in_any_type_of_numbers() {
    for config in configs() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &config);
        assert_as_from_memory(dir.path());
        for dtype in [DType::BF16, DType::F16, DType::F64] {
            let file = dir.path().join("model.safetensors");
            let rounded = tensors(dir.path()).into_iter().map(|(name, tensor)| (name, tensor.to_dtype(dtype).unwrap()));
            candle_core::safetensors::save(&rounded.collect(), file).unwrap();
            assert_as_from_memory(dir.path());
        }
    }
}

#[test]
fn of_a_gguf_file_in_any_type_of_numbers() {
    for config in configs() {
        let dir = tempfile::tempdir().unwrap();
        let params = write(dir.path(), &config);
        let slices: Vec<&[f32]> = params.iter().map(Vec::as_slice).collect();
        for kind in TensorType::ALL {
            let path = dir.path().join(format!("{}.gguf", kind.name()));
            write_gguf(&path, &config, &slices, &tokenizer(), "tiny", kind).unwrap();
            assert_as_from_memory(&path);
        }
    }
}

#[test]
fn of_a_gpt2_whose_attention_is_scaled_in_another_way() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &configs()[0]);
    let path = dir.path().join("config.json");
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    json["scale_attn_by_inverse_layer_idx"] = true.into();
    std::fs::write(&path, json.to_string()).unwrap();
    assert_as_from_memory(dir.path());
}
