//! Sweeps: a grid of runs, trained in turn or some at a time, and what they came to.

mod grid;
mod summary;

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use candle_core::Device;
use serde::{Deserialize, Serialize};

use crate::{
    Result, TrainError,
    config::RunConfig,
    evaluate::Report,
    json_lines::{self, Line},
    metrics,
    run::{IfExists, ResumeOptions, Run, RunDir, StartOptions, make_absolute},
    train::{CallbackError, Event, METRICS_FILE, StopReason},
};

pub use grid::{Grid, Point, Setting};
pub use summary::{Summary, summaries};

/// The file of a sweep: one JSON object a line, of each run that has ended.
pub const RESULTS_FILE: &str = "results.jsonl";
/// The most runs at a time. Each has threads of its own.
const MAX_JOBS: usize = 256;
/// The format of a line of it.
const RESULTS_FORMAT: u64 = 1;

/// What a run of a sweep came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SweepResult {
    /// The format of the line.
    pub format: u64,
    /// The run's folder inside that of the sweep.
    pub run: String,
    /// The values of the settings that vary, in their order.
    pub values: Vec<(String, String)>,
    /// The run's seed.
    pub seed: u64,
    /// The number of parameters.
    pub parameters: usize,
    /// Updates made.
    pub step: u64,
    /// Seconds of training.
    pub seconds: f64,
    /// The mean training loss of the last tenth of the logged updates, in nats a token.
    pub train_loss: Option<f64>,
    /// The validation split under the best weights, as much of it as `final_eval_batches` says; none of a run that diverged.
    pub report: Option<Report>,
    /// Why there is no report.
    pub diverged: Option<String>,
    /// The configuration as resolved.
    pub config: RunConfig,
}

impl Line for SweepResult {
    const FORMAT: u64 = RESULTS_FORMAT;
    const REMEDY: &'static str = "delete that line, and the sweep goes on with the folder of its run";

    fn format(&self) -> u64 {
        self.format
    }
}

/// What a sweep tells while it works; `place` is that of the run in the grid.
#[derive(Clone, Copy)]
pub enum SweepEvent<'a> {
    /// A run starts or goes on.
    Start {
        /// Its place.
        place: usize,
        /// The run.
        run: &'a Run,
    },
    /// Something happened in its training.
    Train {
        /// Its place.
        place: usize,
        /// What.
        event: Event<'a>,
    },
    /// A run has ended.
    End {
        /// Its place.
        place: usize,
        /// What it came to.
        result: &'a SweepResult,
    },
}

/// Is told every [`SweepEvent`], from the threads that train. An error of it ends all runs as an interruption does.
pub type OnSweepEvent<'a> = &'a (dyn Fn(SweepEvent<'_>) -> std::result::Result<(), CallbackError> + Sync);

/// A folder with the runs of a grid.
#[derive(Debug)]
pub struct Sweep {
    dir: PathBuf,
    points: Vec<(Point, RunConfig)>,
    /// By the name of the run.
    results: Mutex<HashMap<String, SweepResult>>,
}

impl Sweep {
    /// Opens the sweep of a folder, which may hold results of an earlier call, for these runs. Nothing is written yet.
    ///
    /// # Errors
    /// When a configuration is invalid, two runs would have one folder, the results cannot be read, the folder holds something
    /// else ([`TrainError::NoSweep`]), or a run that is there has another configuration ([`TrainError::SweptOtherwise`]).
    pub fn open(dir: &Path, points: Vec<(Point, RunConfig)>) -> Result<Self> {
        let mut results = read_results(&dir.join(RESULTS_FILE))?;
        refuse_foreign(dir, &points)?;
        let mut own = HashMap::new();
        let mut resolved = Vec::with_capacity(points.len());
        for (point, config) in points {
            let mut config = RunConfig { seed: point.seed, ..config }.resolved()?;
            make_absolute(&mut config)?;
            let name = point.name();
            let otherwise = || TrainError::SweptOtherwise { run: dir.join(&name) };
            if let Some(result) = results.remove(&name) {
                if !are_same(&result.config, &config) {
                    return Err(otherwise());
                }
                own.insert(name, result);
            } else if let Ok(run) = RunDir::open(&dir.join(&name))
                && run.is_saved()
                && !are_same(&run.read_config(&[])?, &config)
            {
                return Err(otherwise());
            }
            if resolved.iter().any(|(other, _): &(Point, _)| other.name() == point.name()) {
                return Err(TrainError::SameRunTwice { run: point.name() });
            }
            resolved.push((point, config));
        }
        // Results of runs that are not of this grid stay: the grid of an earlier call may have been another.
        own.extend(results);
        Ok(Self { dir: dir.to_owned(), points: resolved, results: Mutex::new(own) })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The runs.
    pub fn points(&self) -> &[(Point, RunConfig)] {
        &self.points
    }

    /// What the runs of the grid came to, in its order; those that have not ended are left out.
    pub fn results(&self) -> Vec<SweepResult> {
        let results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        self.points.iter().filter_map(|(point, _)| results.get(&point.name()).cloned()).collect()
    }

    /// Trains what has not ended yet, `jobs` runs at a time, which share the cores; a run that an earlier call has begun goes
    /// on. The results do not depend on `jobs`. A run that diverges is a result. Says whether all runs have ended: not, if `stop`
    /// was set.
    ///
    /// # Errors
    /// As [`Run::start`], [`Run::resume`] and [`Run::train`]; the other runs of that moment are saved, as by an interruption.
    pub fn train(&self, jobs: usize, device: &Device, stop: &AtomicBool, on_event: OnSweepEvent<'_>) -> Result<bool> {
        fs::create_dir_all(&self.dir).map_err(TrainError::io("create", &self.dir))?;
        let next = AtomicUsize::new(0);
        let work = || -> Result<()> {
            loop {
                let place = next.fetch_add(1, Ordering::Relaxed);
                let Some((point, config)) = self.points.get(place) else { return Ok(()) };
                let ended = self.results.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&point.name());
                if stop.load(Ordering::Relaxed) {
                    return Ok(());
                }
                if !ended && let Some(result) = self.train_one(place, (point, config), device, stop, on_event)? {
                    self.keep(&result)?;
                    on_event(SweepEvent::End { place, result: &result }).map_err(TrainError::Callback)?;
                }
            }
        };
        let left = self.points.len() - self.results().len();
        let jobs = jobs.min(left).min(MAX_JOBS);
        if jobs <= 1 {
            work()?;
        } else {
            let threads = rayon::current_num_threads().div_ceil(jobs);
            // An error of one ends the others as an interruption does.
            let work = || -> Result<()> {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                let done = pool.map_err(|error| TrainError::Callback(error.into())).and_then(|pool| pool.install(work));
                if done.is_err() {
                    stop.store(true, Ordering::Relaxed);
                }
                done
            };
            let work = &work;
            let results: Vec<Result<()>> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
                let panicked = |_| Err(TrainError::Callback("a run of the sweep panicked".into()));
                threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
            });
            results.into_iter().collect::<Result<()>>()?;
        }
        Ok(self.results().len() == self.points.len())
    }

    /// Trains a run to its end; `None` if it was interrupted.
    fn train_one(
        &self,
        place: usize,
        (point, config): (&Point, &RunConfig),
        device: &Device,
        stop: &AtomicBool,
        on_event: OnSweepEvent<'_>,
    ) -> Result<Option<SweepResult>> {
        let path = self.dir.join(point.name());
        let device = device.clone();
        let run = if RunDir::open(&path).is_ok_and(|run| run.is_saved()) {
            Run::resume(&path, ResumeOptions { device, ..ResumeOptions::default() })?
        } else {
            // What is there was not saved even once.
            let options = StartOptions {
                out: Some(path.clone()),
                if_exists: IfExists::Overwrite,
                device,
                ..StartOptions::default()
            };
            Run::start(config.clone(), options)?
        };
        on_event(SweepEvent::Start { place, run: &run }).map_err(TrainError::Callback)?;
        let parameters = run.gpt().n_params();
        let (mut step, mut seconds) = (run.state().step, run.state().seconds);
        let outcome = run.train(stop, &mut |event| {
            if let Event::Step { metrics, .. } = event {
                (step, seconds) = (metrics.step, metrics.seconds);
            }
            on_event(SweepEvent::Train { place, event })
        });
        let (report, diverged) = match outcome {
            Ok(outcome) if outcome.ending == StopReason::Interrupted => return Ok(None),
            Ok(outcome) => (outcome.report, None),
            Err(error @ (TrainError::NonFiniteLoss { .. } | TrainError::Diverged { .. })) => {
                (None, Some(error.to_string()))
            }
            Err(error) => return Err(error),
        };
        Ok(Some(SweepResult {
            format: RESULTS_FORMAT,
            run: point.name(),
            values: point.values.clone(),
            seed: point.seed,
            parameters,
            step,
            seconds,
            train_loss: metrics::last_training_loss(&metrics::read(&path.join(METRICS_FILE))?),
            report,
            diverged,
            config: config.clone(),
        }))
    }

    /// Writes the results with one more, whole or not at all.
    fn keep(&self, result: &SweepResult) -> Result<()> {
        let path = self.dir.join(RESULTS_FILE);
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        results.insert(result.run.clone(), result.clone());
        let place = |run: &str| self.points.iter().position(|(point, _)| point.name() == run).unwrap_or(usize::MAX);
        let mut ordered: Vec<&SweepResult> = results.values().collect();
        ordered.sort_by_key(|result| (place(&result.run), result.run.clone()));
        json_lines::write(&path, ordered)
    }
}

/// Refuses a folder that holds something, and neither results nor a run of these points.
fn refuse_foreign(dir: &Path, points: &[(Point, RunConfig)]) -> Result<()> {
    let is_empty = fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none());
    let is_sweep = dir.join(RESULTS_FILE).is_file() || points.iter().any(|(point, _)| dir.join(point.name()).is_dir());
    if is_empty || is_sweep { Ok(()) } else { Err(TrainError::NoSweep { path: dir.to_owned() }) }
}

/// Whether two configurations make the same run. Earlier versions wrote `train.max_steps` for a `train.decay_steps` of 0.
fn are_same(one: &RunConfig, other: &RunConfig) -> bool {
    let normalised = |config: &RunConfig| {
        let mut config = config.clone();
        if config.train.decay_steps == config.train.max_steps {
            config.train.decay_steps = 0;
        }
        config
    };
    normalised(one) == normalised(other)
}

/// The results of a file by the names of their runs; none where there is no file.
fn read_results(path: &Path) -> Result<HashMap<String, SweepResult>> {
    let results: Vec<SweepResult> = json_lines::read_whole(path)?;
    Ok(results.into_iter().map(|result| (result.run.clone(), result)).collect())
}
