//! `tinygpt info`.

use serde_json::json;
use tinygpt_model::{Architecture, GptConfig, ModelFolder, gguf::GgufFile, tokenizer::TokenizerFamily};

use crate::{
    args::InfoArgs,
    hub,
    output::{print_json, print_stdout},
};

pub fn run(args: &InfoArgs) -> anyhow::Result<()> {
    let folder = ModelFolder::new(&hub::folder(&args.run)?);
    let (config, _) = folder.map()?;
    let tokenizer = folder.read_tokenizer()?;
    let family = match tokenizer.kind() {
        TokenizerFamily::Char => "char",
        TokenizerFamily::Bpe => "bpe",
        TokenizerFamily::Other => "other",
    };
    // The types of the tensors of a GGUF file.
    let stored = match args.run.is_file() {
        true => {
            Some(GgufFile::open(&args.run)?.tensor_types()?.into_iter().map(|kind| kind.name()).collect::<Vec<_>>())
        }
        false => None,
    };
    let mut model = serde_json::to_value(&config)?;
    // The folder of a GPT-2, a Qwen3 or a Llama does not tell the initial values, which are gone.
    if let Some(keys) = model.as_object_mut() {
        keys.remove("init");
    }
    if args.json {
        let architecture = config.architecture();
        return print_json(&json!({
            "run": args.run.display().to_string(),
            "architecture": architecture.as_ref().ok().map(|architecture| architecture.class()),
            "blame": architecture.err().map(|blame| blame.to_string()),
            "parameters": config.n_params(),
            "vocab_size": config.vocab_size,
            "tokenizer": family,
            "gguf": stored,
            "model": model,
        }));
    }
    let stored = stored.map_or_else(String::new, |kinds| format!("a GGUF file of {}\n", kinds.join(" and ")));
    let text = format!(
        "{}: {} parameters, vocabulary {} ({family})\n{stored}{}\n\n[model]\n{}",
        args.run.display(),
        config.n_params(),
        config.vocab_size,
        where_it_opens(&config),
        toml::to_string(&model)?
    );
    Ok(print_stdout(&text)?)
}

/// Whether a model opens in `transformers` too, and as what; or which keys keep it from that.
pub fn where_it_opens(config: &GptConfig) -> String {
    match config.architecture().as_ref().map(|architecture| Architecture::class(*architecture)) {
        Ok(class) => format!("opens in transformers as {class}"),
        Err(blame) => format!("opens here alone: {blame}"),
    }
}
