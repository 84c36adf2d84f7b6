//! Which files a corpus consists of.

use std::path::{Path, PathBuf};

use super::{CorpusError, format::Format};

/// The files of the corpus at `path`: those of each line of it, where nothing has the whole as its name. At least one.
pub(super) fn files(path: &Path) -> Result<Vec<PathBuf>, CorpusError> {
    match path.to_str().filter(|text| text.contains('\n') && !path.exists()) {
        Some(paths) => {
            let files: Vec<Vec<PathBuf>> =
                paths.lines().map(|path| files_of(Path::new(path))).collect::<Result<_, _>>()?;
            Ok(files.concat())
        }
        None => files_of(path),
    }
}

/// The files of one path, sorted; at least one.
fn files_of(path: &Path) -> Result<Vec<PathBuf>, CorpusError> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_file() => Ok(vec![path.to_owned()]),
        Ok(meta) if meta.is_dir() => {
            let looked_for = "the folder holds no .txt, .md, .jsonl or .parquet file, nor a .gz or .zst of one; name the \
                              files by a glob if they are called otherwise";
            some_files(path, files_below(path)?, looked_for)
        }
        Ok(_) => Err(CorpusError::NotAFile { path: path.to_owned() }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => match path.to_str() {
            Some(pattern) if pattern.contains(['*', '?', '[']) => {
                let looked_for =
                    "the glob is relative to the current folder; quote it so that the shell leaves it alone";
                some_files(path, files_of_glob(pattern)?, looked_for)
            }
            _ => Err(CorpusError::Missing {
                path: path.to_owned(),
                folder: std::env::current_dir().unwrap_or_else(|_| PathBuf::from(".")),
            }),
        },
        Err(source) => Err(CorpusError::Unreadable { path: path.to_owned(), source }),
    }
}

fn some_files(path: &Path, mut files: Vec<PathBuf>, looked_for: &'static str) -> Result<Vec<PathBuf>, CorpusError> {
    if files.is_empty() {
        return Err(CorpusError::NoFiles { path: path.to_owned(), looked_for });
    }
    // The order of a directory listing differs between machines; the order of the text must not.
    files.sort();
    Ok(files)
}

fn files_below(folder: &Path) -> Result<Vec<PathBuf>, CorpusError> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(CorpusError::unreadable(&folder))? {
            let entry = entry.map_err(CorpusError::unreadable(&folder))?;
            let path = entry.path();
            // The entry's own type does not follow links, so that a link to a parent cannot make a loop.
            if entry.file_type().map_err(CorpusError::unreadable(&path))?.is_dir() {
                folders.push(path);
            } else if Format::is_known(&path) && path.is_file() {
                found.push(path);
            }
        }
    }
    Ok(found)
}

fn files_of_glob(pattern: &str) -> Result<Vec<PathBuf>, CorpusError> {
    let paths =
        glob::glob(pattern).map_err(|e| CorpusError::BadGlob { pattern: pattern.to_owned(), reason: e.to_string() })?;
    let mut found = Vec::new();
    for path in paths {
        let path = path.map_err(|e| {
            let path = e.path().to_owned();
            CorpusError::Unreadable { path, source: e.into() }
        })?;
        if path.is_file() {
            found.push(path);
        }
    }
    Ok(found)
}
