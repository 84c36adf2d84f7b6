//! The model folder: `config.json`, `generation_config.json`, `model.safetensors`, `tokenizer.json`, `tokenizer_config.json`.
//! That of a GPT-2, a Qwen3 or a Llama is Hugging Face's: `transformers` loads it, and this program loads such folders that
//! others wrote, whose weights may be in shards and whose tokenizer in GPT-2's two files. Any other network opens here alone.
//! Where a folder is read, a GGUF file may stand.

use std::{
    borrow::Cow,
    collections::HashMap,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{
    CONFIG_FILE, FORMAT_KEY, FloatType, GenerationDefaults, MODEL_FORMAT, WEIGHTS_FILE, Weights, check_format,
    config_json::{self, AttentionScale, Boundaries, Description},
    layout::{Layout, params_of_file, stored_tensors},
    missing_files::check_files,
    tensors::write_tensors_as,
    weight_files::{self, WeightFiles},
};
use crate::{
    GptConfig, Result,
    files::{FileError, atomic, read_json},
    gguf::GgufFile,
    param_specs,
    params::check_values,
    tokenizer::{TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, Tokenizer},
};

const GENERATION_FILE: &str = "generation_config.json";

/// A folder with a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFolder {
    path: PathBuf,
}

impl ModelFolder {
    /// The model folder at this path, or the GGUF file that is read as one; nothing is read yet.
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
        self.write_description_as(FloatType::F32, config, tokenizer, defaults)
    }

    /// Writes everything but the weights, which [`ModelFolder::write_weights_as`] writes in this type.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn write_description_as(
        &self,
        kind: FloatType,
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
        write_json(GENERATION_FILE, &defaults.to_json(tokenizer))?;
        Ok(write_json(CONFIG_FILE, &config_json::write(config, Boundaries::of(tokenizer), kind))?)
    }

    /// Writes the weights, given in parameter order. Where a GPT-2 has no biases, zeros are written, since Hugging Face's
    /// always has them.
    ///
    /// # Errors
    /// When the values do not match the configuration, or the disk is full.
    pub fn write_weights(&self, config: &GptConfig, params: &[Vec<f32>]) -> Result<()> {
        let slices: Vec<&[f32]> = params.iter().map(Vec::as_slice).collect();
        self.write_weights_as(FloatType::F32, config, &slices)
    }

    /// As [`ModelFolder::write_weights`], rounded to another type.
    ///
    /// # Errors
    /// When the values do not match the configuration, one is too large for the type, or the disk is full.
    pub fn write_weights_as(&self, kind: FloatType, config: &GptConfig, params: &[&[f32]]) -> Result<()> {
        check_values(&param_specs(config), params)?;
        let in_file = params_of_file(config, params);
        let mut tensors: HashMap<String, (Vec<usize>, Cow<'_, [f32]>)> = HashMap::new();
        for (spec, values) in &in_file {
            for stored in stored_tensors(spec, Layout::of_folder(config)) {
                let values = stored.take_from(values);
                tensors.insert(stored.name, (stored.shape, values));
            }
        }
        // `transformers` loads nothing without this format.
        let metadata = json!({ "format": "pt", FORMAT_KEY: MODEL_FORMAT.to_string() });
        let tensors = tensors.iter().map(|(name, (shape, values))| (name.clone(), (shape.clone(), &**values)));
        Ok(write_tensors_as(kind, &self.path.join(WEIGHTS_FILE), tensors, metadata)?)
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
        if let Some(file) = self.gguf()? {
            let config = file.config()?;
            let weights = file.into_weights(&config)?;
            return Ok((config, weights));
        }
        check_files(&self.path)?;
        let model = self.describe()?;
        let weights = Weights::new(WeightFiles::open(&self.path)?, &model)?;
        Ok((model.config, weights))
    }

    /// As [`ModelFolder::map`], with the tokenizer.
    ///
    /// # Errors
    /// As [`ModelFolder::map`] and [`ModelFolder::read_tokenizer`]; when the tokenizer has more tokens than the model.
    pub fn map_with_tokenizer(&self) -> Result<(GptConfig, Weights, Tokenizer)> {
        let (config, weights) = self.map()?;
        let tokenizer = self.read_tokenizer()?;
        let (tokens, rows) = (tokenizer.vocab_size(), config.vocab_size);
        if tokens > rows {
            let reason = format!("its tokenizer has {tokens} tokens, and its embedding {rows}");
            return Err(FileError::content(&self.path, reason).into());
        }
        Ok((config, weights, tokenizer))
    }

    /// The file, where the path is that of a file.
    fn gguf(&self) -> Result<Option<GgufFile>> {
        self.path.is_file().then(|| GgufFile::open(&self.path)).transpose()
    }

    /// Reads the weights, in parameter order.
    ///
    /// # Errors
    /// When the file is missing, truncated or foreign, or a tensor is missing or has another shape.
    pub fn read_weights(&self, config: &GptConfig) -> Result<Vec<Vec<f32>>> {
        Ok(self.map_weights(config)?.into_values())
    }

    /// Maps the weights of a model of this shape.
    ///
    /// # Errors
    /// As [`ModelFolder::read_weights`].
    pub fn map_weights(&self, config: &GptConfig) -> Result<Weights> {
        if let Some(file) = self.gguf()? {
            return file.into_weights(config);
        }
        // Weights of our own may lie in a folder without a description yet; they are as in memory.
        let has_description = self.path.join(CONFIG_FILE).is_file();
        let described = has_description.then(|| self.describe()).transpose()?;
        let attention_scale = described.map_or_else(AttentionScale::default, |model| model.attention_scale);
        let model = Description { config: config.clone(), attention_scale };
        Ok(Weights::new(WeightFiles::open(&self.path)?, &model)?)
    }

    /// The files of the weights: one, or several where an index lists them.
    ///
    /// # Errors
    /// When the index is broken.
    pub fn weight_files(&self) -> Result<Vec<PathBuf>> {
        if self.path.is_file() { Ok(vec![self.path.clone()]) } else { Ok(weight_files::paths(&self.path)?) }
    }

    /// Reads the shape of the model.
    ///
    /// # Errors
    /// When `config.json` is missing or broken, or asks for what this program does not do.
    pub fn read_config(&self) -> Result<GptConfig> {
        if let Some(file) = self.gguf()? {
            return file.config();
        }
        Ok(self.describe()?.config)
    }

    fn describe(&self) -> Result<Description> {
        let path = self.path.join(CONFIG_FILE);
        Ok(config_json::parse(&path, &read_json(&path)?)?)
    }

    /// The tokenizer, with all tokens that end what is generated.
    ///
    /// # Errors
    /// When its files are missing or broken.
    pub fn read_tokenizer(&self) -> Result<Tokenizer> {
        if let Some(file) = self.gguf()? {
            return file.tokenizer();
        }
        Ok(Tokenizer::from_folder(&self.path)?.with_other_ends(self.generation_ends()?))
    }

    /// The tokens that end what is generated: `eos_token_id` of `generation_config.json` or, without it, of `config.json`, as in
    /// `transformers`. Negative numbers stand for none.
    fn generation_ends(&self) -> Result<Vec<u32>> {
        for path in [GENERATION_FILE, CONFIG_FILE].map(|name| self.path.join(name)).into_iter().filter(|p| p.is_file())
        {
            let file: Value = read_json(&path)?;
            let ids = match &file["eos_token_id"] {
                Value::Null => continue,
                Value::Array(ids) => ids.as_slice(),
                id => std::slice::from_ref(id),
            };
            if let Some(other) = ids.iter().find(|id| id.as_i64().is_none()) {
                let reason = format!("`eos_token_id` has {other}, which is not the id of a token");
                return Err(FileError::content(&path, reason).into());
            }
            return Ok(ids.iter().filter_map(|id| u32::try_from(id.as_i64()?).ok()).collect());
        }
        Ok(Vec::new())
    }

    /// The defaults for generation; all absent where there is no such file.
    ///
    /// # Errors
    /// When the file is not JSON, or of another format.
    pub fn read_generation_defaults(&self) -> Result<GenerationDefaults> {
        let path = self.path.join(GENERATION_FILE);
        if !path.is_file() {
            return Ok(GenerationDefaults::default());
        }
        let value: Value = read_json(&path)?;
        check_format(&path, &value)?;
        serde_json::from_value(value).map_err(|e| FileError::content(&path, e).into())
    }
}
