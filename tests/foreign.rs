//! Folders that `transformers` saved, in each form that it has: what it says of them, this program says too.
//! `scripts/check_transformers.py` writes the fixtures, and holds larger ones against it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::{Place, failure, json, names, stdout};

/// A copy of a fixture, as `model`.
fn place(fixture: &str) -> Place {
    let place = Place::new();
    let from = fixtures().join(fixture);
    for name in names(&from) {
        place.write(&format!("model/{name}"), std::fs::read(from.join(&name)).unwrap());
    }
    place
}

fn fixtures() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/transformers")
}

/// Changes a key of a JSON file.
fn set(place: &Place, file: &str, key: &str, value: Value) {
    let mut json = place.json(file);
    json[key] = value;
    place.write(file, json.to_string());
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = logits.iter().map(|x| (x - max).exp()).sum::<f64>().ln() + max;
    logits.iter().map(|x| x - log_sum).collect()
}

/// The largest difference to the log-probabilities of `transformers`.
fn difference(place: &Place, expected: &Value) -> f64 {
    let text = expected["text"].as_str().unwrap();
    let score = json(place.tinygpt().args(["score", "model", text, "--top", "1000", "--json"]));
    let tokens = score["tokens"].as_array().unwrap();
    let ids: Vec<&Value> = tokens.iter().map(|token| &token["id"]).collect();
    assert_eq!(json!(ids), expected["ids"]);
    let rows = expected["logits"].as_array().unwrap();
    assert_eq!(rows.len(), tokens.len());
    let mut largest = 0.0f64;
    for (token, row) in tokens.iter().zip(rows) {
        let expected = log_softmax(&numbers(row));
        let top = token["top"].as_array().unwrap();
        assert_eq!(top.len(), expected.len());
        for one in top {
            let id = one["id"].as_u64().unwrap() as usize;
            largest = largest.max((one["logprob"].as_f64().unwrap() - expected[id]).abs());
        }
    }
    largest
}

fn greedy(place: &Place, expected: &Value) -> Value {
    let new = expected["greedy"].as_array().unwrap().len().to_string();
    let prompt = expected["prompt"].as_str().unwrap();
    let mut generate = place.tinygpt();
    generate.args(["generate", "--checkpoint", "model", "--prompt", prompt, "--temperature", "0", "--json"]);
    json(generate.args(["--max-new-tokens", &new]))["samples"][0]["tokens"].clone()
}

#[test]
fn every_form_of_a_folder_gives_the_logits_and_the_greedy_text_of_transformers() {
    let all = names(&fixtures());
    assert!(all.len() >= 15, "{all:?}");
    for fixture in all {
        let place = place(&fixture);
        let expected = place.json("model/expected.json");
        let largest = difference(&place, &expected);
        assert!(largest < 1e-4, "{fixture}: {largest}");
        assert_eq!(greedy(&place, &expected), expected["greedy"], "{fixture}");
    }
}

#[test]
fn a_tensor_that_is_left_out_or_scaled_otherwise_would_be_seen() {
    // The fixtures are worth what they tell apart.
    for (fixture, key, value) in [
        ("gpt2-unscaled-attention", "scale_attn_weights", json!(true)),
        ("gpt2-scaled-by-layer", "scale_attn_by_inverse_layer_idx", json!(false)),
        ("gpt2-gelu", "activation_function", json!("gelu_new")),
    ] {
        let place = place(fixture);
        let expected = place.json("model/expected.json");
        set(&place, "model/config.json", key, value);
        let largest = difference(&place, &expected);
        assert!(largest > 1e-4, "{fixture}: {largest}");
    }
}

#[test]
fn info_names_the_architecture_of_a_foreign_folder_and_eval_measures_it() {
    for (fixture, class) in [
        ("gpt2-n-inner", "GPT2LMHeadModel"),
        ("gpt2-untied", "GPT2LMHeadModel"),
        ("llama-tied-1-kv-head-shards", "LlamaForCausalLM"),
        ("qwen3-untied-1-kv-head", "Qwen3ForCausalLM"),
    ] {
        let place = place(fixture);
        assert_eq!(json(place.tinygpt().args(["info", "model", "--json"]))["architecture"], class, "{fixture}");
        place.write("text.txt", "One day a fox, a bear and an owl met by the old mill.");
        let eval = json(place.tinygpt().args(["eval", "model", "--data", "text.txt", "--json"]));
        assert!(eval["loss"].as_f64().unwrap() > 0.0, "{fixture}");
    }
}

#[test]
fn what_a_gpt2_has_that_is_not_computed_here_is_refused_by_name() {
    let place = place("gpt2-gelu-new");
    let config = place.json("model/config.json");
    for (key, value, reason) in [
        ("activation_function", json!("silu"), "activation_function \"silu\" is not gelu, gelu_new"),
        ("activation_function", json!(3), "activation_function 3 is not gelu"),
        ("add_cross_attention", json!(true), "`add_cross_attention` is true"),
        ("pruned_heads", json!({ "0": [1] }), "`pruned_heads` is {\"0\":[1]}"),
        ("quantization_config", json!({ "bits": 8 }), "`quantization_config` is {\"bits\":8}"),
        ("scale_attn_weights", json!("yes"), "`scale_attn_weights` is \"yes\", neither true nor false"),
        ("tie_word_embeddings", json!(1), "`tie_word_embeddings` is 1, neither true nor false"),
        ("tie_word_embeddings", json!(false), "it has no tensor lm_head.weight"),
        ("n_inner", json!(0), "`n_inner` is 0"),
        ("n_inner", json!("32"), "`n_inner` is missing or not a number"),
        ("n_inner", json!(33), "transformer.h.0.mlp.c_fc.weight has shape [8, 32], the model needs [8, 33]"),
        ("n_layer", json!(1), "it has transformer.h.1.attn.c_attn.bias, which a model of this config.json has not"),
        ("n_layer", json!(3), "it has no tensor transformer.h.2.ln_1.weight"),
        ("n_layer", json!(1 << 24), "too few for the 16777216 blocks of config.json"),
    ] {
        let mut changed = config.clone();
        changed[key] = value;
        place.write("model/config.json", changed.to_string());
        let message = failure(place.tinygpt().args(["info", "model"]), 1);
        assert!(message.contains(reason), "{key}: {message}");
    }
}

#[test]
fn a_tied_head_of_other_values_is_refused() {
    let place = place("gpt2-untied");
    set(&place, "model/config.json", "tie_word_embeddings", json!(true));
    let message = failure(place.tinygpt().args(["info", "model"]), 1);
    let reason = "lm_head.weight is not the embedding of tokens, which config.json says it is: set tie_word_embeddings to \
                  false there";
    assert!(message.contains(reason), "{message}");
}

#[test]
fn biases_that_were_trained_elsewhere_are_not_dropped_from_a_model_without() {
    let place = place("gpt2-gelu-new");
    // As `transformers` saves a run of this program: it keeps what it does not know of `config.json`.
    set(&place, "model/config.json", "tinygpt", json!({ "format": 1, "bias": false }));
    let message = failure(place.tinygpt().args(["info", "model"]), 1);
    assert!(message.contains("it has transformer.h.0.attn.c_attn.bias, which a model"), "{message}");
}

#[test]
fn a_pickle_is_refused_with_the_command_that_converts_it() {
    for name in ["pytorch_model.bin", "pytorch_model.bin.index.json"] {
        let place = place("gpt2-gelu-new");
        std::fs::rename(place.join("model/model.safetensors"), place.join("model").join(name)).unwrap();
        let message = failure(place.tinygpt().args(["generate", "--checkpoint", "model", "--seed", "1"]), 1);
        let expected = format!(
            "error: model is not a run or a model folder: it has no model.safetensors: {name} is a pickle, which can run any \
             program and is not opened here; convert it by python3 -c \"import sys, transformers as t; \
             t.AutoModelForCausalLM.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[1])\" model\n"
        );
        assert_eq!(message, expected);
    }
}

#[test]
fn a_folder_without_a_tokenizer_says_what_would_be_one() {
    let place = place("gpt2-vocab-json-merges-txt");
    std::fs::remove_file(place.join("model/merges.txt")).unwrap();
    let message = failure(place.tinygpt().args(["info", "model"]), 1);
    assert!(message.ends_with("it has no tokenizer.json, nor vocab.json with merges.txt\n"), "{message}");
    place.write("model/tokenizer.model", "sentencepiece");
    let message = failure(place.tinygpt().args(["info", "model"]), 1);
    assert!(message.contains("tokenizer.model is not read here, convert it by python3 -c"), "{message}");
}

#[test]
fn what_others_say_of_generation_does_not_stand_in_the_way() {
    let place = place("llama-untied");
    let others = json!({
        "_from_model_config": true, "bos_token_id": 1, "eos_token_id": [1, 2], "temperature": null, "top_k": null,
        "top_p": 0.9, "do_sample": null, "max_length": 4096, "suppress_tokens": [], "transformers_version": "4.40.0",
        "cache_implementation": { "new": [1e9] },
    });
    place.write("model/generation_config.json", others.to_string());
    let text =
        stdout(place.tinygpt().args(["generate", "--checkpoint", "model", "--seed", "1", "--max-new-tokens", "3"]));
    assert!(!text.is_empty());
}

#[test]
fn each_of_several_tokens_that_end_a_text_ends_it() {
    let place = place("llama-untied");
    let generate = || {
        let mut command = place.tinygpt();
        command.args(["generate", "--checkpoint", "model", "--seed", "1", "--max-new-tokens", "9", "--json"]);
        json(&mut command)["samples"][0].take()
    };
    let drawn = generate();
    let tokens: Vec<u64> = drawn["tokens"].as_array().unwrap().iter().map(|token| token.as_u64().unwrap()).collect();
    let (first, last) = (tokens[0], *tokens.last().unwrap());
    let unlike = tokens.iter().position(|&token| token != first).expect("a text of several tokens");
    place.write("model/generation_config.json", json!({ "eos_token_id": [last, tokens[unlike]] }).to_string());
    let ended = generate();
    assert_eq!(ended["ended_by"], "stop", "{ended}");
    assert!(ended["text"].as_str().unwrap().len() < drawn["text"].as_str().unwrap().len(), "{ended}, {drawn}");
}

/// Runs `info` on the folder with 3 GB of address space, so that an allocation of a
/// length that a file only claims would abort it; it must fail within a second, and name the file.
#[cfg(target_os = "linux")]
fn refused_at_once(place: &Place, file: &str) {
    let mut command = assert_cmd::Command::new("sh");
    command.args(["-c", "ulimit -v 3000000; exec \"$0\" \"$@\"", crate::common::PROGRAM, "info", "model"]);
    let begun = Instant::now();
    let message = failure(command.current_dir(place.path()), 1);
    assert!(message.contains(file), "{file}: {message}");
    assert!(begun.elapsed() < Duration::from_secs(1), "{file}: {:?}", begun.elapsed());
}

#[test]
#[cfg(target_os = "linux")]
fn lengths_that_a_file_only_claims_are_refused_at_once() {
    let place = place("gpt2-gelu-new");
    let config = place.json("model/config.json");
    for key in ["n_layer", "n_embd", "n_positions", "vocab_size", "n_inner"] {
        for huge in [json!(1 << 24), json!(u64::MAX)] {
            set(&place, "model/config.json", key, huge);
            // What no model can have, or what the weights do not have.
            refused_at_once(&place, "model/");
            place.write("model/config.json", config.to_string());
        }
    }
    let weights = place.read("model/model.safetensors");
    for length in [u64::MAX, 1 << 40, 99_999_999] {
        place.write("model/model.safetensors", [&length.to_le_bytes(), &weights[8..]].concat());
        refused_at_once(&place, "model.safetensors");
    }
}
