//! A GGUF file holds the model of its folder. `scripts/check_elsewhere.py` asks `transformers`.

use std::{collections::HashMap, fs, path::Path};

use candle_core::{Device, Tensor, quantized::gguf_file};
use tinygpt_model::{Architecture, GptConfig, gguf::write_gguf, init_params};

use crate::elsewhere::{llama, llama3, tensors, tokenizer, write};

/// The tensors of a GGUF file, read by candle.
fn read_gguf(path: &Path) -> (gguf_file::Content, HashMap<String, Tensor>) {
    let mut file = fs::File::open(path).unwrap();
    let content = gguf_file::Content::read(&mut file).unwrap();
    let read = |name: &String| content.tensor(&mut file.try_clone().unwrap(), name, &Device::Cpu).unwrap();
    let tensors =
        content.tensor_infos.keys().map(|name| (name.clone(), read(name).dequantize(&Device::Cpu).unwrap())).collect();
    (content, tensors)
}

#[test]
fn a_gguf_file_has_the_tensors_of_the_folder_and_its_shape() {
    for (qk_norm, tie_embeddings) in [(true, true), (false, false)] {
        let dir = tempfile::tempdir().unwrap();
        let config = GptConfig { tie_embeddings, ..llama(qk_norm) };
        let params = write(dir.path(), &config);
        let slices: Vec<&[f32]> = params.iter().map(Vec::as_slice).collect();
        let path = dir.path().join("model.gguf");
        let architecture = write_gguf(&path, &config, &slices, &tokenizer(), "tiny").unwrap();
        assert_eq!(architecture, if qk_norm { Architecture::Qwen3 } else { Architecture::Llama });
        assert_eq!(fs::read(&path).unwrap()[..8], *b"GGUF\x03\0\0\0");

        let (content, found) = read_gguf(&path);
        let prefix = architecture.model_type();
        let number = |key: &str| content.metadata[&format!("{prefix}.{key}")].to_u32().unwrap();
        for (key, value) in [
            ("block_count", 2),
            ("context_length", 8),
            ("embedding_length", 16),
            ("feed_forward_length", 64),
            ("attention.head_count", 4),
            ("attention.head_count_kv", 2),
            ("attention.key_length", 4),
            ("attention.value_length", 4),
            ("rope.dimension_count", 4),
            ("vocab_size", 4),
        ] {
            assert_eq!(number(key), value, "{key}");
        }
        assert_eq!(content.metadata[&format!("{prefix}.attention.layer_norm_rms_epsilon")].to_f32().unwrap(), 1e-6);
        assert_eq!(content.metadata[&format!("{prefix}.rope.freq_base")].to_f32().unwrap(), 1e4);
        assert_eq!(content.metadata["general.architecture"].to_string().unwrap(), prefix);
        assert_eq!(content.metadata["tokenizer.ggml.tokens"].to_vec().unwrap().len(), 4);

        let folder = tensors(dir.path());
        assert_eq!(found.len(), folder.len());
        let same = |gguf: &str, folder_name: &str, permuted: bool| {
            let tensor = &folder[&format!("{folder_name}.weight")];
            let expected = match permuted {
                // As llama.cpp's converter: (heads, 2, head_size / 2, in) to (heads, head_size / 2, 2, in).
                true => {
                    let (rows, n_in) = tensor.dims2().unwrap();
                    let halves = tensor.reshape((rows / 4, 2, 2, n_in)).unwrap().transpose(1, 2).unwrap();
                    halves.contiguous().unwrap().reshape((rows, n_in)).unwrap()
                }
                false => tensor.clone(),
            };
            let found = &found[&format!("{gguf}.weight")];
            assert_eq!(found.dims(), expected.dims(), "{gguf}");
            let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(values(found), values(&expected), "{gguf}");
        };
        same("token_embd", "model.embed_tokens", false);
        same("output_norm", "model.norm", false);
        if !tie_embeddings {
            same("output", "lm_head", false);
        }
        for layer in 0..2 {
            for (gguf, name, permuted) in [
                ("attn_norm", "input_layernorm", false),
                ("attn_q", "self_attn.q_proj", !qk_norm),
                ("attn_k", "self_attn.k_proj", !qk_norm),
                ("attn_v", "self_attn.v_proj", false),
                ("attn_output", "self_attn.o_proj", false),
                ("ffn_norm", "post_attention_layernorm", false),
                ("ffn_gate", "mlp.gate_proj", false),
                ("ffn_up", "mlp.up_proj", false),
                ("ffn_down", "mlp.down_proj", false),
            ] {
                same(&format!("blk.{layer}.{gguf}"), &format!("model.layers.{layer}.{name}"), permuted);
            }
            for norm in ["q_norm", "k_norm"].iter().filter(|_| qk_norm) {
                same(&format!("blk.{layer}.attn_{norm}"), &format!("model.layers.{layer}.self_attn.{norm}"), false);
            }
        }
    }
}

#[test]
fn a_model_that_is_no_llama_and_no_qwen3_is_not_written_as_gguf_and_its_keys_are_named() {
    let dir = tempfile::tempdir().unwrap();
    for (config, kind, key) in [
        (
            GptConfig { vocab_size: 4, ..GptConfig::default() },
            "it is GPT2LMHeadModel",
            "model.norm = \"rms\", which is \"layer\"",
        ),
        (GptConfig { logit_cap: 3.0, ..llama(false) }, "a network of its own kind", "model.logit_cap = 0, which is 3"),
        (llama3(&llama(false)), "its angles are scaled", "model.rope_scaling = \"llama3\""),
    ] {
        let params = init_params(&config, 1);
        let slices: Vec<&[f32]> = params.iter().map(Vec::as_slice).collect();
        let path = dir.path().join("model.gguf");
        let message = write_gguf(&path, &config, &slices, &tokenizer(), "tiny").unwrap_err().to_string();
        assert!(message.contains(kind) && message.contains(key), "{message}");
        assert!(!path.exists());
    }
}
