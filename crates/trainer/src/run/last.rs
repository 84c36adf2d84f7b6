//! `last/`: the weights, the optimizer and the state of the loop, all of one update.
//!
//! Weights and optimizer go to files named for their update, then `state.json`, which names the update, is renamed into
//! place: whatever happens in between, it points to files of one and the same update.

use std::{fs, path::PathBuf, time::SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::json;
use tinygpt_model::{
    Adapter, AdapterShape, GptConfig, ParamSpec,
    checkpoint::{
        FORMAT_KEY, SafetensorsSummary,
        tensors::{Tensors, read_weights, write_tensors},
    },
    files::{FileError, atomic, read_json},
};

use super::Origin;
use crate::{
    Result, TrainError,
    config::{Change, TrainConfig},
    engine::{EngineState, LossScaling, StateSlot},
    evaluate::Report,
    metrics::{Metrics, RowKind},
    train::StopReason,
};

/// The format of the files in `last/`.
pub const LAST_FORMAT: u64 = 1;

const STATE: &str = "state.json";
/// Beside the moments in the optimizer's file, in f16: scale, good updates and skipped ones, whole numbers all.
const LOSS_SCALING: &str = "loss_scaling";

/// The state of the training loop after an update.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoopState {
    /// [`LAST_FORMAT`].
    pub format: u64,
    /// Updates made.
    pub step: u64,
    /// The evaluation with the lowest validation loss so far.
    pub best: Option<Best>,
    /// Evaluations since then.
    pub evaluations_since_best: u64,
    /// The update of the last evaluation that this state has seen. It is absent before the first one, and in the states
    /// of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_evaluation: Option<u64>,
    /// [`Metrics::update_ratio`](crate::metrics::Metrics::update_ratio) of the last update, while its evaluation has not been
    /// seen: an evaluation that is made after an interruption tells it as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_ratio: Option<f64>,
    /// Seconds spent in training, evaluations included, over all parts of the run.
    pub seconds: f64,
    /// SHA-256 of the corpus.
    pub source_hash: String,
    /// SHA-256 of the weights of `train.reference`, where the run stays near one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference_hash: Option<String>,
    /// Where the run's weights come from, where they were no random ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_from: Option<Origin>,
    /// The evaluation at the end, while no update has been made since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub final_evaluation: Option<FinalEvaluation>,
    /// The parts of the run, of which each but the first is a resumption. There are none in the states of earlier versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<Part>,
}

impl LoopState {
    /// The state before the first update.
    pub fn fresh(source_hash: String) -> Self {
        Self {
            format: LAST_FORMAT,
            step: 0,
            best: None,
            evaluations_since_best: 0,
            last_evaluation: None,
            update_ratio: None,
            seconds: 0.0,
            source_hash,
            reference_hash: None,
            final_evaluation: None,
            parts: vec![Part::now(0, 0.0)],
            init_from: None,
        }
    }

    /// Whether the weights of this update are the best so far.
    pub fn is_best(&self) -> bool {
        self.best.is_some_and(|best| best.step == self.step)
    }

    /// Which limit of the configuration is reached, if any.
    pub fn ending(&self, train: &TrainConfig) -> Option<StopReason> {
        if self.step >= train.max_steps {
            Some(StopReason::MaxSteps)
        } else if train.patience > 0 && self.evaluations_since_best >= train.patience {
            Some(StopReason::Patience)
        } else if self.out_of_time(train) {
            Some(StopReason::MaxMinutes)
        } else {
            None
        }
    }

    /// The batch size with which the run began. Evaluations go by it, so that the losses before and after a change of it are of the
    /// same windows.
    pub fn first_batch_size(&self, train: &TrainConfig) -> usize {
        let changes = self.parts.iter().flat_map(|part| &part.changes);
        let first =
            changes.filter(|change| change.key == "train.batch_size").find_map(|change| change.from.parse().ok());
        first.unwrap_or(train.batch_size)
    }

    /// How many windows an evaluation on the way is of; 0 is the whole validation split.
    pub fn eval_windows(&self, train: &TrainConfig) -> usize {
        self.first_batch_size(train).saturating_mul(train.eval_batches)
    }

    /// Whether this state was saved after a line of the metrics was written, and knows what it says. A crash may leave
    /// lines that the state has not seen: their updates and evaluations are made again.
    pub(crate) fn has_seen(&self, row: &Metrics) -> bool {
        match row.kind {
            RowKind::Train => row.step <= self.step,
            RowKind::Eval => Some(row.step) <= self.last_evaluation,
        }
    }

    /// Where a state of an earlier version does not say which evaluation it saw last, the lines of the metrics do: it
    /// has seen the best one and as many after it as it has counted.
    pub(crate) fn infer_last_evaluation(&mut self, rows: &[Metrics]) {
        let Some(Best { step: best, .. }) = self.best else { return };
        let after_best = rows.iter().filter(|row| row.kind == RowKind::Eval && row.step > best).map(|row| row.step);
        let seen = after_best.take(self.evaluations_since_best as usize).last();
        self.last_evaluation = self.last_evaluation.or(seen).or(Some(best));
    }

    pub(crate) fn out_of_time(&self, train: &TrainConfig) -> bool {
        train.max_minutes > 0.0 && self.seconds >= 60.0 * train.max_minutes
    }
}

/// A part of a run: what one process has trained of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// The updates made before.
    pub step: u64,
    /// The seconds spent in training before.
    pub seconds: f64,
    /// When it began, in seconds since 1970.
    pub began: f64,
    /// The keys of the configuration that changed with this part.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
}

impl Part {
    /// A part that begins now.
    pub(crate) fn now(step: u64, seconds: f64) -> Self {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self { step, seconds, began: since_1970.map_or(0.0, |time| time.as_secs_f64()), changes: Vec::new() }
    }
}

/// What the evaluation at the end of a run has found: a finished run that is looked at again does not make it anew.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct FinalEvaluation {
    /// The update whose weights were evaluated.
    pub best_step: u64,
    /// The windows that were asked for; 0 is the whole split.
    pub windows: usize,
    /// The result.
    pub report: Report,
}

/// A best evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// After which update.
    pub step: u64,
    /// Nats a token, as estimated during training.
    pub val_loss: f64,
}

/// The folder `last/` of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Last {
    path: PathBuf,
}

impl Last {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    fn weights(&self, step: u64) -> PathBuf {
        self.path.join(format!("weights-{step}.safetensors"))
    }

    fn optimizer(&self, step: u64) -> PathBuf {
        self.path.join(format!("optimizer-{step}.safetensors"))
    }

    /// Whether there is a state to go on from.
    pub fn exists(&self) -> bool {
        self.path.join(STATE).is_file()
    }

    /// Writes everything, then deletes what earlier saves left.
    ///
    /// # Errors
    /// When the disk is full; the state saved before is still whole then.
    pub fn save(&self, config: &GptConfig, engine: &EngineState, state: &LoopState) -> Result<()> {
        fs::create_dir_all(&self.path).map_err(TrainError::io("create", &self.path))?;
        let (specs, values) = engine.trained(config);
        let metadata = json!({ FORMAT_KEY: LAST_FORMAT.to_string() });
        write_tensors(&self.weights(state.step), named(&specs, String::new(), values), metadata.clone())?;
        let scaling =
            engine.loss_scaling.map(|LossScaling { scale, good, skipped }| [scale, good as f32, skipped as f32]);
        let scaling =
            scaling.iter().map(|numbers| (LOSS_SCALING.to_owned(), (vec![numbers.len()], numbers.as_slice())));
        let slots = engine.optimizer.iter().flat_map(|slot| named(&specs, format!("{}/", slot.name), &slot.values));
        write_tensors(&self.optimizer(state.step), slots.chain(scaling), metadata)?;
        self.write_state(state)?;
        self.delete_others(state.step)
    }

    /// Writes the state of the loop alone: what belongs to its update was saved before.
    ///
    /// # Errors
    /// When the disk is full; the state saved before is still whole then.
    pub(crate) fn write_state(&self, state: &LoopState) -> Result<()> {
        let path = self.path.join(STATE);
        let json = serde_json::to_string_pretty(state).map_err(|e| TrainError::bad_file(&path, e))?;
        Ok(atomic::write(&path, (json + "\n").as_bytes())?)
    }

    fn delete_others(&self, step: u64) -> Result<()> {
        let keep = [self.weights(step), self.optimizer(step), self.path.join(STATE)];
        let entries = fs::read_dir(&self.path).map_err(TrainError::io("read", &self.path))?;
        let ours = |path: &PathBuf| {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            ["weights-", "optimizer-"].iter().any(|prefix| name.starts_with(prefix)) && path.is_file()
        };
        for path in entries.flatten().map(|entry| entry.path()).filter(|path| ours(path) && !keep.contains(path)) {
            fs::remove_file(&path).map_err(TrainError::io("delete", &path))?;
        }
        Ok(atomic::delete_abandoned(&self.path)?)
    }

    /// Reads the state of the loop.
    ///
    /// # Errors
    /// When it is missing, broken or of another format.
    pub fn read_state(&self) -> Result<LoopState> {
        let path = self.path.join(STATE);
        if !self.exists() {
            let reason = "it is missing: the run cannot be resumed; if it was stopped before its first save, start it again with --overwrite";
            return Err(TrainError::bad_file(&path, reason));
        }
        let value: serde_json::Value = read_json(&path)?;
        match value["format"].as_u64() {
            Some(LAST_FORMAT) => serde_json::from_value(value).map_err(|e| TrainError::bad_file(&path, e)),
            Some(found) => Err(FileError::FormatVersion { path, found, expected: LAST_FORMAT }.into()),
            None => Err(TrainError::bad_file(&path, "it has no format version")),
        }
    }

    /// Checks that the files that a state of the loop names are there and whole, as far as their headers say.
    ///
    /// # Errors
    /// When one is missing or truncated.
    pub fn check_files(&self, state: &LoopState) -> Result<()> {
        for path in [self.weights(state.step), self.optimizer(state.step)] {
            SafetensorsSummary::read(&path)?;
        }
        Ok(())
    }

    /// Reads the weights and the optimizer's state that belong to a state of the loop. Where the run trains an adapter, that is
    /// what is read, for the model with the parameters that it started from.
    ///
    /// # Errors
    /// When a file is missing or truncated, or does not match the configuration.
    pub fn read_engine(
        &self,
        config: &GptConfig,
        state: &LoopState,
        adapter: Option<(AdapterShape, Vec<Vec<f32>>)>,
    ) -> Result<EngineState> {
        let weights = self.weights(state.step);
        let (params, adapter) = match adapter {
            Some((shape, params)) => {
                let tensors = Tensors::read(&weights)?;
                let get = |spec: ParamSpec| Ok(tensors.get(&spec.name, &spec.shape)?);
                let values = shape.specs().into_iter().map(get).collect::<Result<_>>()?;
                (params, Some(Adapter { values, shape }))
            }
            None => (read_weights(&weights, config)?, None),
        };
        let fresh = EngineState { adapter, ..EngineState::fresh(params) };
        let (specs, _) = fresh.trained(config);
        let optimizer = Tensors::read(&self.optimizer(state.step))?;
        let slot = |name: String| -> Result<StateSlot> {
            let values = specs.iter().map(|spec| Ok(optimizer.get(&format!("{name}/{}", spec.name), &spec.shape)?));
            Ok(StateSlot { values: values.collect::<Result<_>>()?, name })
        };
        let slots = optimizer.prefixes().into_iter().map(slot).collect::<Result<Vec<_>>>()?;
        let loss_scaling = match optimizer.has(LOSS_SCALING) {
            true => {
                let numbers = optimizer.get(LOSS_SCALING, &[3])?;
                Some(LossScaling { scale: numbers[0], good: numbers[1] as u64, skipped: numbers[2] as u64 })
            }
            false => None,
        };
        Ok(EngineState { optimizer: slots, updates: state.step, loss_scaling, ..fresh })
    }
}

/// Values in parameter order as tensors, under the parameters' names with a prefix.
fn named<'a>(
    specs: &'a [ParamSpec],
    prefix: String,
    values: &'a [Vec<f32>],
) -> impl Iterator<Item = (String, (Vec<usize>, &'a [f32]))> {
    let tensor = move |(spec, values): (&ParamSpec, &'a Vec<f32>)| {
        (format!("{prefix}{}", spec.name), (spec.shape.clone(), values.as_slice()))
    };
    specs.iter().zip(values).map(tensor)
}
