//! A run is a folder. Its top level is the model's folder (`tinygpt_model::checkpoint`); beside that lie `train.toml` (the
//! configuration as resolved), `metrics.jsonl`, `loss.svg`, `samples.jsonl` where samples are taken, `tensorboard/` where event
//! files are asked for, and `last/` (everything needed to go on). A run that trains an adapter has the model of the best one's
//! effective weights at its top level, the adapter itself in `adapter/`, and in `base/` the model that it started from.

mod initial;
mod last;
mod list;
mod lock;
mod reference;
mod session;
mod start;

use std::{
    fs,
    path::{Path, PathBuf},
};

use tinygpt_model::{
    ModelError, ModelFolder,
    checkpoint::{CONFIG_FILE, WEIGHTS_FILE},
    files::atomic,
};

use crate::{
    Result, TrainError,
    config::{self, RunConfig},
};

use lock::RunLock;

pub use initial::{InitialModel, Origin};
pub use last::{Best, LAST_FORMAT, Last, LoopState, Part};
pub use list::{ListedRun, RunFigures, RunLister, RunStatus, list};
pub(crate) use session::make_absolute;
pub use session::{Notice, ResumeOptions, Run, StartOptions, check_memory};

/// Where runs go, and where they are looked for.
pub const RUNS: &str = "runs";
/// The file that holds a run's configuration as resolved.
pub const TRAIN_TOML: &str = "train.toml";

/// The folder of a run.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    /// The run that this one replaces, moved aside until this one is saved.
    replaced: Option<PathBuf>,
    /// Held while a process writes to the run.
    lock: Option<RunLock>,
}

/// What to do with a folder that already holds something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfExists {
    /// Refuse.
    Refuse,
    /// Delete the run in it.
    Overwrite,
}

impl RunDir {
    /// A fresh `parent/NAME-N`, with the smallest N above those there.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn create_numbered(parent: &Path, name: &str) -> Result<Self> {
        fs::create_dir_all(parent).map_err(TrainError::io("create", parent))?;
        let mut number = numbered(parent, name).last().map_or(1, |(n, _)| n + 1);
        loop {
            let path = parent.join(format!("{name}-{number}"));
            match fs::create_dir(&path) {
                Ok(()) => return Self::at(path).locked(),
                // Another process was faster.
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
                Err(e) => return Err(TrainError::io("create", &path)(e)),
            }
        }
    }

    /// The given folder for a new run.
    ///
    /// # Errors
    /// [`TrainError::RunExists`] when it is not empty and may not be overwritten, [`TrainError::NotOurs`] when it may but
    /// holds something other than a run.
    pub fn create(path: &Path, if_exists: IfExists) -> Result<Self> {
        Self::check_new(path, if_exists)?;
        let mut replaced = None;
        if path.exists() && !is_empty(path)? {
            // Not while another process works on it.
            Self::at(path.to_owned()).locked()?;
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let aside = path.with_file_name(format!(".{name}.replaced-{}", std::process::id()));
            fs::rename(path, &aside).map_err(TrainError::io("move aside", path))?;
            replaced = Some(aside);
        }
        fs::create_dir_all(path).map_err(TrainError::io("create", path))?;
        Self { replaced, ..Self::at(path.to_owned()) }.locked()
    }

    fn at(path: PathBuf) -> Self {
        Self { path, replaced: None, lock: None }
    }

    /// Keeps other processes from writing to the run, until this value is dropped.
    fn locked(self) -> Result<Self> {
        let lock = RunLock::acquire(&self.path)?;
        Ok(Self { lock, ..self })
    }

    /// Gives up a run that was not saved even once: its folder goes, and the run that it was to replace comes back.
    ///
    /// # Errors
    /// When the folder cannot be deleted or the old one not moved back.
    pub fn discard(self) -> Result<()> {
        fs::remove_dir_all(&self.path).map_err(TrainError::io("delete", &self.path))?;
        match &self.replaced {
            Some(old) => fs::rename(old, &self.path).map_err(TrainError::io("move back", old)),
            None => Ok(()),
        }
    }

    /// Whether the run was saved at least once.
    pub fn is_saved(&self) -> bool {
        self.model().path().join(WEIGHTS_FILE).is_file() && self.last().exists()
    }

    /// Deletes the run that this one replaces, once this one is saved.
    pub(crate) fn delete_replaced(&self) -> Result<()> {
        match &self.replaced {
            Some(old) if old.exists() => fs::remove_dir_all(old).map_err(TrainError::io("delete", old)),
            _ => Ok(()),
        }
    }

    /// Whether [`RunDir::create`] would succeed, without touching anything.
    ///
    /// # Errors
    /// As [`RunDir::create`].
    pub fn check_new(path: &Path, if_exists: IfExists) -> Result<()> {
        if !path.exists() || is_empty(path)? {
            return Ok(());
        }
        let here =
            std::env::current_dir().and_then(fs::canonicalize).map_err(TrainError::io("find", Path::new(".")))?;
        if if_exists == IfExists::Overwrite && here.starts_with(fs::canonicalize(path).unwrap_or_default()) {
            return Err(TrainError::NotOurs { path: path.to_owned() });
        }
        match if_exists {
            IfExists::Refuse => Err(TrainError::RunExists { path: path.to_owned() }),
            // A configuration that happens to be called train.toml makes no run of the folder it lies in.
            IfExists::Overwrite if [TRAIN_TOML, CONFIG_FILE].iter().all(|f| path.join(f).is_file()) => Ok(()),
            IfExists::Overwrite => Err(TrainError::NotOurs { path: path.to_owned() }),
        }
    }

    /// An existing run.
    ///
    /// # Errors
    /// [`ModelError::NotAModelFolder`] when the folder is missing or has no `train.toml`.
    pub fn open(path: &Path) -> Result<Self> {
        let not_a_run =
            |reason: &str| ModelError::NotAModelFolder { path: path.to_owned(), reason: reason.into() }.into();
        if path.is_file() {
            return Err(not_a_run("it is a file, which says nothing of how its model was trained"));
        }
        if !path.is_dir() {
            return Err(not_a_run("there is no such folder"));
        }
        if !path.join(TRAIN_TOML).is_file() {
            return Err(not_a_run("it has no train.toml"));
        }
        Ok(Self::at(path.to_owned()))
    }

    /// An existing run to write to.
    ///
    /// # Errors
    /// As [`RunDir::open`], and [`TrainError::Busy`] when another process writes to it.
    pub fn open_for_writing(path: &Path) -> Result<Self> {
        let run = Self::open(path)?.locked()?;
        atomic::delete_abandoned(path)?;
        Ok(run)
    }

    /// The newest of `parent/NAME-N`: the one with the largest N.
    ///
    /// # Errors
    /// [`TrainError::NoRun`] when there is none.
    pub fn open_numbered(parent: &Path, name: &str) -> Result<Self> {
        match numbered(parent, name).pop() {
            Some((_, path)) => Self::open(&path),
            None => Err(TrainError::NoRun { wanted: format!("{}/{name}-N", parent.display()) }),
        }
    }

    /// The run below `parent` that was saved last.
    ///
    /// # Errors
    /// [`TrainError::NoRun`] when there is none.
    pub fn latest(parent: &Path) -> Result<Self> {
        let modified = |path: PathBuf| fs::metadata(path).and_then(|m| m.modified()).ok();
        let written = |path: &Path| {
            let model = modified(path.join(WEIGHTS_FILE))?;
            Some(modified(path.join("last").join("state.json")).map_or(model, |saved| saved.max(model)))
        };
        let latest = entries(parent).filter_map(|path| Some((written(&path)?, path))).max();
        match latest {
            Some((_, path)) => Ok(Self::at(path)),
            None => Err(TrainError::NoRun { wanted: format!("in {}/", parent.display()) }),
        }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a process writes to the run.
    pub fn is_locked(&self) -> bool {
        self.lock.is_some() || lock::is_held(&self.path)
    }

    /// The folder of what is needed to go on.
    pub fn last(&self) -> Last {
        Last::new(self.path.join("last"))
    }

    /// The model in the run's top level.
    pub fn model(&self) -> ModelFolder {
        ModelFolder::new(&self.path)
    }

    /// The model without the adapter, where a run trains one.
    pub fn base(&self) -> ModelFolder {
        ModelFolder::new(&self.path.join("base"))
    }

    /// The folder of the best adapter, in the format of PEFT, where a run trains one.
    pub fn adapter(&self) -> PathBuf {
        self.path.join("adapter")
    }

    /// Writes the configuration.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn write_config(&self, config: &RunConfig) -> Result<()> {
        Ok(atomic::write(&self.path.join(TRAIN_TOML), config.to_toml()?.as_bytes())?)
    }

    /// The configuration, with overrides that a resumed run may take.
    ///
    /// # Errors
    /// When the file is unreadable or not a whole one, or an override is refused.
    pub fn read_config(&self, overrides: &[String]) -> Result<RunConfig> {
        let path = self.path.join(TRAIN_TOML);
        let text = fs::read_to_string(&path).map_err(TrainError::io("read", &path))?;
        config::load_resolved(&text).map_err(|e| TrainError::bad_file(&path, e))?;
        Ok(config::load(&text, overrides, true)?)
    }
}

fn is_empty(path: &Path) -> Result<bool> {
    Ok(fs::read_dir(path).map_err(TrainError::io("read", path))?.next().is_none())
}

/// What a folder holds; nothing where there is no such folder.
fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// The folders `parent/NAME-N`, by rising N.
fn numbered(parent: &Path, name: &str) -> Vec<(u64, PathBuf)> {
    let mut runs: Vec<(u64, PathBuf)> = entries(parent)
        .filter_map(|path| {
            let number = path.file_name()?.to_str()?.strip_prefix(name)?.strip_prefix('-')?.parse().ok()?;
            Some((number, path))
        })
        .collect();
    runs.sort();
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbered_runs_count_up_past_gaps() {
        let dir = tempfile::tempdir().unwrap();
        let runs = dir.path().join("runs");
        let create = || RunDir::create_numbered(&runs, "tiny").unwrap().path.file_name().unwrap().to_owned();
        assert_eq!(create(), "tiny-1");
        assert_eq!(create(), "tiny-2");
        fs::create_dir(runs.join("tiny-10")).unwrap();
        fs::create_dir(runs.join("tiny-other-40")).unwrap();
        assert_eq!(create(), "tiny-11");
        assert!(matches!(RunDir::open_numbered(&runs, "none"), Err(TrainError::NoRun { .. })));
    }

    #[test]
    fn a_full_folder_is_only_overwritten_when_asked_and_ours() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        RunDir::create(&path, IfExists::Refuse).unwrap();
        fs::write(path.join("thesis.txt"), "precious").unwrap();
        assert!(matches!(RunDir::create(&path, IfExists::Refuse), Err(TrainError::RunExists { .. })));
        assert!(matches!(RunDir::create(&path, IfExists::Overwrite), Err(TrainError::NotOurs { .. })));
        assert!(path.join("thesis.txt").exists());
        fs::write(path.join(TRAIN_TOML), "").unwrap();
        assert!(matches!(RunDir::create(&path, IfExists::Overwrite), Err(TrainError::NotOurs { .. })));
        fs::write(path.join(CONFIG_FILE), "").unwrap();
        let run = RunDir::create(&path, IfExists::Overwrite).unwrap();
        assert!(!path.join("thesis.txt").exists(), "the old run is moved aside");
        assert!(RunDir::create(&path, IfExists::Overwrite).is_err(), "two processes cannot both write");
        run.discard().unwrap();
        assert!(path.join("thesis.txt").exists(), "a run that was not saved gives the old one back");
        let run = RunDir::create(&path, IfExists::Overwrite).unwrap();
        run.delete_replaced().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left of the old run");
    }
}
