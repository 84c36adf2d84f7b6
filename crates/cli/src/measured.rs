//! The models that are measured, and the texts that they are measured on.

use std::path::{Path, PathBuf};

use tinygpt_model::{
    Checkpoint, LanguageModel, Tokenizer,
    ngram::{is_ngram_folder, open_with_tokenizer},
    open_language_model,
};
use tinygpt_trainer::{
    Dataset, RunDir, TrainError,
    config::{DataConfig, RunConfig},
    corpus::STANDARD_INPUT,
    data::{BUILTIN_CORPUS, Source, Split},
    run::RUNS,
    token_cache::default_cache_dir,
};

use crate::{device::DeviceChoice, hub, output::Usage, preparing::preparation};

/// A model that was opened to be measured.
pub struct Measured {
    /// Its folder.
    pub path: PathBuf,
    /// From text to tokens and back.
    pub tokenizer: Tokenizer,
    /// What gives the distributions.
    pub model: Box<dyn LanguageModel>,
}

impl Measured {
    /// Opens the model of a folder, or of the newest run, on a device.
    pub fn open(run: Option<&Path>, device: DeviceChoice) -> anyhow::Result<Self> {
        Self::open_adapted(run, None, device)
    }

    /// As [`Measured::open`], with an adapter of the weights if one is given.
    pub fn open_adapted(run: Option<&Path>, adapter: Option<&Path>, device: DeviceChoice) -> anyhow::Result<Self> {
        if run.is_none() && adapter.is_some() {
            return Err(Usage("--adapter needs the model that it is for: give its folder as RUN".into()).into());
        }
        let path = match run {
            Some(path) => hub::folder(path)?.into_owned(),
            None => newest_run()?,
        };
        if is_ngram_folder(&path) && adapter.is_none() {
            device.expect_cpu_for_ngrams()?;
            let (model, tokenizer) = open_with_tokenizer(&path)?;
            return Ok(Self { path, tokenizer, model: Box::new(model) });
        }
        let mut checkpoint = Checkpoint::open(&path)?;
        if let Some(adapter) = adapter {
            checkpoint = checkpoint.with_adapter(&*hub::folder(adapter)?)?;
        }
        let (config, params, tokenizer) = checkpoint.into_parts();
        let model = open_language_model(&config, &params, &device.open()?)?;
        Ok(Self { path, tokenizer, model })
    }

    /// The texts that the run was trained on and is validated by.
    pub fn dataset(&self) -> anyhow::Result<Dataset> {
        anyhow::ensure!(
            !is_ngram_folder(&self.path),
            "{} is an n-gram model and no run, so it has no corpus; `tinygpt eval` takes a text by --data",
            self.path.display()
        );
        let run = RunDir::open(&self.path)?;
        let RunConfig { data, seed, .. } = run.read_config(&[])?;
        if data.corpus == STANDARD_INPUT {
            return Err(TrainError::TextNotKept { run: self.path.clone() }.into());
        }
        let source_hash = run.last().read_state()?.source_hash;
        let (tokenizer, cache) = (Some(self.tokenizer.clone()), default_cache_dir());
        Ok(Dataset::load_same(&data, seed, tokenizer, &cache, Some(&source_hash), &preparation())?)
    }

    /// All tokens of a text, read as the run read its own, but for another key of its records; or those of a file of tokens. Of the
    /// built-in corpus it is what is held out by the run's seed, or by the default one.
    pub fn text(&self, path: &str, text_key: Option<&str>) -> anyhow::Result<Split> {
        let config = match RunDir::open(&self.path) {
            Ok(run) => run.read_config(&[])?,
            Err(_) => RunConfig::default(),
        };
        if path == BUILTIN_CORPUS {
            if text_key.is_some() {
                return Err(Usage("the built-in corpus has no records, and so no --text-key".into()).into());
            }
            let RunConfig { data: DataConfig { stories_bytes, val_fraction, .. }, seed, .. } = config;
            let data = DataConfig { stories_bytes, val_fraction, ..DataConfig::default() };
            return Ok(Dataset::load(&data, seed, Some(self.tokenizer.clone()), &default_cache_dir())?.val);
        }
        let mut options = config.data.corpus_options();
        if let Some(key) = text_key {
            options.text_key = key.into();
        }
        let source = Source::open(path, &options)?.followed_by(&preparation());
        let digest = source.sha256()?;
        Ok(Split::whole(source.tokens(digest, &self.tokenizer, &default_cache_dir())?, None))
    }
}

/// The newest run, which is named on standard error, since nobody else did.
pub fn newest_run() -> anyhow::Result<PathBuf> {
    let path = RunDir::latest(Path::new(RUNS))?.path().to_owned();
    notice!("run: {}", path.display());
    Ok(path)
}
