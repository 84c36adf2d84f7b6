//! A GGUF file holds the model of its folder and comes back, and files of the Python package `gguf` open here.
//! `scripts/check_llama_cpp.py` asks llama.cpp.

use std::{collections::HashMap, fs, path::Path, sync::OnceLock};

use candle_core::{Device, Tensor, quantized::gguf_file};
use proptest::prelude::*;
use serde_json::Value;
use tinygpt_model::{
    Architecture, Checkpoint, ContextPolicy, GptConfig, Mlp, ModelFolder, Tokenizer, TokenizerError,
    config::RopeScaling,
    cpu::WeightFormat,
    gguf::{GgufFile, TensorType, write_gguf},
    init_params, param_specs,
    params::Role,
};

use crate::{
    common::{lively_params, relative_error},
    elsewhere::{llama, llama3, tensors, tokenizer, write},
};

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
        let written = write_gguf(&path, &config, &slices, &tokenizer(), "tiny", TensorType::F32).unwrap();
        let architecture = written.architecture;
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

/// A GPT-2 whose rows are whole blocks.
fn gpt2(bias: bool, mlp: Mlp) -> GptConfig {
    GptConfig { vocab_size: 4, block_size: 8, n_layer: 2, n_head: 4, n_embd: 32, bias, mlp, ..GptConfig::default() }
}

/// A Llama with heads of four pairs, of which two keep their angles and two are interpolated.
fn waves() -> GptConfig {
    let wide = GptConfig { n_embd: 32, mlp_hidden: 64, ..llama3(&llama(false)) };
    GptConfig { rope_theta: 10.0, rope_original_block_size: 40, ..wide }
}

/// Writes a model with lively weights; gives them.
fn export(path: &Path, config: &GptConfig, tokenizer: &Tokenizer, kind: TensorType) -> Vec<Vec<f32>> {
    let params = lively_params(config, 7);
    let slices: Vec<&[f32]> = params.iter().map(Vec::as_slice).collect();
    write_gguf(path, config, &slices, tokenizer, "tiny", kind).unwrap();
    params
}

/// The bytes of a small model's file.
fn file(config: &GptConfig, kind: TensorType) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    export(&path, config, &tokenizer(), kind);
    fs::read(path).unwrap()
}

#[test]
fn a_gpt2_has_llama_cpps_tensors_with_outputs_first_and_zeros_for_biases_that_it_lacks() {
    for bias in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let config = gpt2(bias, Mlp::GeluNew);
        write(dir.path(), &config);
        let path = dir.path().join("model.gguf");
        export(&path, &config, &tokenizer(), TensorType::F32);
        let (content, found) = read_gguf(&path);
        assert_eq!(content.metadata["gpt2.attention.layer_norm_epsilon"].to_f32().unwrap(), 1e-5);
        assert_eq!(content.metadata["general.file_type"].to_u32().unwrap(), 0);
        let folder = tensors(dir.path());
        assert_eq!(found.len(), folder.len());
        for (gguf, name, transposed) in [
            ("token_embd.weight", "transformer.wte.weight", false),
            ("position_embd.weight", "transformer.wpe.weight", false),
            ("blk.1.attn_qkv.weight", "transformer.h.1.attn.c_attn.weight", true),
            ("blk.1.attn_qkv.bias", "transformer.h.1.attn.c_attn.bias", false),
            ("blk.1.attn_output.weight", "transformer.h.1.attn.c_proj.weight", true),
            ("blk.0.ffn_up.weight", "transformer.h.0.mlp.c_fc.weight", true),
            ("blk.0.ffn_down.weight", "transformer.h.0.mlp.c_proj.weight", true),
            ("blk.0.ffn_down.bias", "transformer.h.0.mlp.c_proj.bias", false),
            ("blk.0.ffn_norm.bias", "transformer.h.0.ln_2.bias", false),
            ("output_norm.weight", "transformer.ln_f.weight", false),
        ] {
            let expected = &folder[name];
            let expected = if transposed { &expected.t().unwrap().contiguous().unwrap() } else { expected };
            assert_eq!(found[gguf].dims(), expected.dims(), "{gguf}");
            let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(values(&found[gguf]), values(expected), "{gguf}");
        }
    }
}

#[test]
fn a_model_comes_back_from_each_type_within_its_rounding_and_is_written_alike_again() {
    let dir = tempfile::tempdir().unwrap();
    let (path, again) = (dir.path().join("model.gguf"), dir.path().join("again.gguf"));
    // Heads of eight channels, and matrices of whole blocks.
    let wide = |qk_norm| GptConfig { n_embd: 32, mlp_hidden: 64, rope_theta: 5e3, ..llama(qk_norm) };
    for config in [
        gpt2(true, Mlp::GeluNew),
        gpt2(false, Mlp::Gelu),
        GptConfig { tie_embeddings: false, mlp_hidden: 64, ..gpt2(true, Mlp::GeluNew) },
        wide(false),
        GptConfig { tie_embeddings: false, n_kv_head: 1, ..wide(true) },
        GptConfig { head_size: 6, norm_eps: 3e-5, ..wide(true) },
        GptConfig { rope_scaling: RopeScaling::Linear, rope_factor: 4.0, head_size: 10, ..wide(false) },
        waves(),
    ] {
        for kind in TensorType::ALL {
            let params = export(&path, &config, &tokenizer(), kind);
            let checkpoint = Checkpoint::open(&path).unwrap();
            assert_eq!(checkpoint.config(), &config, "{kind:?}");
            assert_eq!(checkpoint.tokenizer().json(), tokenizer().json());
            let back = checkpoint.weights().slices();
            assert_eq!(back.len(), params.len());
            for (spec, (param, back)) in param_specs(&config).iter().zip(params.iter().zip(&back)) {
                let largest = param.iter().fold(0f32, |largest, x| largest.max(x.abs()));
                let step = match kind {
                    TensorType::F32 => 0.0,
                    TensorType::F16 => 2f32.powi(-11),
                    TensorType::Bf16 => 2f32.powi(-8),
                    TensorType::Q8_0 => 0.5 / 127.0 + 2f32.powi(-11),
                    TensorType::Q4_0 => 1.0 / 8.0 + 2f32.powi(-11),
                };
                let off = param.iter().zip(*back).fold(0f32, |off, (x, y)| off.max((x - y).abs()));
                assert!(off <= step * largest * 1.001, "{kind:?}: {off} of {largest}");
                let rounded = spec.decays() && spec.role != Role::Position && kind != TensorType::F32;
                assert_eq!(off > 0.0, rounded, "{kind:?}: {}", spec.name);
            }
            write_gguf(&again, &config, &back, checkpoint.tokenizer(), "tiny", kind).unwrap();
            assert!(fs::read(&path).unwrap() == fs::read(&again).unwrap(), "{kind:?}: the same bytes again");
        }
    }
}

#[test]
fn blocks_are_read_as_candle_reads_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let config = gpt2(false, Mlp::GeluNew);
    for (kind, file_type) in [(TensorType::Q8_0, 7), (TensorType::Q4_0, 2)] {
        export(&path, &config, &tokenizer(), kind);
        let (content, found) = read_gguf(&path);
        assert_eq!(content.metadata["general.file_type"].to_u32().unwrap(), file_type);
        let embedding: Vec<f32> = found["token_embd.weight"].flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(ModelFolder::new(&path).read().unwrap().1[0], embedding);
        assert_eq!(
            GgufFile::open(&path).unwrap().tensor_types().unwrap().into_iter().collect::<Vec<_>>(),
            [TensorType::F32, kind]
        );
    }
}

#[test]
fn rows_that_are_no_blocks_are_f16_and_a_weight_that_does_not_fit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let config = llama(false); // rows of 16, and of 64 in the last linear layer of a block
    let params = init_params(&config, 1);
    let slices: Vec<&[f32]> = params.iter().map(Vec::as_slice).collect();
    let written = write_gguf(&path, &config, &slices, &tokenizer(), "tiny", TensorType::Q8_0).unwrap();
    assert_eq!(written.without_blocks, 1 + 2 * 6);
    assert_eq!(Checkpoint::open(&path).unwrap().config(), &config);

    let before = fs::read(&path).unwrap();
    let mut large = params.clone();
    large[0][3] = 1e6;
    let slices: Vec<&[f32]> = large.iter().map(Vec::as_slice).collect();
    let message = write_gguf(&path, &config, &slices, &tokenizer(), "tiny", TensorType::F16).unwrap_err().to_string();
    assert!(message.contains("token_embd.weight has a weight of 1000000, which f16 cannot hold"), "{message}");
    assert!(fs::read(&path).unwrap() == before, "the file is as it was");
}

#[test]
fn a_bpe_comes_back_byte_for_byte_and_encodes_alike() {
    let text = "low lower lowest, low low lower\nslow €uro \u{1F600} 1234 it's  it's\t\tlow";
    let trained = Tokenizer::train_bpe([Ok::<_, TokenizerError>(text)], 280).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    for padding in [0, 3] {
        let config = GptConfig { vocab_size: trained.vocab_size() + padding, ..gpt2(true, Mlp::GeluNew) };
        export(&path, &config, &trained, TensorType::Q8_0);
        let back = Checkpoint::open(&path).unwrap();
        assert!(back.tokenizer().json() == trained.json());
        assert_eq!(back.tokenizer().encode(text).unwrap(), trained.encode(text).unwrap());
    }
    // With a special token, and the words of Llama 3 and of Qwen.
    let mut json: Value = serde_json::from_slice(trained.json()).unwrap();
    let id = trained.vocab_size();
    json["model"]["vocab"]["<|endoftext|>"] = id.into();
    json["added_tokens"] = serde_json::json!([{
        "id": id, "content": "<|endoftext|>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true
    }]);
    let text = format!("{text}<|endoftext|>IT'S LOW\r\n \n12345");
    let split = |pattern: &str| {
        serde_json::json!({ "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
        ] })
    };
    let digits = |n: &str| {
        format!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{n}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    };
    for (words, pre_tokenizer, ignores_merges) in [
        ("gpt-2", json["pre_tokenizer"].clone(), false),
        ("llama-bpe", split(&digits("{1,3}")), true),
        ("qwen2", split(&digits("")), false),
    ] {
        json["pre_tokenizer"] = pre_tokenizer;
        json["model"]["ignore_merges"] = ignores_merges.into();
        let tokenizer = Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap();
        let config = GptConfig { vocab_size: id + 1, ..gpt2(true, Mlp::GeluNew) };
        export(&path, &config, &tokenizer, TensorType::Q8_0);
        let (content, _) = read_gguf(&path);
        assert_eq!(content.metadata["tokenizer.ggml.pre"].to_string().unwrap(), words);
        let back = Checkpoint::open(&path).unwrap();
        assert_eq!(back.tokenizer().encode(&text).unwrap(), tokenizer.encode(&text).unwrap(), "{words}");
        assert_eq!(back.tokenizer().end_of_text(), Some(id as u32));
    }
    json["model"]["ignore_merges"] = true.into();
    let tokenizer = Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap();
    let config = GptConfig { vocab_size: id + 1, ..gpt2(true, Mlp::GeluNew) };
    let params = init_params(&config, 1);
    let slices: Vec<&[f32]> = params.iter().map(Vec::as_slice).collect();
    let message = write_gguf(&path, &config, &slices, &tokenizer, "tiny", TensorType::F32).unwrap_err().to_string();
    assert!(message.contains("cuts text into words as GPT-2, Llama 3 or Qwen does"), "{message}");
}

#[test]
fn files_of_the_python_package_open_and_give_the_logits_of_transformers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/gguf");
    let expected: Value = serde_json::from_slice(&fs::read(folder.join("expected.json")).unwrap()).unwrap();
    let files = expected.as_object().unwrap();
    assert_eq!(files.len(), 5);
    for (name, expected) in files {
        let checkpoint = Checkpoint::open(folder.join(name)).unwrap();
        let text = expected["text"].as_str().unwrap();
        let numbers =
            |key: &str| expected[key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect::<Vec<_>>();
        let ids = checkpoint.tokenizer().encode(text).unwrap();
        assert_eq!(ids, numbers("ids").iter().map(|&id| id as u32).collect::<Vec<_>>(), "{name}");
        assert_eq!(checkpoint.tokenizer().decode(&ids).unwrap(), text, "{name}");
        let mut decoder = checkpoint.decoder(ContextPolicy::Slide, WeightFormat::F32, &Device::Cpu).unwrap();
        let logits = decoder.start(&ids, 1).unwrap().to_host().unwrap();
        let off = logits.iter().zip(numbers("logits")).map(|(&x, y)| (f64::from(x) - y).abs()).fold(0.0, f64::max);
        assert!(off < 1e-4, "{name}: logits are off by {off}");
    }
}

#[test]
fn int4_rounds_weights_from_a_file_of_q4_0_no_further() {
    let dir = tempfile::tempdir().unwrap();
    let (exact, rounded) = (dir.path().join("f32.gguf"), dir.path().join("q4_0.gguf"));
    let config = GptConfig { n_embd: 32, mlp_hidden: 64, ..llama(true) };
    let params = lively_params(&config, 3);
    let slices: Vec<&[f32]> = params.iter().map(Vec::as_slice).collect();
    for (path, kind) in [(&exact, TensorType::F32), (&rounded, TensorType::Q4_0)] {
        write_gguf(path, &config, &slices, &tokenizer(), "tiny", kind).unwrap();
    }
    let off = |path: &Path| {
        let checkpoint = Checkpoint::open(path).unwrap();
        let [f32, int4] = [WeightFormat::F32, WeightFormat::Int4].map(|format| {
            let mut decoder = checkpoint.decoder(ContextPolicy::Slide, format, &Device::Cpu).unwrap();
            decoder.start(&[1, 2, 3], 1).unwrap().to_host().unwrap().into_owned()
        });
        relative_error(&int4, &f32)
    };
    // What is left is the rounding of activations to 8 bits.
    let (rounded, exact) = (off(&rounded), off(&exact));
    assert!(rounded < 0.03 && exact > 2.0 * rounded, "{rounded} {exact}");
}

#[test]
fn a_model_of_no_architecture_is_not_written_as_gguf_and_its_keys_are_named() {
    let dir = tempfile::tempdir().unwrap();
    for (config, message_part) in [
        (gpt2(true, Mlp::Relu2), "model.mlp"),
        (GptConfig { logit_cap: 3.0, ..llama(false) }, "LlamaForCausalLM needs model.logit_cap = 0, which is 3"),
        (
            llama3(&llama(true)),
            "its angles are scaled by model.rope_scaling = \"llama3\", which llama.cpp has for a Llama alone",
        ),
        (GptConfig { rope_theta: 1e39, ..llama(false) }, "a number of its angles"),
    ] {
        let params = init_params(&config, 1);
        let slices: Vec<&[f32]> = params.iter().map(Vec::as_slice).collect();
        let path = dir.path().join("model.gguf");
        let message =
            write_gguf(&path, &config, &slices, &tokenizer(), "tiny", TensorType::F32).unwrap_err().to_string();
        assert!(message.contains("cannot be written as GGUF") && message.contains(message_part), "{message}");
        assert!(!path.exists());
    }
}

#[test]
fn angles_of_llama_3_are_the_tensor_of_llama_cpp_and_open_without_the_keys_of_our_own() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let published = GptConfig { rope_high_freq_factor: 4.0, ..waves() };
    export(&path, &published, &tokenizer(), TensorType::Q8_0);
    let (content, found) = read_gguf(&path);
    let factors: Vec<f32> = found["rope_freqs.weight"].to_vec1().unwrap();
    // Of 6.4, 3.6, 2.0 and 1.1 waves in the context of pretraining the first are more than 4.
    for (factor, expected) in factors.iter().zip([1.0, 1.139_61, 2.378_079, 6.115_249]) {
        assert!((factor / expected - 1.0).abs() < 1e-5, "{factors:?}");
    }
    assert_eq!(content.metadata["tinygpt.rope.original_context_length"].to_u32().unwrap(), 40);
    // The last wave is longer than the context of pretraining: its factor is the whole one.
    let longer = GptConfig { rope_theta: 40.0, ..published };
    export(&path, &longer, &tokenizer(), TensorType::F16);
    let foreign = patched(&fs::read(&path).unwrap(), b"tinygpt.rope.factor", b"another.rope.number");
    assert_eq!(GgufFile::from_bytes(foreign).config().unwrap(), longer);
}

/// Reads all of a file; gives the message where it is refused.
fn read(bytes: Vec<u8>) -> Option<String> {
    let file = GgufFile::from_bytes(bytes);
    let read = || {
        let config = file.config()?;
        file.params(&config)?;
        file.tokenizer()
    };
    read().err().map(|error: tinygpt_model::ModelError| error.to_string())
}

/// The file with the last place of some bytes replaced.
fn patched(file: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = file.windows(from.len()).rposition(|window| window == from).expect("the bytes are there");
    let mut file = file.to_vec();
    file[at..at + to.len()].copy_from_slice(to);
    file
}

#[test]
fn what_contradicts_itself_or_is_not_computed_here_is_refused_by_name() {
    let gpt2 = file(&gpt2(false, Mlp::Gelu), TensorType::F32);
    let linear = GptConfig { rope_scaling: RopeScaling::Linear, rope_factor: 4.0, ..llama(false) };
    let (scaled, linear) = (file(&waves(), TensorType::F16), file(&linear, TensorType::F16));
    let llama = file(&llama(false), TensorType::F16);
    assert_eq!((read(scaled.clone()), read(linear.clone())), (None, None));
    assert_eq!(read(gpt2.clone()), None);
    assert_eq!(read(llama.clone()), None);
    // A key, its type (of a u32 or an f32), and its value.
    let key = |name: &str, kind: u32, value: [u8; 4]| [name.as_bytes(), &kind.to_le_bytes(), &value].concat();
    let number = |name: &str, n: u32| key(name, 4, n.to_le_bytes());
    let changed = |file: &[u8], name: &str, before: u32, n: u32| patched(file, &number(name, before), &number(name, n));
    let float = |name: &str, x: f32| key(name, 6, x.to_le_bytes());
    let bias = b"blk.1.ffn_up.bias";
    let dims = |rows: u64, cols: u64| {
        [b"token_embd.weight".as_slice(), &2u32.to_le_bytes(), &cols.to_le_bytes(), &rows.to_le_bytes()].concat()
    };
    let q4 = [dims(4, 32), 12u32.to_le_bytes().to_vec()].concat();
    for (file, reason) in [
        (patched(&gpt2, b"GGUF\x03", b"GGML\x03"), "it does not begin with \"GGUF\""),
        (patched(&gpt2, b"GGUF\x03", b"GGUF\x01"), "GGUF of version 1, this program reads versions 2 and 3"),
        (patched(&gpt2, b"GGUF\x03\0\0\0", b"GGUF\0\0\0\x03"), "big-endian"),
        (
            patched(
                &gpt2,
                b"general.architecture\x08\0\0\0\x04\0\0\0\0\0\0\0gpt2",
                b"general.architecture\x08\0\0\0\x04\0\0\0\0\0\0\0mpt2",
            ),
            "its architecture is \"mpt2\"",
        ),
        (
            patched(&gpt2, b"gpt2.block_count", b"gpt2.bock_count?"),
            "does not know what to do about its `gpt2.bock_count?`",
        ),
        (changed(&gpt2, "gpt2.block_count", 2, 3), "it has no tensor blk.2.attn_norm.weight"),
        (
            changed(&gpt2, "gpt2.block_count", 2, 1),
            "its tensor blk.1.attn_norm.bias is none that this program has a use for",
        ),
        (changed(&gpt2, "gpt2.block_count", 2, 1 << 20), "more blocks than it has tensors"),
        (
            changed(&gpt2, "gpt2.context_length", 8, 9),
            "position_embd.weight has shape [8, 32], the model needs [9, 32]",
        ),
        (changed(&gpt2, "gpt2.embedding_length", 32, 64), "has shape"),
        (changed(&gpt2, "gpt2.embedding_length", 32, 33), "model.n_embd = 33"),
        (changed(&gpt2, "gpt2.attention.head_count", 4, 0), "`gpt2.attention.head_count` is 0"),
        (changed(&gpt2, "gpt2.attention.head_count_kv", 4, 3), "model.n_kv_head = 3"),
        (changed(&gpt2, "gpt2.feed_forward_length", 128, 127), "has shape"),
        (changed(&gpt2, "gpt2.vocab_size", 4, 5), "`gpt2.vocab_size` is 5"),
        (
            patched(
                &gpt2,
                &float("gpt2.attention.layer_norm_epsilon", 1e-5),
                &float("gpt2.attention.layer_norm_epsilon", 0.0),
            ),
            "`gpt2.attention.layer_norm_epsilon` is 0; it must be at least 1e-12",
        ),
        (
            patched(
                &gpt2,
                &[b"block_count".as_slice(), &4u32.to_le_bytes()].concat(),
                &[b"block_count".as_slice(), &6u32.to_le_bytes()].concat(),
            ),
            "`gpt2.block_count` is not a whole number",
        ),
        (patched(&gpt2, b"\x04\0\0\0\0\0\0\0gelu", b"\x04\0\0\0\0\0\0\0relu"), "`tinygpt.mlp` is \"relu\""),
        (
            changed(&llama, "llama.attention.key_length", 4, 8),
            "`llama.attention.value_length` is 4; this program supports 8 only",
        ),
        (changed(&llama, "llama.rope.dimension_count", 4, 2), "`llama.rope.dimension_count` is 2"),
        (
            changed(&scaled, "tinygpt.rope.original_context_length", 40, 41),
            "rope_freqs.weight is not what Llama 3's scaling",
        ),
        (
            patched(&scaled, b"tinygpt.rope.factor", b"tinygpt.rope.fakter"),
            "rope_freqs.weight is not what Llama 3's scaling",
        ),
        (
            patched(&scaled, b"llama.rope.freq_base", b"qwen3.rope.freq_base"),
            "rope_freqs.weight is not what Llama 3's scaling",
        ),
        (
            patched(
                &linear,
                b"llama.rope.scaling.type\x08\0\0\0\x06\0\0\0\0\0\0\0linear",
                b"llama.rope.scaling.type\x08\0\0\0\x06\0\0\0\0\0\0\0longer",
            ),
            "`llama.rope.scaling.type` is \"longer\"; this program supports \"none\" and \"linear\" only",
        ),
        (
            patched(&llama, b"blk.0.attn_q.weight", b"blk.0.attn_z.weight"),
            "blk.0.attn_z.weight is none that this program has a use",
        ),
        (patched(&gpt2, bias, b"blk.0.ffn_up.bias"), "it has the tensor blk.0.ffn_up.bias twice"),
        (patched(&gpt2, b"gpt2.block_count", b"gpt2.block_coun\xff"), "is not UTF-8"),
        (patched(&gpt2, &dims(4, 32), &dims(1 << 40, 1 << 40)), "no f32 tensor has the shape"),
        (patched(&gpt2, &dims(4, 32), &dims(4, 1 << 30)), "it ends before its tensor token_embd.weight does"),
        (patched(&gpt2, &dims(4, 32), &dims(5, 32)), "lie on each other"),
        (
            patched(&gpt2, &[dims(4, 32), vec![0; 4]].concat(), &q4),
            "its tensor token_embd.weight: it is Q4_K; this program reads F32, F16, BF16 and Q8_0",
        ),
        (
            patched(
                &gpt2,
                b"tokenizer.ggml.model\x08\0\0\0\x04\0\0\0\0\0\0\0gpt2",
                b"tokenizer.ggml.model\x08\0\0\0\x04\0\0\0\0\0\0\0bert",
            ),
            "its tokenizer is \"bert\", this program reads byte-level BPE",
        ),
        (patched(&gpt2, b"gpt-2", b"dbrx2"), "cuts text into words as \"dbrx2\", this program knows \"gpt-2\""),
    ] {
        let message = read(file).unwrap_or_else(|| panic!("not refused, expected: {reason}"));
        assert!(message.contains(reason), "expected {reason}: {message}");
    }
}

/// A file with one more key. What it holds behind its keys is not where it was: nothing but its header can be read.
fn with_key(file: &[u8], key: &str, kind: u32, value: &[u8]) -> GgufFile {
    let keys = u64::from_le_bytes(file[16..24].try_into().unwrap()) + 1;
    let added = [&(key.len() as u64).to_le_bytes()[..], key.as_bytes(), &kind.to_le_bytes(), value].concat();
    // Tensors begin at a multiple of 32 bytes: zeros at the end are in nobody's way.
    GgufFile::from_bytes([&file[..16], &keys.to_le_bytes(), &added, &file[24..], &[0; 64]].concat())
}

#[test]
fn a_file_has_a_chat_template_or_none() {
    let file = file(&llama(false), TensorType::F16);
    assert_eq!(GgufFile::from_bytes(file.clone()).chat_template().unwrap(), None);
    let source = "{{ bos_token }}{{ messages[0].content }}";
    let text = [&(source.len() as u64).to_le_bytes()[..], source.as_bytes()].concat();
    let with_template = with_key(&file, "tokenizer.chat_template", 8, &text);
    assert_eq!(with_template.chat_template().unwrap().as_deref(), Some(source));
    let refused = with_key(&file, "tokenizer.chat_template", 4, &[0; 4]).chat_template().unwrap_err().to_string();
    assert!(refused.contains("`tokenizer.chat_template`"), "{refused}");
}

#[test]
fn lengths_that_no_file_has_are_refused_before_anything_of_that_length_is_made() {
    let file = file(&llama(false), TensorType::F16);
    let huge = [u64::MAX, u64::MAX / 2, 1 << 60, 1 << 40, 1 << 31];
    // The counts of tensors and keys, the length of the first key and of the list of tokens.
    let tokens = file.windows(21).position(|window| window == b"tokenizer.ggml.tokens").unwrap() + 21 + 8;
    for at in [8, 16, 24, tokens, tokens + 8] {
        for n in huge {
            let mut file = file.clone();
            file[at..at + 8].copy_from_slice(&n.to_le_bytes());
            assert!(read(file).is_some(), "{n} at {at}");
        }
    }
}

#[test]
fn a_truncated_file_is_refused_wherever_it_ends() {
    let file = file(&llama(true), TensorType::Q8_0);
    for len in (0..file.len()).step_by(7).chain([file.len() - 1]) {
        // The padding behind the last tensor holds nothing.
        assert!(read(file[..len].to_vec()).is_some() || file.len() - len < 32, "{len} of {}", file.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn flipped_bits_are_refused_or_read_and_nothing_panics(
        kind in 0..4usize,
        gpt in any::<bool>(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8u32), 1..4),
    ) {
        static FILES: OnceLock<Vec<[Vec<u8>; 2]>> = OnceLock::new();
        let of = |kind| [file(&gpt2(true, Mlp::GeluNew), kind), file(&llama(true), kind)];
        let files = FILES.get_or_init(|| TensorType::ALL.map(of).into());
        let mut file = files[kind][usize::from(gpt)].clone();
        // The header; what lies behind it are numbers, of which any are weights.
        let header = 3000.min(file.len());
        for (at, bit) in flips {
            file[at.index(header)] ^= 1 << bit;
        }
        read(file);
    }
}
