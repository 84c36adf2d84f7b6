//! The model folder: `config.json`, `generation_config.json`, `model.safetensors`, `tokenizer.json`, `tokenizer_config.json`.
//! That of a GPT-2, a Qwen3 or a Llama is Hugging Face's: `transformers` loads it, and this program loads such folders that
//! others wrote, whose weights may be in shards and whose tokenizer in GPT-2's two files. Any other network opens here alone.

use std::{
    borrow::Cow,
    collections::HashMap,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{
    CONFIG_FILE, FORMAT_KEY, GenerationDefaults, MODEL_FORMAT, WEIGHTS_FILE, Weights, check_format,
    config_json::{self, Description},
    layout::{Layout, stored_tensors},
    tensors::write_tensors,
    weight_files::{self, WEIGHTS_INDEX, WeightFiles},
};
use crate::{
    GptConfig, ModelError, Result,
    files::{FileError, atomic, read_json},
    ngram::is_ngram_folder,
    param_specs,
    params::check_values,
    plan::Role,
    tokenizer::{GPT2_FILES, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, Tokenizer},
};

const GENERATION: &str = "generation_config.json";
/// PyTorch's files of weights, in one and in several.
const PICKLES: [&str; 2] = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
/// A tokenizer of the `sentencepiece` library.
const SENTENCEPIECE: &str = "tokenizer.model";

/// A folder with a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFolder {
    path: PathBuf,
}

impl ModelFolder {
    /// The model folder at this path; nothing is read yet.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes everything but the weights.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn write_description(
        &self,
        config: &GptConfig,
        tokenizer: &Tokenizer,
        defaults: &GenerationDefaults,
    ) -> Result<()> {
        let write_json = |name: &str, value: &Value| {
            let path = self.path.join(name);
            let text = serde_json::to_string_pretty(value).map_err(|e| FileError::content(&path, e))?;
            atomic::write(&path, (text + "\n").as_bytes())
        };
        atomic::write(&self.path.join(TOKENIZER_FILE), tokenizer.json())?;
        write_json(TOKENIZER_CONFIG_FILE, &tokenizer.tokenizer_config(config.block_size))?;
        write_json(GENERATION, &defaults.to_json(tokenizer.end_of_text()))?;
        Ok(write_json(CONFIG_FILE, &config_json::write(config, tokenizer.end_of_text()))?)
    }

    /// Writes the weights, given in parameter order. Where a GPT-2 has no biases, zeros are written, since Hugging Face's
    /// always has them.
    ///
    /// # Errors
    /// When the values do not match the configuration, or the disk is full.
    pub fn write_weights(&self, config: &GptConfig, params: &[Vec<f32>]) -> Result<()> {
        let specs = param_specs(config);
        check_values(&specs, params)?;
        let mut tensors: HashMap<String, (Vec<usize>, Cow<'_, [f32]>)> = HashMap::new();
        for (spec, values) in specs.iter().zip(params) {
            for stored in stored_tensors(spec, Layout::of_folder(config)) {
                let values = stored.take_from(values);
                tensors.insert(stored.name, (stored.shape, values));
            }
        }
        let zeros = vec![0.0; config.hidden().max(3 * config.n_embd)];
        let with_biases = GptConfig { bias: config.bias || config.is_gpt2(), ..config.clone() };
        for spec in param_specs(&with_biases).into_iter().filter(|spec| spec.role == Role::Bias) {
            let n = spec.len();
            tensors.entry(spec.name).or_insert_with(|| (spec.shape, zeros[..n].into()));
        }
        // `transformers` loads nothing without this format.
        let metadata = json!({ "format": "pt", FORMAT_KEY: MODEL_FORMAT.to_string() });
        let tensors = tensors.iter().map(|(name, (shape, values))| (name.clone(), (shape.clone(), &**values)));
        Ok(write_tensors(&self.path.join(WEIGHTS_FILE), tensors, metadata)?)
    }

    /// Reads the shape and the weights (in parameter order) of the model.
    ///
    /// # Errors
    /// When a file is missing, truncated or foreign, or a tensor is missing or has another shape.
    pub fn read(&self) -> Result<(GptConfig, Vec<Vec<f32>>)> {
        let (config, weights) = self.map()?;
        Ok((config, weights.into_values()))
    }

    /// Reads the shape of the model and maps its weights.
    ///
    /// # Errors
    /// As [`ModelFolder::read`].
    pub fn map(&self) -> Result<(GptConfig, Weights)> {
        self.check()?;
        let model = self.describe()?;
        let weights = Weights::new(WeightFiles::open(&self.path)?, &model)?;
        Ok((model.config, weights))
    }

    fn check(&self) -> Result<()> {
        let not_a_model = |reason: String| ModelError::NotAModelFolder { path: self.path.clone(), reason };
        if !self.path.is_dir() {
            return Err(not_a_model("there is no such folder".into()));
        }
        if is_ngram_folder(&self.path) {
            return Err(not_a_model(
                "it is an n-gram model, which `generate`, `eval`, `score` and `compare` take".into(),
            ));
        }
        let has = |name: &str| self.path.join(name).is_file();
        let saved_again = |class: &str| {
            let python = format!(
                "import sys, transformers as t; t.{class}.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[1])"
            );
            format!("python3 -c \"{python}\" {}", shell_word(&self.path))
        };
        if !has(CONFIG_FILE) {
            return Err(not_a_model(format!("it has no {CONFIG_FILE}")));
        }
        if !has(WEIGHTS_FILE) && !has(WEIGHTS_INDEX) {
            let pickle = PICKLES.iter().find(|name| has(name)).map(|name| {
                let command = saved_again("AutoModelForCausalLM");
                format!(
                    ": {name} is a pickle, which can run any program and is not opened here; convert it by {command}"
                )
            });
            return Err(not_a_model(format!("it has no {WEIGHTS_FILE}{}", pickle.unwrap_or_default())));
        }
        if !has(TOKENIZER_FILE) && !GPT2_FILES.iter().all(|name| has(name)) {
            let [vocabulary, merges] = GPT2_FILES;
            let other = has(SENTENCEPIECE)
                .then(|| format!("; {SENTENCEPIECE} is not read here, convert it by {}", saved_again("AutoTokenizer")));
            return Err(not_a_model(format!(
                "it has no {TOKENIZER_FILE}, nor {vocabulary} with {merges}{}",
                other.unwrap_or_default()
            )));
        }
        Ok(())
    }

    /// Reads the weights, in parameter order.
    ///
    /// # Errors
    /// When the file is missing, truncated or foreign, or a tensor is missing or has another shape.
    pub fn read_weights(&self, config: &GptConfig) -> Result<Vec<Vec<f32>>> {
        let model = Description { config: config.clone(), ..self.describe()? };
        Ok(Weights::new(WeightFiles::open(&self.path)?, &model)?.into_values())
    }

    /// The files of the weights: one, or several where an index lists them.
    ///
    /// # Errors
    /// When the index is broken.
    pub fn weight_files(&self) -> Result<Vec<PathBuf>> {
        Ok(weight_files::paths(&self.path)?)
    }

    /// Reads the shape of the model.
    ///
    /// # Errors
    /// When `config.json` is missing or broken, or asks for what this program does not do.
    pub fn read_config(&self) -> Result<GptConfig> {
        Ok(self.describe()?.config)
    }

    fn describe(&self) -> Result<Description> {
        let path = self.path.join(CONFIG_FILE);
        Ok(config_json::parse(&path, &read_json(&path)?)?)
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// When its files are missing or broken.
    pub fn read_tokenizer(&self) -> Result<Tokenizer> {
        Ok(Tokenizer::from_folder(&self.path)?)
    }

    /// The defaults for generation; all absent where there is no such file.
    ///
    /// # Errors
    /// When the file is not JSON, or of another format.
    pub fn read_generation_defaults(&self) -> Result<GenerationDefaults> {
        let path = self.path.join(GENERATION);
        if !path.is_file() {
            return Ok(GenerationDefaults::default());
        }
        let value: Value = read_json(&path)?;
        check_format(&path, &value)?;
        serde_json::from_value(value).map_err(|e| FileError::content(&path, e).into())
    }
}

/// A path as a word of a shell's command.
fn shell_word(path: &Path) -> String {
    let path = path.display().to_string();
    let plain = |ch: char| ch.is_ascii_alphanumeric() || "/._-".contains(ch);
    if path.chars().all(plain) { path } else { format!("'{}'", path.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_word_of_a_shell() {
        for (path, word) in [("runs/a-1.b", "runs/a-1.b"), ("a b", "'a b'"), ("it's", r"'it'\''s'"), ("$(x)", "'$(x)'")]
        {
            assert_eq!(shell_word(Path::new(path)), word);
        }
    }
}
