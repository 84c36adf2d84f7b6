//! Downloading the files of a model of the hub: patiently, checked against what the server announces, and going on where a
//! connection broke.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use hf_hub::{
    Cache,
    api::{
        Progress, RepoInfo,
        sync::{Api, ApiError, ApiRepo, Metadata},
    },
};

use super::{
    ADAPTER_WEIGHTS, CONFIG, DESCRIPTION, GPT2_TOKENIZER, Hub, HubError, HubModel, TOKENIZER, WEIGHTS, WEIGHTS_INDEX,
    repo, shards,
};
use crate::digest::Digest;

/// How often a file is asked for again after the connection broke; what came of it is kept.
const RETRIES: u32 = 3;
/// The time before the first of them; each waits twice as long as the one before.
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// A download in progress.
pub(super) struct Download<'a> {
    pub(super) hub: &'a Hub,
    pub(super) model: &'a HubModel,
    pub(super) api: Api,
    pub(super) repo: ApiRepo,
}

impl Download<'_> {
    /// Downloads what the model has and the cache has not; gives its folder there.
    pub(super) fn run(&self, progress: &mut impl FnMut(&str, u64, u64)) -> Result<PathBuf, HubError> {
        let info = self.patiently(|| self.repo.info())?;
        let there = names(&info);
        let has = |file: &str| there.contains(&file);
        let weights = match () {
            () if has(WEIGHTS) && has(CONFIG) => WEIGHTS,
            () if has(WEIGHTS_INDEX) && has(CONFIG) => WEIGHTS_INDEX,
            () if has(ADAPTER_WEIGHTS) => ADAPTER_WEIGHTS,
            () => return Err(self.no_weights(&there)),
        };
        self.description(&info, progress)?;
        let path = self.file(weights, &info.sha, progress)?;
        if weights == WEIGHTS_INDEX {
            let shards = shards(&path).map_err(|reason| self.wrong(weights, reason))?;
            for shard in &shards {
                self.file(shard, &info.sha, progress)?;
            }
        }
        path.parent().map(Path::to_owned).ok_or_else(|| self.no_weights(&there))
    }

    /// Downloads what describes the model, its tokenizer among it; gives its folder in the cache.
    pub(super) fn run_for_tokenizer(&self, progress: &mut impl FnMut(&str, u64, u64)) -> Result<PathBuf, HubError> {
        let info = self.patiently(|| self.repo.info())?;
        let there = names(&info);
        let has = |file: &str| there.contains(&file);
        if !has(TOKENIZER) && !GPT2_TOKENIZER.into_iter().all(has) {
            return Err(self.lacks(TOKENIZER, format!("it has {} files, none of that name", there.len())));
        }
        self.description(&info, progress)?.ok_or_else(|| self.no_weights(&there))
    }

    /// Downloads what belongs to a model beside its weights; gives its folder, where there is any of it.
    fn description(
        &self,
        info: &RepoInfo,
        progress: &mut impl FnMut(&str, u64, u64),
    ) -> Result<Option<PathBuf>, HubError> {
        let (there, mut folder) = (names(info), None);
        for file in DESCRIPTION.iter().filter(|file| there.contains(file)) {
            folder = self.file(file, &info.sha, progress)?.parent().map(Path::to_owned);
        }
        Ok(folder)
    }

    fn no_weights(&self, there: &[&str]) -> HubError {
        let needed = if there.contains(&CONFIG) { WEIGHTS } else { CONFIG };
        let pickle = there.iter().find(|file| file.ends_with(".bin") || file.ends_with(".pt"));
        let found = match pickle {
            Some(pickle) if needed == WEIGHTS => {
                format!("it has {pickle}, a pickle, which can run any program; a newer revision may have {WEIGHTS}")
            }
            _ => format!("it has {} files, none of that name", there.len()),
        };
        self.lacks(needed, found)
    }

    fn lacks(&self, needed: &'static str, found: String) -> HubError {
        HubError::NoWeights { endpoint: self.hub.shown_endpoint(), model: self.model.clone(), needed, found }
    }

    fn wrong(&self, file: &str, reason: String) -> HubError {
        let (endpoint, model) = (self.hub.shown_endpoint(), self.model.clone());
        HubError::WrongContent { endpoint, model, file: file.to_owned(), reason }
    }

    /// A file of the model in the cache, downloaded unless it is there.
    fn file(&self, file: &str, commit: &str, progress: &mut impl FnMut(&str, u64, u64)) -> Result<PathBuf, HubError> {
        let cache = Cache::new(self.hub.cache.clone()).repo(repo(self.model));
        let cached = cache.pointer_path(commit).join(file);
        if is_name(commit) && cached.exists() {
            return Ok(cached);
        }
        let url = self.repo.url(file);
        let metadata = self.patiently(|| self.api.metadata(&url))?;
        // Both become names in the cache.
        if !is_name(metadata.etag()) || metadata.commit_hash() != commit || !is_name(commit) {
            return Err(
                self.wrong(file, format!("its revision is {}, and {commit} of the model", metadata.commit_hash()))
            );
        }
        let blob = cache.blob_path(metadata.etag());
        let path = self.patiently(|| {
            let told = Told { file, done: 0, all: 0, tell: &mut *progress };
            self.repo.download_with_progress(file, told).inspect_err(|error| {
                // A part that is longer than the file can only be thrown away.
                if matches!(error, ApiError::InvalidResume) {
                    let _ = fs::remove_file(blob.with_extension("part"));
                }
            })
        })?;
        check(&path, &metadata).map_err(|reason| {
            // What is wrong must not be found in the cache the next time.
            let _ = (fs::remove_file(&path), fs::remove_file(&blob));
            self.wrong(file, reason)
        })?;
        Ok(path)
    }

    /// Does what needs the network, again where the connection breaks.
    fn patiently<T>(&self, mut work: impl FnMut() -> Result<T, ApiError>) -> Result<T, HubError> {
        let mut tries = 1;
        loop {
            let error = match work() {
                Ok(done) => return Ok(done),
                Err(error) => self.hub.error(self.model, &error, tries),
            };
            if tries > RETRIES || !matches!(error, HubError::Network { .. }) {
                return Err(error);
            }
            std::thread::sleep(FIRST_WAIT * (1 << (tries - 1)));
            tries += 1;
        }
    }
}

/// The names of the files of a model.
fn names(info: &RepoInfo) -> Vec<&str> {
    info.siblings.iter().map(|file| file.rfilename.as_str()).collect()
}

/// Whether a text of the server may be the name of a file.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

/// Refuses a file that is not what the server announced: another length, or for a large file, whose tag is its SHA-256,
/// another content.
fn check(path: &Path, announced: &Metadata) -> Result<(), String> {
    let length = fs::metadata(path).map_err(|e| e.to_string())?.len();
    if length != announced.size() as u64 {
        return Err(format!("it has {length} bytes, not {}", announced.size()));
    }
    if announced.etag().len() == 64 {
        let found = Digest::of_file(path).map_err(|e| e.to_string())?.to_string();
        if found != announced.etag() {
            return Err(format!("its SHA-256 is {found}, not {}", announced.etag()));
        }
    }
    Ok(())
}

/// What the hub's library tells, as a sum.
struct Told<'a, F: FnMut(&str, u64, u64)> {
    file: &'a str,
    done: u64,
    all: u64,
    tell: &'a mut F,
}

impl<F: FnMut(&str, u64, u64)> Progress for Told<'_, F> {
    fn init(&mut self, size: usize, _: &str) {
        (self.done, self.all) = (0, size as u64);
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        (self.tell)(self.file, self.done, self.all);
    }

    fn finish(&mut self) {}
}
