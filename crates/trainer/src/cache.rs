//! The folder of the cache: tokens of texts ([`crate::token_cache`]), tokenizers and the built-in corpus, all of which are made
//! again when they are missing.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tinygpt_model::{
    Tokenizer,
    files::atomic::{NewFile, sync_folder},
};

use crate::{
    Result, TrainError,
    config::DataConfig,
    digest::{Digest, Hasher},
};

/// How the names of files begin: tokens of texts.
pub(crate) const TOKENS: &str = "tokens-";
/// Tokenizers.
pub(crate) const TOKENIZER: &str = "tokenizer-";
/// The built-in corpus.
pub(crate) const STORIES: &str = "stories-";
/// The end of the name of a file that is being written.
pub(crate) const PARTIAL: &str = ".partial";

/// The version of how tokenizers are trained, and of their files.
const TOKENIZER_VERSION: u32 = 1;
const DIGEST_BYTES: usize = 32;

/// A file that nobody has written to for this long was left by a process that was killed.
pub(crate) const ABANDONED_AFTER: Duration = Duration::from_secs(24 * 3600);

/// What a file of the cache holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheKind {
    /// Tokens of a text.
    Tokens,
    /// A tokenizer.
    Tokenizer,
    /// The built-in corpus.
    Stories,
    /// What is being written, or was left by a process that was killed.
    Partial,
}

impl CacheKind {
    /// That of a file of ours.
    fn of(name: &str) -> Option<Self> {
        let kinds = [(TOKENS, Self::Tokens), (TOKENIZER, Self::Tokenizer), (STORIES, Self::Stories)];
        let (_, kind) = kinds.into_iter().find(|(prefix, _)| name.starts_with(prefix))?;
        match name.rsplit_once('.')?.1 {
            "partial" => Some(Self::Partial),
            "bin" => Some(kind),
            _ => None,
        }
    }
}

/// A file of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheFile {
    /// Where it is.
    pub path: PathBuf,
    /// What it holds.
    pub kind: CacheKind,
    /// Its size.
    pub bytes: u64,
    /// When it was written; of the built-in corpus and tokenizers, when it was used last.
    pub modified: SystemTime,
}

/// The files of a cache, the newest first; none where there is no such folder. What else lies there is not ours.
///
/// # Errors
/// When the folder cannot be read.
pub fn list(folder: &Path) -> Result<Vec<CacheFile>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(TrainError::io("read", folder)(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.map_err(TrainError::io("read", folder))?;
        let Some(kind) = entry.file_name().to_str().and_then(CacheKind::of) else { continue };
        // Another process may have deleted it.
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_file() {
            let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            files.push(CacheFile { path: entry.path(), kind, bytes: metadata.len(), modified });
        }
    }
    files.sort_by(|a, b| b.modified.cmp(&a.modified).then_with(|| a.path.cmp(&b.path)));
    Ok(files)
}

/// Deletes the files of a cache, and gives them. A process that has one open goes on with it; what another one is writing now stays.
///
/// # Errors
/// When one cannot be deleted.
pub fn clear(folder: &Path) -> Result<Vec<CacheFile>> {
    let files = list(folder)?.into_iter().filter(|file| file.kind != CacheKind::Partial || is_abandoned(file.modified));
    let files: Vec<CacheFile> = files.collect();
    for file in &files {
        match fs::remove_file(&file.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(TrainError::io("delete", &file.path)(error));
            }
            _ => {}
        }
    }
    Ok(files)
}

/// The tokenizer that a configuration asks for, of texts with these digests: from the cache, or by `train`.
///
/// # Errors
/// Those of `train`.
pub(crate) fn cached_tokenizer(
    folder: &Path,
    config: &DataConfig,
    has_documents: bool,
    texts: &[Digest],
    train: impl FnOnce() -> Result<Tokenizer>,
) -> Result<Tokenizer> {
    let mut hasher = Hasher::default();
    hasher.update(format!("{:?} {} {has_documents}", config.tokenizer, config.vocab_size).as_bytes());
    texts.iter().for_each(|text| hasher.update(text.as_bytes()));
    let path = folder.join(format!("{TOKENIZER}v{TOKENIZER_VERSION}-{:.32}.bin", hasher.finish()));
    if let Some(tokenizer) = read_tokenizer(&path) {
        touch(&path);
        return Ok(tokenizer);
    }
    let tokenizer = train()?;
    // That there is no room for it is no reason to fail: it is trained anew the next time.
    let json = tokenizer.json();
    let _ = write(folder, TOKENIZER, &path, &[Digest::of(json).as_bytes(), json].concat());
    Ok(tokenizer)
}

/// A tokenizer behind its digest; `None` of a file that is missing or damaged.
fn read_tokenizer(path: &Path) -> Option<Tokenizer> {
    let bytes = fs::read(path).ok()?;
    let (digest, json) = bytes.split_at_checked(DIGEST_BYTES)?;
    (Digest::of(json).as_bytes() == digest).then(|| Tokenizer::from_bytes(json).ok())?
}

/// Writes a file of the cache whole or not at all.
pub(crate) fn write(folder: &Path, prefix: &str, path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    remove_abandoned(folder);
    let mut file = NewFile::in_folder(folder, prefix, PARTIAL)?;
    file.file().write_all(bytes)?;
    file.persist(path)?;
    sync_folder(folder)
}

/// Notes that a file was used, for [`list`]. Where the folder cannot be written to, nobody needs to know.
pub(crate) fn touch(path: &Path) {
    let _ = fs::File::options().append(true).open(path).and_then(|file| file.set_modified(SystemTime::now()));
}

fn is_abandoned(modified: SystemTime) -> bool {
    SystemTime::now().duration_since(modified).is_ok_and(|age| age > ABANDONED_AFTER)
}

/// Removes what killed processes left behind. That some of it stays is no reason to fail.
pub(crate) fn remove_abandoned(folder: &Path) {
    for file in list(folder).unwrap_or_default() {
        if file.kind == CacheKind::Partial && is_abandoned(file.modified) {
            // Another process may have been faster.
            let _ = fs::remove_file(&file.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tokenizer_is_trained_once_for_each_text_and_kind_and_again_when_its_file_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let config = DataConfig::default();
        let get = |config: &DataConfig, text: &str| {
            let mut trained = false;
            let tokenizer = cached_tokenizer(dir.path(), config, false, &[Digest::of(text.as_bytes())], || {
                trained = true;
                Tokenizer::train_char([Ok::<_, TrainError>(text.to_owned())])
            });
            (tokenizer.unwrap().vocab_size(), trained)
        };
        assert_eq!((get(&config, "abc"), get(&config, "abc")), ((3, true), (3, false)));
        assert_eq!(get(&config, "abcd"), (4, true));
        assert_eq!(get(&DataConfig { vocab_size: 999, ..config.clone() }, "abc"), (3, true));
        for file in list(dir.path()).unwrap() {
            let mut bytes = fs::read(&file.path).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            fs::write(&file.path, bytes).unwrap();
        }
        assert_eq!((get(&config, "abc"), get(&config, "abc")), ((3, true), (3, false)));
    }

    #[test]
    fn only_files_of_ours_are_listed_and_cleared_and_none_that_is_being_written() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["tokens-v1-a.bin", "stories-v1-b.bin", "tokens-x.partial", "thesis.bin", "tokens-v1.txt"] {
            fs::write(dir.path().join(name), "12345").unwrap();
        }
        let kinds = |files: Vec<CacheFile>| {
            let mut kinds: Vec<_> = files.into_iter().map(|file| (format!("{:?}", file.kind), file.bytes)).collect();
            kinds.sort();
            kinds
        };
        let (tokens, stories) = (("Tokens".to_owned(), 5), ("Stories".to_owned(), 5));
        assert_eq!(kinds(list(dir.path()).unwrap()), [("Partial".into(), 5), stories.clone(), tokens.clone()]);
        assert_eq!(kinds(clear(dir.path()).unwrap()), [stories, tokens]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
        assert_eq!(list(&dir.path().join("none")).unwrap(), []);
    }
}
