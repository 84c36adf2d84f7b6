//! Starting and resuming: everything is read and checked before the first file is written.

use std::{
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use candle_core::Device;
use tinygpt_model::{Adapter, GptConfig};

use super::{
    IfExists, InitialModel, LoopState, Notice, Part, RUNS, RunDir, notices,
    reference::{OpenReference, objective},
    start,
};
use crate::{
    Dataset, Result, TrainError,
    config::RunConfig,
    corpus::STANDARD_INPUT,
    data::BUILTIN_CORPUS,
    engine::{self, Engine, EngineState, Objective},
    memory,
    preparation::{Preparation, Stage},
    token_cache::default_cache_dir,
    train::{OnEvent, Outcome, Trainer, check_data},
};

/// A run that is about to start or to go on.
pub struct Run {
    dir: RunDir,
    config: RunConfig,
    data: Dataset,
    engine: Box<dyn Engine>,
    state: LoopState,
    notices: Vec<Notice>,
    is_new: bool,
}

/// How a run is started.
#[derive(Debug, Clone)]
pub struct StartOptions {
    /// The run's folder; without it, the next `runs/NAME-N`.
    pub out: Option<PathBuf>,
    /// What to do where that folder holds something already.
    pub if_exists: IfExists,
    /// Where the tokens of text files are kept.
    pub cache_dir: PathBuf,
    /// What to train on.
    pub device: Device,
    /// The model to start from; without it, random weights.
    pub init_from: Option<InitialModel>,
    /// Is told how far the preparation of the corpus is, and asked for the last time whether to end before anything is written.
    pub preparation: Preparation,
}

impl Default for StartOptions {
    fn default() -> Self {
        let (if_exists, cache_dir) = (IfExists::Refuse, default_cache_dir());
        let preparation = Preparation::default();
        Self { out: None, if_exists, cache_dir, device: Device::Cpu, init_from: None, preparation }
    }
}

/// How a run goes on.
#[derive(Debug, Clone)]
pub struct ResumeOptions {
    /// `KEY=VALUE`, of the keys that may change.
    pub overrides: Vec<String>,
    /// Where the same text is now, if it was moved.
    pub corpus: Option<String>,
    /// Where the tokens of text files are kept.
    pub cache_dir: PathBuf,
    /// What to train on.
    pub device: Device,
    /// As that of [`StartOptions`].
    pub preparation: Preparation,
}

impl Default for ResumeOptions {
    fn default() -> Self {
        Self {
            overrides: Vec::new(),
            corpus: None,
            cache_dir: default_cache_dir(),
            device: Device::Cpu,
            preparation: Preparation::default(),
        }
    }
}

/// Deletes the folder of a run that failed with `error`, which is what the caller hears of first.
fn discarded(dir: RunDir, error: TrainError) -> TrainError {
    match dir.discard() {
        Ok(()) => error,
        Err(also) => TrainError::AndNotDiscarded { error: Box::new(error), also: Box::new(also) },
    }
}

impl Run {
    /// A new run. Where this fails, no folder is left, and a run that was to be replaced is as it was.
    ///
    /// # Errors
    /// When the configuration, the corpus, the device or the memory does not allow it; [`TrainError::RunExists`] and
    /// [`TrainError::NotOurs`] as [`RunDir::create`].
    pub fn start(config: RunConfig, options: StartOptions) -> Result<Self> {
        let StartOptions { out, if_exists, cache_dir, device, init_from, preparation } = options;
        let mut config = config.resolved()?;
        start::check_init(&config, init_from.as_ref())?;
        if let Some(out) = &out {
            RunDir::check_new(out, if_exists)?;
        }
        engine::check_precision(config.train.precision, &device)?;
        let reference = OpenReference::open(&config)?;
        let shape = reference.as_ref().map(OpenReference::gpt);
        // Before the corpus is read, which may take minutes; and once more when the vocabulary is known.
        check_memory(&config, 1, shape, &device)?;
        let tokenizer = init_from.as_ref().map(|model| model.tokenizer().clone());
        let data = Dataset::load_same(&config.data, config.seed, tokenizer, &cache_dir, None, &preparation)?;
        check_data(&config, &data)?;
        let gpt = config.gpt(init_from.as_ref().map_or(data.tokenizer.vocab_size(), |model| model.gpt().vocab_size));
        check_memory(&config, gpt.vocab_size, shape, &device)?;
        if let Some(reference) = &reference {
            reference.check(&gpt, &data.tokenizer, None)?;
        }
        let notices = notices::warnings(&config, &gpt, &data, init_from.is_none())?;
        let mut state = LoopState::fresh(data.source_hash.clone());
        state.reference_hash = reference.as_ref().map(|reference| reference.hash.clone());
        let weights = start::weights(&config, &gpt, init_from.as_ref(), &mut state)?;
        let engine = open_engine(&gpt, &config, objective(&config, reference), &weights, &device)?;
        preparation.begin(Stage::Ready)?;
        let dir = match &out {
            Some(out) => RunDir::create(out, if_exists)?,
            None => RunDir::create_numbered(Path::new(RUNS), &config.name)?,
        };
        make_absolute(&mut config)?;
        let described = describe(&dir, &config, &gpt, &data).and_then(|()| start::write_base(&dir, &gpt, &weights));
        if let Err(error) = described {
            // A folder with half a description is of no use to anybody.
            return Err(discarded(dir, error));
        }
        Ok(Self { dir, config, data, engine, state, notices, is_new: true })
    }

    /// A run that goes on after its last save. Where this fails, its files are as they were.
    ///
    /// # Errors
    /// When there is no run, another process writes to it, one of its files is damaged, its corpus has changed, or an
    /// override is of a key that a run keeps.
    pub fn resume(path: impl AsRef<Path>, options: ResumeOptions) -> Result<Self> {
        let ResumeOptions { overrides, corpus, cache_dir, device, preparation } = options;
        let dir = RunDir::open_for_writing(path.as_ref())?;
        let mut config = dir.read_config(&overrides)?;
        engine::check_precision(config.train.precision, &device)?;
        if let Some(corpus) = corpus {
            config.data.corpus = corpus;
            make_absolute(&mut config)?;
        } else if config.data.corpus == STANDARD_INPUT {
            return Err(TrainError::TextNotKept { run: dir.path().to_owned() });
        }
        let mut state = dir.last().read_state()?;
        let max_steps = config.train.max_steps;
        if max_steps < state.step {
            return Err(TrainError::StepsAlreadyMade { max_steps, step: state.step });
        }
        // Dropout is the one key of the network that may change.
        let gpt = GptConfig { dropout: config.model.dropout, ..dir.model().read_config()? };
        let reference = OpenReference::open(&config)?;
        check_memory(&config, gpt.vocab_size, reference.as_ref().map(OpenReference::gpt), &device)?;
        // The best weights are needed at the end: better to know now that they are damaged. Those of the last step are
        // written again where they are.
        if state.best.is_some() && !state.is_best() {
            dir.model().read_weights(&gpt)?;
            if config.lora.rank > 0 {
                Adapter::open(dir.adapter(), &gpt)?;
            }
        }
        let tokenizer = dir.model().read_tokenizer()?;
        let expected = Some(state.source_hash.as_str());
        let data = Dataset::load_same(&config.data, config.seed, Some(tokenizer), &cache_dir, expected, &preparation)?;
        check_data(&config, &data)?;
        if let Some(reference) = &reference {
            reference.check(&gpt, &data.tokenizer, Some(&state))?;
        }
        let adapter = start::base_of_adapter(&dir, &config, &gpt, &state)?;
        let weights = dir.last().read_engine(&gpt, &state, adapter)?;
        let engine = open_engine(&gpt, &config, objective(&config, reference), &weights, &device)?;
        let before = dir.read_config(&[])?;
        let changes = config.changes_since(&before)?;
        let part = Part::now(state.step, state.seconds);
        state.parts.push(Part { changes: changes.clone(), ..part });
        let notices = notices::of_resumed(&dir, (&before, &config), &gpt, &data, &state)?;
        preparation.begin(Stage::Ready)?;
        if !changes.is_empty() {
            // First the history, then what it tells of: a crash in between repeats an entry, and loses none.
            dir.last().write_state(&state)?;
            describe(&dir, &config, &gpt, &data)?;
        }
        Ok(Self { dir, config, data, engine, state, notices, is_new: false })
    }

    /// Trains until a limit of the configuration is reached or `stop` is set, then evaluates the best weights on the whole
    /// validation split. What it writes depends on the configuration and the corpus alone, but for times: not on where it
    /// was interrupted and resumed. A new run that fails before its first save leaves no folder.
    ///
    /// # Errors
    /// When the loss is no number any more, the disk is full or the device fails: what was saved last stays whole. And
    /// [`TrainError::Callback`] when `on_event` fails, after everything was saved.
    pub fn train(self, stop: &AtomicBool, on_event: OnEvent<'_>) -> Result<Outcome> {
        let Self { dir, config, data, mut engine, state, is_new, .. } = self;
        let trainer = Trainer { config: &config, data: &data, engine: engine.as_mut(), run: &dir, state };
        trainer.train(stop, on_event).map_err(|error| {
            // Not saved even once: of no use to anybody, and a run that was to be overwritten comes back.
            if is_new && !dir.is_saved() { discarded(dir, error) } else { error }
        })
    }

    /// The run's folder.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The configuration as resolved.
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// The shape of the model.
    pub fn gpt(&self) -> &GptConfig {
        self.engine.config()
    }

    /// The tokens.
    pub fn data(&self) -> &Dataset {
        &self.data
    }

    /// Where the run starts or goes on.
    pub fn state(&self) -> &LoopState {
        &self.state
    }

    /// What its user should know before it starts or goes on.
    pub fn notices(&self) -> &[Notice] {
        &self.notices
    }
}

fn open_engine(
    gpt: &GptConfig,
    config: &RunConfig,
    objective: Objective,
    state: &EngineState,
    device: &Device,
) -> Result<Box<dyn Engine>> {
    let mut engine = engine::open(gpt, config.train.precision, &config.train, config.seed, state, device)?;
    engine.set_objective(&objective)?;
    Ok(engine)
}

/// Everything of a run's folder that is known before it is trained.
fn describe(dir: &RunDir, config: &RunConfig, gpt: &GptConfig, data: &Dataset) -> Result<()> {
    dir.write_config(config)?;
    Ok(dir.model().write_description(gpt, &data.tokenizer, &(&config.generate).into())?)
}

/// The corpus, the tokenizer and the reference are to be found again from any folder.
pub(crate) fn make_absolute(config: &mut RunConfig) -> Result<()> {
    let RunConfig { data, train, .. } = config;
    if data.corpus != BUILTIN_CORPUS {
        data.corpus = match Path::new(&data.corpus).exists() {
            true => absolute(&data.corpus)?,
            // Some paths, a line each.
            false => data.corpus.lines().map(absolute).collect::<Result<Vec<_>>>()?.join("\n"),
        };
    }
    for path in [&mut data.val, &mut data.tokenizer_path, &mut train.reference] {
        *path = absolute(path)?;
    }
    Ok(())
}

/// A path that does not depend on the current folder, where something is there.
fn absolute(path: &str) -> Result<String> {
    if path.is_empty() || !Path::new(path).exists() {
        return Ok(path.into());
    }
    let absolute = std::path::absolute(path).map_err(TrainError::io("find", Path::new(path)))?;
    Ok(absolute.to_string_lossy().into_owned())
}

/// Refuses a run on the CPU, with a model to stay near of the shape `reference`, that the machine has no memory for. That of a
/// GPU is its own, and its driver's errors are no aborts.
///
/// # Errors
/// [`TrainError::TooLarge`].
pub fn check_memory(
    config: &RunConfig,
    vocab_size: usize,
    reference: Option<&GptConfig>,
    device: &Device,
) -> Result<()> {
    if device.is_cpu() { memory::check(config, vocab_size, reference) } else { Ok(()) }
}
