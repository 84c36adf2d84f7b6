//! The runs below a folder, with what each has come to. Nothing is written, and a damaged run is one of the list.

use std::{
    collections::HashMap,
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
    RunLister::new(folder.to_owned()).list()
}

/// Lists the runs below a folder again and again. A run that nothing trains and whose files are as they were is not read again.
#[derive(Debug)]
pub struct RunLister {
    folder: PathBuf,
    /// The runs that nothing trained when they were looked at.
    known: HashMap<PathBuf, (Files, ListedRun)>,
}

/// What tells that the files of a run are others than before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Files {
    count: u64,
    bytes: u64,
    changed: Option<SystemTime>,
}

impl RunLister {
    /// A lister that has not looked yet.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, known: HashMap::new() }
    }

    /// The runs, those that were saved last first.
    ///
    /// # Errors
    /// As [`list`].
    pub fn list(&mut self) -> Result<Vec<ListedRun>> {
        let folder = &self.folder;
        if !folder.is_dir() {
            return Err(TrainError::NoRun { wanted: format!("in {}/", folder.display()) });
        }
        let mut listing = Listing { root: folder, known: std::mem::take(&mut self.known), runs: Vec::new() };
        for path in subfolders(folder)? {
            listing.look_into(&path, DEPTH);
        }
        let still = |(files, run): &(Files, ListedRun)| (run.path.clone(), (*files, run.clone()));
        self.known = listing.runs.iter().filter(|(_, run)| run.status != RunStatus::Running).map(still).collect();
        let mut runs: Vec<ListedRun> = listing.runs.into_iter().map(|(_, run)| run).collect();
        runs.sort_by(|one, other| other.saved.cmp(&one.saved).then_with(|| one.name.cmp(&other.name)));
        Ok(runs)
    }
}

/// A look at a folder.
struct Listing<'a> {
    root: &'a Path,
    known: HashMap<PathBuf, (Files, ListedRun)>,
    runs: Vec<(Files, ListedRun)>,
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

impl Listing<'_> {
    /// Adds a folder to the list, if it is a run or was meant to be one, or else the runs below it.
    fn look_into(&mut self, path: &Path, depth: usize) {
        let is_run = [TRAIN_TOML, METRICS_FILE, lock::LOCK_FILE, "last"].iter().any(|name| path.join(name).exists());
        if is_run {
            self.add(path);
        } else if depth > 1 {
            match subfolders(path) {
                Ok(folders) => folders.iter().for_each(|path| self.look_into(path, depth - 1)),
                Err(error) => {
                    let (root, files) = (self.root, Files::below(path));
                    self.runs.push((files, damaged(root, path, files, error.to_string())));
                }
            }
        }
    }

    fn add(&mut self, path: &Path) {
        let (running, files) = (lock::is_held(path), Files::below(path));
        let run = match self.known.remove(path) {
            Some((before, run)) if !running && before == files => run,
            _ => listed(self.root, path, files, running),
        };
        self.runs.push((files, run));
    }
}

fn damaged(root: &Path, path: &Path, files: Files, reason: String) -> ListedRun {
    let modified = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    ListedRun {
        name: path.strip_prefix(root).unwrap_or(path).to_string_lossy().into_owned(),
        path: path.to_owned(),
        status: RunStatus::Damaged(reason),
        figures: None,
        bytes: files.bytes,
        saved: modified(&path.join("last").join("state.json")).or_else(|| modified(path)),
    }
}

fn listed(root: &Path, path: &Path, files: Files, running: bool) -> ListedRun {
    let damaged = |reason| damaged(root, path, files, reason);
    match look_at(path, running) {
        Ok((status, figures)) => ListedRun { status, figures: Some(figures), ..damaged(String::new()) },
        // Its first files are just being written, or the next ones.
        Err(_) if running => ListedRun { status: RunStatus::Running, ..damaged(String::new()) },
        Err(error) => damaged(error.to_string()),
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

impl Files {
    /// All files below a folder. What cannot be read, or is deleted while it is looked at, counts nothing.
    fn below(folder: &Path) -> Self {
        let mut files = Self::default();
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            let more = if metadata.is_dir() {
                Self::below(&entry.path())
            } else {
                Self { count: 1, bytes: metadata.len(), changed: metadata.modified().ok() }
            };
            files.count += more.count;
            files.bytes += more.bytes;
            files.changed = files.changed.max(more.changed);
        }
        files
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_read_again_when_one_of_its_files_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("one");
        fs::create_dir(&run).unwrap();
        fs::write(run.join(TRAIN_TOML), "").unwrap();
        let mut lister = RunLister::new(dir.path().to_owned());
        let reason = |lister: &mut RunLister| match lister.list().unwrap().as_slice() {
            [ListedRun { status: RunStatus::Damaged(reason), .. }] => reason.clone(),
            other => panic!("{other:?}"),
        };
        let empty = reason(&mut lister);
        // The list is told apart from one that was read anew by a mark in what is remembered.
        let known = lister.known.get_mut(&run).unwrap();
        known.1.status = RunStatus::Damaged("remembered".into());
        assert_eq!(reason(&mut lister), "remembered");
        fs::write(run.join(TRAIN_TOML), "[train]\n").unwrap();
        assert_ne!(reason(&mut lister), "remembered");
        fs::write(run.join(TRAIN_TOML), "").unwrap();
        assert_eq!(reason(&mut lister), empty);
        fs::remove_dir_all(&run).unwrap();
        assert_eq!(lister.list().unwrap(), []);
        assert!(lister.known.is_empty());
    }
}
