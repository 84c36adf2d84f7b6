//! A model on disk, through the library alone.

use std::path::Path;

use tinygpt_model::{
    Checkpoint, ContextPolicy, Device, GenerationDefaults, GptConfig, ModelError, ModelFolder, Tokenizer,
    TokenizerError,
    checkpoint::open_decoder,
    cpu::WeightFormat,
    gguf::{TensorType, write_gguf},
    init_params,
};

fn tokenizer() -> Tokenizer {
    Tokenizer::train_char([Ok::<_, TokenizerError>("abc\n")]).unwrap()
}

/// Writes a small model with random weights.
fn write(folder: &Path, config: &GptConfig, defaults: &GenerationDefaults) -> Vec<Vec<f32>> {
    let params = init_params(config, 7);
    let model = ModelFolder::new(folder);
    model.write_description(config, &tokenizer(), defaults).unwrap();
    model.write_weights(config, &params).unwrap();
    params
}

fn small(bias: bool) -> GptConfig {
    GptConfig { vocab_size: 4, block_size: 8, n_layer: 2, n_head: 2, n_embd: 16, bias, ..GptConfig::default() }
}

#[test]
fn a_checkpoint_has_what_was_written_and_its_decoder_computes_with_the_mapped_weights() {
    for bias in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let config = small(bias);
        let defaults = GenerationDefaults {
            temperature: Some(0.8),
            top_k: Some(3),
            do_sample: Some(true),
            ..GenerationDefaults::default()
        };
        let params = write(dir.path(), &config, &defaults);
        let checkpoint = Checkpoint::open(&dir).unwrap();
        assert_eq!((checkpoint.config(), checkpoint.defaults()), (&config, &defaults));
        assert_eq!(checkpoint.weights().slices(), params);
        assert_eq!(checkpoint.tokenizer().encode("cab\n").unwrap(), [3, 1, 2, 0]);
        assert_eq!(checkpoint.tokenizer().start_token(), 0, "text starts behind a line break");

        let slices: Vec<&[f32]> = params.iter().map(Vec::as_slice).collect();
        for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8, WeightFormat::Int4] {
            let mut mapped = checkpoint.decoder(ContextPolicy::Slide, format, &Device::Cpu).unwrap();
            let mut given = open_decoder(&config, &slices, ContextPolicy::Slide, format, &Device::Cpu).unwrap();
            let logits = mapped.start(&[3, 1], 2).unwrap().to_host().unwrap().into_owned();
            assert_eq!(logits, *given.start(&[3, 1], 2).unwrap().to_host().unwrap());
        }
    }
}

#[test]
fn a_folder_that_lacks_a_file_is_no_model_folder_and_the_file_is_named() {
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &small(false), &GenerationDefaults::default());
        std::fs::remove_file(dir.path().join(file)).unwrap();
        match Checkpoint::open(&dir).unwrap_err() {
            ModelError::NotAModelFolder { reason, .. } => {
                assert!(reason.starts_with(&format!("it has no {file}")), "{reason}")
            }
            other => panic!("{other}"),
        }
    }
    let message = Checkpoint::open("no/such/folder").unwrap_err().to_string();
    assert_eq!(message, "no/such/folder is not a run or a model folder: there is no such folder");
}

#[test]
fn what_is_not_known_of_generation_is_left_out_and_greedy_has_no_temperature() {
    let dir = tempfile::tempdir().unwrap();
    let json = |defaults: &GenerationDefaults| -> serde_json::Value {
        write(dir.path(), &small(false), defaults);
        serde_json::from_slice(&std::fs::read(dir.path().join("generation_config.json")).unwrap()).unwrap()
    };
    let nothing = json(&GenerationDefaults::default());
    assert_eq!(nothing["do_sample"], true);
    assert!(["temperature", "top_k", "top_p", "max_new_tokens"].iter().all(|key| nothing.get(key).is_none()));
    let greedy = json(&GenerationDefaults { temperature: Some(0.0), ..GenerationDefaults::default() });
    assert_eq!((&greedy["do_sample"], greedy.get("temperature")), (&false.into(), None));
    // The defaults are no part of what makes a model: a folder of others may have none.
    std::fs::remove_file(dir.path().join("generation_config.json")).unwrap();
    assert_eq!(Checkpoint::open(&dir).unwrap().defaults(), &GenerationDefaults::default());
}

#[test]
fn every_token_that_a_folder_lists_ends_what_is_generated_and_stays_in_what_is_written_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let params = write(dir.path(), &small(false), &GenerationDefaults::default());
    let file = |name: &str| dir.path().join(name);
    let set = |name: &str, ends: serde_json::Value| {
        let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(file(name)).unwrap()).unwrap();
        json["eos_token_id"] = ends;
        std::fs::write(file(name), json.to_string()).unwrap();
    };
    let ends = || {
        let tokenizer = Checkpoint::open(&dir).unwrap().into_parts().2;
        (0..6).filter(|&token| tokenizer.ends_text(token)).collect::<Vec<u32>>()
    };
    assert_eq!(ends(), [0; 0]);
    set("config.json", 1.into());
    assert_eq!(ends(), [1]);
    // What the file of generation says goes before the other; the vocabulary has no token 5.
    set("generation_config.json", vec![2, -1, 3, 5, 2].into());
    assert_eq!(ends(), [2, 3]);

    let again = tempfile::tempdir().unwrap();
    let tokenizer = Checkpoint::open(&dir).unwrap().into_parts().2;
    ModelFolder::new(again.path())
        .write_description(&small(false), &tokenizer, &GenerationDefaults::default())
        .unwrap();
    assert_eq!(ModelFolder::new(again.path()).read_tokenizer().unwrap().other_ends(), [2, 3]);
    let gguf = again.path().join("model.gguf");
    let slices: Vec<&[f32]> = params.iter().map(Vec::as_slice).collect();
    write_gguf(&gguf, &small(false), &slices, &tokenizer, "tiny", TensorType::F32).unwrap();
    assert_eq!(ModelFolder::new(&gguf).read_tokenizer().unwrap().other_ends(), [2, 3]);

    for wrong in [serde_json::json!("a"), serde_json::json!([1, "a"]), serde_json::json!(1.5)] {
        set("generation_config.json", wrong);
        let message = Checkpoint::open(&dir).unwrap_err().to_string();
        assert!(
            message.contains("generation_config.json") && message.contains("is not the id of a token"),
            "{message}"
        );
    }
}
