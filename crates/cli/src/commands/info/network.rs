//! What there is to know of a network: of a run, a folder of Hugging Face or a GGUF file.

use std::path::Path;

use serde_json::{Map, Value, json};
use tinygpt_model::{
    GptConfig, ModelFolder, Tokenizer,
    checkpoint::CONFIG_FILE,
    components::{Component, GenerationMemory},
    cpu::WeightFormat,
    files::read_json,
    gguf::{GgufFile, TensorType},
    network,
};
use tinygpt_trainer::{RunConfig, RunDir, memory};

use super::{describe_tokenizer, family, history::History, special_tokens, where_it_opens};
use crate::{
    output::{print_json, print_stdout},
    progress::in_thousands,
    units::human_bytes,
};

const FORMATS: [(&str, WeightFormat); 4] = [
    ("f32", WeightFormat::F32),
    ("bf16", WeightFormat::Bf16),
    ("int8", WeightFormat::Int8),
    ("int4", WeightFormat::Int4),
];

pub fn run(path: &Path, as_json: bool) -> anyhow::Result<()> {
    let folder = ModelFolder::new(path);
    let (config, _) = folder.map()?;
    let tokenizer = folder.read_tokenizer()?;
    let run = RunDir::open(path).ok();
    let train = run.as_ref().map(|run| run.read_config(&[])).transpose()?;
    let history = match run.as_ref().zip(train.as_ref()) {
        Some((run, train)) => History::of(run, train),
        None => None,
    };
    let stored = path.is_file().then(|| GgufFile::open(path)?.tensor_types()).transpose()?;
    let stored = stored.map(|kinds| kinds.into_iter().map(TensorType::name).collect());
    let facts = Facts { path, config: &config, tokenizer: &tokenizer, train: train.as_ref(), history, stored };
    if as_json { print_json(&facts.to_json()?) } else { Ok(print_stdout(&facts.to_text()?)?) }
}

struct Facts<'a> {
    path: &'a Path,
    config: &'a GptConfig,
    tokenizer: &'a Tokenizer,
    /// Of a run.
    train: Option<&'a RunConfig>,
    history: Option<History>,
    /// The types of the tensors, of a GGUF file.
    stored: Option<Vec<&'static str>>,
}

impl Facts<'_> {
    fn to_json(&self) -> anyhow::Result<Value> {
        let Self { path, config, tokenizer, .. } = self;
        let architecture = config.architecture();
        let components: Map<String, Value> = Component::parameters(config)
            .into_iter()
            .map(|(component, n)| (name(component).to_owned(), n.into()))
            .collect();
        let generation: Map<String, Value> = FORMATS
            .into_iter()
            .map(|(name, format)| (name.to_owned(), json!(GenerationMemory::new(config, format))))
            .collect();
        let (forward, training) = flops_per_token(config);
        let (end_of_text, start_token) = special_tokens(tokenizer)?;
        Ok(json!({
            "run": path.display().to_string(),
            "architecture": architecture.as_ref().ok().map(|architecture| architecture.class()),
            "blame": architecture.err().map(|blame| blame.to_string()),
            "parameters": config.n_params(),
            "vocab_size": config.vocab_size,
            "tokenizer": family(tokenizer),
            "gguf": self.stored,
            "model": self.model()?,
            "components": components,
            "memory": { "training": self.training_memory(), "generation": generation },
            "flops_per_token": { "forward": forward, "training": training },
            "end_of_text": end_of_text,
            "start_token": start_token,
            "origin": self.origin(),
            "history": self.history,
        }))
    }

    fn to_text(&self) -> anyhow::Result<String> {
        let Self { path, config, tokenizer, .. } = self;
        let mut text = format!(
            "{}: {} parameters, vocabulary {} ({})\n{}\n",
            path.display(),
            config.n_params(),
            config.vocab_size,
            family(tokenizer),
            where_it_opens(config),
        );
        text += "\nparameters\n";
        for (component, n) in Component::parameters(config) {
            let tied = if component == Component::Head && config.tie_embeddings { "  (the embedding)" } else { "" };
            text += &format!("  {:<11}{:>14}{tied}\n", name(component), in_thousands(n));
        }
        text += "\nmemory on the CPU\n";
        for (name, format) in FORMATS {
            let GenerationMemory { weights, cache_per_sequence } = GenerationMemory::new(config, format);
            let [weights, cache] = [weights, cache_per_sequence].map(|bytes| human_bytes(bytes as f64));
            text += &format!("  generation in {name:<5} {weights}, and {cache} for each sequence\n");
        }
        text += "  with --kv-cache bf16 half as much for each sequence\n";
        if let Some(parts) = self.training_memory() {
            let total = human_bytes(parts.iter().map(|part| part.bytes).sum());
            let parts: Vec<String> = parts
                .iter()
                .filter(|part| part.bytes > 0.0)
                .map(|part| format!("{} for {}", human_bytes(part.bytes), part.what))
                .collect();
            text += &format!("  training            at least {total}: {}\n", parts.join(", "));
        }
        let (forward, training) = flops_per_token(config);
        text += &format!(
            "\nFLOPs a token, the mean of a context of {}\n  forward    {forward:.3e}\n  training   {training:.3e}\n\n",
            config.block_size
        );
        text += &describe_tokenizer(tokenizer)?;
        text += "\norigin\n";
        for (key, value) in &self.origin() {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            text += &format!("  {key:<11}{value}\n");
        }
        if let Some(history) = &self.history {
            text += &format!("\nhistory\n{history}");
        }
        Ok(text + &format!("\n[model]\n{}", toml::to_string(&self.model()?)?))
    }

    /// The section `[model]`, with the numbers that a 0 stands for.
    fn model(&self) -> anyhow::Result<Value> {
        let mut model = serde_json::to_value(self.config.explicit())?;
        // The folder of a GPT-2, a Qwen3 or a Llama does not tell the initial values, which are gone.
        if let Some(keys) = model.as_object_mut() {
            keys.remove("init");
        }
        Ok(model)
    }

    /// Lower bounds of what training by the run's configuration needs.
    fn training_memory(&self) -> Option<[memory::MemoryPart; 4]> {
        let train = self.train?;
        // A model to stay near counts as long as it is there.
        let near = train.train.kl_weight != 0.0;
        let reference = || ModelFolder::new(Path::new(&train.train.reference)).read_config().ok();
        Some(memory::parts(train, self.config.vocab_size, near.then(reference).flatten().as_ref()))
    }

    /// Where the weights come from.
    fn origin(&self) -> Map<String, Value> {
        let mut origin = Map::new();
        if let Some(train) = self.train {
            origin.insert("made by".into(), "tinygpt train".into());
            origin.insert("name".into(), train.name.clone().into());
            if train.lora.rank > 0 {
                origin.insert("adapter".into(), format!("rank {} on the model below base/", train.lora.rank).into());
            }
        } else if let Some(kinds) = &self.stored {
            origin.insert("made by".into(), format!("a GGUF file of {}", kinds.join(" and ")).into());
        } else {
            origin.insert("made by".into(), "others: a folder of Hugging Face without a train.toml".into());
            // The folder was opened, so that the file is JSON.
            let config: Value = read_json(&self.path.join(CONFIG_FILE)).unwrap_or_default();
            for key in ["_name_or_path", "transformers_version", "model_type"] {
                if let Some(value) = config.get(key).filter(|value| !value.is_null()) {
                    origin.insert(key.into(), value.clone());
                }
            }
        }
        origin
    }
}

/// The FLOPs of the products for a token, forward and in training: the mean over a context of `block_size` tokens.
fn flops_per_token(config: &GptConfig) -> (f64, f64) {
    let (net, t) = (network(config), config.block_size);
    (2.0 * net.multiply_adds(t) / t as f64, net.flops_of_update(1, t) / t as f64)
}

fn name(component: Component) -> &'static str {
    match component {
        Component::Embedding => "embedding",
        Component::Positions => "positions",
        Component::Attention => "attention",
        Component::Mlp => "mlp",
        Component::Norms => "norms",
        Component::Head => "head",
    }
}
