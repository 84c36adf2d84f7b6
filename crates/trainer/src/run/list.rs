//! The runs below a folder, with what each has come to. Nothing is written, and a damaged run is one of the list.

use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::Serialize;
use tinygpt_model::{
    checkpoint::{SafetensorsSummary, WEIGHTS_FILE},
    tokenizer::TOKENIZER_FILE,
};

use super::{Best, RunDir, TRAIN_TOML, lock};
use crate::{
    Result, TrainError, metrics, samples,
    train::{METRICS_FILE, StopReason},
};

/// How far below the folder runs are looked for: those of a sweep are one folder deeper than others.
const DEPTH: usize = 4;

/// A run of the list.
#[derive(Debug, Clone, PartialEq)]
pub struct ListedRun {
    /// Its path below the folder that was listed.
    pub name: String,
    /// Its folder.
    pub path: PathBuf,
    /// What it is about.
    pub status: RunStatus,
    /// What it has come to; none of a damaged run.
    pub figures: Option<RunFigures>,
    /// The size of all its files.
    pub bytes: u64,
    /// When it was saved last; of a run that was not, when its folder was changed.
    pub saved: Option<SystemTime>,
}

/// The state of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunStatus {
    /// A process trains it.
    Running,
    /// It has reached a limit of its configuration.
    Finished(StopReason),
    /// It goes on with `train --resume`.
    Interrupted,
    /// It can neither go on nor be used, for this reason.
    Damaged(String),
}

/// What a run has come to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RunFigures {
    /// Updates made.
    pub step: u64,
    /// `train.max_steps`.
    pub max_steps: u64,
    /// The best evaluation; none before the first.
    pub best: Option<Best>,
    /// The number of parameters.
    pub parameters: usize,
}

/// The runs below a folder, those that were saved last first.
///
/// # Errors
/// [`TrainError::NoRun`], where there is no such folder; and when it cannot be read.
pub fn list(folder: &Path) -> Result<Vec<ListedRun>> {
    if !folder.is_dir() {
        return Err(TrainError::NoRun { wanted: format!("in {}/", folder.display()) });
    }
    let mut runs = Vec::new();
    for path in subfolders(folder)? {
        look_into(folder, &path, DEPTH, &mut runs);
    }
    runs.sort_by(|one, other| other.saved.cmp(&one.saved).then_with(|| one.name.cmp(&other.name)));
    Ok(runs)
}

/// The folders in a folder that are not hidden: a run that is being replaced waits in a hidden one.
fn subfolders(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(TrainError::io("read", folder))?;
    let mut folders = Vec::new();
    for entry in entries {
        let path = entry.map_err(TrainError::io("read", folder))?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if !hidden && path.is_dir() {
            folders.push(path);
        }
    }
    Ok(folders)
}

/// Adds a folder to the list, if it is a run or was meant to be one, or else the runs below it.
fn look_into(root: &Path, path: &Path, depth: usize, runs: &mut Vec<ListedRun>) {
    let is_run = [TRAIN_TOML, METRICS_FILE, lock::LOCK_FILE, "last"].iter().any(|name| path.join(name).exists());
    if is_run {
        runs.push(listed(root, path));
    } else if depth > 1 {
        match subfolders(path) {
            Ok(folders) => folders.iter().for_each(|path| look_into(root, path, depth - 1, runs)),
            Err(error) => runs.push(damaged(root, path, error.to_string())),
        }
    }
}

fn damaged(root: &Path, path: &Path, reason: String) -> ListedRun {
    let modified = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    ListedRun {
        name: path.strip_prefix(root).unwrap_or(path).to_string_lossy().into_owned(),
        path: path.to_owned(),
        status: RunStatus::Damaged(reason),
        figures: None,
        bytes: size(path),
        saved: modified(&path.join("last").join("state.json")).or_else(|| modified(path)),
    }
}

fn listed(root: &Path, path: &Path) -> ListedRun {
    let running = lock::is_held(path);
    match look_at(path, running) {
        Ok((status, figures)) => ListedRun { status, figures: Some(figures), ..damaged(root, path, String::new()) },
        // Its first files are just being written, or the next ones.
        Err(_) if running => ListedRun { status: RunStatus::Running, ..damaged(root, path, String::new()) },
        Err(error) => damaged(root, path, error.to_string()),
    }
}

/// What a run has come to; refused is what `train --resume` or `generate` would refuse, as far as the heads of files tell.
fn look_at(path: &Path, running: bool) -> Result<(RunStatus, RunFigures)> {
    let run = RunDir::open(path)?;
    let config = run.read_config(&[])?;
    let max_steps = config.train.max_steps;
    let parameters = run.model().read_config()?.n_params();
    if running && !run.last().exists() {
        return Ok((RunStatus::Running, RunFigures { step: 0, max_steps, best: None, parameters }));
    }
    let state = run.last().read_state()?;
    let status = match state.ending(&config.train) {
        _ if running => RunStatus::Running,
        Some(reason) => RunStatus::Finished(reason),
        None => RunStatus::Interrupted,
    };
    if !running {
        run.last().check_files(&state)?;
        SafetensorsSummary::read(&path.join(WEIGHTS_FILE))?;
        if config.lora.rank > 0 {
            SafetensorsSummary::read(&run.base().path().join(WEIGHTS_FILE))?;
        }
        if !path.join(TOKENIZER_FILE).is_file() {
            return Err(TrainError::bad_file(&path.join(TOKENIZER_FILE), "it is missing"));
        }
        metrics::read(&path.join(METRICS_FILE))?;
        samples::read(path)?;
    }
    Ok((status, RunFigures { step: state.step, max_steps, best: state.best, parameters }))
}

/// The size of all files below a folder. What cannot be read, or is deleted while it is looked at, counts nothing.
fn size(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.map(bytes).sum()
}
